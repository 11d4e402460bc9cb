"""Is the last Roman numeral of an answer the right one?

A checker is one function: it gets the problem and the trace, and returns True, False, or a score from 0 to 1.
`problem.gold` is the `answer` column of questions.jsonl; `trace.answer` is the reply without the thinking.
"""

import re

from tutelage.records import Problem, Trace

LETTERS = {"M": 1000, "D": 500, "C": 100, "L": 50, "X": 10, "V": 5, "I": 1}


def value(numeral: str) -> int:
    """The number that a numeral stands for: a smaller letter before a larger one counts as minus."""
    values = [LETTERS[letter] for letter in numeral]
    return sum(-v if v < after else v for v, after in zip(values, [*values[1:], 0], strict=True))


def check(problem: Problem, trace: Trace) -> bool | float:
    """True for the standard numeral, 0.5 for the right value spelled otherwise (IIII for IV), else False."""
    capitals = re.findall(r"\b[MDCLXVI]+\b", trace.answer) or re.findall(
        r"\b[MDCLXVI]+\b", trace.answer.upper()
    )
    if not capitals or problem.gold is None:
        return False
    if capitals[-1] == problem.gold:
        return True
    return 0.5 if value(capitals[-1]) == value(problem.gold) else False
