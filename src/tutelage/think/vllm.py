"""A logits processor for vLLM: minimum, maximum and wait strings of the thinking, for each request.

    vllm serve MODEL --logits-processors tutelage.think.vllm:ThinkingProcessor

and in a request `"vllm_xargs": {"min_thinking_tokens": 256, "thinking_wait": "Wait", ...}`: the fields of
our server (`vllm_rows.FIELDS`). Requests without one of them are left alone.

Promises: rows are followed through whatever vLLM does to its batch; what cannot be kept is refused when the
server starts (speculative decoding) or when the request comes (400, with the field's name).
Does not: report what was enforced (vLLM's reply has no place for it), or touch the answer. `vllm_rows` is
what it does to a request; this file only translates vLLM's two interfaces for it.

vLLM has two model runners with an interface each, and newer versions have both: `ThinkingProcessor` is for
the default one of the installed version, `ThinkingProcessorV1` and `ThinkingProcessorV2` are for those who
choose. vLLM itself says at its start when the wrong one was named. Without vLLM this file can be imported,
and its classes have no base.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tutelage.errors import UsageError
from tutelage.think.vllm_rows import Row, Rows, logger, read_controls

if TYPE_CHECKING:
    from torch import Tensor

OPEN, CLOSE = "<think>", "</think>"


def _base(module: str) -> Any:
    """The base class of an interface, `object` where this vLLM does not have it."""
    try:
        return importlib.import_module(module).LogitsProcessor
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "vllm":
            raise
        return object


_V1: Any = _base("vllm.v1.sample.logits_processor")
_V2: Any = _base("vllm.v1.worker.gpu.sample.logits_processor")


def check_server(config: Any) -> None:
    """Raises ValueError for a vLLM that is set up so that thinking cannot be controlled."""
    if config.speculative_config is not None:
        raise ValueError(
            "tutelage: thinking cannot be controlled under speculative decoding; leave --speculative-config "
            "out"
        )
    if config.model_config.skip_tokenizer_init:
        raise ValueError("tutelage: --skip-tokenizer-init leaves no tokenizer to find the markers with")
    if getattr(config.parallel_config, "enable_batch_sharded_sampling", False):
        raise ValueError("tutelage: batch-sharded sampling hides rows from the processor; switch it off")


def check_request(params: Any) -> None:
    """Raises ValueError, which vLLM answers with 400, for controls that cannot be kept."""
    try:
        policy = read_controls(params.extra_args)
    except UsageError as error:
        raise ValueError(str(error)) from None
    if policy is None:
        return
    if getattr(params, "thinking_token_budget", None) is not None:
        raise ValueError(
            "thinking_token_budget: put it beside the other controls in vllm_xargs; at the top level it is "
            "vLLM's own, which would overrule them"
        )
    if params.max_tokens is not None and params.max_tokens <= policy.answer_reserve:
        raise ValueError(
            f"max_tokens {params.max_tokens} leaves no room to think beside answer_reserve "
            f"{policy.answer_reserve}"
        )


def open_rows(config: Any) -> Rows:
    """What a processor keeps, with the tokenizer of the served model; `--additional-config` may name other
    markers: {"tutelage": {"think_open": ..., "think_close": ...}}."""
    from transformers import AutoTokenizer

    model = config.model_config
    tokenizer = AutoTokenizer.from_pretrained(
        model.tokenizer, revision=model.tokenizer_revision, trust_remote_code=False
    )
    more = getattr(config, "additional_config", None)
    given = (more.get("tutelage") if isinstance(more, dict) else None) or {}
    unknown = sorted(set(given) - {"think_open", "think_close"})
    if unknown:
        raise ValueError(f"tutelage: --additional-config: unknown field {unknown[0]!r}")
    return Rows(
        tokenizer, model.max_model_len, given.get("think_open", OPEN), given.get("think_close", CLOSE)
    )


class _Processor:
    """What the two interfaces have in common."""

    _rows: Rows

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """See `check_request`."""
        check_request(sampling_params)

    def _write(self, logits: Tensor, found: Sequence[tuple[int, int, Row]]) -> list[int]:
        """Write the next ids of `found` (line, key, row) into `logits`; returns the keys of those rows whose
        thinking is over, or out of our hands."""
        over = [key for _, key, row in found if row.over]
        places = [(line, row) for line, _, row in found if not row.over]
        if places:
            self._rows.choose(logits, places)
        return over


class ThinkingProcessorV1(_Processor, _V1):  # type: ignore[misc]
    """For vLLM's first model runner: `vllm.v1.sample.logits_processor.LogitsProcessor`."""

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
        check_server(vllm_config)
        self._rows = open_rows(vllm_config)
        self._at: dict[int, Row] = {}

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """See `check_request`; here penalties come after the processor, and would be without effect."""
        check_request(sampling_params)
        if read_controls(sampling_params.extra_args) is None:
            return
        neutral = {"presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0}
        for name, value in neutral.items():
            if getattr(sampling_params, name) != value:
                raise ValueError(
                    f"{name}: this model runner applies it after the control of thinking; leave it out"
                )

    def is_argmax_invariant(self) -> bool:
        """No: greedy requests are controlled too."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Follow the batch: what left, what came, what moved, in this order."""
        if batch_update is None:
            return
        for index in batch_update.removed:
            self._rows.park(self._at.pop(index, None))
        for index, params, prompt, output in batch_update.added:
            self._rows.park(self._at.pop(index, None))
            # One that was preempted may come back before what took its old place is told.
            row = self._rows.begin(params, prompt, output, self._at.values())
            if row is not None:
                row.output = output  # vLLM's own list: it grows
                self._at[index] = row
        for first, second, way in batch_update.moved:
            one, other = self._at.pop(first, None), self._at.pop(second, None)
            if one is not None:
                self._at[second] = one
            if way.name != "SWAP":
                self._rows.park(other)  # it was removed, and this is all that is said about it
            elif other is not None:
                self._at[first] = other

    def apply(self, logits: Tensor) -> Tensor:
        """Change the lines of the requests that think; `logits` (requests, vocabulary)."""
        found = []
        for index, row in list(self._at.items()):
            count = len(row.output)
            if not row.commit(count, row.output[-1] if count else None):
                _lost(self._at.pop(index))
                continue
            found.append((index, index, row))
        for index in self._write(logits, found):
            del self._at[index]
        return logits


class ThinkingProcessorV2(_Processor, _V2):  # type: ignore[misc]
    """For vLLM's second model runner: `vllm.v1.worker.gpu.sample.logits_processor.LogitsProcessor`.

    Reading which ids were written waits for the device once in each step in which some request thinks."""

    def __init__(self, vllm_config: Any, req_states: Any) -> None:
        check_server(vllm_config)
        self._rows = open_rows(vllm_config)
        self._states = req_states
        self._at: dict[int, Row] = {}
        self._new: dict[int, Any] = {}

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """A request takes slot `req_idx`; its tokens are read with its first scores."""
        self._rows.park(self._at.pop(req_idx, None))
        self._new.pop(req_idx, None)
        if read_controls(sampling_params.extra_args) is None:
            return False
        self._new[req_idx] = sampling_params
        return True

    def apply(self, logits: Tensor, ctx: Any) -> Tensor:
        """Change the lines of the requests that think; `logits` (lines, vocabulary)."""
        slots = ctx.idx_mapping_np.tolist()
        if not any(slot in self._at or slot in self._new for slot in slots):
            return logits
        visible = [position + 1 for position in ctx.pos.tolist()]
        last = ctx.input_ids.tolist()
        found = []
        for line, slot in enumerate(slots):
            if visible[line] < int(self._states.prefill_len.np[slot]):
                continue  # in the middle of its prompt: what is sampled here is thrown away
            row = self._at.get(slot)
            if slot in self._new:
                row = self._begin(slot, self._new.pop(slot), visible[line])
            elif row is not None and not row.commit(
                visible[line] - int(self._states.prompt_len.np[slot]), last[line]
            ):
                _lost(self._at.pop(slot))
                row = None
            if row is not None:
                found.append((line, slot, row))
        for slot in self._write(logits, found):
            del self._at[slot]
        return logits

    def _begin(self, slot: int, params: Any, visible: int) -> Row | None:
        length = int(self._states.prompt_len.np[slot])
        ids = self._states.all_token_ids.gpu[slot, :visible].tolist()
        # A request that was preempted may still stand in its old slot.
        row = self._rows.begin(params, ids[:length], ids[length:], self._at.values())
        if row is not None:
            row.fresh = None  # parts of a prompt do not come here
            self._at[slot] = row
        return row


def _lost(row: Row) -> None:
    logger.warning(
        "the thinking of a request is not controlled any more: instead of id %s, chosen for place %d of its "
        "reply, something else was written",
        row.last,
        row.done,
    )


ThinkingProcessor: Any = ThinkingProcessorV1 if _V2 is object else ThinkingProcessorV2
"""For the model runner that the installed vLLM uses unless told otherwise."""
