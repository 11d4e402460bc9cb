"""How deep a training step goes: depths drawn around a mean, equal on all workers.

Promises: the same (seed, step) gives the same depth on every machine and after a restart; drawing leaves the
global random state alone.
Does not: know a model or a trainer; a trainer tells the clock its step and the mean of the moment.

Source: Geiping et al. 2025, section 3.3: λ ~ LogNormal(ln r̄ − σ²/2, σ) with σ = 0.5, r ~ Poisson(λ) + 1, of
which the last min(k, r) steps carry a gradient. The mean of r is r̄ + 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from operator import index
from typing import Literal

import numpy as np

from tutelage.errors import UsageError

SIGMA = 0.5
NumSteps = int | Sequence[int] | None
"""r: so many steps, with gradient wherever gradients are on; (n, k): n without, then k with; None: see
`Clock`."""


def sample_steps(step: int, mean: int, backprop: int, seed: int = 0) -> tuple[int, int]:
    """The depth (n, k) of training step number `step` (from 0): n steps without gradient, then k ≤ `backprop`
    with it, around the mean r̄ = `mean`. Raises UsageError for a mean or `backprop` below 1."""
    if mean < 1 or backprop < 1:
        raise UsageError(f"recurrent depth: mean {mean} and backprop {backprop} must both be at least 1")
    draw = np.random.default_rng([seed, step])
    rate = draw.lognormal(log(mean) - SIGMA**2 / 2, SIGMA)
    steps = int(draw.poisson(rate)) + 1
    kept = min(steps, backprop)
    return steps - kept, kept


def read_steps(num_steps: int | Sequence[int]) -> tuple[int, int]:
    """(n, k) of a depth argument that is not None; whole numbers of NumPy and torch are taken too. Raises
    UsageError for a depth below 1."""
    told = f"num_steps is {num_steps!r}"
    if isinstance(num_steps, bool | str):
        raise UsageError(f"{told}; write a number of steps, a pair (n, k) or None")
    try:
        free, kept = 0, index(num_steps)  # type: ignore[arg-type]
    except TypeError:
        try:
            free, kept = (index(each) for each in num_steps)  # type: ignore[union-attr]
        except (TypeError, ValueError) as error:
            raise UsageError(f"{told}; write a number of steps, a pair (n, k) or None") from error
    if free < 0 or kept < 0 or free + kept < 1:
        raise UsageError(f"{told}; the core runs at least once, so write 1 or more")
    return free, kept


@dataclass(slots=True)
class Clock:
    """Which depth a training step has, and from where its states start.

    "free": each draw counts the clock up and initial states come from torch's random state, so that a bare
    loop works. "told": a trainer says `step`, and the means of a curriculum; all forward passes of a step
    have one depth, and the initial state of a position is a function of (seed, step), so that micro-batches,
    packed rows and processes share a step as if it were one batch. "still": every step has the mean and
    evaluation's initial states, so that two passes over a text say the same: what compares log-probabilities
    needs this."""

    mean: int
    backprop: int
    seed: int = 0
    step: int = 0
    mode: Literal["free", "told", "still"] = "free"

    def draw(self) -> tuple[int, int]:
        """The depth (n, k) of a forward pass in training."""
        if self.mode == "still":
            kept = min(self.backprop, self.mean)
            return self.mean - kept, kept
        steps = sample_steps(self.step, self.mean, self.backprop, self.seed)
        if self.mode == "free":
            self.step += 1
        return steps
