r"""Checker `number`: the number that an answer gives against the gold number, exactly.

Promises: never raises; needs no worker; what cannot be read as one plain number is `undecided`.
Does not: read numbers (`numbers`).
"""

from __future__ import annotations

from tutelage.records import Problem
from tutelage.verify.answers import marked_answer
from tutelage.verify.decision import Decision, before_judging
from tutelage.verify.numbers import Found, first_number, last_number, only_number
from tutelage.verify.workers import WorkerPool


def extract_number(answer: str) -> tuple[Found | None, str]:
    """The number that `answer` gives as its result, and how it was found; None when there is none."""
    marked = marked_answer(answer)
    if marked is not None:
        if marked.how == "boxed":
            return only_number(marked.text), "boxed"
        clause = marked.text.rsplit("=", 1)[-1]
        found = first_number(clause)
        if found is not None:
            return found, marked.how
    return last_number(answer), "last number"


def decide(problem: Problem, answer: str, pool: WorkerPool) -> Decision:
    """Checker `number`. No worker is needed."""
    if (early := before_judging(problem, answer, "number")) is not None:
        return early
    gold = problem.gold or ""
    marked = marked_answer(gold)
    wanted = only_number(marked.text if marked is not None else gold)
    if wanted.value is None:
        return (
            "undecided",
            f"the gold answer {wanted.text[:80]!r} is not a number: {wanted.problem}",
            "number",
            None,
        )
    found, how = extract_number(answer)
    if found is None:
        return "incorrect", "no number in the answer", "number", None
    if found.value is None:
        if found.problem == "no number":
            return "incorrect", f"no number in the answer ({how})", "number", found.text
        return "undecided", f"{how}: {found.problem}", "number", found.text
    if found.value == wanted.value:
        return "correct", f"{how}: equal", "number", found.text
    return "incorrect", f"{how}: not equal to {wanted.text[:80]}", "number", found.text
