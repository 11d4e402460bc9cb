"""Rows that hold an answer and its gold answer side by side: what `tutelage verify FILE` judges.

Promises: the order of the file; one problem and one trace per row; a column that is named and missing is a
UsageError that lists the columns there are, two rows with the same id one that names both; an empty gold
answer stays empty (its row is undecided), an empty answer too; text that is not UTF-8 is refused with file
and line, as everywhere in this room. The other columns become `metadata`, where checkers look for options.
Does not: judge, or take thinking apart from answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tutelage.errors import UsageError
from tutelage.problems.columns import jsonable
from tutelage.problems.files import file_rows
from tutelage.records import Problem, Trace, clean_text

MAKER = "given"


def read_answers(
    path: str | Path,
    *,
    answer: str = "answer",
    gold: str = "gold",
    kind: str = "number",
    question: str = "",
    identity: str = "",
) -> tuple[list[Problem], list[Trace]]:
    """A problem and a trace for each row of a .jsonl, .json or .parquet file, judged by the checker `kind`.

    `answer`, `gold`, `question` and `identity` name columns; "" for none (`gold`: where the checker needs
    none; without `identity` the rows are numbered from 1). Raises UsageError."""
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    named = {"answer": answer, "gold": gold, "question": question, "id": identity}
    if not answer:
        raise UsageError(f"{path}: no answer column is named; give --answer COLUMN")
    problems: list[Problem] = []
    traces: list[Trace] = []
    seen: dict[str, str] = {}
    for number, (where, row) in enumerate(file_rows(path), start=1):
        place = f"{path} {where}"
        for what, column in named.items():
            if column and column not in row:
                there = ", ".join(map(str, row)) or "none"
                raise UsageError(f"{place}: no column {column!r} for the {what}; columns there: {there}")
        key = _text(place, identity, row[identity]) if identity else str(number)
        if not key:
            raise UsageError(f"{place}: {identity!r} is empty; ids must be there and differ")
        if key in seen:
            raise UsageError(f"{place}: id {key!r} is taken by {seen[key]}; ids must differ")
        seen[key] = where
        problems.append(
            Problem(
                id=key,
                question=_text(place, question, row[question]) if question else "",
                gold=(_text(place, gold, row[gold]) or None) if gold else None,
                checker=kind,
                source=path.name,
                metadata=_others(row, set(named.values())),
            )
        )
        traces.append(Trace(key, key, 0, MAKER, _text(place, answer, row[answer])))
    if not problems:
        raise UsageError(f"{path}: the file has no rows")
    return problems, traces


def _text(place: str, column: str, value: Any) -> str:
    """A cell as text: "" for null, numbers as they are written."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UsageError(f"{place}: {column!r} is {type(value).__name__}, not text or a number")
    return clean_text(str(value))


def _others(row: Mapping[str, Any], used: set[str]) -> dict[str, Any]:
    return {str(name): jsonable(value) for name, value in row.items() if name not in used}
