"""The plots made of rows: ladder of arms, paired differences, funnel.

Promises: pure functions from rows to SVG; each is drawn at the width it is shown at (`WIDE` for screens,
`NARROW` for phones), so no label shrinks below reading size; a longer name is cut with an ellipsis, never
drawn over its neighbour. Does not: decide anything; `verdict` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tutelage.report import svg
from tutelage.report.summary import Arm, Comparison, Step
from tutelage.report.words import amount, interval, p_value, percent, points

WIDE, NARROW = 1040, 400
_ROW = 21


@dataclass(frozen=True, slots=True)
class _Row:
    """One dot with its interval. `strong`: drawn filled; else hollow and grey. `columns` stand beside it."""

    seed: str
    mean: float
    lo: float
    hi: float
    value: str
    columns: tuple[str, ...]
    kind: str
    strong: bool
    tip: str


def ladder(arms: Sequence[Arm], width: int = WIDE) -> Markup:
    """Arms from best to worst (mean over seeds): a dot and 95 % interval per seed, and what each took."""
    groups: dict[str, list[Arm]] = {}
    for arm in arms:
        groups.setdefault(arm.name, []).append(arm)
    order = sorted(groups, key=lambda name: -sum(a.accuracy for a in groups[name]) / len(groups[name]))
    seeds = list(dict.fromkeys(arm.seed for arm in arms))
    rows = {name: [_arm_row(arm, seeds) for arm in groups[name]] for name in order}
    top = max(arm.hi for arm in arms)
    marks = svg.ticks(0.0, min(1.0, max(top, 0.05)))
    heads = ("problems", "thinking tokens", "tokens trained on", "teacher calls")
    return _intervals("Accuracy of each arm", rows, marks, heads, width, percent=True)


def forest(comparisons: Sequence[Comparison], width: int = WIDE) -> Markup:
    """Paired differences around a zero line; a filled dot where the interval excludes zero, and p holds after
    Holm's correction."""
    groups: dict[str, list[_Row]] = {}
    for row in comparisons:
        state = {1: "holds", -1: "reversed", 0: "not shown"}[row.direction]
        if row.direction and row.by_chance:
            state = "not by Holm"
        p = p_value(row.p) + (f" (Holm {p_value(row.p_holm)[2:]})" if row.p_holm is not None else "")
        groups.setdefault(f"{row.a} − {row.b}", []).append(
            _Row(
                seed=row.seed,
                mean=row.difference,
                lo=row.lo,
                hi=row.hi,
                value=f"{points(row.difference)} {interval(row.lo, row.hi)}",
                columns=(f"{row.n:,}", p_value(row.p), state),
                kind="good" if row.direction >= 0 else "bad",
                strong=row.direction != 0 and not row.by_chance,
                tip=f"{row.a} − {row.b}, seed {row.seed}: {points(row.difference)} points "
                f"{interval(row.lo, row.hi)}, n {row.n}, {p or 'no p'}; {state}",
            )
        )
    lo, hi = min(row.lo for row in comparisons), max(row.hi for row in comparisons)
    marks = svg.ticks(min(0.0, lo), max(0.0, hi))
    heads = ("problems", "p", "95 % interval")
    return _intervals("Paired differences between arms", groups, marks, heads, width, percent=False)


def funnel(steps: Sequence[Step], width: int = WIDE) -> Markup:
    """Counts at each step: kept in full colour, dropped beside it, and why (beside the bar, or below it)."""
    wide = width >= WIDE
    across = width * (0.62 if wide else 1.0)
    bar = svg.linear(0, max(1, *(step.kept + step.dropped for step in steps)), 0, across)
    body: list[str] = []
    y = 4.0
    for step in steps:
        counts = f"{step.kept:,} kept" + (f" · {step.dropped:,} dropped" if step.dropped else "")
        room = across - svg.text_width(counts, 14) - 12
        body.append(svg.text(0, y + 13, svg.elide(step.stage, room, 15.5), "strong"))
        body.append(svg.text(across, y + 13, counts, "num", "end"))
        body.append(svg.rect(0, y + 20, bar(step.kept), 14, "bar kept"))
        if step.dropped:
            body.append(svg.rect(bar(step.kept) + 1.5, y + 20, bar(step.dropped) - 1.5, 14, "bar dropped"))
        reasons = sorted(step.reasons.items(), key=lambda item: -item[1])
        why = " · ".join(f"{name} {amount(count)}" for name, count in reasons)
        if why and wide:
            body.append(svg.text(across + 20, y + 32, svg.elide(why, width - across - 20), "soft"))
        elif why:
            body.append(svg.text(0, y + 49, svg.elide(why, width), "soft"))
            y += 18
        y += 52
    return svg.picture(
        width, y - 8, "Problems and traces kept and dropped at each step", body, width_class(width)
    )


def _arm_row(arm: Arm, seeds: Sequence[str]) -> _Row:
    samples = f", {arm.samples:,} samples" if arm.samples not in (None, arm.n) else ""
    return _Row(
        seed=arm.seed,
        mean=arm.accuracy,
        lo=arm.lo,
        hi=arm.hi,
        value=f"{percent(arm.accuracy)} {interval(arm.lo, arm.hi)}{' *' if arm.note else ''}",
        columns=(
            f"{arm.n:,}",
            *(_cell(value) for value in (arm.thinking_tokens, arm.tokens_seen, arm.teacher_calls)),
        ),
        kind=f"seed{seeds.index(arm.seed) % 4}",
        strong=True,
        tip=f"{arm.name}, seed {arm.seed}: {percent(arm.accuracy)} {interval(arm.lo, arm.hi)}, "
        f"n {arm.n}{samples}{'; ' + arm.note if arm.note else ''}",
    )


def _intervals(
    name: str,
    groups: dict[str, list[_Row]],
    marks: Sequence[float],
    heads: Sequence[str],
    width: int,
    percent: bool,
) -> Markup:
    """Rows of dots with intervals over one axis; columns beside them (wide) or below them (narrow)."""
    wide = width >= WIDE
    left, right = 52.0, width - 140.0
    if wide:
        # Names take what they need, the columns and the value (150) what they need, the plot the rest.
        left = min(400.0, max(200.0, 90 + max(svg.text_width(group, 14.5) for group in groups)))
        right = _edges(heads, width)[0] - 210
    scale = svg.linear(marks[0], marks[-1], left + 8, right - 8)
    top = 34.0 if wide else 4.0
    body = _headings(heads, "accuracy" if percent else "points", width, right) if wide else []
    y = top
    for group, rows in groups.items():
        if wide:
            body.append(svg.line(0, y, width, y, "rule"))
            body.append(svg.text(0, y + 20, svg.elide(group, left - 74, 14), "strong"))
            y += 5
        else:
            body.append(svg.text(0, y + 16, svg.elide(group, width, 14), "strong"))
            y += 22
        for row in rows:
            middle = y + _ROW / 2
            body += _dot(row, middle, left, right, scale)
            if wide:
                cells = zip(_edges(heads, width), row.columns, strict=True)
                body += [svg.text(x, middle + 4, cell.removeprefix("p "), "num", "end") for x, cell in cells]
            else:
                notes = _notes(heads, row.columns, width - left)
                body += [svg.text(left, middle + 18 + 13 * i, note, "tiny") for i, note in enumerate(notes)]
                y += 13 * len(notes) + 4
            y += _ROW
        y += 6
    axis = []
    for mark in marks:
        axis.append(svg.line(scale(mark), top, scale(mark), y, "grid" if mark or percent else "zero"))
        shown = f"{100 * mark:.0f} %" if percent else points(mark).removesuffix(".0")
        axis.append(svg.text(scale(mark), y + 16, shown, "soft", "middle"))
    return svg.picture(width, y + 24, name, [*axis, *body], width_class(width))


def _dot(row: _Row, middle: float, left: float, right: float, scale: svg.Scale) -> list[str]:
    """The seed, the interval, the dot and the value in figures."""
    kind = row.kind if row.strong else "weak"
    seed = svg.elide(f"seed {row.seed}", 60) if row.seed else ""
    return [
        svg.text(left - 10, middle + 4, seed, "soft", "end"),
        svg.line(scale(row.lo), middle, scale(row.hi), middle, f"whisker {kind}"),
        svg.marker("circle", scale(row.mean), middle, f"dot {kind}", row.tip, 5.5),
        svg.text(right + 10, middle + 4, row.value, "num"),
    ]


def _edges(heads: Sequence[str], width: int) -> list[float]:
    """Right edges of the columns, the last one at the right margin."""
    return [width - 2 - 92.0 * (len(heads) - 1 - i) for i in range(len(heads))]


def _headings(heads: Sequence[str], value: str, width: int, right: float) -> list[str]:
    """Column names in one or two lines, standing on y = 26."""
    body = [svg.text(right + 10, 26, value, "head")]
    for x, head in zip(_edges(heads, width), heads, strict=True):
        lines = _wrap(head, 78)
        start = 26 - 14 * (len(lines) - 1)
        body += [svg.text(x, start + 14 * i, part, "head", "end") for i, part in enumerate(lines)]
    return body


def _notes(heads: Sequence[str], columns: Sequence[str], width: float) -> list[str]:
    """The columns of a row as lines of prose, where there is no room beside it."""
    known = [(head, cell) for head, cell in zip(heads, columns, strict=True) if cell not in {"", "–"}]
    return _wrap(" · ".join(f"{cell} {head}" if cell[0].isdigit() else cell for head, cell in known), width)


def _wrap(content: str, width: float) -> list[str]:
    """Lines of about `width`, broken at spaces."""
    lines: list[str] = []
    for word in content.split(" "):
        if lines and svg.text_width(f"{lines[-1]} {word}", 11.5) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _cell(value: float | None) -> str:
    return "–" if value is None else amount(value)


def width_class(width: int) -> str:
    """The classes of a picture that is drawn for screens or for phones."""
    return "plot wide" if width >= WIDE else "plot narrow"
