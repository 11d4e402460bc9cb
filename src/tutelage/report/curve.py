"""The thinking curve: accuracy against mean thinking tokens, one panel per seed, labels beside the lines.

Promises: the same axes in every panel; each line is named where it runs (no colour code to learn), and the
place where waiting stops helping is marked. Points without a token count are left to the table.
Does not: interpolate; lines only join the settings of one control in order.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

from markupsafe import Markup

from tutelage.report import svg
from tutelage.report.summary import Point
from tutelage.report.verdict import waiting_stops
from tutelage.report.words import amount, interval, percent

WIDE, NARROW = 540, 400
_HEIGHT, _LEFT, _TOP, _BOTTOM = 410, 44, 40, 360
_SHAPES = {
    "natural": "hourglass",
    "budget": "circle",
    "wait": "square",
    "suppress": "triangle",
    "vote": "diamond",
}
Series = tuple[str, str, str]
Spot = tuple[float, float]
Box = tuple[float, float, float, float, float]  # x1, y1, x2, y2, and what it costs to cover it


def panels(points: Sequence[Point], width: int = WIDE) -> list[Markup]:
    """One picture per seed, drawn for screens (WIDE) or phones (NARROW), in order of appearance; empty
    when no point has a token count."""
    known = [point for point in points if point.tokens is not None]
    if not known:
        return []
    tokens = [point.tokens or 0.0 for point in known]
    x, x_marks = _token_axis(min(tokens), max(tokens), width)
    y_marks = svg.ticks(min(p.lo for p in known), max(p.hi for p in known))
    y = svg.linear(y_marks[0], y_marks[-1], _BOTTOM, _TOP)
    seeds = list(dict.fromkeys(point.seed for point in known))
    main = main_arm(known)
    # The second, third ... wait string of an arm gets a shade of its own, the same one in each panel.
    strings = list(dict.fromkeys(p.wait for p in known if p.method == "wait"))
    drawn = []
    for seed in seeds:
        mine = [point for point in known if point.seed == seed]
        body = _axes(x, x_marks, y, y_marks, f"seed {seed}" if seed else "", width)
        body += _stop_mark([p for p in mine if p.arm == main], x, width)
        body += _lines(mine, main, strings, x, y, width)
        name = f"Accuracy against thinking tokens, seed {seed}"
        drawn.append(
            svg.picture(width, _HEIGHT, name, body, f"plot panel {'wide' if width == WIDE else 'narrow'}")
        )
    return drawn


def main_arm(points: Sequence[Point]) -> str:
    """The arm whose thinking was varied most: drawn filled and solid; others hollow and dashed."""
    arms = [point.arm for point in points]
    return max(dict.fromkeys(arms), key=arms.count)


def is_logarithmic(points: Sequence[Point]) -> bool:
    """Whether the token axis doubles per step: when the counts span more than a factor of six."""
    tokens = [point.tokens for point in points if point.tokens is not None]
    positive = [value for value in tokens if value > 0]
    return bool(positive) and max(positive) > 6 * min(tokens)


def label(series: Series, main: str) -> str:
    """The short name drawn beside a line."""
    arm, method, detail = series
    text = {
        "natural": f"unforced{', ' + detail if detail else ''}",
        "budget": "budget",
        "wait": f"wait “{detail}”" if detail else "wait",
        "suppress": "end suppressed",
        "vote": "majority vote",
    }[method]
    return text if arm == main else f"{arm}: {text}"


def describe(point: Point) -> str:
    """One point in full, for hover and table."""
    setting = {
        "budget": f"budget {amount(point.budget)}" if point.budget is not None else "",
        "wait": f"{amount(point.waits)}× “{point.wait}”" if point.waits is not None else "",
        "suppress": f"end suppressed {amount(point.waits)}×" if point.waits is not None else "",
        "vote": f"{amount(point.votes)} votes" if point.votes is not None else "",
        "natural": point.sampling,
    }[point.method]
    return setting or {"vote": "majority vote", "natural": "unforced"}.get(point.method, point.method)


def _token_axis(lo: float, hi: float, width: int) -> tuple[svg.Scale, list[float]]:
    start, end = _LEFT + 14, _right(width) - 14
    if lo > 0 and hi > 6 * lo:
        marks = [2.0**e for e in range(math.ceil(math.log2(lo)), math.floor(math.log2(hi)) + 1)]
        marks = marks[:: math.ceil(len(marks) / 7)]
        inner = svg.linear(math.log2(lo), math.log2(hi), start, end)
        return (lambda value: inner(math.log2(value))), marks
    if lo <= 0 < hi:
        # Zero thinking has no logarithm; near zero the axis is linear, then it doubles.
        unit = hi / 32
        inner = svg.linear(0, math.log2(1 + hi / unit), start, end)
        marks = [0.0, *(2.0**e for e in range(math.ceil(math.log2(unit * 2)), math.floor(math.log2(hi)) + 1))]
        return (lambda value: inner(math.log2(1 + value / unit))), marks
    marks = [mark for mark in svg.ticks(lo, hi, 6) if lo <= mark <= hi]
    return svg.linear(lo, hi, start, end), marks


def _axes(
    x: svg.Scale, x_marks: list[float], y: svg.Scale, y_marks: list[float], title: str, width: int
) -> list[str]:
    beside = _LEFT + (svg.text_width(title, 15.5) + 8 if title else 0)
    body = [svg.text(_LEFT, 14, title, "strong"), svg.text(beside, 14, "accuracy", "head")]
    for mark in y_marks:
        body.append(svg.line(_LEFT, y(mark), _right(width), y(mark), "grid"))
        body.append(svg.text(_LEFT - 6, y(mark) + 4, f"{100 * mark:.0f} %", "soft", "end"))
    for mark in x_marks:
        body.append(svg.line(x(mark), _BOTTOM, x(mark), _BOTTOM + 5, "tick"))
        body.append(svg.text(x(mark), _BOTTOM + 19, amount(mark), "soft", "middle"))
    middle = (_LEFT + _right(width)) / 2
    return [*body, svg.text(middle, _BOTTOM + 38, "mean thinking tokens per problem", "head", "middle")]


def _stop_mark(points: Sequence[Point], x: svg.Scale, width: int) -> list[str]:
    stop = waiting_stops(points)
    if stop is None or stop.tokens is None:
        return []
    at = x(stop.tokens)
    note = "waiting stops helping here" if stop.waits else "no gain from waiting shown"
    anchor = "start" if at < (_LEFT + _right(width)) / 2 else "end"
    shift = 6 if anchor == "start" else -6
    return [
        svg.line(at, _TOP - 14, at, _BOTTOM, "stop"),
        svg.text(at + shift, _TOP - 6, note, "stopnote", anchor),
    ]


def _lines(
    points: Sequence[Point], main: str, strings: Sequence[str], x: svg.Scale, y: svg.Scale, width: int
) -> list[str]:
    groups: dict[Series, list[Point]] = {}
    for point in sorted(points, key=lambda p: (p.waits or p.budget or p.votes or 0.0, p.tokens or 0.0)):
        groups.setdefault(point.series, []).append(point)
    under: list[str] = []
    over: list[str] = []
    crowd: list[Box] = []
    ends: list[tuple[Series, str, list[Spot]]] = []
    for series, mine in groups.items():
        method = series[1]
        other = method == "wait" and strings.index(series[2]) > 0
        kind = f"m-{method}{'2' if other else ''}" + ("" if series[0] == main else " hollow")
        spots = [(x(p.tokens or 0.0), y(p.accuracy)) for p in mine]
        if len(spots) > 1:
            under.append(svg.path(spots, f"series {kind}"))
            crowd += [(px - 2, py - 2, px + 2, py + 2, 1.0) for px, py in _along(spots)]
        for point, (px, py) in zip(mine, spots, strict=True):
            under.append(svg.line(px, y(point.lo), px, y(point.hi), f"bar95 {kind}"))
            tip = (
                f"{point.arm}, {describe(point)}, seed {point.seed}: {percent(point.accuracy)} "
                f"{interval(point.lo, point.hi)} at {amount(round(point.tokens or 0.0))} tokens, n {point.n}"
            )
            over.append(svg.marker(_SHAPES[method], px, py, f"dot {kind}", tip, 4.6))
            crowd.append((px - 6, py - 6, px + 6, py + 6, 4.0))
            crowd.append((px - 1, y(point.hi), px + 1, y(point.lo), 0.4))
            if method in {"wait", "suppress"} and point.waits is not None and len(spots) > 1:
                over.append(svg.text(px + 6, py - 6, f"{point.waits:g}×", f"count {kind}"))
                crowd.append((px + 5, py - 16, px + 21, py - 4, 4.0))
        ends.append((series, kind, spots))
    return under + over + _labels(ends, main, crowd, width)


def _labels(
    ends: Sequence[tuple[Series, str, list[Spot]]], main: str, crowd: list[Box], width: int
) -> list[str]:
    """Put each name where it covers least, near a point of its line; far ones get a thin leader."""
    body: list[str] = []
    for series, kind, spots in sorted(ends, key=lambda end: (len(end[2]), -end[2][-1][0])):
        name = svg.elide(label(series, main), 200, 13.8)
        long = svg.text_width(name, 13.8)  # bold, hence wider than its 12.5
        best: tuple[float, Spot, Spot, Spot] | None = None
        for spot, place, fee in _candidates(spots, long, width):
            box = _label_box(place, long)
            cost = fee + sum(other[4] for other in crowd if _overlap(box, other))
            if best is not None and cost >= best[0]:
                continue
            near = (min(max(spot[0], place[0]), place[0] + long), place[1] - 4)
            # A leader that runs over other marks misleads as much as a covered label.
            trail = [(x, y, x + 1, y + 1) for x, y in _along([spot, near])[2:]]
            cost += sum(box[4] for box in crowd if box[4] >= 4 for step in trail if _overlap(step, box)) / 2
            if best is None or cost < best[0]:
                best = (cost, place, spot, near)
        if best is None:
            # No place inside the frame: above the plot's right end, over the lines.
            best = (0.0, (width - 8 - long, _TOP + 12), spots[-1], spots[-1])
        _, place, spot, near = best
        if math.dist(near, spot) > 20:
            body.append(svg.line(spot[0], spot[1], near[0], near[1], f"leader {kind}"))
        body.append(svg.text(place[0], place[1], name, f"name {kind}"))
        crowd.append((*_label_box(place, long), 25.0))
    return body


def _candidates(spots: Sequence[Spot], long: float, width: int) -> Iterator[tuple[Spot, Spot, float]]:
    """Places (left end of the base line) for a label `long` wide beside each of `spots`, last point first,
    and their cost: far ones and those at earlier points cost more. Only places inside the frame."""
    around = ((1, 0), (1, -0.7), (1, 0.7), (0, -1), (0, 1), (-1, 0), (-1, -0.7), (-1, 0.7))
    for rank, (px, py) in enumerate(reversed(spots)):
        for reach in (11.0, 22.0, 36.0, 52.0, 70.0):
            for dx, dy in around:
                shift = {1: 0.0, 0: -long / 2, -1: -long}[dx]
                place = (px + dx * reach + shift, py + dy * reach + 4)
                left, top, right, bottom = _label_box(place, long)
                if left > _LEFT and right < width - 6 and top > _TOP and bottom < _BOTTOM - 2:
                    yield (px, py), place, reach / 22 + 0.3 * rank


def _label_box(place: Spot, long: float) -> tuple[float, float, float, float]:
    return place[0] - 2, place[1] - 11, place[0] + long + 2, place[1] + 3


def _along(spots: Sequence[Spot]) -> list[Spot]:
    """Places every six units along a line."""
    places = []
    for (x1, y1), (x2, y2) in itertools.pairwise(spots):
        steps = max(1, int(math.hypot(x2 - x1, y2 - y1) / 6))
        places += [(x1 + (x2 - x1) * i / steps, y1 + (y2 - y1) * i / steps) for i in range(steps)]
    return places


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _right(width: int) -> int:
    """Where the plot ends: some room is left for names beside the last points."""
    return width - (40 if width == WIDE else 24)
