"""Recorded traces: from files in the layouts that are about, or a problem's own human solution.

Promises: free: nothing is bought and no ledger is touched. A trace's cost and token counts are what the
recording says, else None: unknown, not 0. Recordings are matched to problems by id or by the question's text,
in file order.
Does not: judge, or invent a question for a recording that matches no problem. The layouts are in `layouts`;
the layout `human` is no file: Problem.metadata["solution"] is the thinking, the gold answer in a sentence the
answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tutelage.errors import UsageError
from tutelage.records import Problem, Trace, clean_text, stable_hash
from tutelage.teachers.layouts import Layout, Recording, asked_in, first_text, reader_of
from tutelage.teachers.recordings import read_rows
from tutelage.teachers.tags import TAGS

QUESTIONS = ("question", "problem", "prompt", "input", "instruction")
COLUMNS = ("id", "question", "thinking", "answer")
_ANSWER_TEMPLATE = "The answer is {gold}."


@dataclass(frozen=True, slots=True)
class ReplayTeacher:
    """`name` is the maker of the traces. `path` is a .jsonl, .json or .parquet file, or `hub:owner/name`;
    None for layout "human". `columns` names the file's columns for `id`, `question`, `thinking`, `answer`
    where the usual names do not fit. `answer_template` makes the human answer of {gold}; `tags` are the
    inline thinking tags."""

    name: str
    path: Path | str | None = None
    layout: Layout = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    answer_template: str = _ANSWER_TEMPLATE
    tags: tuple[tuple[str, str], ...] = TAGS


def replay(
    problems: Sequence[Problem], teacher: ReplayTeacher, samples: int
) -> tuple[list[Trace], list[tuple[str, str]]]:
    """The first `samples` recordings of each problem, and (problem id, reason) for each that is missing.

    Raises UsageError naming file, line and column for a file that cannot be read as its layout says."""
    human = teacher.layout == "human"
    if human != (teacher.path is None):
        raise UsageError("path: give a file, or layout human and no file")
    if unknown := sorted(teacher.columns.keys() - set(COLUMNS)):
        raise UsageError(f"columns.{unknown[0]}: not one of {', '.join(COLUMNS)}")
    if human:
        found = {problem.id: _human(problem, teacher) for problem in problems}
    else:
        found = _match(problems, teacher, samples)
    traces: list[Trace] = []
    failed: list[tuple[str, str]] = []
    for problem in problems:
        recorded = found[problem.id][:samples]
        traces += [_trace(problem, teacher, index, one) for index, one in enumerate(recorded)]
        what = "no human solution" if human else f"no recording of sample {len(recorded)} and on"
        failed += [(problem.id, what)] * (samples - len(recorded) if not human else not recorded)
    return traces, failed


def _human(problem: Problem, teacher: ReplayTeacher) -> list[Recording]:
    solution = problem.metadata.get("solution")
    if not isinstance(solution, str) or not solution.strip() or problem.gold is None:
        return []
    answer = teacher.answer_template.replace("{gold}", problem.gold)
    return [Recording(solution.strip(), answer, "stop")]


def _match(problems: Sequence[Problem], teacher: ReplayTeacher, samples: int) -> dict[str, list[Recording]]:
    found: dict[str, list[Recording]] = {problem.id: [] for problem in problems}
    by_text: dict[str, list[str]] = {}
    for problem in problems:
        by_text.setdefault(_key(problem.question), []).append(problem.id)
    assert teacher.path is not None
    rows = 0
    for where, row in read_rows(teacher.path):
        rows += 1
        try:
            read = reader_of(teacher.layout, teacher.columns, row)
            recordings = read(row, teacher.tags, teacher.columns)
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from error
        recordings = [one for one in recordings if one.thinking.strip() or one.answer.strip()]
        for problem_id in _problems_of(teacher, row, found, by_text):
            found[problem_id] += recordings[: samples - len(found[problem_id])]
    if not rows:
        raise UsageError(f"{teacher.path}: no rows")
    return found


def _problems_of(
    teacher: ReplayTeacher, row: Mapping[str, Any], ids: Mapping[str, Any], by_text: Mapping[str, list[str]]
) -> list[str]:
    """Ids of the problems that a row answers. A column that is merely called `id` may count something else,
    so it is used only where there is no question to compare."""
    named = first_text(row, (teacher.columns.get("id", "problem_id"),))
    question = _question(teacher, row)
    if not named and not question:
        named = first_text(row, ("id",))
    if named:
        return [named] if named in ids else []
    return by_text.get(_key(question), [])


def _key(question: str) -> str:
    return " ".join(question.split())


def _question(teacher: ReplayTeacher, row: Mapping[str, Any]) -> str:
    if "question" in teacher.columns:
        return first_text(row, (teacher.columns["question"],))
    return first_text(row, QUESTIONS) or asked_in(row)


def _trace(problem: Problem, teacher: ReplayTeacher, sample: int, one: Recording) -> Trace:
    return Trace(
        id=stable_hash(problem.id, teacher.name, sample),
        problem_id=problem.id,
        sample=sample,
        maker=teacher.name,
        answer=clean_text(one.answer),
        thinking=clean_text(one.thinking),
        settings={"layout": teacher.layout, **({"file": Path(teacher.path).name} if teacher.path else {})},
        prompt_tokens=one.prompt_tokens,
        thinking_sampled=one.thinking_tokens,
        answer_sampled=one.answer_tokens,
        finish_reason=one.finish_reason,
        cost=one.cost,
    )
