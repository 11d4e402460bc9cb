"""The points of a sweep as lines: what each line is worth as a whole, and whether its steps are real.

Promises: a line of budgets ends, and a line of waits or minima begins, at the unforced point; steps are
paired over the same problems, and their p-values are corrected for having looked at all of them. Lines of
loops lie on an axis of loops, all others on one of thinking tokens, and all of them once more on one of
FLOPs, where the two ways to think can be compared.
Does not: measure points (see `sweep`), or know how areas are computed (see `curve`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from tutelage.measure.compare import compare, with_holm
from tutelage.measure.curve import Floats, Line, Unit, described
from tutelage.measure.grid import FREE
from tutelage.measure.sweep import Point


def analyse(points: Sequence[Point], problem_ids: Sequence[str], seed: int, targets: Sequence[float]) -> Any:
    """Lines and steps of one arm and seed, JSON-ready: `lines` as `curve.described` has them, `flops` them
    against FLOPs (none where these are not known), `neighbours` as `compare` has them, with the names of
    points as `a` (the later one) and `b`."""
    lines = lines_of(points)
    steps: dict[tuple[str, str], dict[str, Any]] = {}
    for members in lines.values():
        for before, after in itertools.pairwise(members):
            names = (str(after.row["setting"]), str(before.row["setting"]))
            if names not in steps:
                ours, theirs = (
                    dict(zip(problem_ids, point.scores[:, None], strict=True)) for point in (after, before)
                )
                steps[names] = compare(*names, ours, theirs, seed)
    return {
        "lines": [described(_line(name, members), targets) for name, members in lines.items()],
        "flops": [
            described(_line(name, members, "flops"), targets)
            for name, members in lines.items()
            if all(point.flops is not None for point in members)
        ],
        "neighbours": with_holm(list(steps.values())),
    }


def lines_of(points: Sequence[Point]) -> dict[str, list[Point]]:
    """The points of each line in the order of their setting, with the unforced point where it belongs."""
    natural = points[0]
    found: dict[str, list[Point]] = {}
    for point in points:
        if point.line:
            found.setdefault(point.line, []).append(point)
    for name, members in found.items():
        if members[0].row["method"] == "budget":
            found[name] = [*members, natural]
        elif members[0].row["method"] in ("wait", "suppress"):
            found[name] = [natural, *members]
    return found


def _line(name: str, members: Sequence[Point], unit: Unit | None = None) -> Line:
    """The points on the axis of `unit`; None: loops where they lie in the loop, else thinking tokens."""
    if unit is None:
        looped = members[0].row["part"] == "loops" and all(point.loops is not None for point in members)
        unit = "loops" if looped else "tokens"
    bounds = tuple(FREE if point.row["method"] == "natural" else point.bound for point in members)
    return Line(
        name,
        tuple(str(point.row["setting"]) for point in members),
        np.stack([_on(point, unit) for point in members]),
        np.stack([point.scores for point in members]),
        bounds if unit == "tokens" else (FREE,) * len(members),
        unit,
    )


def _on(point: Point, unit: Unit) -> Floats:
    """Where each problem stands at a point, (n,)."""
    found = {"tokens": point.tokens, "loops": point.loops, "flops": point.flops}[unit]
    assert found is not None  # lines are made of points that have it
    return found
