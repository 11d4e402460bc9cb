"""The backend for recurrent-depth models: each token leaves the loop when its own effort says so.

Promises: a row's scores do not depend on its neighbours, nor on how prompts were grouped (float32); what has
left is not computed: the arrays of the loop shrink, and time falls with them; no token stays beyond its
bound, whatever its state becomes; a fixed depth gives the function of the model's own `forward`.
Does not: choose tokens, or decide on criteria (see `students.recurrent.exits`).

All tokens that are fed, of a prefill or of a step, pass through the core together. After each pass those at
their own number of steps leave, and those whose exit holds; the others go on over rows that are read at their
last step where they stopped earlier ("latest", see `loops_cache`). A fixed depth, and the exits that read
states, give a prompt the same steps and scores at once and token by token, up to rounding (which may tip a
value that lies at its threshold). The exits that read predictions ("kl", "argmax") run coda and head for each
token at each look: within a prefill these see the tokens before them as they are at that step, in a reply as
they were in the end. So a prompt's last token, whose scores begin the reply, is fed alone there.

Ordered exits. Step i of a token reads step i of those before it, so work travels from token to token, and a
token that waits for it does not move: to any criterion it looks settled. With `ordered` no token leaves
before those before it in its row: what the last of them knew when it left, the next has then seen.

Steps with "continuous": a reply's token starts from the last state of the token before it, a prompt's from
its own first state. Such rows keep the states of their reply: width numbers per token.

Memory of keys and values: a token takes (prelude + coda + steps · core) layers, steps the most that any token
made since the backend was built; with `cache="shared:m"` at most m steps, whatever the depth. There a token
reads others where they wrote last, so that a prompt computed at once differs from one fed token by token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tutelage.students.recurrent.config import slots_of
from tutelage.students.recurrent.exits import Past, begin, decides, looks, predicts, settled
from tutelage.think.backend import Scores, check_model
from tutelage.think.effort import Effort, Exit
from tutelage.think.llama import Attend
from tutelage.think.loops_cache import Batch, LoopSlots, Plan
from tutelage.think.loops_forward import Parts, Rotation, base_model

# Most prompt tokens in one forward of a prefill: bounds its memory.
_PREFILL_TOKENS = 4_096


@dataclass(slots=True)
class _Row:
    """What is known of a row beside its keys and values: passes of each token in `made`; `states`, where it
    is continuous, the last states of its tokens from the prompt's last one on."""

    effort: Effort
    prompt: int
    made: list[int] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)


@dataclass(slots=True)
class _Watch:
    """The tokens of one exit that are still inside, ascending places in the batch."""

    exit: Exit
    tokens: np.ndarray
    past: Past
    plan: Plan | None = None

    def leave(self, gone: np.ndarray, index: Tensor) -> None:
        """`gone` (tokens,) says which leave; `index`: the places of those that stay."""
        if gone.any():
            self.tokens, self.past, self.plan = self.tokens[~gone], self.past.of(index), None


class Loops:
    """A `Backend` for a `RecurrentDepthForCausalLM`."""

    def __init__(self, model: Any, *, cache: str | None = None) -> None:
        """`cache`: "latest" or "shared:m", None: the one of the model's configuration ("full" is the same as
        "latest", since tokens that stopped are read at their last step). Raises UsageError for a cache that
        is none, and for a model that cannot be run here."""
        self.context = check_model(model)
        self.device: torch.device = model.device
        self._parts = Parts(model)
        self._config = config = base_model(model).config
        self.cache: str = cache or config.loop_cache
        self.max_steps: int | None = config.max_recurrence
        self.core_steps = 0
        self._prelude: int = config.num_prelude_layers
        self._slots = LoopSlots(
            config.num_prelude_layers + config.num_coda_layers,
            config.num_core_layers,
            self._parts.key_heads,
            self._parts.width,
            self.device,
            model.dtype,
            shared=slots_of(self.cache),
            steps=config.mean_recurrence,
        )
        self._rows: dict[int, _Row] = {}

    def prefill(
        self, prompts: Sequence[Sequence[int]], efforts: Sequence[Effort] = ()
    ) -> tuple[list[int], Scores]:
        """See `Backend`. Prompts are computed some thousand tokens at a time. Raises UsageError for a depth
        that the model does not have."""
        efforts = efforts or [Effort()] * len(prompts)
        for effort in efforts:
            self.bound(effort)
        rows = []
        for prompt, effort in zip(prompts, efforts, strict=True):
            rows.append(self._slots.open(len(prompt)))
            self._rows[rows[-1]] = _Row(effort, len(prompt))
        last: dict[int, Tensor] = {}
        done = 0
        while done < len(prompts):
            now: dict[int, Sequence[int]] = {}
            then: dict[int, Sequence[int]] = {}
            total = 0
            while done < len(prompts) and (not total or total + len(prompts[done]) <= _PREFILL_TOKENS):
                row, prompt = rows[done], prompts[done]
                cut = len(prompt) - self._predicts(efforts[done])
                if prompt[:cut]:
                    now[row] = prompt[:cut]
                if prompt[cut:]:
                    then[row] = prompt[cut:]
                total += len(prompt)
                done += 1
            for fed in (now, then):
                if fed:
                    batch, hidden = self._feed(fed)
                    last |= {row: hidden[end] for row, end in zip(batch.rows, batch.ends, strict=True)}
        states = torch.stack([last[row] for row in rows])
        return rows, Scores(self._parts.scores(states), states)

    def fork(self, row: int, length: int) -> int:
        """See `Backend`."""
        copy, source = self._slots.fork(row, length), self._rows[row]
        self._rows[copy] = _Row(
            source.effort, source.prompt, source.made[:length], source.states[: _kept(source, length)]
        )
        return copy

    def decode(self, tokens: Mapping[int, int], wanted: Sequence[int]) -> Scores:
        """See `Backend`."""
        batch, hidden = self._feed({row: (token,) for row, token in tokens.items()})
        place = {row: k for k, row in enumerate(batch.rows)}
        states = hidden[torch.tensor([place[row] for row in wanted], dtype=torch.long, device=self.device)]
        if not len(states):
            return Scores(states.new_zeros((0, self._config.vocab_size), dtype=torch.float32), states)
        return Scores(self._parts.scores(states), states)

    def extend(self, tokens: Mapping[int, Sequence[int]], effort: Effort | None = None) -> dict[int, Scores]:
        """Feed one or more known tokens to each row in `tokens` (not all rows have to be), and give the
        scores after each of them, (tokens, vocabulary) per row: those of feeding them one by one. `effort`:
        of these tokens alone, None: their rows'. They pass side by side, but where an exit reads predictions
        or a row is continuous, which needs them in turn. Raises UsageError for a depth that the model does
        not have."""
        if effort is not None:
            self.bound(effort)
        if not all(tokens.values()):
            raise ValueError("extend: a row without tokens")
        told: dict[int, list[Tensor]] = {row: [] for row in tokens}
        efforts = {row: effort or self._rows[row].effort for row in tokens}
        apart = {row for row, each in efforts.items() if self._predicts(each) or each.continuous}
        turns: list[dict[int, Sequence[int]]] = []
        if len(apart) < len(tokens):
            turns.append({row: ids for row, ids in tokens.items() if row not in apart})
        for place in range(max((len(tokens[row]) for row in apart), default=0)):
            turns.append({row: tokens[row][place : place + 1] for row in apart if place < len(tokens[row])})
        for fed in turns:
            batch, hidden = self._feed(fed, effort)
            for row, end in zip(batch.rows, batch.ends, strict=True):
                told[row].append(hidden[end + 1 - len(fed[row]) : end + 1])
        rows = list(tokens)
        states = torch.cat([part for row in rows for part in told[row]])
        logits, found, first = self._parts.scores(states), {}, 0
        for row in rows:
            mine = slice(first, first := first + len(tokens[row]))
            found[row] = Scores(logits[mine], states[mine])
        return found

    def withdraw(self, row: int, count: int) -> None:
        """See `Backend`."""
        length, known = self._slots.length[row] - count, self._rows[row]
        self._slots.cut(row, length)
        del known.made[length:], known.states[_kept(known, length) :]

    def free(self, row: int) -> None:
        """See `Backend`."""
        self._slots.free(row)
        del self._rows[row]

    def passes(self, row: int) -> Sequence[int]:
        """See `Backend`."""
        return self._rows[row].made

    def bound(self, effort: Effort) -> int:
        """The most steps that `effort` means here: with an exit and no number the model's maximum, else its
        mean. Raises UsageError for more than the model has."""
        steps = effort.bound(self._config.mean_recurrence, self._config.max_recurrence)
        return int(self._config.check_steps(steps))

    @staticmethod
    def _predicts(effort: Effort) -> bool:
        return effort.exit is not None and predicts(effort.exit)

    def _feed(self, fed: Mapping[int, Sequence[int]], effort: Effort | None = None) -> tuple[Batch, Tensor]:
        """The tokens of `fed` in the order of their batch, and their last hidden states (tokens, width)."""
        slots, parts = self._slots, self._parts
        batch = slots.lay({row: len(ids) for row, ids in fed.items()})
        ids = torch.tensor([token for row in batch.rows for token in fed[row]], device=self.device)
        positions = slots.index(batch.position)
        rotation = parts.rotation(positions)
        plan = slots.plan(batch, np.arange(len(ids)))
        embedded = parts.prelude(ids, rotation, self._at(0, plan))
        efforts = [effort or self._rows[row].effort for row in batch.rows]
        loop = _Loop(self, batch, efforts, plan, rotation, embedded)
        state = self._carry(batch, efforts, parts.first_state(positions))
        final, hidden = loop.run(state)
        rest = np.flatnonzero(~loop.finished)
        if len(rest) == len(ids):
            hidden = self._coda(final, rotation, plan)
        elif len(rest):
            index = slots.index(rest)
            hidden[index] = self._coda(final[index], rotation.of(index), slots.plan(batch, rest))
        self.core_steps += int(loop.made.sum())
        for row, each, end in zip(batch.rows, efforts, batch.ends, strict=True):
            known, first = self._rows[row], end + 1 - len(fed[row])
            if each.continuous:
                before = len(known.made)
                keeps = max(first, first + known.prompt - 1 - before)
                known.states += final[keeps : end + 1].unbind()
            known.made += loop.made[first : end + 1].tolist()
        return batch, hidden

    def _carry(self, batch: Batch, efforts: Sequence[Effort], state: Tensor) -> Tensor:
        """`state` (tokens, width), with the states that continuous rows go on from."""
        for row, effort, end in zip(batch.rows, efforts, batch.ends, strict=True):
            known = self._rows[row]
            if effort.continuous and len(known.made) >= known.prompt:
                state[end] = known.states[len(known.made) - known.prompt]
        return state

    def _at(self, first: int, plan: Plan) -> Attend:
        """Attention of the tokens of `plan` in the cache's layers from `first` on."""
        return lambda number, *given: self._slots.attend_some(first + number, plan, *given)

    def _coda(self, state: Tensor, rotation: Rotation, plan: Plan) -> Tensor:
        return self._parts.coda(state, rotation, self._at(self._prelude, plan))


class _Loop:
    """One feed's way through the core. `made` (tokens,): the passes of each; `finished`: those whose last
    hidden state is known already, because a look had to make it."""

    def __init__(
        self,
        owner: Loops,
        batch: Batch,
        efforts: Sequence[Effort],
        plan: Plan,
        rotation: Rotation,
        embedded: Tensor,
    ) -> None:
        self._owner, self._slots, self._batch = owner, owner._slots, batch
        self._efforts, self._plan, self._rotation = efforts, plan, rotation
        self._embedded = embedded
        self._bounds = np.array([owner.bound(effort) for effort in efforts])[batch.owner]
        # What an ordered exit waits for: the most passes of the tokens that the row holds already.
        self._before = np.array([max(owner._rows[row].made, default=0) for row in batch.rows])[batch.owner]
        self._alone = len(batch.rows) == len(batch.owner)
        self.made = np.zeros(len(batch.owner), dtype=np.int64)
        self.finished = np.zeros(len(batch.owner), dtype=bool)
        self._hidden = torch.empty_like(embedded)

    def run(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """The last states and, of those that are `finished`, the last hidden states, (tokens, width)."""
        batch, slots = self._batch, self._slots
        who = np.arange(len(batch.owner))
        watches = self._watches(state)
        plan, rotation, embedded = self._plan, self._rotation, self._embedded
        final: Tensor | None = None
        step = 0
        while True:
            plan = slots.enter(plan, step)
            state = self._owner._parts.core(
                state, embedded, rotation, self._owner._at(slots.place(step, 0), plan)
            )
            step += 1
            leaves = self._bounds[who] == step
            for watch in watches:
                if len(watch.tokens) and looks(watch.exit, step):
                    leaves |= self._look(watch, step, who, state, rotation, plan)
            if not leaves.any():
                continue
            gone = who[leaves]
            self.made[gone] = step
            slots.settle(batch, gone, step - 1)
            if final is None and len(gone) == len(self.made):
                return state, self._hidden
            if final is None:
                final = torch.empty_like(self._embedded)
            final[slots.index(gone)] = state[slots.index(np.flatnonzero(leaves))]
            if len(gone) == len(who):
                return final, self._hidden
            for watch in watches:
                out = leaves[np.searchsorted(who, watch.tokens)]
                watch.leave(out, slots.index(np.flatnonzero(~out)))
            who, index = who[~leaves], slots.index(np.flatnonzero(~leaves))
            state, embedded, rotation = state[index], embedded[index], rotation.of(index)
            plan = slots.plan(batch, who)

    def _watches(self, state: Tensor) -> list[_Watch]:
        found = []
        for exit in {effort.exit: None for effort in self._efforts if effort.exit is not None}:
            rows = [k for k, effort in enumerate(self._efforts) if effort.exit == exit]
            tokens = np.flatnonzero(np.isin(self._batch.owner, rows))
            start = state if len(tokens) == len(state) else state[self._slots.index(tokens)]
            found.append(_Watch(exit, tokens, begin(exit, start)))
        return found

    def _look(
        self, watch: _Watch, step: int, who: np.ndarray, state: Tensor, rotation: Rotation, plan: Plan
    ) -> np.ndarray:
        """Which of `who` leave after `step` because of the exit of `watch`."""
        leaves = np.zeros(len(who), dtype=bool)
        whole = len(watch.tokens) == len(who)
        places = np.searchsorted(who, watch.tokens)
        now = state
        if not whole:
            index = self._slots.index(places)
            now = state[index]
        hidden = None
        if predicts(watch.exit):
            if not whole:
                if watch.plan is None:
                    watch.plan = self._slots.plan(self._batch, watch.tokens)
                plan, rotation = watch.plan, rotation.of(index)
            hidden = self._owner._coda(now, rotation, plan)
            now = self._owner._parts.scores(hidden)
        held, watch.past = settled(watch.exit, now, watch.past)
        if not decides(watch.exit, step):
            return leaves
        out = held.cpu().numpy()
        if watch.exit.ordered:
            out = self._in_order(watch.tokens, out, step)
        leaves[places] = out
        if hidden is not None and self._alone and out.any():
            # One token per row: what it was looked at for is what it says in the end.
            self.finished[watch.tokens[out]] = True
            self._hidden[self._slots.index(watch.tokens[out])] = hidden[
                self._slots.index(np.flatnonzero(out))
            ]
        return leaves

    def _in_order(self, tokens: np.ndarray, held: np.ndarray, step: int) -> np.ndarray:
        """`held` (tokens,) without those that a token before them in their row would outstay."""
        held = held & (self._before[tokens] <= step)
        stays = np.cumsum(~held)
        row = self._batch.owner[tokens]
        first = np.searchsorted(row, row)  # rows lie one after the other
        out: np.ndarray = held & (stays == (stays - ~held)[first])
        return out


def _kept(row: _Row, length: int) -> int:
    """How many of the states of `row` stay when it holds `length` tokens."""
    return max(0, length - row.prompt + 1)
