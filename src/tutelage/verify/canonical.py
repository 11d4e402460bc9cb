"""An answer in the form in which votes are counted: equal texts for answers that say the same.

Promises: the gold answer is never looked at, so that a vote is what anybody could have taken; one way of
writing per number, letter or text; None where there is no answer; never raises on any text.
Does not: judge. It is coarser and finer than the checkers: numbers are compared without their units ("5 km"
and "5" vote together), expressions as text (`2x` and `x \\cdot 2` do not).
"""

from __future__ import annotations

from tutelage.records import Problem
from tutelage.verify import choices, exact
from tutelage.verify.answers import last_line, marked_answer
from tutelage.verify.numbers import only_number
from tutelage.verify.quantities import extract_number

_LONGEST = 1000


def canonical(problem: Problem, answer: str) -> str | None:
    """`answer` to `problem` as a vote counts it, by the kind of answer that its checker asks for; None for
    no answer, or several choices."""
    if not answer.strip():
        return None
    if problem.checker == "number":
        found, _ = extract_number(answer)
        if found is None:
            return None
        return _text(found.text) if found.value is None else str(found.value)
    if problem.checker == "choice":
        letters = {claim.letter for claim in choices.claims(answer, choices.options(problem))[0]}
        return letters.pop() if len(letters) == 1 else None
    marked = marked_answer(answer)
    if problem.checker == "math":
        line = marked.text if marked is not None else last_line(answer)[0]
        number = only_number(line, equations=False).value
        return _text(line) if number is None else str(number)
    return _text(marked.text if marked is not None else answer)


def _text(text: str) -> str | None:
    return exact.normalise(text)[:_LONGEST] or None
