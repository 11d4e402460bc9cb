"""What the loops of recurrent-depth students do, read from summary.json: one `Loops` per student and seed.

Promises: what comes out is of the kind asked for, or a UsageError says where it stands; no number without an
interval; texts of models are free of control characters.
Does not: draw (see `depth_plots`), or average over seeds other than by the plain mean (`mean`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tutelage.errors import UsageError
from tutelage.plain import visible
from tutelage.report.fields import count_at, entries, is_number, number_at, number_or_none, text_at
from tutelage.report.summary import seen_note


@dataclass(frozen=True, slots=True)
class Value:
    """A number with its 95 % interval over `n` items."""

    mean: float
    lo: float
    hi: float
    n: int


@dataclass(frozen=True, slots=True)
class Cell:
    """Accuracy after `steps` passes on the problems of `group` (a depth, or a number of examples; None: all).
    `enough`: no larger number of passes is shown to be better."""

    group: int | None
    steps: int
    value: Value
    enough: bool


@dataclass(frozen=True, slots=True)
class Baseline:
    """Accuracy of another model at one depth, and the student's after `steps` passes minus that."""

    name: str
    parameters: float
    group: int | None
    value: Value
    gap: Value
    p: float
    steps: int


@dataclass(frozen=True, slots=True)
class Left:
    """Where tokens left by themselves: `passes` behind the answer, accuracy, and its difference to `fixed`,
    the accuracy at the bound."""

    exit: str
    group: int | None
    bound: int
    passes: Value
    value: Value
    fixed: float
    gap: Value


@dataclass(frozen=True, slots=True)
class Place:
    """Passes of the tokens at one position of the question."""

    exit: str
    position: int
    passes: Value


@dataclass(frozen=True, slots=True)
class Heat:
    """One example token by token: text, passes, and the token predicted next. `start`: where the answer
    begins."""

    exit: str
    bound: int
    problem: str
    group: int | None
    start: int
    tokens: tuple[tuple[str, int, str], ...]


@dataclass(frozen=True, slots=True)
class Path:
    """One token's way through the first two principal components, a point for each pass."""

    text: str
    position: int
    problem: str
    kind: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Paths:
    """Ways of `steps` passes: shares of their kinds, and of the variance along each component."""

    steps: int
    kinds: Mapping[str, Value]
    shares: tuple[float, ...]
    drawn: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Apart:
    """Relative distance of two runs from different initial states, and the share of equal predictions."""

    steps: int
    distance: Value
    same: float


@dataclass(frozen=True, slots=True)
class Loops:
    """All that was measured of one student of one seed."""

    name: str
    seed: str
    steps: tuple[int, ...]
    at: int
    trained_mean: int
    parameters: float
    note: str
    cells: tuple[Cell, ...]
    examples: tuple[Cell, ...]
    baselines: tuple[Baseline, ...]
    left: tuple[Left, ...]
    places: tuple[Place, ...]
    heat: tuple[Heat, ...]
    paths: Paths | None
    restarts: tuple[Apart, ...]

    def cell(self, group: int | None, steps: int) -> Cell | None:
        """Accuracy at one depth after so many passes."""
        found = (cell for cell in self.cells if cell.group == group and cell.steps == steps)
        return next(found, None)


def read_depths(summary: Mapping[str, Any]) -> list[Loops]:
    """`depths`, in file order. Raises UsageError for a broken entry."""
    return [_loops(row, where) for where, row in entries(summary, "depths")]


def by_name(loops: Sequence[Loops]) -> dict[str, list[Loops]]:
    """All seeds of each student, in order of appearance."""
    found: dict[str, list[Loops]] = {}
    for each in loops:
        found.setdefault(each.name, []).append(each)
    return found


def mean(values: Iterable[float]) -> float:
    """The plain mean over seeds."""
    known = list(values)
    return sum(known) / len(known)


def groups_of(cells: Iterable[Cell]) -> list[int | None]:
    """Depths (or numbers of examples) in order, all problems last."""
    found = {cell.group for cell in cells}
    return [*sorted(group for group in found if group is not None), *([None] if None in found else [])]


def named(group: int | None) -> str:
    """A depth, for people."""
    return "all" if group is None else str(group)


def _loops(row: Mapping[str, Any], where: str) -> Loops:
    steps = tuple(int(step) for step in row.get("steps") or ())
    gaps = {
        (text_at(gap, "b", place), _group(gap, "depth", place)): (gap, place)
        for place, gap in _inner(row, "differences", where)
    }
    return Loops(
        name=text_at(row, "name", where),
        seed="" if row.get("seed") is None else visible(row["seed"]),
        steps=steps,
        at=int(number_at(row, "at", where)),
        trained_mean=int(number_at(row, "trained_mean", where)),
        parameters=number_at(row, "parameters", where),
        note=seen_note(*(number_or_none(row, key, where) or 0 for key in ("chosen_on", "trained_on"))),
        cells=tuple(_cell(each, "depth", place) for place, each in _inner(row, "accuracy", where)),
        examples=tuple(_cell(each, "examples", place) for place, each in _inner(row, "examples", where)),
        baselines=tuple(_baseline(each, place, gaps) for place, each in _inner(row, "baselines", where)),
        left=tuple(_left(each, place) for place, each in _inner(row, "exits", where)),
        places=tuple(_place(each, place) for place, each in _inner(row, "positions", where)),
        heat=tuple(_heat(each, place) for place, each in _inner(row, "heat", where)),
        paths=_paths(row["paths"], f"{where}.paths") if row.get("paths") else None,
        restarts=tuple(
            Apart(
                int(number_at(each, "steps", place)),
                _value(each, "distance", "distance_ci95", place),
                number_at(each, "same", place),
            )
            for place, each in _inner(row, "restarts", where)
        ),
    )


def _inner(row: Mapping[str, Any], section: str, where: str) -> list[tuple[str, Mapping[str, Any]]]:
    return [(f"{where}.{place}", each) for place, each in entries(row, section)]


def _value(row: Mapping[str, Any], name: str, interval: str, where: str) -> Value:
    ends = row.get(interval)
    if not isinstance(ends, Sequence) or len(ends) != 2 or not all(map(is_number, ends)):
        raise UsageError(f"summary: {where}.{interval} must be [lo, hi]: no number without an interval")
    n = int(number_at(row, "n", where))
    return Value(number_at(row, name, where), float(ends[0]), float(ends[1]), n)


def _group(row: Mapping[str, Any], name: str, where: str) -> int | None:
    return count_at(row, name, where)


def _cell(row: Mapping[str, Any], group: str, where: str) -> Cell:
    return Cell(
        _group(row, group, where),
        int(number_at(row, "steps", where)),
        _value(row, "accuracy", "ci95", where),
        bool(row.get("enough")),
    )


def _baseline(
    row: Mapping[str, Any], where: str, gaps: Mapping[Any, tuple[Mapping[str, Any], str]]
) -> Baseline:
    name, group = text_at(row, "name", where), _group(row, "depth", where)
    if (name, group) not in gaps:
        raise UsageError(f"summary: {where} has no entry among the differences")
    gap, place = gaps[name, group]
    return Baseline(
        name=name,
        parameters=number_at(row, "parameters", where),
        group=group,
        value=_value(row, "accuracy", "ci95", where),
        gap=_value(gap, "difference", "difference_ci95", place),
        p=number_at(gap, "p", place),
        steps=int(number_at(gap, "steps", place)),
    )


def _left(row: Mapping[str, Any], where: str) -> Left:
    return Left(
        exit=text_at(row, "exit", where),
        group=_group(row, "depth", where),
        bound=int(number_at(row, "bound", where)),
        passes=_value(row, "passes", "passes_ci95", where),
        value=_value(row, "accuracy", "ci95", where),
        fixed=number_at(row, "fixed", where),
        gap=_value(row, "difference", "difference_ci95", where),
    )


def _place(row: Mapping[str, Any], where: str) -> Place:
    position = int(number_at(row, "position", where))
    return Place(text_at(row, "exit", where), position, _value(row, "passes", "passes_ci95", where))


def _heat(row: Mapping[str, Any], where: str) -> Heat:
    tokens = row.get("tokens")
    if not isinstance(tokens, Sequence) or not all(
        isinstance(each, Sequence) and len(each) == 3 and is_number(each[1]) for each in tokens
    ):
        raise UsageError(f"summary: {where}.tokens must hold [text, passes, predicted]")
    return Heat(
        exit=text_at(row, "exit", where),
        bound=int(number_at(row, "bound", where)),
        problem=text_at(row, "problem_id", where),
        group=_group(row, "depth", where),
        start=int(number_at(row, "start", where)),
        tokens=tuple((visible(text), int(passes), visible(word)) for text, passes, word in tokens),
    )


def _paths(row: Any, where: str) -> Paths:
    if not isinstance(row, Mapping):
        raise UsageError(f"summary: {where} must be an object")
    drawn = []
    for place, each in _inner(row, "tokens", where):
        points = each.get("at")
        if not isinstance(points, Sequence) or len(points) < 2 or not all(_is_point(at) for at in points):
            raise UsageError(f"summary: {place}.at must hold at least two points [x, y]")
        drawn.append(
            Path(
                text_at(each, "text", place),
                int(number_at(each, "position", place)),
                text_at(each, "problem_id", place),
                text_at(each, "kind", place),
                tuple((float(x), float(y)) for x, y in points),
            )
        )
    return Paths(
        steps=int(number_at(row, "steps", where)),
        kinds={
            text_at(each, "kind", place): _value(each, "share", "ci95", place)
            for place, each in _inner(row, "kinds", where)
        },
        shares=tuple(float(share) for share in row.get("shares") or () if is_number(share)),
        drawn=tuple(drawn),
    )


def _is_point(at: Any) -> bool:
    return isinstance(at, Sequence) and len(at) == 2 and all(map(is_number, at))
