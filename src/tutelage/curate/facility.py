"""Facility location: the few vectors that stand for all.

Promises: chosen greedily to cover the rest best, with the known guarantees (below); beside a rounded copy of
the vectors some hundred megabytes, whatever their number: similarities are made in blocks and not kept; all
sums are of whole numbers, so the choice depends neither on the machine nor on its number of threads.
Does not: make vectors, or know records: it gives places (rows).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import UsageError

Matrix = NDArray[np.float32]

SCALE = 2048
"""The length of a vector after rounding to whole numbers. Every partial sum of a product of two is below
SCALE² = 2^22 (by Cauchy-Schwarz, rounding aside), and float32 holds whole numbers up to 2^24 exactly."""
COVER = 10_000
"""Of more vectors than this, so many drawn ones stand for all where coverage is counted."""
_BLOCK = 4_000_000  # similarities made at a time: 16 MB
_BATCH = 64  # candidates that the exact method looks at together


def facility_location(
    vectors: Matrix,
    target: int,
    seed: int,
    *,
    sample: float | None = 0.1,
    cover: int | None = COVER,
) -> list[int]:
    """Places of `target` of `vectors` (n, d), or of all, chosen to maximise the coverage
    sum_i max_{j chosen} s(i, j), in the order of being chosen. s is the cosine, and 0 where it is negative;
    a vector of zeros is like none.

    Each step takes the best of a random sample of (n / target) ln(1 / `sample`) of those left: "stochastic
    greedy" (Mirzasoleiman et al. 2015, arXiv 1409.7938, Algorithm 1; their ε is `sample`), which reaches
    1 - 1/e - ε of the best coverage on average. With `sample=None` each step takes the best of all (Nemhauser
    et al. 1978: at least 1 - 1/e), found by lazy evaluation (Minoux 1978): for a few thousand vectors. Of
    equally good ones the first is taken.

    We differ: cosines are rounded to some 1/1000 (see SCALE), and of more than `cover` vectors only so many,
    drawn with `seed`, are summed over (`cover=None`: all). All can be chosen still; the guarantee is then one
    on the sample. The work is about n · ln(1 / ε) · `cover` · d products, whatever the target: 59,000 vectors
    of 128 dimensions to 1,000 took 7 s on two cores and 41 s with `cover=None`; with `sample=None` 39 s.

    Raises UsageError for vectors that are no matrix or not finite, a `target` or `cover` below 1, and a
    `sample` that is not between 0 and 1."""
    if target < 1:
        raise UsageError(f"target is {target}; it must be at least 1")
    if sample is not None and not 0 < sample < 1:
        raise UsageError(f"sample is {sample}; it must be between 0 and 1 (null: look at all)")
    if cover is not None and cover < 1:
        raise UsageError(f"cover is {cover}; it must be at least 1 (null: all)")
    rounded = _rounded(vectors)
    count = len(rounded)
    target = min(target, count)
    # From a text, not from its hash(): `random` digests it by SHA-512, the same in every process.
    rng = random.Random(f"tutelage facility {seed}")
    covered = rounded
    if cover is not None and cover < count:
        covered = rounded[sorted(rng.sample(range(count), cover))]
    if sample is None:
        return _exact(rounded, covered, target)
    return _stochastic(rounded, covered, target, sample, rng)


def coverage(vectors: Matrix, chosen: Sequence[int]) -> float:
    """How well the `chosen` places stand for all of `vectors` (n, d): the mean over all of the cosine with
    the likest chosen one (0 where it is negative), 0 to 1, rounded as `facility_location` rounds.

    Raises UsageError for vectors that are no matrix or not finite."""
    rounded = _rounded(vectors)
    if not len(rounded) or not len(chosen):
        return 0.0
    best = np.zeros(len(rounded), np.float32)
    for at in range(0, len(chosen), _BATCH):
        _raise(best, rounded, rounded[list(chosen[at : at + _BATCH])])
    return float(best.sum(dtype=np.float64)) / SCALE**2 / len(rounded)


def _exact(rounded: Matrix, covered: Matrix, target: int) -> list[int]:
    # What a candidate adds only falls as others are chosen, so an old value is an upper bound.
    best = np.zeros(len(covered), np.float32)
    bounds = _gains(covered, best, rounded)
    fresh = np.ones(len(rounded), bool)
    chosen: list[int] = []
    while len(chosen) < target:
        while True:
            known = np.where(fresh, bounds, -1.0)
            place = int(known.argmax())  # the first of equals
            # At an equal bound the other might be as good and come first.
            stale = np.flatnonzero(~fresh & (bounds >= max(known[place], 0.0)))
            if not len(stale):
                break
            stale = stale[np.argsort(-bounds[stale], kind="stable")[:_BATCH]]
            bounds[stale] = _gains(covered, best, rounded[stale])
            fresh[stale] = True
        chosen.append(place)
        _raise(best, covered, rounded[[place]])
        bounds[place] = -1.0
        fresh = bounds <= 0  # what adds nothing stays so, and what is chosen is not looked at again
    return chosen


def _stochastic(
    rounded: Matrix, covered: Matrix, target: int, sample: float, rng: random.Random
) -> list[int]:
    best = np.zeros(len(covered), np.float32)
    left = list(range(len(rounded)))
    size = math.ceil(len(left) / max(target, 1) * math.log(1 / sample))
    chosen: list[int] = []
    while len(chosen) < target:
        # The last `drawn` of `left` become the sample: the first steps of a Fisher-Yates shuffle.
        drawn = min(size, len(left))
        for end in range(len(left) - 1, len(left) - 1 - drawn, -1):
            other = rng.randrange(end + 1)
            left[end], left[other] = left[other], left[end]
        left[-drawn:] = sorted(left[-drawn:])
        at = int(_gains(covered, best, rounded[left[-drawn:]]).argmax())
        place = left.pop(len(left) - drawn + at)
        chosen.append(place)
        _raise(best, covered, rounded[[place]])
    return chosen


def _gains(covered: Matrix, best: Matrix, candidates: Matrix) -> NDArray[np.float64]:
    """What each of `candidates` (c, d) would add to `best` (m,), how well `covered` (m, d) are covered."""
    gains = np.zeros(len(candidates), np.float64)
    rows = min(max(1, len(candidates)), 1024)
    columns = max(1, _BLOCK // rows)
    for low in range(0, len(candidates), rows):
        some = candidates[low : low + rows]
        for left in range(0, len(covered), columns):
            found = some @ covered[left : left + columns].T  # (rows, columns)
            found -= best[left : left + columns]
            np.maximum(found, 0, out=found)
            gains[low : low + rows] += found.sum(axis=1, dtype=np.float64)
    return gains


def _raise(best: Matrix, covered: Matrix, chosen: Matrix) -> None:
    """Raise `best` (m,) to what `chosen` (a few, d) cover of `covered` (m, d)."""
    rows = _BLOCK // max(1, len(chosen))
    for low in range(0, len(covered), rows):
        found = (covered[low : low + rows] @ chosen.T).max(axis=1)  # (rows,)
        np.maximum(best[low : low + rows], found, out=best[low : low + rows])


def _rounded(vectors: NDArray[Any]) -> Matrix:
    """The rows of `vectors` (n, d), each made SCALE long and rounded to whole numbers."""
    if vectors.ndim != 2 or vectors.dtype.kind not in "fiu":
        raise UsageError("vectors: give a matrix of numbers, one row for each record")
    result = np.zeros(vectors.shape, np.float32)
    rows = max(1, _BLOCK // max(1, vectors.shape[1]))
    for low in range(0, len(vectors), rows):
        block = vectors[low : low + rows].astype(np.float64)
        if not np.isfinite(block).all():
            row = low + int(np.flatnonzero(~np.isfinite(block).all(axis=1))[0])
            raise UsageError(f"vectors: row {row} is not finite; make it anew or leave it out")
        if block.size:
            top = np.abs(block).max(axis=1, keepdims=True)
            block /= np.where(top > 0, top, 1)  # so that no square overflows
            length = np.sqrt((block * block).sum(axis=1, keepdims=True))
            result[low : low + rows] = np.rint(block / np.where(length > 0, length, 1) * SCALE)
    return result
