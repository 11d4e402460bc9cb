"""Where a name goes beside its line: near one of its points, over as little as possible.

Promises: a name stays inside its frame; the same marks give the same places; a name that had to go far from
its point gets a thin leader.
Does not: know what the lines mean.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tutelage.report import svg

Spot = tuple[float, float]
Box = tuple[float, float, float, float, float]
"""x1, y1, x2, y2, and what it costs to cover it."""
_SIZE = 13.8  # names are bold, hence wider than their 12.5


@dataclass(frozen=True, slots=True)
class Frame:
    """The plot's area in user units."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True, slots=True)
class Named:
    """A line that wants its name drawn: the name, its classes, and its points in order."""

    name: str
    kind: str
    spots: Sequence[Spot]


@dataclass(slots=True)
class Crowd:
    """What is drawn already, and what it costs to cover it."""

    boxes: list[Box] = field(default_factory=list)

    def line(self, spots: Sequence[Spot]) -> None:
        """A line through `spots`."""
        self.boxes += [(x - 2, y - 2, x + 2, y + 2, 1.0) for x, y in _along(spots)]

    def dot(self, spot: Spot, top: float, bottom: float) -> None:
        """A mark at `spot` with an upright bar from `top` to `bottom`."""
        x, y = spot
        self.boxes += [(x - 6, y - 6, x + 6, y + 6, 4.0), (x - 1, top, x + 1, bottom, 0.4)]

    def small(self, x: float, y: float) -> None:
        """A short text whose base line begins at (x, y)."""
        self.boxes.append((x - 1, y - 10, x + 15, y + 2, 4.0))


def place(names: Sequence[Named], crowd: Crowd, frame: Frame, most: float = 200) -> list[str]:
    """The names as SVG, each at most `most` units long. Lines with few points choose first: they have the
    fewest places."""
    body: list[str] = []
    for named in sorted(names, key=lambda each: (len(each.spots), -each.spots[-1][0])):
        name = svg.elide(named.name, most, _SIZE)
        long = svg.text_width(name, _SIZE)
        best: tuple[float, Spot, Spot, Spot] | None = None
        for spot, at, fee in _candidates(named.spots, long, frame):
            box = _label_box(at, long)
            cost = fee + sum(other[4] for other in crowd.boxes if _overlap(box, other))
            if best is not None and cost >= best[0]:
                continue
            near = (min(max(spot[0], at[0]), at[0] + long), at[1] - 4)
            # A leader that runs over other marks misleads as much as a covered label.
            trail = [(x, y, x + 1, y + 1) for x, y in _along([spot, near])[2:]]
            heavy = [box for box in crowd.boxes if box[4] >= 4]
            cost += sum(box[4] for box in heavy for step in trail if _overlap(step, box)) / 2
            if best is None or cost < best[0]:
                best = (cost, at, spot, near)
        if best is None:
            # No place inside the frame: above the plot's right end, over the lines.
            at = (frame.right - 2 - long, frame.top + 12)
            best = (0.0, at, named.spots[-1], named.spots[-1])
        _, at, spot, near = best
        if math.dist(near, spot) > 20:
            body.append(svg.line(spot[0], spot[1], near[0], near[1], f"leader {named.kind}"))
        body.append(svg.text(at[0], at[1], name, f"name {named.kind}"))
        crowd.boxes.append((*_label_box(at, long), 25.0))
    return body


def _candidates(spots: Sequence[Spot], long: float, frame: Frame) -> Iterator[tuple[Spot, Spot, float]]:
    """Places (left end of the base line) for a label `long` wide beside each of `spots`, last point first,
    and their cost: far ones and those at earlier points cost more. Only places inside the frame."""
    # Directions, and beside them the share of the name that then lies left of its place.
    sides = ((1, 0, 0.0), (1, -0.7, 0.0), (1, 0.7, 0.0), (-1, 0, 1.0), (-1, -0.7, 1.0), (-1, 0.7, 1.0))
    around = (*sides[:3], (0, -1, 0.5), (0, 1, 0.5), *sides[3:], (0, -1, 0.1), (0, 1, 0.1))
    for rank, (px, py) in enumerate(reversed(spots)):
        for reach in (11.0, 22.0, 36.0, 52.0, 70.0, 92.0, 118.0, 148.0):
            for dx, dy, left_of in around:
                at = (px + dx * reach - left_of * long, py + dy * reach + 4)
                left, top, right, bottom = _label_box(at, long)
                if left > frame.left and right < frame.right and top > frame.top and bottom < frame.bottom:
                    yield (px, py), at, reach / 22 + 0.3 * rank


def _label_box(at: Spot, long: float) -> tuple[float, float, float, float]:
    return at[0] - 2, at[1] - 11, at[0] + long + 2, at[1] + 3


def _along(spots: Sequence[Spot]) -> list[Spot]:
    """Places every six units along a line."""
    places = []
    for (x1, y1), (x2, y2) in itertools.pairwise(spots):
        steps = max(1, int(math.hypot(x2 - x1, y2 - y1) / 6))
        places += [(x1 + (x2 - x1) * i / steps, y1 + (y2 - y1) * i / steps) for i in range(steps)]
    return places


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
