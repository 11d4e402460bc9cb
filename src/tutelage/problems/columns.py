"""Which column is what, and one row made into a Problem.

Promises: a column that `columns` names must be there; what it leaves out is guessed from the names that data
sets use; a missing question or answer column is a UsageError that lists the columns that are there. A GSM8K
answer ("... #### 72") gives the gold answer 72, and its text, without calculator marks and the `####` line,
as `metadata["solution"]`: the human chain of thought, which can be replayed as a trace.
Does not: read files, guess from the content of other columns, or drop columns (the rest goes into
`metadata`)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tutelage.errors import UsageError
from tutelage.records import Problem, clean_text

GUESSES: dict[str, tuple[str, ...]] = {
    "question": ("question", "problem", "prompt", "input"),
    "gold": ("answer", "gold", "expected_answer", "solution", "ground_truth"),
    "id": ("id",),
    "domain": ("domain", "subject", "problem_type"),
    "licence": ("licence", "license"),
    "solution": ("solution",),
}
_MARKS = re.compile(r"<<[^<>]*>>")
_FINAL = re.compile(r"^[ \t]*####[ \t]*(.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Mapped:
    """Our field to the source's column ("" where the source has none), and the pattern of the gold answer."""

    question: str
    gold: str
    id: str
    domain: str
    licence: str
    solution: str
    pattern: re.Pattern[str] | None


def map_columns(
    name: str,
    there: Iterable[str],
    columns: Mapping[str, str] | None,
    checker: str,
    answer_pattern: str | None = None,
) -> Mapped:
    """Decide which of the columns `there` (of data set `name`) is what.

    Raises UsageError for an unknown field, a named column that is missing, no question column, and no answer
    column where `checker` needs one."""
    available = list(there)
    asked = dict(columns or {})
    listed = ", ".join(map(str, available)) or "none"
    if unknown := asked.keys() - GUESSES.keys():
        raise UsageError(f"{name}: columns.{min(unknown)}: no such field; fields are {', '.join(GUESSES)}")
    found: dict[str, str] = {}
    for field, guesses in GUESSES.items():
        if field in asked:
            if asked[field] and asked[field] not in available:
                raise UsageError(f"{name}: no column {asked[field]!r} for {field}; columns there: {listed}")
            found[field] = asked[field]
        else:
            free = [guess for guess in guesses if guess in available and guess not in found.values()]
            found[field] = free[0] if free else ""
    if not found["question"]:
        raise UsageError(
            f"{name}: no question column; name it with columns question=NAME; columns there: {listed}"
        )
    if not found["gold"] and "gold" not in asked and ":" not in checker:
        raise UsageError(
            f"{name}: no answer column; name it with columns gold=NAME (gold= for none); there: {listed}"
        )
    try:
        pattern = re.compile(answer_pattern) if answer_pattern is not None else None
    except re.error as error:
        said = f"is not a regular expression ({error})"
        raise UsageError(f"{name}: answer_pattern {answer_pattern!r} {said}") from error
    return Mapped(**found, pattern=pattern)


def problem_from_row(where: str, row: Mapping[str, Any], mapped: Mapped) -> Problem:
    """The Problem of one row; its id is "" when the source has no id column. `where` names the row in
    errors."""
    for column in (mapped.question, mapped.gold, mapped.id):
        if column and column not in row:
            raise UsageError(f"{where}: no column {column!r}; columns there: {', '.join(map(str, row))}")
    question = row[mapped.question]
    if not isinstance(question, str) or not question.strip():
        said = "is empty" if isinstance(question, str) else f"is {type(question).__name__}, not text"
        raise UsageError(f"{where}: {mapped.question!r} {said}")
    used = {mapped.question, mapped.gold, mapped.id, mapped.domain, mapped.licence} - {""}
    metadata = {str(key): jsonable(value) for key, value in row.items() if key not in used}
    gold, solution = _gold(where, row.get(mapped.gold) if mapped.gold else None, mapped)
    if mapped.solution and mapped.solution not in used and isinstance(row.get(mapped.solution), str):
        metadata["solution"] = without_marks(row[mapped.solution])
    elif solution is not None:
        metadata["solution"] = solution
    return Problem(
        id=_short_text(where, row, mapped.id),
        question=clean_text(question),
        gold=gold,
        domain=_short_text(where, row, mapped.domain),
        licence=_short_text(where, row, mapped.licence),
        metadata=metadata,
    )


def without_marks(text: str) -> str:
    """A human solution without GSM8K's calculator marks `<<48/2=24>>` and without its `####` line."""
    return clean_text(_FINAL.sub("", _MARKS.sub("", text)).strip())


def _gold(where: str, value: Any, mapped: Mapped) -> tuple[str | None, str | None]:
    """The gold answer, and the worked solution when the answer column holds one."""
    if value is None:
        return None, None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UsageError(f"{where}: {mapped.gold!r} is {type(value).__name__}, not text or a number")
    text = clean_text(str(value))
    if mapped.pattern is not None:
        matches = list(mapped.pattern.finditer(text))
        if not matches:
            wanted = mapped.pattern.pattern
            raise UsageError(f"{where}: {mapped.gold!r} does not match answer_pattern {wanted!r}")
        last = matches[-1]
        return (last[1] if mapped.pattern.groups else last[0]).strip(), without_marks(text)
    final = _FINAL.findall(text)
    if final and final[-1].strip():
        return final[-1].strip().replace(",", ""), without_marks(text)
    return text, without_marks(text) if mapped.gold == "solution" else None


def _short_text(where: str, row: Mapping[str, Any], column: str) -> str:
    value = row.get(column) if column else None
    if value is None or value == "":
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UsageError(f"{where}: {column!r} is {type(value).__name__}, not text or a whole number")
    return clean_text(str(value))


def jsonable(value: Any) -> Any:
    """`value` as it will come back from a file of records (dates and the like become text)."""
    if isinstance(value, str):
        return clean_text(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    return json.loads(json.dumps(value, default=str))
