"""What the vLLM plug-in does to one request: its controls, and the machine that plays them over scores.

Promises: the same machine, the same sampler and the same random numbers as in our engine, so that equal
scores give the same thinking, id for id; nothing is done in the answer; a request that was preempted goes on
where it was; what cannot be kept is refused when the request comes, with the field's name.
Does not: know vLLM (see `vllm`).

A logits processor sees scores before anything is sampled, and cannot take back what was fed. So while a
request thinks, its id is drawn here and vLLM is left no other one: where the draw would close the thinking
and may not, the wait string comes instead. Only the beginning of a refused marker of several tokens stays, as
thinking.
"""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from tutelage.errors import UsageError
from tutelage.think.policy import ThinkingPolicy
from tutelage.tokens import decode_ids

if TYPE_CHECKING:
    from torch import Tensor

    from tutelage.think.machine import Machine, State
    from tutelage.think.sampling import Sampling

logger = logging.getLogger(__name__)

# The fields of a request (`vllm_xargs`), and what they are called in the policy.
FIELDS = {
    "thinking_token_budget": "max_tokens",
    "min_thinking_tokens": "min_tokens",
    "thinking_wait": "wait",
    "thinking_max_waits": "max_waits",
    "thinking_refuse_closes": "refuse_closes",
    "thinking_close": "close",
    "thinking_grace_tokens": "grace_tokens",
    "thinking_close_text": "close_text",
    "answer_reserve": "answer_reserve",
}
UNLIMITED = -1
# Preempted or finished requests whose state is kept, in case they come back.
_PARKED = 512


def read_controls(extra: Mapping[str, Any] | None) -> ThinkingPolicy | None:
    """The policy that a request's extra arguments ask for; None where they ask for nothing.

    Raises UsageError that names the field."""
    given: dict[str, Any] = {}
    for name, value in (extra or {}).items():
        if name in FIELDS:
            given[FIELDS[name]] = value
        elif any(word in name.lower() for word in ("think", "reason", "budget")):
            raise UsageError(f"vllm_xargs.{name}: not a control of thinking; known: {', '.join(FIELDS)}")
    if not given:
        return None
    if given.get("max_tokens") == UNLIMITED:
        given["max_tokens"] = None
    if isinstance(given.get("wait"), list):
        given["wait"] = tuple(given["wait"])
    try:
        return ThinkingPolicy(**given)
    except UsageError as error:
        message = str(error).removeprefix("thinking policy: ")
        for wire, control in FIELDS.items():
            message = message.replace(control, wire) if control in given else message
        raise UsageError(f"vllm_xargs: {message}") from None


@dataclass(slots=True)
class Row:
    """One controlled request. `done` ids of its reply are known to be written; `queue` are those that come
    next, whatever the scores are. `fresh` and `waiting`: state and queue before the first choice since the
    request (re)entered the batch: until that choice is seen to be kept, it may have been made in the middle
    of a prefill. `output`: where the caller keeps what was written."""

    state: State
    sampling: Sampling
    seed: int
    prompt: bytes
    queue: list[int] = field(default_factory=list)
    done: int = 0
    fresh: State | None = None
    waiting: tuple[int, ...] = ()
    last: int | None = None
    output: list[int] = field(default_factory=list)

    @property
    def over(self) -> bool:
        """Whether nothing is left to do: the model answers."""
        return not self.queue and self.state.progress.stage in ("answer", "done")

    def written(self) -> list[int]:
        """The ids of the reply up to here."""
        ids = self.state.ids
        return ids[: len(ids) - len(self.queue)]

    def commit(self, count: int, last: int | None) -> bool:
        """`count` ids of the reply are there, the last of them `last`. False: they are not those that were
        chosen here, so something else has overruled us."""
        if self.fresh is not None and count == self.done:
            # What was chosen last was thrown away: those were the scores of a part of the prompt.
            self.state, self.queue = _copied(self.fresh), list(self.waiting)
            return True
        if count > self.done:
            self.fresh = None
        kept = count == self.done or (count == self.done + 1 and last == self.last)
        self.done = count
        return kept

    def again(self, output: list[int]) -> Row | None:
        """A row that goes on after `output`, where that is what this one has written; else None."""
        here = self.written()
        if here == output:
            return replace(self, state=_copied(self.state), queue=list(self.queue))
        if self.fresh is not None and here[:-1] == output:
            return replace(self, state=_copied(self.fresh), queue=list(self.waiting))
        if output and here[:-1] == output:  # the last choice was thrown away with its place in the batch
            return replace(self, state=_copied(self.state), queue=[here[-1], *self.queue])
        return None

    def enter(self, count: int) -> None:
        """The request enters the batch, `count` ids of its reply being there."""
        self.done, self.last = count, None
        self.fresh, self.waiting = _copied(self.state), tuple(self.queue)


def _copied(state: State) -> State:
    other = copy(state)
    other.ids, other.phases, other.forced = list(state.ids), state.phases[:], state.forced[:]
    return other


class Rows:
    """The controlled requests of one processor: how they begin, are parked, and are told their next ids."""

    def __init__(self, tokenizer: Any, context: int, think_open: str, think_close: str) -> None:
        """`context`: tokens that prompt and reply share. Raises UsageError for markers that are none."""
        from tutelage.students.template import Template, markers

        self._tokenizer, self._context = tokenizer, context
        self._templates = {
            prefill: Template(think_open=think_open, think_close=think_close, prefill=prefill)
            for prefill in (True, False)
        }
        self._marks = markers(tokenizer, self._templates[True])
        self._machine = lru_cache(maxsize=256)(self._compile)
        self._blank = lru_cache(maxsize=4096)(lambda token: decode_ids(tokenizer, [token]).isspace())
        self._parked: OrderedDict[int, Row] = OrderedDict()
        self._begun = 0

    def _compile(self, policy: ThinkingPolicy, prefilled: bool) -> Machine:
        return policy.compile(self._tokenizer, self._templates[prefilled])

    def begin(
        self, params: Any, prompt: Sequence[int] | None, output: Sequence[int], others: Iterable[Row] = ()
    ) -> Row | None:
        """The row of a request with these sampling parameters, of whose reply `output` is there already;
        None where there is nothing to control (any more). `others`: rows, beside the parked ones, which may
        be that of this request before it was preempted."""
        from tutelage.students.template import find
        from tutelage.think.sampling import Sampling

        policy = read_controls(params.extra_args)
        self._begun += 1
        if policy is None:
            return None
        if prompt is None:
            logger.warning("a request runs without control of its thinking: its prompt has no token ids")
            return None
        opened, closed = self._opened(prompt)
        if closed and not policy.refuses:
            return None  # the template has thinking switched off, and nothing asks for it
        try:
            machine = self._machine(policy, opened)
            ends = machine.end | set(getattr(params, "all_stop_token_ids", ()) or ())
            machine = replace(machine, end=frozenset(ends - set(machine.close)))
            left = self._context - len(prompt)
            room = left if params.max_tokens is None else min(left, params.max_tokens)
            state = machine.start(room, prompt[-1] if prompt else 0, append_only=True)
        except UsageError as error:
            # The request runs already; raising here would end the whole server.
            logger.warning("a request runs without control of its thinking: %s", error)
            return None
        heat = 0.0 if params.temperature < 1e-5 else params.temperature
        sampling = Sampling(heat, params.top_p, max(params.top_k, 0), params.min_p)
        # All workers of a model must draw the same, so not even an unseeded request gets its seed from the
        # clock: from its place in the order of requests instead, which is the same in all of them.
        mark = hashlib.blake2b(repr(list(prompt)).encode(), digest_size=8).digest()
        seed = params.seed
        if seed is None:
            drawn = hashlib.blake2b(mark + str(self._begun).encode(), digest_size=8).digest()
            seed = int.from_bytes(drawn, "big") >> 1
        row = Row(state, sampling, seed, mark, list(state.opening))
        if output:
            found = self._known(row, list(output), others) or _replayed(row, list(output))
            if found is None:
                # No refused marker is ever completed: where there is one, the thinking is over anyway.
                if find(output, self._marks.close) < 0:
                    logger.warning("a request came back with a reply begun elsewhere; it is not controlled")
                return None
            row = found
        if row.over:
            return None
        row.enter(len(output))
        return row

    def _opened(self, prompt: Sequence[int]) -> tuple[bool, bool]:
        """Whether the prompt ends with an open thinking, and whether with one that is closed already."""
        tails = [tuple(prompt)]
        while len(tails) < 4 and tails[-1] and self._blank(tails[-1][-1]):
            tails.append(tails[-1][:-1])

        def ends(marker: tuple[int, ...]) -> bool:
            return any(tail[max(len(tail) - len(marker), 0) :] == marker for tail in tails)

        return ends(self._marks.open), ends(self._marks.close)

    def park(self, row: Row | None) -> None:
        """Keep the state of a request that left the batch: it may have been preempted."""
        if row is not None and not row.over:
            self._parked[id(row)] = row
            while len(self._parked) > _PARKED:
                self._parked.popitem(last=False)

    def _known(self, like: Row, output: list[int], others: Iterable[Row]) -> Row | None:
        """A copy of the row that wrote `output`. Where two did, either will do: the other stays."""
        for row in (*self._parked.values(), *others):
            same = row.state.machine == like.state.machine and row.prompt == like.prompt
            if same and row.sampling == like.sampling and (found := row.again(output)) is not None:
                return found
        return None

    def choose(self, logits: Tensor, places: Sequence[tuple[int, Row]]) -> None:
        """Leave each of `places` (line of `logits`, row) the one id that it writes next.

        `logits` (lines, vocabulary) are changed in place; other lines are not."""
        import torch

        drawing = [(line, row) for line, row in places if not row.queue]
        if drawing:
            self._draw(logits[[line for line, _ in drawing]].float(), [row for _, row in drawing])
        lines = torch.tensor([line for line, _ in places], device=logits.device)
        ids = torch.tensor([_next(row) for _, row in places], device=logits.device)
        logits[lines] = float("-inf")
        logits[lines, ids] = 0.0

    def _draw(self, scores: Tensor, rows: Sequence[Row]) -> None:
        """Sample an id for each row from its line of `scores` and offer it, until the machine takes one."""
        from tutelage.think.sampling import choose, uniforms

        open_rows = list(range(len(rows)))
        while open_rows:
            mine = [rows[i] for i in open_rows]
            u = uniforms(
                [row.seed for row in mine],
                [len(row.state.ids) for row in mine],
                [row.state.progress.refused for row in mine],
            )
            found = choose(scores[open_rows], [row.sampling for row in mine], u)
            again = []
            for i, row, token in zip(open_rows, mine, found, strict=True):
                step = row.state.step(token, scores[i] if row.state.wants_scores else None)
                row.queue += step.feed
                if not step.feed:
                    scores[i, list(step.banned)] = float("-inf")
                    again.append(i)
            open_rows = again


def _next(row: Row) -> int:
    row.last = row.queue.pop(0)
    return row.last


def _replayed(row: Row, output: list[int]) -> Row | None:
    """`row` as it is after `output`, as far as ids can tell: a close that was masked leaves no sign; a wait
    string is taken for a refused close wherever one may be refused, if it is there as a whole. None where
    they do not fit."""
    state, queue = row.state, row.queue
    at = 0
    while at < len(output) and not row.over:
        if queue:
            if output[at] != queue.pop(0):
                return None
            at += 1
            continue
        script, progress = state.machine.script, state.progress
        wait = script.waits[progress.waits % len(script.waits)].ids if script.waits else ()
        if wait and tuple(output[at : at + len(wait)]) == wait:
            before = _copied(state)
            step = state.step(min(state.machine.end))
            if step.feed == wait:
                queue += step.feed
                continue
            row.state = state = before
        if state.wants_scores:  # whether it was to close here, its scores would have told
            return None
        step = state.step(output[at])
        if output[at] not in step.feed[:1]:
            return None
        queue += step.feed[1:]
        at += 1
    return row
