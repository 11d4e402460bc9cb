"""An answer in the form in which votes are counted: equal texts for answers that say the same.

Promises: the gold answer is never looked at, so that a vote is what anybody could have taken; one way of
writing per number, letter or text; what votes together has one verdict; None where there is no answer; never
raises on any text.
Does not: judge. It is finer than the checkers: "5 km" and "5", "50%" and "0.5", and expressions written in
two ways vote apart, though a gold answer may make both right.
"""

from __future__ import annotations

from tutelage.records import Problem
from tutelage.verify import choices, exact
from tutelage.verify.answers import last_line, marked_answer
from tutelage.verify.numbers import Found, only_number
from tutelage.verify.quantities import extract_compound, extract_number
from tutelage.verify.units import read_tail

_LONGEST = 1000


def canonical(problem: Problem, answer: str) -> str | None:
    """`answer` to `problem` as a vote counts it, by the kind of answer that its checker asks for; None for
    no answer, or several choices."""
    if not answer.strip():
        return None
    if problem.checker == "number":
        found, _ = extract_number(answer)
        # One quantity ("5 feet 3 inches") only where the gold answer has a unit, so it counts as both.
        readings = [_number(each) for each in (extract_compound(answer), found) if each is not None]
        return " or ".join(filter(None, readings)) or None
    if problem.checker == "choice":
        letters = {claim.letter for claim in choices.claims(answer, choices.options(problem))[0]}
        return letters.pop() if len(letters) == 1 else None
    marked = marked_answer(answer)
    if problem.checker == "math":
        line = marked.text if marked is not None else last_line(answer)[0]
        found = only_number(line, equations=False)
        return _text(line) if found.value is None else _number(found)
    return _text(marked.text if marked is not None else answer)


def _number(found: Found) -> str | None:
    """The value with its scale and unit; as text where it has none."""
    if found.value is None:
        return _text(found.text)
    tail = read_tail(found.after, found.before)
    parts = (str(found.value), tail.scale_name, tail.unit.name if tail.unit is not None else "")
    return " ".join(part for part in parts if part)


def _text(text: str) -> str | None:
    return exact.normalise(text)[:_LONGEST] or None
