"""Held-out problems: how good a student is while it trains, and which questions of a measurement it has seen.

Promises: a measurement on questions that a checkpoint or a stop was chosen on is refused unless it is asked
for, and its count goes with the number then; questions learned from are counted the same way; looking at a
student changes neither its weights nor the random numbers of its training.
Does not: find reworded questions (equal ones only, see `questions`), or decide when to look (see
`train.fit`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tutelage.errors import UsageError
from tutelage.measure.evaluate import evaluate
from tutelage.questions import question_hashes
from tutelage.records import Problem, Trace, Verdict, by_id
from tutelage.students.lineage import Lineage
from tutelage.students.pretrained import Student
from tutelage.teachers.local import LocalTeacher, local_sampler
from tutelage.think.policy import ThinkingPolicy
from tutelage.think.sampling import Sampling
from tutelage.verify.cascade import judge


@dataclass(frozen=True, slots=True)
class Seen:
    """How many of the questions measured on something about the model was chosen on (`chosen_on`), and how
    many it learned from (`trained_on`). Different questions are counted, not problems."""

    chosen_on: int = 0
    trained_on: int = 0

    def to_json(self) -> dict[str, int]:
        """The fields."""
        return asdict(self)


def seen(problems: Sequence[Problem], lineage: Lineage) -> Seen:
    """What the model with this record has seen of `problems`."""
    asked = question_hashes(problems)
    return Seen(len(asked & lineage.chosen_on), len(asked & lineage.learned_from))


def allow(problems: Sequence[Problem], lineage: Lineage, *, forced: bool, what: str) -> Seen:
    """What has been seen, where it may be measured: `forced`, or when nothing was chosen on the problems.

    Raises UsageError that begins with `what` otherwise."""
    found = seen(problems, lineage)
    if found.chosen_on and not forced:
        stages = [
            str(stage.get("stage", "?"))
            for stage in lineage.stages
            if question_hashes(problems) & set(stage.get("selected_on", ()))
        ]
        raise UsageError(
            f"{what}: stage {stages[0]} of this model chose its checkpoint, or when to stop, on "
            f"{found.chosen_on:,} of these {len(problems):,} questions, so the accuracy on them is too good; "
            "measure on others, or set allow_chosen_on: true; the report then tells it with the number"
        )
    return found


def judged(problems: Sequence[Problem], traces: Sequence[Trace]) -> list[Verdict]:
    """Verdicts by each problem's own checker."""
    return list(judge(by_id(list(problems)), traces))


def evaluator(
    problems: Sequence[Problem],
    *,
    policy: Mapping[str, Any],
    sampling: Mapping[str, Any],
    max_answer: int = 64,
    max_batch: int = 64,
    seed: int = 0,
) -> Callable[[Student], float]:
    """A function that gives the accuracy in [0, 1] of a student on `problems`, one reply each, judged by the
    problems' own checkers; undecided counts as wrong. `policy` and `sampling` are the fields of
    ThinkingPolicy and Sampling.

    The random numbers of a reply depend on (seed, problem) alone, so two looks differ by the weights only.
    Raises UsageError for settings that cannot work, or when there is no problem."""
    if not problems:
        raise UsageError("validate_on: there is no problem to validate on")
    bounds, drawing = ThinkingPolicy(**policy), Sampling(**sampling)

    def accuracy(student: Student) -> float:
        teacher = LocalTeacher(
            student, "validation", drawing, seed=seed, max_answer=max_answer, max_batch=max_batch
        )
        training = student.model.training
        student.model.eval()
        try:
            return evaluate(problems, local_sampler(teacher, bounds), judged).accuracy
        finally:
            student.model.train(training)

    return accuracy
