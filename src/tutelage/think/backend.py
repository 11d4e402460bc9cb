"""Next-token scores for a changing batch of rows: a causal language model and the cache it owns.

Promises: a row's scores do not depend on its neighbours (own positions, own mask, float32); nothing is
computed twice: forced tokens are fed like sampled ones, a fork copies, a withdrawn token is forgotten; models
whose attention does not look at the whole row are refused by name.
Does not: choose tokens or know about thinking.

`Backend` is what the engine needs of a model: five verbs over row handles. `HuggingFace` is the first: causal
language models with full attention. The Llama family runs through `llama`, every other model through its own
`forward`, in which only attention is ours; both keep keys and values in `slots`. A model that loops over its
layers has a backend of its own, `loops.Loops`.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tutelage.errors import UsageError
from tutelage.think.effort import Effort, check_effort
from tutelage.think.llama import Llama, fits
from tutelage.think.slots import Slots

# Most prompt tokens in one forward of a prefill: bounds its memory.
_PREFILL_TOKENS = 4_096
_ATTENTION = "tutelage_slots"


@dataclass(frozen=True, slots=True)
class Scores:
    """For each asked row: `logits` (rows, vocabulary), float32, after its last token, and `states` (rows,
    hidden width), the last hidden state that they come from."""

    logits: Tensor
    states: Tensor


class Backend(Protocol):
    """A model with its cache. A row is a handle; it holds the tokens fed to it.

    `max_steps`: the most passes of its core that a token may be given, None where nothing is passed again,
    and then no effort may be asked for. `core_steps`: passes times tokens so far."""

    context: int
    device: torch.device
    max_steps: int | None
    core_steps: int

    def prefill(
        self, prompts: Sequence[Sequence[int]], efforts: Sequence[Effort] = ()
    ) -> tuple[list[int], Scores]:
        """New rows that hold `prompts`, and the scores after each. `efforts`: how deep the tokens of each row
        are thought about from now on; empty: as deep as the model does by itself."""
        ...

    def passes(self, row: int) -> Sequence[int]:
        """The core passes behind each token that `row` holds; empty where nothing is passed again."""
        ...

    def fork(self, row: int, length: int) -> int:
        """A new row that holds the first `length` tokens of `row`, with its effort. Nothing is computed."""
        ...

    def decode(self, tokens: Mapping[int, int], wanted: Sequence[int]) -> Scores:
        """Feed one token to every row there is; the scores of the `wanted` ones."""
        ...

    def withdraw(self, row: int, count: int) -> None:
        """Take the last `count` tokens of `row` back."""
        ...

    def free(self, row: int) -> None:
        """Forget `row`."""
        ...


class HuggingFace:
    """A `Backend` for a causal language model of transformers."""

    max_steps: int | None = None
    core_steps: int = 0

    def __init__(self, model: Any) -> None:
        """Raises UsageError that names the model's kind when it cannot be run here."""
        self.context = check_model(model)
        self.model = model
        self.device: torch.device = model.device
        self._lean = Llama(model) if fits(model) else None
        config = model.config
        heads = config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        self._layers: int = config.num_hidden_layers
        self._slots = Slots(
            self._layers,
            getattr(config, "num_key_value_heads", None) or heads,
            width,
            self.device,
            model.dtype,
        )

    def prefill(
        self, prompts: Sequence[Sequence[int]], efforts: Sequence[Effort] = ()
    ) -> tuple[list[int], Scores]:
        """See `Backend`. Prompts are computed some thousand tokens at a time. Raises UsageError for an
        effort, which no model here can make."""
        for effort in efforts:
            check_effort(effort, None, _name(self.model))
        rows = [self._slots.new(len(prompt)) for prompt in prompts]
        logits, states, done = [], [], 0
        while done < len(prompts):
            end, total = done, 0
            while end < len(prompts) and (end == done or total + len(prompts[end]) <= _PREFILL_TOKENS):
                total += len(prompts[end])
                end += 1
            run = self._prefill_lean if self._lean is not None else self._prefill_padded
            found = run(prompts[done:end], rows[done:end])
            logits.append(found.logits)
            states.append(found.states)
            done = end
        return rows, Scores(torch.cat(logits), torch.cat(states))

    def fork(self, row: int, length: int) -> int:
        """See `Backend`."""
        return self._slots.fork(row, length)

    def decode(self, tokens: Mapping[int, int], wanted: Sequence[int]) -> Scores:
        """See `Backend`."""
        positions = self._slots.advance(list(tokens))
        order = self._slots.order()
        ids = torch.tensor([tokens[row] for row in order], device=self.device)
        place = {row: k for k, row in enumerate(order)}
        asked = torch.tensor([place[row] for row in wanted], dtype=torch.long, device=self.device)
        if self._lean is not None:
            states = self._lean.hidden(ids, positions, self._slots.attend)[asked]
            return Scores(self._lean.scores(states) if len(states) else states, states)
        with _taking_part(_Decoding(self._slots)) as part:
            found = self._forward(ids[:, None], positions[:, None], self._mask(len(ids), 1))
        self._attended(part)
        return Scores(found.logits[asked], found.states[asked])

    def withdraw(self, row: int, count: int) -> None:
        """See `Backend`."""
        self._slots.cut(row, self._slots.length[row] - count)

    def free(self, row: int) -> None:
        """See `Backend`."""
        self._slots.free(row)

    def passes(self, row: int) -> Sequence[int]:
        """See `Backend`."""
        return ()

    def _prefill_lean(self, prompts: Sequence[Sequence[int]], rows: Sequence[int]) -> Scores:
        assert self._lean is not None
        lengths = [len(prompt) for prompt in prompts]
        ids = torch.tensor([token for prompt in prompts for token in prompt], device=self.device)
        positions = torch.cat([torch.arange(length, device=self.device) for length in lengths])
        ends = [sum(lengths[: k + 1]) for k in range(len(lengths))]

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
            mixed = []
            for row, length, end in zip(rows, lengths, ends, strict=True):
                mine = slice(end - length, end)
                self._slots.store(layer, row, key[mine], value[mine])
                q, k, v = (part[mine].transpose(0, 1)[None] for part in (query, key, value))
                out = functional.scaled_dot_product_attention(
                    q, k, v, is_causal=True, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
                )
                mixed.append(out[0].transpose(0, 1))
            return torch.cat(mixed)

        hidden = self._lean.hidden(ids, positions, attend)
        states = hidden[torch.tensor(ends, device=self.device) - 1]
        return Scores(self._lean.scores(states), states)

    def _prefill_padded(self, prompts: Sequence[Sequence[int]], rows: Sequence[int]) -> Scores:
        width = max(len(prompt) for prompt in prompts)
        ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=self.device)
        lengths = torch.tensor([len(p) for p in prompts], device=self.device)
        real = torch.arange(width, device=self.device)[None] >= width - lengths[:, None]
        causal = torch.ones((width, width), dtype=torch.bool, device=self.device).tril()
        mask = self._mask(len(prompts), width)
        mask.masked_fill_(~(real[:, None, None] & causal), torch.finfo(mask.dtype).min)
        with _taking_part(_Prefilling(self._slots, rows, [len(p) for p in prompts])) as part:
            found = self._forward(ids, (real.cumsum(dim=1) - 1).clamp(min=0), mask)
        self._attended(part)
        return found

    def _mask(self, rows: int, width: int) -> Tensor:
        return torch.zeros((rows, 1, width, width), dtype=self.model.dtype, device=self.device)

    def _forward(self, ids: Tensor, positions: Tensor, mask: Tensor) -> Scores:
        config, states = self.model.config, []
        hook = self.model.get_output_embeddings().register_forward_pre_hook(
            lambda module, args: states.append(args[0])
        )
        usual = config._attn_implementation
        # For this call only: training the same model goes on as it was.
        config._attn_implementation = _ATTENTION
        try:
            out = self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=Cache(layers=[_Through() for _ in range(self._layers)]),
                use_cache=True,
                logits_to_keep=1,
            )
        finally:
            config._attn_implementation = usual
            hook.remove()
        return Scores(out.logits[:, -1].float(), states[-1][:, -1])

    def _attended(self, part: _Prefilling | _Decoding) -> None:
        if part.calls != self._layers:
            raise UsageError(
                f"{_name(self.model)}: {part.calls} of its {self._layers} layers let their attention be "
                "replaced, which is needed here; use a decoder-only model with full attention"
            )


class _Through(CacheLayerMixin):  # type: ignore[misc]
    """What a model of transformers takes for its cache: new keys and values go through to our attention,
    which keeps them."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1


@dataclass(slots=True)
class _Prefilling:
    """Rows being prefilled, padded at their left to one width."""

    slots: Slots
    rows: Sequence[int]
    lengths: Sequence[int]
    calls: int = 0


@dataclass(slots=True)
class _Decoding:
    """Rows that get one token each, in the order of the slots."""

    slots: Slots
    calls: int = 0


# Attention is called from inside the model, which passes no more on than it knows; engines may run in
# several threads.
_now = threading.local()


@contextmanager
def _taking_part(part: _Prefilling | _Decoding) -> Iterator[_Prefilling | _Decoding]:
    _now.part = part
    try:
        yield part
    finally:
        _now.part = None


def slot_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention of transformers' shapes, (rows, heads, tokens, width), over what the slots hold. Returns
    (rows, tokens, heads, width)."""
    part: _Prefilling | _Decoding = _now.part
    layer = part.calls
    part.calls += 1
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    for name in ("softcap", "s_aux", "position_bias"):
        if options.get(name) is not None:
            raise UsageError(f"{module.config.model_type}: attention with {name} cannot be run here")
    if isinstance(part, _Decoding):
        mixed = part.slots.attend(layer, query[:, :, 0], key[:, :, 0], value[:, :, 0], scale)
        return mixed[:, None], None
    for k, (row, length) in enumerate(zip(part.rows, part.lengths, strict=True)):
        mine = [each[k, :, -length:].transpose(0, 1) for each in (key, value)]
        part.slots.store(layer, row, *mine)
    out: tuple[Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, **options
    )
    return out


ALL_ATTENTION_FUNCTIONS.register(_ATTENTION, slot_attention)


def _name(model: Any) -> str:
    return f"{model.config.model_type} ({type(model).__name__})"


def check_model(model: Any) -> int:
    """The model's context length in tokens. Raises UsageError for models that this backend cannot run."""
    config = model.config
    name = _name(model)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    sliding = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    forward = getattr(model, "get_base_model", lambda: model)().forward
    if getattr(config, "is_encoder_decoder", False):
        raise UsageError(f"{name}: encoder-decoder models cannot be run here; use a decoder-only model")
    if config.get_text_config() is not config:
        raise UsageError(
            f"{name}: models of text and images cannot be run here; load the language model alone"
        )
    if getattr(config, "alibi", False):
        raise UsageError(f"{name}: ALiBi takes positions from where a key lies; use a model with rotary ones")
    if kinds != {"full_attention"} or (sliding and not getattr(config, "layer_types", None)):
        other = sorted(kinds - {"full_attention"}) or ["sliding_attention"]
        raise UsageError(
            f"{name}: layers with {other[0]} cannot be run here; use a model with full attention"
        )
    if not {"position_ids", "past_key_values", "logits_to_keep"} <= set(
        inspect.signature(forward).parameters
    ):
        raise UsageError(f"{name}: this model takes no explicit positions and cache, which is needed here")
    if config._attn_implementation not in ("sdpa", "eager"):
        raise UsageError(
            f"{name}: attention {config._attn_implementation!r} is not supported; load it with 'sdpa'"
        )
    if not getattr(getattr(model, "get_base_model", lambda: model)(), "_supports_attention_backend", False):
        raise UsageError(f"{name}: the attention of this model cannot be replaced, which is needed here")
    context = int(config.max_position_embeddings)
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        # One row beyond this length would change the rotations of all its neighbours.
        context = min(context, int(rope["original_max_position_embeddings"]))
    return context
