"""What was computed about whole lines of a thinking curve: `analysis` of `summary.json` read into typed rows.

Promises: as `summary`: a missing section is empty, a broken entry is refused with its path, text is visible.
Does not: compute anything (see `measure.curve`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tutelage.errors import UsageError
from tutelage.plain import visible
from tutelage.report.fields import number_at
from tutelage.report.summary import Comparison, read_comparisons
from tutelage.report.words import amount, flops, interval, percent


@dataclass(frozen=True, slots=True)
class LineRow:
    """One line in words, ready for a table. `area` is the mean accuracy over the doublings from `span`;
    `reached` says for each target at how many tokens it is reached (loops and FLOPs are named); `control`
    (per cent), `scaling` (points per doubling) and `performance` (per cent) are s1's, "" where they do not
    apply."""

    arm: str
    seed: str
    name: str
    n: str
    area: str
    span: str
    reached: tuple[str, ...]
    control: str
    scaling: str
    performance: str


def targets_of(summary: Mapping[str, Any]) -> list[float]:
    """The targets that the lines were asked for, in order."""
    return list(
        dict.fromkeys(
            number_at(reach, "target", where)
            for where, _, line in _lines(summary)
            for reach in _reaches(line)
        )
    )


def read_lines(summary: Mapping[str, Any], section: str = "lines") -> list[LineRow]:
    """Every line of every sweep, in file order; `section` "flops": against FLOPs."""
    targets = targets_of(summary)
    return [
        LineRow(
            arm=visible(part.get("arm", "")),
            seed=visible(part.get("seed", "")),
            name=visible(line.get("line", "")),
            n=amount(number_at(line, "n", where)),
            area=_area(line, where),
            span=_span(line, where),
            reached=tuple(_reached(line, target, where) for target in targets),
            control=_rounded(line, "control", where, " %"),
            scaling=_rounded(line, "scaling", where, "", sign="+"),
            performance=_rounded(line, "performance", where, " %"),
        )
        for where, part, line in _lines(summary, section)
    ]


def read_neighbours(summary: Mapping[str, Any]) -> list[Comparison]:
    """Paired differences between neighbouring points of a line, in file order."""
    rows = []
    for where, part in _parts(summary):
        for row in part.get("neighbours") or ():
            if not isinstance(row, Mapping):
                raise UsageError(f"summary: {where}.neighbours must hold objects")
            arm = visible(part.get("arm", ""))
            rows.append(
                {**row, "a": f"{arm}, {row.get('a')}", "b": str(row.get("b")), "seed": part.get("seed", "")}
            )
    return read_comparisons({"comparisons": rows})


def _parts(summary: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    parts = summary.get("analysis") or []
    if not isinstance(parts, Sequence) or not all(isinstance(part, Mapping) for part in parts):
        raise UsageError("summary: analysis must be a list of objects")
    return [(f"analysis[{index}]", part) for index, part in enumerate(parts)]


def _lines(
    summary: Mapping[str, Any], section: str = "lines"
) -> list[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    found = []
    for where, part in _parts(summary):
        for index, line in enumerate(part.get(section) or ()):
            if not isinstance(line, Mapping):
                raise UsageError(f"summary: {where}.{section}[{index}] must be an object")
            found.append((f"{where}.{section}[{index}]", part, line))
    return found


def _area(line: Mapping[str, Any], where: str) -> str:
    area = line.get("area")
    if area is None:
        return "one place only"
    lo, hi = _ends(area, f"{where}.area")
    if lo is None or hi is None:
        raise UsageError(f"summary: {where}.area.ci95 must be [lo, hi]: no number without an interval")
    return f"{percent(number_at(area, 'value', where))} {interval(lo, hi)}"


def _span(line: Mapping[str, Any], where: str) -> str:
    area = line.get("area")
    if area is None:
        return ""
    told = flops if _unit(line) == "flops" else amount
    return " to ".join(told(number_at(area, end, where)) for end in ("from", "to")) + _named(line)


def _reached(line: Mapping[str, Any], target: float, where: str) -> str:
    for reach in _reaches(line):
        if reach.get("target") != target:
            continue
        lo, hi = _ends(reach, f"{where}.targets")
        unit = _unit(line)
        if reach.get(unit) is None:
            return "not reached"
        ends = f"[{_place(lo, unit)},\u00a0{_place(hi, unit)}]"
        return f"{_place(number_at(reach, unit, where), unit)} {ends}{_named(line)}"
    return ""


def _unit(line: Mapping[str, Any]) -> str:
    """What the axis of a line counts; files of before there were several have tokens."""
    return str(line.get("unit") or "tokens")


def _named(line: Mapping[str, Any]) -> str:
    """The unit behind a number, where the head of the column does not say it."""
    return {"loops": "\u00a0loops", "flops": "\u00a0FLOPs"}.get(_unit(line), "")


def _place(value: float | None, unit: str) -> str:
    if value is None:
        return "not reached"
    return flops(value) if unit == "flops" else amount(round(value, 1))


def _reaches(line: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return line.get("targets") or ()


def _ends(row: Mapping[str, Any], where: str) -> tuple[float | None, float | None]:
    """The ends of an interval; None is an end that was not reached."""
    ci = row.get("ci95")
    if not isinstance(ci, Sequence) or len(ci) != 2:
        raise UsageError(f"summary: {where}.ci95 must be [lo, hi]: no number without an interval")
    lo, hi = (None if end is None else number_at({"end": end}, "end", where) for end in ci)
    return lo, hi


def _rounded(line: Mapping[str, Any], key: str, where: str, unit: str, sign: str = "") -> str:
    if line.get(key) is None:
        return ""
    return f"{number_at(line, key, where):{sign}.1f}{unit}".replace("-", "−")
