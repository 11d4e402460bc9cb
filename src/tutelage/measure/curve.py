"""A line of points of accuracy against thinking: its area, and the tokens at which it reaches a target.

Promises: every number comes with the interval of a bootstrap over problems, in which a problem keeps its
tokens and its scores at all points; "not reached" is a value (None), not a large number; the axis is the same
everywhere: log2 of the mean thinking tokens per problem, so that equal steps are doublings. Thinking in a
loop is measured in the mean passes per token instead, and both kinds together in FLOPs (`unit`); what is
said of tokens below holds for them too.
Does not: choose points, decode, or draw.

A point without any thinking has no place on that axis. It is left out of the area; for a target it counts as
what it is, zero tokens, and between it and the next point nothing is interpolated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import UsageError
from tutelage.measure.scaling import Bound, control, performance, scaling
from tutelage.measure.statistics import percentile_of_means

Floats = NDArray[np.float64]
Unit = Literal["tokens", "loops", "flops"]
AXES: dict[Unit, str] = {
    "tokens": "log2 of the mean thinking tokens per problem",
    "loops": "log2 of the mean passes of the core per token",
    "flops": "log2 of the mean FLOPs per problem",
}
AXIS = AXES["tokens"]


@dataclass(frozen=True, slots=True)
class Line:
    """Points that belong together, in the order of their setting, over the same n problems.

    `tokens` and `scores` (points, n): each problem's mean thinking tokens and share right at each point;
    `labels` name the points; `bounds` are the (least, most) thinking tokens asked for, (None, None) where
    nothing was. `unit`: what `tokens` are. Raises UsageError for shapes that do not fit, and scores outside
    [0, 1]."""

    name: str
    labels: tuple[str, ...]
    tokens: Floats
    scores: Floats
    bounds: tuple[Bound, ...]
    unit: Unit = "tokens"

    def __post_init__(self) -> None:
        points = len(self.labels)
        if not points or len(self.bounds) != points or self.tokens.shape != self.scores.shape:
            raise UsageError(f"line {self.name!r}: labels, bounds, tokens and scores differ in length")
        if self.tokens.ndim != 2 or self.tokens.shape[0] != points or not self.tokens.shape[1]:
            raise UsageError(f"line {self.name!r}: tokens must be (points, problems), for {points} points")
        if self.scores.min() < 0 or self.scores.max() > 1 or self.tokens.min() < 0:
            raise UsageError(f"line {self.name!r}: scores lie in [0, 1] and tokens are not negative")


@dataclass(frozen=True, slots=True)
class Area:
    """Mean height of a line between `start` and `end` mean thinking tokens, with its interval."""

    value: float
    lo: float
    hi: float
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Reach:
    """The mean thinking tokens at which a line first reaches `target`, None where it does not; the ends of
    the interval likewise. `share` of the resamples in which it was reached."""

    target: float
    tokens: float | None
    lo: float | None
    hi: float | None
    share: float


def area_under(line: Line, seed: int = 0, resamples: int = 2000, level: float = 0.95) -> Area | None:
    """The area under `line` on AXIS divided by its width: the mean accuracy over the doublings that it spans,
    comparable between lines over the same range. Trapezoids between points in order of their tokens.

    None when fewer than two points differ in their tokens above zero."""
    tokens = line.tokens.mean(axis=1)
    used = tokens > 0
    if len(set(tokens[used].tolist())) < 2:
        return None
    found = percentile_of_means(
        np.concatenate([line.tokens[used], line.scores[used]]), _split(_areas), seed, resamples, level
    )
    return Area(found.value, found.lo, found.hi, float(tokens[used].min()), float(tokens.max()))


def tokens_to_reach(
    line: Line, target: float, seed: int = 0, resamples: int = 2000, level: float = 0.95
) -> Reach:
    """Where `line`, followed from few tokens to many, first has an accuracy of at least `target`;
    interpolated on AXIS between the point below and the point above.

    Raises UsageError for a target outside (0, 1]."""
    if not 0 < target <= 1:
        raise UsageError(f"target: {target} is no accuracy to reach; write a share above 0, such as 0.5")

    def reached(tokens: Floats, accuracy: Floats) -> Floats:
        return _reach(tokens, accuracy, target)

    stacked = np.concatenate([line.tokens, line.scores])
    found = percentile_of_means(stacked, _split(reached), seed, resamples, level)
    value, lo, hi = (None if np.isinf(x) else x for x in (found.value, found.lo, found.hi))
    return Reach(target, value, lo, hi, found.finite)


def described(line: Line, targets: Sequence[float] = (), seed: int = 0) -> dict[str, Any]:
    """All of it, JSON-ready: area, targets (under the name of the line's unit), and s1's three measures of
    the line's points (None where a measure does not apply: no bounds were asked for, or no two points differ
    in their tokens)."""
    tokens, accuracy = line.tokens.mean(axis=1).tolist(), line.scores.mean(axis=1).tolist()
    asked = [i for i, bound in enumerate(line.bounds) if bound != (None, None)]
    placed = [i for i, used in enumerate(tokens) if used > 0]
    area = area_under(line, seed)
    steps = len({tokens[i] for i in placed}) > 1
    return {
        "line": line.name,
        "points": list(line.labels),
        "n": line.tokens.shape[1],
        "axis": AXES[line.unit],
        "unit": line.unit,
        "area": None
        if area is None
        else {"value": area.value, "ci95": [area.lo, area.hi], "from": area.start, "to": area.end},
        "targets": [
            {
                "target": reach.target,
                line.unit: reach.tokens,
                "ci95": [reach.lo, reach.hi],
                "resamples_reached": reach.share,
            }
            for reach in (tokens_to_reach(line, target, seed) for target in targets)
        ],
        "control": control([tokens[i] for i in asked], [line.bounds[i] for i in asked]) if asked else None,
        "scaling": scaling([tokens[i] for i in placed], [accuracy[i] for i in placed]) if steps else None,
        "performance": performance(accuracy),
    }


def _split(measure: Callable[[Floats, Floats], Floats]) -> Callable[[Floats], Floats]:
    """`measure` of tokens and accuracy, (points, curves) each and sorted by tokens, for the two stacked."""

    def of_stacked(means: Floats) -> Floats:
        tokens, accuracy = np.split(means, 2)
        order = tokens.argsort(axis=0, kind="stable")
        return measure(np.take_along_axis(tokens, order, 0), np.take_along_axis(accuracy, order, 0))

    return of_stacked


def _areas(tokens: Floats, accuracy: Floats) -> Floats:
    """Normalised areas (curves,). A resample may lack all problems that think at a point, or that tell two
    points apart: such points lie at the first place that there is, and a line without width is its mean."""
    least = np.where(tokens > 0, tokens, np.inf).min(axis=0)
    doublings = np.log2(np.maximum(tokens, np.where(np.isinf(least), 1.0, least)))
    width = doublings[-1] - doublings[0]
    trapezoids = (np.diff(doublings, axis=0) * (accuracy[1:] + accuracy[:-1]) / 2).sum(axis=0)
    heights = np.where(width > 0, trapezoids / np.where(width > 0, width, 1.0), accuracy.mean(axis=0))
    # A mean of heights lies among them; rounding may put it a hair outside.
    among: Floats = np.clip(heights, accuracy.min(axis=0), accuracy.max(axis=0))
    return among


def _reach(tokens: Floats, accuracy: Floats, target: float) -> Floats:
    """Tokens at the first crossing (curves,), infinite where there is none."""
    # A mean of thirds may come out a hair below two thirds.
    reached = accuracy >= target - 1e-12
    at = reached.argmax(axis=0)[None]
    before = np.maximum(at - 1, 0)
    t0, t1 = np.take_along_axis(tokens, before, 0)[0], np.take_along_axis(tokens, at, 0)[0]
    a0, a1 = np.take_along_axis(accuracy, before, 0)[0], np.take_along_axis(accuracy, at, 0)[0]
    between = (at[0] > 0) & (t0 > 0)
    part = np.divide(target - a0, a1 - a0, out=np.ones_like(a0), where=between & (a1 > a0))
    low, high = np.log2(np.where(between, t0, 1.0)), np.log2(np.where(between, t1, 1.0))
    crossing = np.where(between, 2.0 ** (low + np.clip(part, 0, 1) * (high - low)), t1)
    places: Floats = np.where(reached.any(axis=0), crossing, np.inf)
    return places
