"""The thinking curve: accuracy against mean thinking tokens, loops or FLOPs, labels beside the lines.

Promises: thinking that was cut short and thinking that was prolonged, or spread over several attempts, stand
in panels of their own, each beside the unforced model; one scale of accuracy in all panels, one of tokens in
all panels of a part; each line is named where it runs (no colour code to learn), and the place where waiting
stops helping is marked. Thinking in loops has a panel over loops; against FLOPs everything over the same
problems is in one panel, whatever the arm and the way to think. Points without a place are left to the table.
Does not: interpolate; lines only join the settings of one control in order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tutelage.report import svg
from tutelage.report.labels import Crowd, Frame, Named, Spot, place
from tutelage.report.summary import Point
from tutelage.report.verdict import waiting_stops
from tutelage.report.words import amount, flops, interval, percent

WIDE, NARROW = 540, 400
ACROSS = 1040
_HEIGHT, _LEFT, _TOP, _BOTTOM = 410, 44, 40, 360
_SHAPES = {
    "natural": "hourglass",
    "budget": "circle",
    "wait": "square",
    "suppress": "triangle",
    "vote": "diamond",
    "loops": "circle",
    "exit": "square",
}
_OTHER_SHAPES = ("circle", "square", "triangle", "diamond")
_PARTS = {"capped": "thinking cut short", "extended": "prolonged or repeated"}
Series = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Axis:
    """What lies rightwards: its name, a point's place on it, how a place is written, and whether the marks of
    an axis that doubles are powers of two (else 1, 2 or 5 times powers of ten)."""

    name: str
    unit: str
    of: Callable[[Point], float | None]
    told: Callable[[float], str]
    binary: bool = True

    def at(self, point: Point) -> float:
        """The place of a point that has one."""
        return self.of(point) or 0.0


TOKENS = Axis("mean thinking tokens per problem", "tokens", lambda point: point.tokens, amount)
LOOPS = Axis("mean loops per token", "loops", lambda point: point.loops, amount)
FLOPS = Axis("mean FLOPs per problem", "FLOPs", lambda point: point.flops, flops, binary=False)


def panels(points: Sequence[Point], width: int = WIDE) -> list[Markup]:
    """One picture per seed and part, drawn for screens (WIDE) or phones (NARROW), in order of appearance;
    empty when no point has a token count."""
    known = [point for point in points if point.tokens is not None and point.part != "loops"]
    if not known or (len(known) < len(points) and all(point.part == "natural" for point in known)):
        return []
    # The unforced model is in both parts: what cutting and prolonging start from.
    parts = {
        part: [point for point in known if point.part in {part, "natural"}]
        for part in _PARTS
        if any(point.part == part for point in known)
    } or {"": known}
    return [
        _panel(TOKENS, known, members, seed, _PARTS.get(part, ""), width, stop=part != "capped")
        for seed in dict.fromkeys(point.seed for point in known)
        for part, members in parts.items()
    ]


def loop_panels(points: Sequence[Point], width: int = WIDE) -> list[Markup]:
    """One picture per seed: accuracy against loops, of the arms that have them."""
    known = [p for p in points if p.loops is not None and p.part in {"loops", "natural"}]
    if all(point.part == "natural" for point in known):
        return []
    return [
        _panel(LOOPS, known, known, seed, "against loops", width)
        for seed in dict.fromkeys(point.seed for point in known)
    ]


def compute_panels(points: Sequence[Point], width: int = ACROSS) -> list[Markup]:
    """One picture per seed and set of problems, over the page (ACROSS) or for phones: accuracy against FLOPs,
    all arms and all ways to think; empty where no arm has loops."""
    if all(point.loops is None for point in points):
        return []
    known = [point for point in points if point.flops is not None]
    together: dict[tuple[str, str], list[Point]] = {}
    for point in known:
        together.setdefault((point.seed, point.problem_set), []).append(point)
    return [_panel(FLOPS, mine, mine, seed, "against FLOPs", width) for (seed, _), mine in together.items()]


def _panel(
    axis: Axis,
    known: Sequence[Point],
    members: Sequence[Point],
    seed: str,
    part: str,
    width: int,
    stop: bool = False,
) -> Markup:
    """The points of one seed among `members`, with accuracies on the scale of `known`; `stop` marks where
    waiting stops helping."""
    y_marks = svg.ticks(min(p.lo for p in known), max(p.hi for p in known))
    y = svg.linear(y_marks[0], y_marks[-1], _BOTTOM, _TOP)
    mine = [point for point in members if point.seed == seed]
    places = [axis.at(point) for point in members]
    x, x_marks = _across(axis, min(places), max(places), width)
    title = ", ".join(text for text in (f"seed {seed}" if seed else "", part) if text)
    body = _axes(axis, x, x_marks, y, y_marks, title, width)
    if stop:
        main = main_arm(known)
        body += _stop_mark([p for p in mine if p.arm == main], x, width)
    body += _lines(axis, mine, _styles(known), x, y, width)
    what = "thinking tokens" if axis is TOKENS else axis.unit
    name = f"Accuracy against {what}{', ' if title else ''}{title}"
    kind = {WIDE: "plot panel wide", NARROW: "plot panel narrow"}.get(width, "plot wide")
    return svg.picture(width, _HEIGHT, name, body, kind)


def main_arm(points: Sequence[Point]) -> str:
    """The arm whose thinking was varied most: drawn filled and solid; others hollow and dashed."""
    arms = [point.arm for point in points]
    return max(dict.fromkeys(arms), key=arms.count)


def other_arms(points: Sequence[Point]) -> list[str]:
    """All arms but the main one, in order of appearance."""
    arms = dict.fromkeys(point.arm for point in points)
    return [arm for arm in arms if arm != main_arm(points)]


def is_logarithmic(points: Sequence[Point]) -> bool:
    """Whether the token axis doubles per step: when the counts span more than a factor of six."""
    tokens = [point.tokens for point in points if point.tokens is not None and point.part != "loops"]
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
        "vote": f"majority vote{detail}",
    }.get(method, detail or method)
    return text if arm == main else f"{arm}: {text}"


def describe(point: Point) -> str:
    """One point in full, for hover and table."""
    if point.setting:
        return point.setting
    setting = {
        "budget": f"budget {amount(point.budget)}" if point.budget is not None else "",
        "wait": f"{amount(point.waits)}× “{point.wait}”" if point.waits is not None else "",
        "suppress": f"end suppressed {amount(point.waits)}×" if point.waits is not None else "",
        "vote": f"{amount(point.votes)} votes" if point.votes is not None else "",
        "natural": point.sampling,
    }.get(point.method, "")
    return setting or {"vote": "majority vote", "natural": "unforced"}.get(point.method, point.method)


def _across(axis: Axis, lo: float, hi: float, width: int) -> tuple[svg.Scale, list[float]]:
    start, end = _LEFT + 14, _right(width) - 14
    if lo > 0 and (hi > 6 * lo or (axis is LOOPS and hi > lo)):
        if axis.binary:
            marks = [2.0**e for e in range(math.ceil(math.log2(lo)), math.floor(math.log2(hi)) + 1)]
        else:
            tens = range(math.floor(math.log10(lo)), math.ceil(math.log10(hi)) + 1)
            marks = [mark for e in tens for mark in (10.0**e, 2 * 10.0**e, 5 * 10.0**e) if lo <= mark <= hi]
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
    axis: Axis,
    x: svg.Scale,
    x_marks: list[float],
    y: svg.Scale,
    y_marks: list[float],
    title: str,
    width: int,
) -> list[str]:
    beside = _LEFT + (svg.text_width(title, 15.5) + 8 if title else 0)
    body = [svg.text(_LEFT, 14, title, "strong"), svg.text(beside, 14, "accuracy", "head")]
    for mark in y_marks:
        body.append(svg.line(_LEFT, y(mark), _right(width), y(mark), "grid"))
        body.append(svg.text(_LEFT - 6, y(mark) + 4, f"{100 * mark:.0f} %", "soft", "end"))
    for mark in x_marks:
        body.append(svg.line(x(mark), _BOTTOM, x(mark), _BOTTOM + 5, "tick"))
        body.append(svg.text(x(mark), _BOTTOM + 19, axis.told(mark), "soft", "middle"))
    middle = (_LEFT + _right(width)) / 2
    return [*body, svg.text(middle, _BOTTOM + 38, axis.name, "head", "middle")]


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


def _styles(points: Sequence[Point]) -> dict[Series, tuple[str, str]]:
    """Class and shape of each series, the same in all panels. The second, third ... wait string has a shade
    of its own, and methods without a shade of their own take turns."""
    main = main_arm(points)
    strings = list(dict.fromkeys(p.series[2] for p in points if p.method == "wait"))
    others = list(dict.fromkeys(p.series[1:] for p in points if p.method not in _SHAPES))
    found = {}
    for series in dict.fromkeys(point.series for point in points):
        arm, method, detail = series
        if method not in _SHAPES:
            turn = others.index((method, detail)) % len(_OTHER_SHAPES)
            kind, shape = f"m-other{turn}", _OTHER_SHAPES[turn]
        else:
            second = method == "wait" and strings.index(detail) > 0
            kind, shape = f"m-{method}{'2' if second else ''}", _SHAPES[method]
            if detail.endswith(", continuous"):
                shape = "triangle" if method == "loops" else "diamond"
        found[series] = (kind + ("" if arm == main else " hollow"), shape)
    return found


def _lines(
    axis: Axis,
    points: Sequence[Point],
    styles: dict[Series, tuple[str, str]],
    x: svg.Scale,
    y: svg.Scale,
    width: int,
) -> list[str]:
    groups: dict[Series, list[Point]] = {}
    for point in sorted(points, key=lambda p: (p.order, axis.at(p))):
        groups.setdefault(point.series, []).append(point)
    main = next((s[0] for s, (kind, _) in styles.items() if not kind.endswith("hollow")), "")
    under: list[str] = []
    over: list[str] = []
    crowd = Crowd()
    names: list[Named] = []
    for series, mine in groups.items():
        kind, shape = styles[series]
        spots: list[Spot] = [(x(axis.at(p)), y(p.accuracy)) for p in mine]
        if len(spots) > 1:
            under.append(svg.path(spots, f"series {kind}"))
            crowd.line(spots)
        for point, (px, py) in zip(mine, spots, strict=True):
            under.append(svg.line(px, y(point.lo), px, y(point.hi), f"bar95 {kind}"))
            seed = f", seed {point.seed}" if point.seed else ""
            tip = (
                f"{point.arm}, {describe(point)}{seed}: {percent(point.accuracy)} "
                f"{interval(point.lo, point.hi)} at {_place(axis, point)}, n {point.n}"
            )
            over.append(svg.marker(shape, px, py, f"dot {kind}", tip, 4.6))
            crowd.dot((px, py), y(point.hi), y(point.lo))
            if series[1] in {"wait", "suppress"} and point.waits is not None and len(spots) > 1:
                over.append(svg.text(px + 6, py - 6, f"{point.waits:g}×", f"count {kind}"))
                crowd.small(px + 6, py - 6)
        # A phone has no room for the names of two arms: the text above the plot says which is hollow.
        of_main = width == NARROW and axis is FLOPS and len({s[0] for s in styles}) == 2
        names.append(Named(label(series, series[0] if of_main else main), kind, spots))
    return (
        under
        + over
        + place(names, crowd, Frame(_LEFT, _TOP, width - 6, _BOTTOM - 2), 320 if width == ACROSS else 200)
    )


def _place(axis: Axis, point: Point) -> str:
    """Where a point stands, in words."""
    if axis is TOKENS:
        return f"{amount(round(axis.at(point)))} tokens"
    return f"{axis.told(axis.at(point))} {axis.unit}"


def _right(width: int) -> int:
    """Where the plot ends: some room is left for names beside the last points."""
    return width - (24 if width == NARROW else 40)
