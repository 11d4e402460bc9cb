"""The pool that is chosen from: problems and traces as our own records, whatever they came as.

Takes traces as `tutelage collect` writes them (Parquet, with their problems in another file), or one file
that holds both: s1K, OpenThoughts, chat messages, columns for question, thinking and answer, ... (the layouts
of `teachers.layouts`).
Promises: nothing is left out: a row without a question or an answer is a record too, which a quality rule
will drop with that reason; ids are the file's own where it has some, and two questions under one id are an
error; what the file says of right and wrong (`correct`, `is_correct`, `deepseek_grade`, ...) becomes
verdicts.
Does not: hold the traces in memory (problems it does)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tutelage.curate.benchmarks import missing_column
from tutelage.errors import UsageError
from tutelage.problems.columns import jsonable, without_marks
from tutelage.records import Problem, Status, Trace, Verdict, clean_text, stable_hash, write_records
from tutelage.teachers.layouts import Recording, asked_in, first_text, reader_of
from tutelage.teachers.recordings import read_rows
from tutelage.teachers.replay import QUESTIONS
from tutelage.teachers.tags import TAGS

FIELDS = ("id", "question", "thinking", "answer", "gold", "domain", "source")
_GOLD = ("gold", "gold_answer", "expected_answer", "ground_truth", "reference_answer", "solution")
_DOMAIN = ("domain", "subject", "problem_type", "cot_type", "category")
_SOURCE = ("source", "source_type", "dataset", "data_source")
_RIGHT = ("correct", "is_correct", "verified")
_GRADED = ("deepseek", "gemini")
"""Whose grades stand beside their traces, in the order in which `layouts` takes the traces."""
_SAYS = {"yes": "correct", "no": "incorrect", "correct": "correct", "incorrect": "incorrect"}


@dataclass(frozen=True, slots=True)
class Pool:
    """Files of records. `verdicts` is None where nobody has said what is right."""

    name: str
    problems: Path
    traces: Path
    verdicts: Path | None


def is_ours(path: Path) -> bool:
    """Whether a file holds Trace records."""
    if path.suffix != ".parquet" or not path.is_file():
        return False
    try:
        return (pq.read_schema(path).metadata or {}).get(b"tutelage.record") == b"Trace"
    except (pa.ArrowInvalid, OSError):
        return False  # reading the rows says what is wrong


def read_pool(
    source: Path | str,
    folder: Path,
    *,
    problems: Path | None = None,
    columns: Mapping[str, str] | None = None,
    checker: str = "number",
) -> Pool:
    """The pool of `source`. Our own traces are used where they are, with `problems` or the file
    `problems.parquet` beside them; anything else is read once and written into `folder`.

    `columns` names the file's columns for `id`, `question`, `thinking`, `answer`, `gold`, `domain`, `source`
    where the usual names do not fit. Raises UsageError naming file, row and column."""
    path = Path(source)
    name = path.stem if path.suffix else str(source)
    if is_ours(path):
        if columns:
            raise UsageError(f"{source}: holds traces of ours already; it takes no column names")
        beside = problems or path.with_name("problems.parquet")
        if not beside.is_file():
            raise UsageError(f"{source}: its questions are not in {beside}; give them with --problems FILE")
        return Pool(name, beside, path, None)
    if problems is not None:
        raise UsageError(
            f"{source}: holds its own questions; --problems is for traces as collect writes them"
        )
    if unknown := sorted((columns or {}).keys() - set(FIELDS)):
        raise UsageError(f"--column {unknown[0]}: no such field; fields are {', '.join(FIELDS)}")
    reading = _Reading(str(source), name, dict(columns or {}), checker)
    traces, questions = folder / "pool-traces.parquet", folder / "pool-problems.parquet"
    write_records(traces, reading.traces(), Trace)
    if not reading.problems:
        raise UsageError(f"{source}: no rows")
    write_records(questions, reading.problems.values(), Problem)
    if not reading.verdicts:
        return Pool(name, questions, traces, None)
    verdicts = folder / "pool-verdicts.parquet"
    write_records(verdicts, reading.verdicts, Verdict)
    return Pool(name, questions, traces, verdicts)


@dataclass(slots=True)
class _Reading:
    """Rows on their way to records."""

    source: str
    name: str
    columns: dict[str, str]
    checker: str
    problems: dict[str, Problem] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)
    places: dict[str, str] = field(default_factory=dict)
    samples: dict[str, int] = field(default_factory=dict)

    def traces(self) -> Iterator[Trace]:
        for number, (where, row) in enumerate(read_rows(self.source)):
            if not number:
                self._check(row)
            recordings = self._recordings(where, row) if not number or self._answers(row) else []
            # A row that says nothing is a record as well.
            problem = self._problem(where, number, row)
            for recording in recordings or [Recording("", "")]:
                yield self._trace(problem, row, recording)

    def _recordings(self, where: str, row: Mapping[str, Any]) -> list[Recording]:
        try:
            return reader_of("auto", self._spoken(), row)(row, TAGS, self._spoken())
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from error

    def _answers(self, row: Mapping[str, Any]) -> bool:
        """Whether a row has the columns of any layout; lines of JSON may leave out what is empty."""
        try:
            reader_of("auto", self._spoken(), row)
        except UsageError:
            return False
        return True

    def _spoken(self) -> dict[str, str]:
        return {name: self.columns[name] for name in ("thinking", "answer") if name in self.columns}

    def _check(self, row: Mapping[str, Any]) -> None:
        for column in self.columns.values():
            if column not in row:
                raise UsageError(f"{self.source}: {missing_column(column, row)}")
        if "question" not in self.columns and not any(
            name in row for name in (*QUESTIONS, "messages", "conversations")
        ):
            raise UsageError(
                f"{self.source}: {missing_column('question', row)}; name it with --column question=NAME"
            )

    def _text(self, row: Mapping[str, Any], name: str, usual: tuple[str, ...]) -> str:
        return first_text(row, (self.columns[name],) if name in self.columns else usual)

    def _problem(self, where: str, number: int, row: Mapping[str, Any]) -> Problem:
        question = clean_text(self._text(row, "question", QUESTIONS) or asked_in(row))
        own = clean_text(self._text(row, "id", ("problem_id", "id", "uuid")))
        key = own or (stable_hash(question) if question.strip() else f"row {number + 1}")
        known = self.problems.get(key)
        if known is not None:
            if known.question != question:
                first = self.places[key]
                raise UsageError(
                    f"{where}: id {key!r} is taken by another question ({first}); ids must differ"
                )
            return known
        answer = self.columns.get("answer")
        gold = self._text(row, "gold", tuple(name for name in _GOLD if name != answer))
        found = Problem(
            key,
            question,
            without_marks(gold) if gold else None,
            self.checker,
            clean_text(self._text(row, "domain", _DOMAIN)),
            clean_text(self._text(row, "source", _SOURCE)) or self.name,
            metadata={name: jsonable(row[name]) for name in ("license", "licence", "url") if row.get(name)},
        )
        self.problems[key], self.places[key] = found, where
        return found

    def _trace(self, problem: Problem, row: Mapping[str, Any], one: Recording) -> Trace:
        sample = self.samples[problem.id] = self.samples.get(problem.id, -1) + 1
        name = problem.id if not sample else f"{problem.id}#{sample}"
        status = _status(row, self.columns.get("answer", ""))
        if status is not None:
            self.verdicts.append(Verdict(name, problem.id, status, f"{self.name} says so", "recorded"))
        return Trace(
            name,
            problem.id,
            sample,
            self.name,
            clean_text(one.answer),
            clean_text(one.thinking),
            prompt_tokens=one.prompt_tokens,
            thinking_sampled=one.thinking_tokens,
            answer_sampled=one.answer_tokens,
            finish_reason=one.finish_reason,
            cost=one.cost,
        )


def _status(row: Mapping[str, Any], answer: str) -> Status | None:
    """What the row says of its trace, which is in the column `answer` ("": in that of the layout). Where two
    models' traces stand side by side, each grade is for its own."""
    graded = [who for who in _GRADED if answer.startswith(f"{who}_")] or [
        who for who in _GRADED if not answer and any(name.startswith(f"{who}_") for name in row)
    ][:1]
    for name in (*_RIGHT, *(f"{who}_grade" for who in graded)):
        value = row.get(name)
        if isinstance(value, bool):
            return "correct" if value else "incorrect"
        if isinstance(value, str) and value.strip().lower() in _SAYS:
            return "correct" if _SAYS[value.strip().lower()] == "correct" else "incorrect"
    return None
