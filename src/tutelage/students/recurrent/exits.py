"""Whether a token has been thought about enough: four criteria on how its state, or what it predicts, moves.

Promises: pure functions of a token's own past: no neighbour, no batch, no random draw; a state that is not a
number is never settled, so that it stays until the bound. Leading dimensions are free: (tokens,) in the
engine, (rows, tokens) elsewhere.
Does not: run a model, bound the steps, or parse settings (see `think.effort.Exit`, which is an `ExitRule`).

    state           |s_t - s_{t-1}| / |s_t| < threshold
    acceleration    |(s_t - s_{t-1}) - (s_{t-1} - s_{t-2})| / |s_t| < threshold
    kl              KL(p_t || p_u) < threshold, in nats, u the look before (t-1 where every = 1)
    argmax          the likeliest token is the same over `threshold` steps

The first two read the state, which is there: they cost two passes over it. The other two read predictions:
coda and head for each token at each look, which may cost more than a pass of the core; `every` makes them
cheaper. Looks are at steps min, min + every, ...; predictions are made some steps earlier too, so that a
token can leave at `min`.

Sources: KL from Geiping et al. 2025, section 6.1; relative change and stable argmax are of the same authors'
published code, written here from their description; the second difference is that of arXiv 2509.23314,
relative to the state's norm here, so that one threshold serves states of any size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class ExitRule(Protocol):
    """What is asked of an exit; see `think.effort.Exit`."""

    @property
    def criterion(self) -> str: ...
    @property
    def threshold(self) -> float: ...
    @property
    def min_steps(self) -> int: ...
    @property
    def every(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Past:
    """What an exit remembers of each token, the newest first: states (..., width); or, with "kl", the
    log-probabilities (..., vocabulary) of the look before; or, with "argmax", the likeliest token (...) and
    over how many steps it has been that (...)."""

    seen: tuple[Tensor, ...] = ()

    def of(self, index: Tensor) -> Past:
        """The past of the tokens `index` (kept,) of (tokens,)."""
        return Past(tuple(each[index] for each in self.seen))


def predicts(exit: ExitRule) -> bool:
    """Whether the exit reads predictions (logits) rather than states."""
    return exit.criterion in ("kl", "argmax")


def decides(exit: ExitRule, step: int) -> bool:
    """Whether a token may leave after `step` steps, counted from 1."""
    return step >= exit.min_steps and (step - exit.min_steps) % exit.every == 0


def looks(exit: ExitRule, step: int) -> bool:
    """Whether `settled` has to be called after `step` steps: always for a state, whose past must be kept; for
    predictions where it decides, and before that as far back as it compares."""
    if not predicts(exit):
        return True
    back = exit.every if exit.criterion == "kl" else int(exit.threshold) + exit.every - 2
    return (step - exit.min_steps) % exit.every == 0 and step >= exit.min_steps - back


def begin(exit: ExitRule, state: Tensor) -> Past:
    """The past of tokens whose loop starts from `state` (..., width)."""
    return Past() if predicts(exit) else Past((state,))


def settled(exit: ExitRule, now: Tensor, past: Past) -> tuple[Tensor, Past]:
    """Whether each token's criterion holds, as booleans (...), and its past for the next call.

    `now`: the states (..., width) or, where `predicts(exit)`, the logits (..., vocabulary) of a step at which
    it `looks`. False where there is too little past to compare with. Whether it `decides` at this step is the
    caller's to ask."""
    seen = past.seen
    no = torch.zeros(now.shape[:-1], dtype=torch.bool, device=now.device)
    if exit.criterion == "state":
        return relative_change(now, seen[0]) < exit.threshold, Past((now,))
    if exit.criterion == "acceleration":
        if len(seen) < 2:
            return no, Past((now, *seen))
        return acceleration(now, *seen) < exit.threshold, Past((now, seen[0]))
    if exit.criterion == "kl":
        told = now.float().log_softmax(dim=-1)
        return (divergence(told, seen[0]) < exit.threshold if seen else no), Past((told,))
    best = now.argmax(dim=-1)
    run = torch.where(best == seen[0], seen[1] + exit.every, 1) if seen else torch.ones_like(best)
    real = ~now.isnan().any(dim=-1)
    return (run >= int(exit.threshold)) & real, Past((best, run))


def relative_change(now: Tensor, before: Tensor) -> Tensor:
    """|s_t - s_{t-1}| / |s_t| of states (..., width): (...), float32."""
    return _norm(now.float() - before.float()) / _norm(now.float())


def acceleration(now: Tensor, before: Tensor, earlier: Tensor) -> Tensor:
    """|s_t - 2 s_{t-1} + s_{t-2}| / |s_t| of states (..., width): (...), float32."""
    return _norm(now.float() - 2 * before.float() + earlier.float()) / _norm(now.float())


def divergence(now: Tensor, before: Tensor) -> Tensor:
    """KL(p_t || p_u) in nats from log-probabilities (..., vocabulary): (...)."""
    # A token that cannot be (probability 0) adds nothing, and not 0 · (-inf + inf).
    return torch.where(now == -torch.inf, 0.0, now.exp() * (now - before)).sum(dim=-1)


def exit_steps(
    exit: ExitRule, states: Sequence[Tensor], predict: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """After how many steps each token leaves, (...), from the `states` s_0, s_1, ..., s_r, each (..., width);
    r where it never does. `predict` gives the logits of a state, for exits that read predictions. The states
    are those of a loop that nobody left: the engine's are others where a token reads earlier tokens that had
    left, or waits for them (`ordered`, a rule among tokens, is kept by those who run the loop)."""
    if predicts(exit) and predict is None:
        raise ValueError(f"exit {exit.criterion} reads predictions, but `predict` is None")
    last = len(states) - 1
    steps = torch.full(states[0].shape[:-1], last, device=states[0].device)
    inside = torch.ones_like(steps, dtype=torch.bool)
    past = begin(exit, states[0])
    for step in range(1, last + 1):
        if not looks(exit, step):
            continue
        now = states[step]
        if predict is not None and predicts(exit):
            now = predict(now)
        leaves, past = settled(exit, now, past)
        if decides(exit, step):
            steps[inside & leaves] = step
            inside &= ~leaves
    return steps


def _norm(x: Tensor) -> Tensor:
    size: Tensor = torch.linalg.vector_norm(x, dim=-1)
    return size
