"""What the paths of states look like: do they settle, circle or drift, and does it matter where they began.

Promises: pure functions of states (NumPy), seeded where they draw; every share or mean stands with its
interval and n, texts counted as the units where tokens of one text are alike.
Does not: run the core (see `think.trajectories`), or draw (see `report.depths`).

Source of the questions: Geiping et al. 2025 (arXiv 2502.05171), section 7: fixed points, orbits and "sliders"
in the principal components of states, and the same end from different initial states. The borders between
the three kinds are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import UsageError
from tutelage.measure.statistics import cluster_bootstrap

Floats = NDArray[np.floating[Any]]
Kind = Literal["settles", "orbits", "drifts"]
KINDS: tuple[Kind, ...] = ("settles", "orbits", "drifts")
# A state that changes by less than this share of its length per pass stands still: the exit's own default.
_STILL = 0.03
# One that ends further away than this share of the way it went is on its way somewhere.
_STRAIGHT = 0.5
# Passes that the kind of a path needs at least: a quarter of them is looked at.
LEAST = 8


@dataclass(frozen=True, slots=True)
class Components:
    """Directions in which states differ most: `axes` (k, width) through `centre` (width,), and the `shares`
    of the variance (k,) that lie along them."""

    axes: Floats
    centre: Floats
    shares: Floats

    def project(self, states: Floats) -> Floats:
        """(..., width) → (..., k)."""
        found: Floats = (states - self.centre) @ self.axes.T
        return found


def principal(states: Floats, count: int = 2) -> Components:
    """The first `count` principal components of `states` (states, width), by a singular value decomposition.
    Each axis points where its largest entry is positive, so that a picture does not flip. Raises UsageError
    for fewer states than components, or values that are not finite."""
    if states.ndim != 2 or min(states.shape) < count:
        raise UsageError(f"principal components: {states.shape} is too little for {count}; keep more states")
    if not np.isfinite(states).all():
        raise UsageError("principal components: a state is NaN or infinite; the model has come apart")
    centre = states.mean(axis=0, dtype=np.float64)
    _, sizes, axes = np.linalg.svd(states - centre, full_matrices=False)
    signs = np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])
    variance = sizes**2
    total = float(variance.sum())
    shares = variance[:count] / total if total else np.zeros(count)
    return Components((axes * signs[:, None])[:count], centre, shares)


def changes(states: Floats) -> Floats:
    """|s_t − s_(t−1)| / |s_t| of states (passes + 1, tokens, width) → (passes, tokens)."""
    moved = np.linalg.norm(np.diff(states, axis=0), axis=-1)
    found: Floats = moved / np.maximum(np.linalg.norm(states[1:], axis=-1), 1e-12)
    return found


def kinds_of_paths(states: Floats) -> list[Kind]:
    """The kind of each token's path, from the last quarter (at least four) of its passes; `states`
    (passes + 1, tokens, width).

    "settles": it changes by less than 3 % of its length per pass; "drifts": it moves on, and gets further
    than half of the way it goes; "orbits": it moves on and comes back. Raises UsageError for fewer than eight
    passes."""
    passes = len(states) - 1
    if passes < LEAST:
        raise UsageError(f"paths: {passes} passes are too few to tell settling from moving on; trace {LEAST}")
    end = states[-1 - max(4, passes // 4) :]
    pace = changes(end).mean(axis=0)
    length = np.linalg.norm(np.diff(end, axis=0), axis=-1).sum(axis=0)
    far = np.linalg.norm(end[-1] - end[0], axis=-1)
    return [
        "settles" if slow < _STILL else "drifts" if away > _STRAIGHT * way else "orbits"
        for slow, away, way in zip(pace, far, length, strict=True)
    ]


def apart(one: Sequence[Floats], other: Sequence[Floats], seed: int = 0) -> dict[str, Any]:
    """How far two runs from different initial states lie apart: per text the states (tokens, width) of both.
    Relative distance |a − b| / ½(|a| + |b|), averaged over a text's tokens, then over texts."""
    found = []
    for a, b in zip(one, other, strict=True):
        size = (np.linalg.norm(a, axis=-1) + np.linalg.norm(b, axis=-1)) / 2
        found.append(np.linalg.norm(a - b, axis=-1) / np.maximum(size, 1e-12))
    estimate = cluster_bootstrap([each.mean() for each in found], seed=seed, bounds=None)
    return {
        "distance": estimate.mean,
        "distance_ci95": [estimate.lo, estimate.hi],
        "n": estimate.n,
        "tokens": sum(map(len, found)),
    }
