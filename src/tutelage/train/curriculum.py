"""Short examples first: which rows a step may draw while the longest allowed one grows.

Promises: what a step draws is a function of (seed, step) and the sizes, however many micro-batches, processes
and restarts share it; while the limit grows a step draws its rows at random, no row twice, among those within
the limit; afterwards all rows come epoch by epoch, none twice in an epoch.
Does not: know what a size is (steps of a problem, or tokens), or make batches.

Why: small recurrent students that met long problems at once were seen to ignore their state; with lengths
that grow, and the other settings of recipe lab-recurrent, they use it. Which of them it takes was not taken
apart (see docs/lab-notes.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from tutelage.errors import UsageError
from tutelage.train.settings import Ramp


class ByLength(Sampler[int]):
    """The rows of a whole run, `batch` a step. `sizes` are those of the rows. Raises UsageError when no row
    is as small as the ramp's start."""

    def __init__(self, sizes: Sequence[float], ramp: Ramp, steps: int, batch: int, seed: int) -> None:
        self.ramp, self.steps, self.batch, self.seed = ramp, steps, batch, seed
        known = np.asarray(sizes, float)
        self.order: NDArray[np.intp] = np.argsort(known, kind="stable")
        self.sizes = known[self.order]
        self._epoch, self._turn = -1, self.order
        if not len(known) or self.sizes[0] > ramp.start:
            smallest = f"the smallest has size {self.sizes[0]:g}" if len(known) else "there is none"
            raise UsageError(f"lengths: no example is within start {ramp.start:g}; {smallest}")

    def __len__(self) -> int:
        return self.steps * self.batch

    def __iter__(self) -> Iterator[int]:
        for step in range(self.steps):
            yield from self.rows(step)

    def allowed(self, step: int) -> int:
        """How many rows are within the limit at `step`."""
        limit = self.ramp.at(step, self.steps, float(self.sizes[-1]))
        return int(np.searchsorted(self.sizes, limit * (1 + 1e-9), side="right"))

    def rows(self, step: int) -> list[int]:
        """The rows of `step`."""
        allowed = self.allowed(step)
        grown = int(np.ceil(self.ramp.over * self.steps))
        if step >= grown:
            first = (step - grown) * self.batch
            return [self._in_turn(place) for place in range(first, first + self.batch)]
        draw = np.random.default_rng([self.seed, step])
        found: list[int] = []
        while len(found) < self.batch:  # a batch of more rows than there are takes all of them again
            taken = draw.permutation(allowed)[: self.batch - len(found)]
            found += self.order[taken].tolist()
        return found

    def _in_turn(self, place: int) -> int:
        epoch, within = divmod(place, len(self.order))
        if self._epoch != epoch:
            self._epoch = epoch
            draw = np.random.default_rng([self.seed, self.steps, epoch])
            self._turn = draw.permutation(len(self.order))
        return int(self._turn[within])
