"""Accuracy after each stage, and accuracy against a number: arms in an order, all seeds side by side.

Promises: every seed is a dot with its own 95 % interval over problems; the mean over seeds is drawn apart
from them, and stands in the table with the range of the seeds (how much training alone changes it); arms
stand in the order that the recipe names; both widths show all of them.
Does not: pool seeds into one interval, or fit a line.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from tutelage.errors import UsageError
from tutelage.plain import visible
from tutelage.report import svg
from tutelage.report.fields import entries, number_at, text_at
from tutelage.report.labels import Crowd, Frame, Named, place
from tutelage.report.plots import WIDE, width_class
from tutelage.report.summary import Arm
from tutelage.report.words import amount, interval, percent

_TOP, _BOTTOM, _LEFT = 40, 300, 48
# Hues of the page's style sheet that tell lines apart, and shapes that do so without colour.
_STYLES = (("m-budget", "circle"), ("m-wait", "square"), ("m-vote", "triangle"), ("m-suppress", "diamond"))


@dataclass(frozen=True, slots=True)
class Rung:
    """One arm with all its seeds; `x` is its number on an axis, where there is one."""

    name: str
    arms: tuple[Arm, ...]
    x: float = 0.0

    @property
    def mean(self) -> float:
        """The mean accuracy over seeds."""
        return sum(arm.accuracy for arm in self.arms) / len(self.arms)

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest seed."""
        return min(arm.accuracy for arm in self.arms), max(arm.accuracy for arm in self.arms)

    @property
    def by_seed(self) -> dict[str, Arm]:
        """Its arms by their seed."""
        return {arm.seed: arm for arm in self.arms}


@dataclass(frozen=True, slots=True)
class Ladder:
    """Arms in order: accuracy after each stage."""

    title: str
    rungs: tuple[Rung, ...]

    @property
    def seeds(self) -> list[str]:
        """All seeds of all rungs, in order of appearance."""
        return list(dict.fromkeys(arm.seed for rung in self.rungs for arm in rung.arms))


@dataclass(frozen=True, slots=True)
class Against:
    """Lines of arms over a number that `axis` names."""

    title: str
    axis: str
    logarithmic: bool
    lines: Mapping[str, tuple[Rung, ...]]


def read_ladders(summary: Mapping[str, Any], arms: Sequence[Arm]) -> list[Ladder]:
    """`ladders`, in file order. Raises UsageError for an arm that was not measured."""
    found = []
    for where, row in entries(summary, "ladders"):
        names = _some(row.get("arms"), f"{where}.arms")
        rungs = tuple(_rung(str(name), arms, f"{where}.arms") for name in names)
        found.append(Ladder(text_at(row, "title", where), rungs))
    return found


def read_against(summary: Mapping[str, Any], arms: Sequence[Arm]) -> list[Against]:
    """`against`, in file order. Raises UsageError for an arm that was not measured."""
    found = []
    for where, row in entries(summary, "against"):
        lines = {
            visible(name): _line(_some(places, f"{where}.lines.{name}"), arms, f"{where}.lines.{name}")
            for name, places in _some(row.get("lines"), f"{where}.lines").items()
        }
        title, axis = text_at(row, "title", where), text_at(row, "axis", where)
        found.append(Against(title, axis, bool(row.get("logarithmic")), lines))
    return found


def _some(names: Any, where: str) -> Any:
    if not names:
        raise UsageError(f"summary: {where} names no arm")
    return names


def _line(places: Mapping[str, Any], arms: Sequence[Arm], where: str) -> tuple[Rung, ...]:
    rungs = [_rung(str(name), arms, where, number_at(places, name, where)) for name in places]
    return tuple(sorted(rungs, key=lambda rung: rung.x))


def _rung(name: str, arms: Sequence[Arm], where: str, x: float = 0.0) -> Rung:
    mine = tuple(arm for arm in arms if arm.name == visible(name))
    if not mine:
        raise UsageError(f"summary: {where} names {name!r:.60}, which is not among the arms")
    return Rung(visible(name), mine, x)


def steps(ladder: Ladder, width: int = WIDE) -> Markup:
    """One column per arm, in order: a dot and interval per seed, a bar at their mean with its value."""
    seeds = ladder.seeds
    y, body = _scale([arm for rung in ladder.rungs for arm in rung.arms], width)
    across = (width - _LEFT - 8) / max(1, len(ladder.rungs))
    wide = width >= WIDE
    apart = min(14.0 if wide else 8.0, across * 0.6 / max(1, len(seeds)))
    means: list[tuple[float, float]] = []
    over: list[str] = []
    for number, rung in enumerate(ladder.rungs):
        middle = _LEFT + across * (number + 0.5)
        half = apart * len(seeds) / 2 + 6
        means.append((middle, y(rung.mean)))
        over.append(svg.line(middle - half, y(rung.mean), middle + half, y(rung.mean), "zero"))
        top = min(y(arm.hi) for arm in rung.arms) - 7
        over.append(svg.text(middle, top, percent(rung.mean), "strong", "middle"))
        for arm in rung.arms:
            x = middle + apart * (seeds.index(arm.seed) - (len(seeds) - 1) / 2)
            over += _seed(arm, x, y, f"seed{seeds.index(arm.seed) % 4}", "circle")
        kind, size = ("strong", 15.5) if wide else ("soft", 12.0)
        for row, part in enumerate(_lines(rung.name, across - 4, size)):
            over.append(svg.text(middle, _BOTTOM + 18 + 15 * row, part, kind, "middle"))
    if len(means) > 1:
        body.append(svg.path(means, "series m-other3"))
    told = f"Accuracy after each stage: {ladder.title}"
    return svg.picture(width, _BOTTOM + 56, told, [*body, *over], width_class(width))


def against(plot: Against, width: int = WIDE) -> Markup:
    """One line per family through the means over seeds, a dot with its interval for every seed."""
    rungs = [rung for line in plot.lines.values() for rung in line]
    y, body = _scale([arm for rung in rungs for arm in rung.arms], width)
    x = _axis(plot, width)
    shown = -1e9
    for mark in sorted({rung.x for rung in rungs}):
        # The axis is marked where something was measured; labels that would run into another are left out.
        label = amount(mark) if mark == int(mark) else f"{mark:g}"
        room = svg.text_width(label, 12) + 8
        body.append(svg.line(x(mark), _BOTTOM, x(mark), _BOTTOM + 5, "tick"))
        if x(mark) - room / 2 >= shown:
            body.append(svg.text(x(mark), _BOTTOM + 19, label, "soft", "middle"))
            shown = x(mark) + room / 2
    body.append(svg.text((_LEFT + width) / 2, _BOTTOM + 40, plot.axis, "head", "middle"))
    crowd, names, over = Crowd(), [], []
    for number, (name, line) in enumerate(plot.lines.items()):
        kind, shape = _STYLES[number % len(_STYLES)]
        # Lines that share a place on the axis stand beside one another there.
        shift = 3.0 * (number - (len(plot.lines) - 1) / 2)
        means = [(x(rung.x) + shift, y(rung.mean)) for rung in line]
        if len(means) > 1:
            body.append(svg.path(means, f"series {kind}"))
            crowd.line(means)
        for rung, spot in zip(line, means, strict=True):
            for turn, arm in enumerate(rung.arms):
                across = spot[0] + 5.0 * (turn - (len(rung.arms) - 1) / 2)
                over += _seed(arm, across, y, kind, shape)
                crowd.dot((across, y(arm.accuracy)), y(arm.hi), y(arm.lo))
        names.append(Named(name, kind, means))
    labels = place(names, crowd, Frame(_LEFT, _TOP - 8, width - 6, _BOTTOM - 2))
    told = f"Accuracy against {plot.axis}: {plot.title}"
    return svg.picture(width, _BOTTOM + 52, told, [*body, *over, *labels], width_class(width))


def _scale(arms: Sequence[Arm], width: int) -> tuple[svg.Scale, list[str]]:
    """The axis of accuracy, and its grid."""
    marks = svg.ticks(min(arm.lo for arm in arms), max(arm.hi for arm in arms), 5)
    y = svg.linear(marks[0], marks[-1], _BOTTOM, _TOP)
    body = [svg.text(0, 14, "accuracy", "head")]
    for mark in marks:
        body.append(svg.line(_LEFT, y(mark), width - 6, y(mark), "grid"))
        body.append(svg.text(_LEFT - 6, y(mark) + 4, f"{100 * mark:.0f} %", "soft", "end"))
    return y, body


def _axis(plot: Against, width: int) -> svg.Scale:
    numbers = [rung.x for line in plot.lines.values() for rung in line]
    start, end = _LEFT + 24, width - 40
    if not plot.logarithmic:
        return svg.linear(min(numbers), max(numbers), start, end)
    if min(numbers) <= 0:
        raise UsageError(
            f"summary: against {plot.title!r:.60}: a logarithmic axis takes numbers above 0 only"
        )
    inner = svg.linear(math.log2(min(numbers)), math.log2(max(numbers)), start, end)
    return lambda value: inner(math.log2(value))


def _seed(arm: Arm, x: float, y: svg.Scale, kind: str, shape: str) -> list[str]:
    seed = f", seed {arm.seed}" if arm.seed else ""
    note = f"; {arm.note}" if arm.note else ""
    tip = f"{arm.name}{seed}: {percent(arm.accuracy)} {interval(arm.lo, arm.hi)}, n {arm.n}{note}"
    return [
        svg.line(x, y(arm.lo), x, y(arm.hi), f"bar95 {kind}"),
        svg.marker(shape, x, y(arm.accuracy), f"dot {kind}", tip, 4),
    ]


def _lines(name: str, width: float, size: float) -> list[str]:
    """A name in up to three lines, parted at spaces, at hyphens, and inside a word that is too long."""
    lines: list[str] = []
    for part in name.replace("-", "-\0").replace(" ", " \0").split("\0"):
        if lines and svg.text_width(lines[-1] + part, size) <= width:
            lines[-1] += part
            continue
        rest = part
        while svg.text_width(rest, size) > width and len(lines) < 3:
            fits = max(1, int((width - size * 0.55) / (size * 0.55)))
            lines.append(rest[:fits] + "-")
            rest = rest[fits:]
        lines.append(rest)
    kept = lines[:3]
    if len(lines) > 3:
        kept[-1] = svg.elide(kept[-1] + " " * 99, width, size)
    return [svg.elide(line, width, size) for line in kept]
