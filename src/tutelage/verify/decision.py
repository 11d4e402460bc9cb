"""What a checker is: a function from one problem and one answer text to a decision.

Promises: `before_judging` is the one place that says what holds for every checker: without a gold answer
nothing is counted right, and an empty answer is wrong.
Does not: judge. The checkers are listed in `cascade.CHECKERS`.
"""

from __future__ import annotations

from typing import Protocol

from tutelage.records import Problem, Status
from tutelage.verify.workers import WorkerPool

Decision = tuple[Status, str, str, str | None]
"""status, reason, method, extracted"""


class Checker(Protocol):
    """`decide` of a checker's module: never raises on any answer text; options are in `problem.metadata`."""

    def __call__(self, problem: Problem, answer: str, pool: WorkerPool, /) -> Decision: ...


def before_judging(problem: Problem, answer: str, method: str) -> Decision | None:
    """The decision that needs no look at the answer's content; None when it does."""
    if problem.gold is None or not problem.gold.strip():
        return "undecided", "no gold answer", method, None
    if not answer or answer.isspace():
        return "incorrect", "no answer", method, None
    return None
