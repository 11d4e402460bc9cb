"""Pictures of what loops do: accuracy over passes, where tokens leave, paths of states.

Promises: pure functions from rows to SVG, small enough to stand side by side on a screen and below one
another on a phone; every seed is drawn, with its interval; what colour tells is told by shape or words too.
Does not: read summary.json (see `depths`), or compute.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from markupsafe import Markup

from tutelage.report import svg
from tutelage.report.depths import Cell, Left, Loops, Path, Paths, Place, Value, groups_of, mean, named
from tutelage.report.words import interval, percent

_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 330, 236, 46, 32, 186
_PATHS_WIDTH, _PATHS_HEIGHT = 460, 400
KIND_STYLES = {"settles": "m-budget", "orbits": "m-wait", "drifts": "m-vote"}
"""The hue of each kind of path, a class of the page's style sheet."""
_SEEDS = ("circle", "square", "triangle", "diamond")


def curves(runs: Sequence[Loops], seeds: Sequence[str], examples: bool = False) -> list[Markup]:
    """A picture for each depth of problem (or number of worked examples): accuracy over passes, a line per
    seed; the models of fixed depth are dashed lines at their mean over seeds."""
    groups = groups_of(cell for run in runs for cell in (run.examples if examples else run.cells))
    return [_curve(runs, seeds, group, examples) for group in groups if group is not None or not examples]


def _curve(runs: Sequence[Loops], seeds: Sequence[str], group: int | None, examples: bool) -> Markup:
    lines = {
        run.seed: [cell for cell in (run.examples if examples else run.cells) if cell.group == group]
        for run in runs
    }
    steps = sorted({cell.steps for cells in lines.values() for cell in cells})
    x = _doubling(steps)
    y = svg.linear(0, 1, _BOTTOM, _TOP)
    n = next(cell.value.n for cells in lines.values() for cell in cells)
    title = _title(group, examples)
    body = [svg.text(0, 14, title, "strong"), svg.text(_WIDTH - 6, 14, f"n {n:,}", "soft", "end")]
    body += _frame(y, [0, 0.25, 0.5, 0.75, 1], lambda mark: f"{100 * mark:.0f} %")
    body += _across(steps, x, "passes of the core")
    trained = runs[0].trained_mean
    if steps[0] <= trained <= steps[-1]:
        body.append(svg.line(x(trained), _TOP, x(trained), _BOTTOM, "stop"))
    if not examples:
        body += _dashed(runs, group, y)
    for run in runs:
        number = seeds.index(run.seed)
        body += _line(lines[run.seed], x, y, number, f"{title}{f', seed {run.seed}' if run.seed else ''}")
    return svg.picture(_WIDTH, _HEIGHT, f"{title}: accuracy against passes", body, "plot multiple")


def _title(group: int | None, examples: bool) -> str:
    if not examples:
        return "all problems" if group is None else f"depth {group}"
    return f"{group} worked example{'' if group == 1 else 's'}"


def _line(cells: Sequence[Cell], x: svg.Scale, y: svg.Scale, number: int, name: str) -> list[str]:
    kind, shape = f"seed{number % 4}", _SEEDS[number % 4]
    spots = [(x(cell.steps) + 1.5 * (number - 1), y(cell.value.mean)) for cell in cells]
    body = [svg.path(spots, f"series {kind}")] if len(spots) > 1 else []
    for cell, (across, down) in zip(cells, spots, strict=True):
        value = cell.value
        tip = (
            f"{name}, {cell.steps} passes: {percent(value.mean)} {interval(value.lo, value.hi)}, n {value.n}"
        )
        body.append(svg.line(across, y(value.lo), across, y(value.hi), f"bar95 {kind}"))
        body.append(svg.marker(shape, across, down, f"dot {kind}", tip, 3))
    return body


def _dashed(runs: Sequence[Loops], group: int | None, y: svg.Scale) -> list[str]:
    """The models of fixed depth, named at their lines' ends; names that would meet stand apart."""
    names = list(dict.fromkeys(each.name for run in runs for each in run.baselines))
    body, labels, taken = list[str](), list[str](), list[float]()
    for number, name in enumerate(names):
        values = [
            each.value.mean
            for run in runs
            for each in run.baselines
            if (each.name, each.group) == (name, group)
        ]
        if not values:
            continue
        height, kind = y(mean(values)), ("m-suppress", "m-wait2", "m-other3")[number % 3]
        body.append(svg.line(_LEFT, height, _WIDTH - 6, height, f"series hollow {kind}"))
        place = height - 4 if height > _TOP + 12 else height + 12
        while any(abs(place - other) < 13 for other in taken):
            place += 13 if place < _BOTTOM - 20 else -26
        taken.append(place)
        label = svg.elide(f"{name} {100 * mean(values):.0f} %", _WIDTH - _LEFT - 20)
        # What is low everywhere is free on the right, where the loops have done their work.
        low = mean(values) < 0.6
        across, anchor = (_WIDTH - 10, "end") if low else (_LEFT + 4, "start")
        labels.append(svg.text(across, place, label, f"name {kind}", anchor))
    return body + labels  # names lie over the lines of others


def exits(runs: Sequence[Loops], seeds: Sequence[str], exit: str) -> Markup:
    """Mean passes behind the answer against the depth of the problem, a line per seed."""
    found = {run.seed: [each for each in run.left if each.exit == exit] for run in runs}
    groups = sorted({each.group for rows in found.values() for each in rows if each.group is not None})
    top = max(each.passes.hi for rows in found.values() for each in rows)
    marks = svg.ticks(0, top, 4)
    x, y = _even(groups), svg.linear(0, marks[-1], _BOTTOM, _TOP)
    body = [svg.text(0, 14, svg.elide(f"before the answer, {exit}", _WIDTH, 14), "strong")]
    body += _frame(y, marks, lambda mark: f"{mark:g}")
    body += _across(groups, x, "depth of the problem")
    for run in runs:
        number = seeds.index(run.seed)
        rows = [each for each in found[run.seed] if each.group is not None]
        body += _means([(_at(each), each.passes) for each in rows], x, y, number, _exit_tips(rows, run.seed))
    return svg.picture(_WIDTH, _HEIGHT, f"Mean passes by problem depth, exit {exit}", body, "plot multiple")


def _at(each: Left) -> int:
    return each.group or 0


def _exit_tips(rows: Sequence[Left], seed: str) -> list[str]:
    return [
        f"depth {named(each.group)}, seed {seed}: {each.passes.mean:.1f} passes, "
        f"{percent(each.value.mean)} right ({percent(each.fixed)} at {each.bound})"
        for each in rows
    ]


def positions(runs: Sequence[Loops], seeds: Sequence[str]) -> Markup:
    """Mean passes against the place of a token in the question, a line per seed."""
    places = sorted({each.position for run in runs for each in run.places})
    exit = next(each.exit for run in runs for each in run.places)
    marks = svg.ticks(0, max(each.passes.hi for run in runs for each in run.places), 4)
    x, y = (
        svg.linear(places[0], max(places[-1], places[0] + 1), _LEFT + 12, _WIDTH - 14),
        svg.linear(0, marks[-1], _BOTTOM, _TOP),
    )
    body = [svg.text(0, 14, svg.elide(f"by place in the question, {exit}", _WIDTH, 14), "strong")]
    body += _frame(y, marks, lambda mark: f"{mark:g}")
    body += _across(
        [mark for mark in svg.ticks(places[0], places[-1], 5) if places[0] <= mark <= places[-1]], x
    )
    body.append(svg.text((_LEFT + _WIDTH) / 2, _BOTTOM + 36, "token", "head", "middle"))
    for run in runs:
        rows = [(each.position, each.passes) for each in run.places]
        body += _means(rows, x, y, seeds.index(run.seed), _place_tips(run.places, run.seed))
    return svg.picture(_WIDTH, _HEIGHT, "Mean passes by place in the question", body, "plot multiple")


def _place_tips(places: Sequence[Place], seed: str) -> list[str]:
    return [
        f"token {each.position}, seed {seed}: {each.passes.mean:.1f} passes, n {each.passes.n}"
        for each in places
    ]


def _means(
    rows: Sequence[tuple[int, Value]], x: svg.Scale, y: svg.Scale, number: int, tips: Sequence[str]
) -> list[str]:
    kind, shape = f"seed{number % 4}", _SEEDS[number % 4]
    spots = [(x(place) + 1.5 * (number - 1), y(value.mean)) for place, value in rows]
    body = [svg.path(spots, f"series {kind}")] if len(spots) > 1 else []
    for (_, value), (across, down), tip in zip(rows, spots, tips, strict=True):
        body.append(svg.line(across, y(value.lo), across, y(value.hi), f"bar95 {kind}"))
        body.append(svg.marker(shape, across, down, f"dot {kind}", tip, 3))
    return body


def paths(drawn: Paths) -> Markup:
    """Ways of some tokens through the first two components: hollow where they begin, filled where they end,
    the token's text at the end."""
    spots = [point for path in drawn.drawn for point in path.points]
    x = svg.linear(min(a for a, _ in spots), max(a for a, _ in spots), 22, _PATHS_WIDTH - 34)
    y = svg.linear(min(b for _, b in spots), max(b for _, b in spots), _PATHS_HEIGHT - 52, 20)
    shares = [f"component {number + 1}: {percent(share)}" for number, share in enumerate(drawn.shares[:2])]
    body = [svg.rect(2, 2, _PATHS_WIDTH - 4, _PATHS_HEIGHT - 34, "box")]
    ends = []
    for path in drawn.drawn:
        kind = KIND_STYLES.get(path.kind, "m-other3")
        way = [(x(a), y(b)) for a, b in path.points]
        tip = f"{path.text!r}, token {path.position} of {path.problem}: {path.kind}"
        body.append(svg.path(way, f"series thin {kind}"))
        body += [svg.marker("circle", *spot, f"dot {kind}", "", 1.2) for spot in way[1:-1]]
        body.append(svg.marker("circle", *way[0], f"dot hollow {kind}", f"{tip}, begins", 3))
        ends.append(svg.marker(_ENDS.get(path.kind, "circle"), *way[-1], f"dot {kind}", f"{tip}, ends", 4.2))
    names = _end_names(drawn.drawn, x, y)
    body += [
        *ends,
        *names,
        svg.text(_PATHS_WIDTH / 2, _PATHS_HEIGHT - 12, " · ".join(shares), "head", "middle"),
    ]
    told = f"Paths of {len(drawn.drawn)} tokens through the first two principal components"
    return svg.picture(_PATHS_WIDTH, _PATHS_HEIGHT, told, body, "plot paths")


_ENDS = {"settles": "circle", "orbits": "square", "drifts": "triangle"}


def _end_names(drawn: Sequence[Path], x: svg.Scale, y: svg.Scale) -> list[str]:
    """Texts of tokens beside their ends, where no other stands already."""
    names, taken = [], list[tuple[float, float]]()
    for path in drawn:
        across, down = x(path.points[-1][0]), y(path.points[-1][1])
        if any(abs(across - a) < 30 and abs(down - b) < 12 for a, b in taken):
            continue
        taken.append((across, down))
        shown = svg.elide(path.text.strip() or "␣", 60)
        kind = f"name {KIND_STYLES.get(path.kind, 'm-other3')}"
        if across + 9 + svg.text_width(shown, 13.8) > _PATHS_WIDTH:
            names.append(svg.text(across - 7, down + 4, shown, kind, "end"))
        else:
            names.append(svg.text(across + 7, down + 4, shown, kind))
    return names


def _frame(y: svg.Scale, marks: Iterable[float], told: object) -> list[str]:
    body = []
    for mark in marks:
        body.append(svg.line(_LEFT, y(mark), _WIDTH - 6, y(mark), "grid"))
        body.append(svg.text(_LEFT - 6, y(mark) + 4, told(mark), "soft", "end"))  # type: ignore[operator]
    return body


def _across(marks: Sequence[float], x: svg.Scale, axis: str = "") -> list[str]:
    """Marks of the lower axis; labels that would run into another are left out."""
    body, shown = [], -1e9
    for mark in marks:
        label = f"{mark:g}"
        half = svg.text_width(label, 12) / 2 + 2
        body.append(svg.line(x(mark), _BOTTOM, x(mark), _BOTTOM + 4, "tick"))
        if x(mark) - half >= shown:
            body.append(svg.text(x(mark), _BOTTOM + 18, label, "soft", "middle"))
            shown = x(mark) + half
    if axis:
        body.append(svg.text((_LEFT + _WIDTH) / 2, _BOTTOM + 36, axis, "head", "middle"))
    return body


def _doubling(marks: Sequence[int]) -> svg.Scale:
    inner = svg.linear(math.log2(marks[0]), math.log2(marks[-1]), _LEFT + 12, _WIDTH - 16)
    return lambda value: inner(math.log2(value))


def _even(groups: Sequence[int]) -> svg.Scale:
    return svg.linear(groups[0], max(groups[-1], groups[0] + 1), _LEFT + 12, _WIDTH - 16)
