"""Self-speculation: a recurrent-depth model drafts with few loops and checks with many.

Promises: every score that is handed out is the deep one, of exactly the tokens that the row was fed, so that
a reply is that of deep decoding under any policy, sampling, wait or budget, in any batch (several positions
are computed in one product instead of one after the other: the last bits of a score may differ, and a tie, or
a draw at the very edge of a token's share, may fall otherwise); what turns out to be wrong is forgotten.
Does not: choose tokens (the engine does, and knows nothing of drafts), or speed up what cannot be checked
side by side: rows that are continuous, and exits that read predictions (see `Loops.extend`), are decoded as
ever.

How: for a row whose next scores are wanted, up to `lookahead` tokens are drafted greedily with `draft_steps`
passes. Their keys and values are taken back, the fed token and the drafts are computed deep in one `extend`,
and the scores after each are kept. As long as the engine then feeds what was drafted, they are handed out and
nothing is computed; where it feeds something else, what was kept is dropped and all starts again there. While
some row computes, rows that run low draft on beside it: alone they would each need a pass of their own soon.
How far a row drafts follows what was accepted of it last: one more than that, two more when all was.

Source: Geiping et al. 2025 (arXiv 2502.05171), section 6.4. There the drafts' states are the start of the
check; here each token is computed as without drafts, which is what makes equality exact.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tutelage.errors import UsageError
from tutelage.students.recurrent.config import slots_of
from tutelage.students.recurrent.exits import predicts
from tutelage.think.backend import Scores
from tutelage.think.effort import Effort
from tutelage.think.loops import Loops


@dataclass(frozen=True, slots=True)
class _Kept:
    """A drafted `token` that the model's cache holds, with the deep scores after it: `logits` (vocabulary,)
    and `state` (width,). `guessed` from deep scores it is no draft: greedy decoding is sure to take it."""

    token: int
    logits: Tensor
    state: Tensor
    guessed: bool = False


@dataclass(slots=True)
class _Row:
    """The engine's row of `length` tokens; `ahead` of them the cache holds more. `draft`: how drafts are
    thought about, None where the row cannot be checked side by side. `reach`: how far it drafts; `hits`:
    drafts accepted since it last did not know what it was fed."""

    effort: Effort
    draft: Effort | None
    length: int
    reach: int
    hits: int = 0
    ahead: deque[_Kept] = field(default_factory=deque)


@dataclass(slots=True)
class Drafts:
    """Tokens `drafted`, and `accepted` of them: fed by the engine with their scores known. Those behind the
    end of a reply were drafted in vain. `checks`: rows computed deep; `alone`: of these without a draft."""

    drafted: int = 0
    accepted: int = 0
    checks: int = 0
    alone: int = 0

    @property
    def rate(self) -> float:
        """The share of drafts that were accepted, 0 where nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else 0.0


class Speculating:
    """A `Backend` around `loops` that drafts with `draft_steps` passes, up to `lookahead` tokens ahead."""

    def __init__(self, loops: Loops, draft_steps: int, lookahead: int = 8) -> None:
        """Raises UsageError for a draft that is not shallower than what the model can do, for no lookahead,
        and for a shared cache, where a token computed beside others differs from one computed after them."""
        loops.bound(Effort(draft_steps))
        if draft_steps == loops.max_steps:
            raise UsageError(
                f"draft_steps is {draft_steps}, all that this model does; write less than {loops.max_steps}"
            )
        if lookahead < 1:
            raise UsageError(f"lookahead is {lookahead}; at least one token is drafted")
        if slots_of(loops.cache) is not None:
            raise UsageError(f"speculation: loop cache {loops.cache!r} is not exact there; use 'latest'")
        self.context = loops.context
        self.device = loops.device
        self.max_steps: int | None = loops.max_steps
        self.core_steps = 0  # of drafts too
        self.drafts = Drafts()
        self._loops, self._steps, self._lookahead = loops, draft_steps, lookahead
        self._rows: dict[int, _Row] = {}

    def prefill(
        self, prompts: Sequence[Sequence[int]], efforts: Sequence[Effort] = ()
    ) -> tuple[list[int], Scores]:
        """See `Backend`."""
        efforts = efforts or [Effort()] * len(prompts)
        rows, scores = self._loops.prefill(prompts, efforts)
        for row, prompt, effort in zip(rows, prompts, efforts, strict=True):
            self._rows[row] = _Row(effort, self._draft_of(effort), len(prompt), self._lookahead)
        self.core_steps = self._loops.core_steps
        return rows, scores

    def fork(self, row: int, length: int) -> int:
        """See `Backend`. What was drafted stays with `row`."""
        copy, source = self._loops.fork(row, length), self._rows[row]
        self._rows[copy] = _Row(source.effort, source.draft, length, source.reach)
        return copy

    def decode(self, tokens: Mapping[int, int], wanted: Sequence[int]) -> Scores:
        """See `Backend`."""
        found: dict[int, _Kept] = {}
        fresh: dict[int, int] = {}
        asked = set(wanted)
        for row, token in tokens.items():
            known = self._rows[row]
            known.length += 1
            if known.ahead and known.ahead[0].token == token:
                found[row] = known.ahead.popleft()
                known.hits += 1
                self.drafts.accepted += not found[row].guessed
                continue
            known.reach = known.hits + 1 if known.ahead else known.reach + 2
            known.reach, known.hits = min(known.reach, self._lookahead), 0
            self._forget(row, known)
            fresh[row] = token
        if fresh:
            low = {row: self._guess(row, found) for row in found if row in asked and self._runs_low(row)}
            self._compute(fresh, low, asked)
            for row in fresh:
                found[row] = self._rows[row].ahead.popleft()
        first = next(iter(found.values()))
        if not wanted:
            return Scores(
                first.logits.new_empty(0, len(first.logits)), first.state.new_empty(0, len(first.state))
            )
        # Copies: the engine writes into what it is given.
        return Scores(
            torch.stack([found[row].logits for row in wanted]),
            torch.stack([found[row].state for row in wanted]),
        )

    def withdraw(self, row: int, count: int) -> None:
        """See `Backend`."""
        known = self._rows[row]
        self._forget(row, known, count)
        known.length -= count

    def free(self, row: int) -> None:
        """See `Backend`."""
        self._loops.free(row)
        del self._rows[row]

    def passes(self, row: int) -> Sequence[int]:
        """See `Backend`. Those of the deep computation."""
        return self._loops.passes(row)[: self._rows[row].length]

    def _draft_of(self, effort: Effort) -> Effort | None:
        """How drafts of a row of that effort are thought about, None where it is not to be drafted."""
        if effort.continuous or (effort.exit is not None and predicts(effort.exit)):
            return None
        return Effort(self._steps, effort.exit) if self._loops.bound(effort) > self._steps else None

    def _forget(self, row: int, known: _Row, more: int = 0) -> None:
        """Take back what was drafted, and `more` tokens before it."""
        if count := len(known.ahead) + more:
            self._loops.withdraw(row, count)
            known.ahead.clear()

    def _runs_low(self, row: int) -> bool:
        known = self._rows[row]
        held = known.length + len(known.ahead)
        return known.draft is not None and 2 * len(known.ahead) < known.reach and held < self.context

    def _guess(self, row: int, found: Mapping[int, _Kept]) -> int:
        """The likeliest token behind all that `row` holds, by scores that are known."""
        ahead = self._rows[row].ahead
        return int((ahead[-1] if ahead else found[row]).logits.argmax())

    def _compute(self, fresh: Mapping[int, int], low: Mapping[int, int], asked: Collection[int]) -> None:
        """Feed each row its token, with drafts behind it, and keep the deep scores after each: `fresh` ones
        were fed by the engine, `low` ones are drafts themselves."""
        drafts: dict[int, list[int]] = {row: [] for row in (*fresh, *low)}
        most: dict[int, int] = {}
        for row in drafts:
            known = self._rows[row]
            if known.draft is not None and row in asked:
                held = known.length + len(known.ahead)  # with the token of a fresh row, not that of a low one
                room = self.context - held - (row in low)
                most[row] = min(known.reach - len(known.ahead) - (row in low), room)
        starts = {**fresh, **low}
        while turns := self._turns(starts, drafts, most):
            for effort, fed in turns.items():
                for row, scores in self._loops.extend(fed, effort).items():
                    drafts[row].append(int(scores.logits[-1].argmax()))
        for row, drafted in drafts.items():
            if drafted:
                self._loops.withdraw(row, len(drafted))
        deep = self._loops.extend({row: (starts[row], *drafts[row]) for row in drafts})
        for row, scores in deep.items():
            tokens = (starts[row], *drafts[row])
            first = [row in low, *[False] * len(drafts[row])]
            self._rows[row].ahead += map(_Kept, tokens, scores.logits, scores.states, first)
            self.drafts.drafted += len(drafts[row])
            self.drafts.alone += len(tokens) == 1
        self.drafts.checks += len(deep)
        self.core_steps = self._loops.core_steps

    def _turns(
        self, starts: Mapping[int, int], drafts: Mapping[int, Sequence[int]], most: Mapping[int, int]
    ) -> dict[Effort, dict[int, tuple[int]]]:
        """What to feed next of the rows that are not drafted to their end, by the effort of the draft."""
        turns: dict[Effort, dict[int, tuple[int]]] = {}
        for row, count in most.items():
            draft, drafted = self._rows[row].draft, drafts[row]
            if draft is not None and len(drafted) < count:
                turns.setdefault(draft, {})[row] = (drafted[-1] if drafted else starts[row],)
        return turns
