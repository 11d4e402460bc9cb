"""Benchmarks to be protected: named files or data sets, with the revision that was looked at.

Promises: every item has a name that leads back to it (its id, or its row); the revision is that of the
content (SHA-256 of the questions), so that it can be told later which version was checked against; a missing
column is named, with the nearest one that is there.
Does not: skip a row, or look for hits (see `detectors`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Any

from tutelage.errors import UsageError
from tutelage.plain import visible
from tutelage.problems.columns import GUESSES
from tutelage.problems.files import HUB, file_rows, hub_rows
from tutelage.records import Problem, clean_text


@dataclass(frozen=True, slots=True)
class Benchmark:
    """`items` are (id, question). `revision` is `sha256:` and 16 hex digits of the questions."""

    name: str
    items: tuple[tuple[str, str], ...]
    column: str = "question"

    @property
    def revision(self) -> str:
        """Which content this is."""
        found = hashlib.sha256()
        for _, question in self.items:
            text = question.encode("utf-8", "surrogatepass")
            found.update(b"%d:" % len(text) + text)  # no text can say where the next one begins
        return f"sha256:{found.hexdigest()[:16]}"

    def as_json(self) -> dict[str, Any]:
        """What a report tells of it."""
        return {
            "name": self.name,
            "revision": self.revision,
            "items": len(self.items),
            "column": self.column,
        }


def read_benchmarks(names: Sequence[str], column: str | None = None) -> list[Benchmark]:
    """The benchmarks called `names`: files (.jsonl, .json, .parquet) or `hub:owner/name` (`@config`, and the
    split `test`). A file may be named with its column: `FILE::COLUMN`; `column` is for all others (None: the
    usual names of a question).

    Raises UsageError naming the file and what is wrong."""
    if not names:
        raise UsageError("no benchmark is named; give --against FILE, or hub:owner/name")
    if twice := [name for at, name in enumerate(names) if name in names[:at]]:
        raise UsageError(f"{twice[0]}: named twice as a benchmark; name it once")
    short = [_short(name) for name in names]
    return [
        read_benchmark(name, column, short[at] if short.count(short[at]) == 1 else name)
        for at, name in enumerate(names)
    ]


def read_benchmark(name: str, column: str | None = None, called: str = "") -> Benchmark:
    """One benchmark; `called` is its name in reports. Raises UsageError."""
    place, _, own = name.partition("::")
    rows = questions(place, own or column, split="test")
    items, used = [], column or ""
    for row in rows:
        used = row.column
        items.append((row.id, row.question))
    return Benchmark(called or _short(name), tuple(items), used)


def of_problems(name: str, problems: Sequence[Problem]) -> Benchmark:
    """Problems that are reported on, as a benchmark."""
    return Benchmark(name, tuple((problem.id, problem.question) for problem in problems))


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file of questions. `id` is its own, or says where it stands."""

    id: str
    question: str
    column: str
    where: str
    fields: Mapping[str, Any]


def questions(place: str, column: str | None, *, split: str = "train") -> Iterator[Row]:
    """The questions of a file or data set, in its order.

    Raises UsageError, while reading, for a missing file or column, a question that is not text, two equal
    ids, and no rows at all."""
    if place.startswith(HUB):
        rows = hub_rows(place, split, None)
    else:
        path = Path(place)
        if not path.is_file():
            on_hub = place.count("/") == 1 and not path.suffix
            raise UsageError(
                f"{place}: no such file" + (f"; for a Hub data set write {HUB}{place}" if on_hub else "")
            )
        rows = file_rows(path)
    first = next(rows, None)
    if first is None:
        raise UsageError(f"{place}: no rows")
    chosen = _column(place, first[1], column)
    taken: dict[str, str] = {}
    for where, fields in chain([first], rows):
        if chosen not in fields:
            raise UsageError(f"{place} {where}: {missing_column(chosen, fields)}")
        question = fields[chosen]
        if question is not None and not isinstance(question, str):
            raise UsageError(f"{place} {where}: {chosen!r} is {type(question).__name__}, not text")
        own = fields.get("id")
        name = clean_text(str(own)) if isinstance(own, str | int) and str(own) else where
        if name in taken:
            raise UsageError(f"{place} {where}: id {name[:60]!r} is taken by {taken[name]}; ids must differ")
        taken[name] = where
        yield Row(name, clean_text(question or ""), chosen, where, fields)


def missing_column(column: str, there: Mapping[str, Any]) -> str:
    """What to say where a column is missing: with the nearest that is there."""
    names = [" ".join(visible(name).split())[:60] for name in there]
    near = get_close_matches(column, names, n=1, cutoff=0.5)
    listed = ", ".join(names[:20]) or "none"
    return f"no column {column!r}{f'; did you mean {near[0]!r}?' if near else ''} columns there: {listed}"


def _column(place: str, fields: Mapping[str, Any], column: str | None) -> str:
    if column is not None:
        if column not in fields:
            raise UsageError(f"{place}: {missing_column(column, fields)}")
        return column
    found = next((name for name in GUESSES["question"] if name in fields), None)
    if found is None:
        raise UsageError(
            f"{place}: {missing_column('question', fields)}; name it with --column, or {place}::COLUMN"
        )
    return found


def _short(name: str) -> str:
    place = name.partition("::")[0]
    return place if place.startswith(HUB) else Path(place).stem
