r"""Are the gold answers fit to judge by? Asked before money is spent.

Each gold answer, taken as an answer, must be right; so must a boxed copy; and an altered one must not be.
Promises: what fails is listed with the test and the reason, in the order of the problems; the checker is the
one that will judge the traces; an empty gold answer is a failure, except for checkers that may do without
(the user's own, and puzzles).
Does not: repair, or say that a gold answer is true.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from tutelage.records import Problem, Trace, Verdict
from tutelage.verify.answers import marked_answer
from tutelage.verify.cascade import CHECKERS, check_trace, require_checkers
from tutelage.verify.gym_scorers import NONSENSE
from tutelage.verify.numbers import Found, only_number
from tutelage.verify.workers import SECONDS, WorkerPool

Progress = Callable[[int, int, str], None]
EMPTY_PROGRAM = "```python\npass\n```"
_LETTER = re.compile(r"\s*\(?([A-Z])\)?(?:[.:)\s].*)?", re.DOTALL)
# What plus one and minus do not apply to: sets, intervals, lists, equations, both signs, infinity.
_NOT_ONE_VALUE = re.compile(
    r"[=<>,;\[\]≤≥≠∈∪∩±∞]|\\[{|]|\\(?:in|cup|cap|leq?|geq?|neq?|pm|mp|infty|begin|emptyset|varnothing|mathbb|mid|"
    r"approx|equiv|to|lt|gt|mod|pmod|bmod)(?![A-Za-z])"
)
_COMMAND = re.compile(r"\\(?!text|mathrm|mbox)[A-Za-z]+")
_WORD = re.compile(r"[^\W\d_]{3,}")
_PLAIN_FUNCTIONS = re.compile(r"\b(?:sin|cos|tan|log|exp|sqrt|arcsin|arccos|arctan)\b")


@dataclass(frozen=True, slots=True)
class GoldFailure:
    """One test that the gold answer of a problem fails: `test` is `itself`, `boxed`, `perturbed` (with what
    was done to it in the reason) or `empty`."""

    problem_id: str
    gold: str | None
    test: str
    reason: str


def check_gold(
    problems: Sequence[Problem],
    pool: WorkerPool | None = None,
    *,
    seconds: float = SECONDS,
    workers: int = 1,
    allow_weaker_sandbox: bool = False,
    progress: Progress | None = None,
) -> list[GoldFailure]:
    """The tests that the gold answers of `problems` fail. `seconds` and `allow_weaker_sandbox` as in `judge`,
    for a pool of its own where none is given.

    Raises UsageError for an unknown checker or one that cannot be loaded."""
    if pool is None:
        with WorkerPool(workers, seconds, allow_weaker_sandbox=allow_weaker_sandbox) as own:
            return check_gold(problems, own, workers=workers, progress=progress)
    require_checkers(problems, pool)
    failures: list[GoldFailure] = []
    with ThreadPoolExecutor(workers, thread_name_prefix="gold") as executor:
        found = executor.map(lambda problem: list(_failures(problem, pool)), problems)
        for done, each in enumerate(found, start=1):
            failures += each
            if progress is not None:
                progress(done, len(problems), f"{len(failures)} failed")
    return failures


def _failures(problem: Problem, pool: WorkerPool) -> Iterator[GoldFailure]:
    gold = problem.gold

    def judged(answer: str) -> Verdict:
        return check_trace(problem, Trace("", problem.id, 0, "", answer), pool)

    if gold is None or not gold.strip():
        if problem.checker in CHECKERS:
            yield GoldFailure(problem.id, gold, "empty", "no gold answer")
        return
    for test, answer in right_answers(problem):
        verdict = judged(answer)
        if verdict.status != "correct":
            yield GoldFailure(problem.id, gold, test, f"{verdict.status}: {verdict.reason}")
    for what, answer in wrong_answers(problem):
        verdict = judged(answer)
        if verdict.status == "undecided" and problem.checker == "code":  # the gold answer is no tests
            yield GoldFailure(problem.id, gold, "itself", f"undecided: {verdict.reason}")
        if verdict.status != "correct":
            continue
        if what == NEGATED and judged("0").status == "correct":
            continue  # the gold answer is zero, written in another way
        yield GoldFailure(problem.id, gold, "perturbed", f"{what} ({_shown(answer)}) counts as correct")


def right_answers(problem: Problem) -> list[tuple[str, str]]:
    """Answers that must be right: (name of the test, answer)."""
    gold = problem.gold or ""
    if problem.checker == "code":
        solution = problem.metadata.get("solution")
        if not isinstance(solution, str) or not solution.strip():
            return []
        return [("itself", solution if "```" in solution else f"```python\n{solution}\n```")]
    if problem.checker not in CHECKERS:  # a puzzle's or the user's own form: boxes are not its business
        return [("itself", gold)]
    marked = marked_answer(gold)
    inner = marked.text if marked is not None and marked.how == "boxed" else gold
    return [("itself", gold), ("boxed", rf"\boxed{{{inner.strip().strip('$')}}}")]


PLUS_ONE = "the gold answer plus 1"
NEGATED = "the negated gold answer"
DIGIT = "the gold answer with another digit"
ALTERED = "an altered text"


def wrong_answers(problem: Problem) -> list[tuple[str, str]]:
    """Answers that must not be right: (what was done, answer). Empty where nothing certain can be done."""
    gold = problem.gold or ""
    match problem.checker:
        case "number":
            return _wrong_numbers(problem, gold)
        case "math":
            return _wrong_numbers(problem, gold) or _wrong_mathematics(gold)
        case "choice":
            return [("another choice", other)] if (other := _other_choice(problem, gold)) else []
        case "code":
            return [("an empty program", EMPTY_PROGRAM)]
        case checker if checker.startswith("gym:"):  # an altered text may be another right answer
            return [("a text without an answer", NONSENSE)]
        case _:
            return [(ALTERED, f"{gold.strip()}x")]


def _wrong_numbers(problem: Problem, gold: str) -> list[tuple[str, str]]:
    marked = marked_answer(gold)
    found = only_number(marked.text if marked is not None else gold, equations=problem.checker == "number")
    value = found.value
    if value is None:
        return []
    tolerance: Any = problem.metadata.get("tolerance")
    # A tolerance that the user asked for is no defect: go well beyond it.
    wide = abs(value) * Fraction(str(tolerance)) * 3 if isinstance(tolerance, int | float) else Fraction(0)
    step = max(Fraction(1), wide)
    wrong = [(PLUS_ONE if step == 1 else f"the gold answer plus {float(step):g}", _written(value + step))]
    if value:
        wrong.append((NEGATED, _written(-value)))
    if not tolerance and (other := _other_digit(found)) is not None:
        wrong.append((DIGIT, other))
    return wrong


def _written(value: Fraction) -> str:
    return str(value)


def _other_digit(found: Found) -> str | None:
    """The number as written, with its first digit that is not 0 changed; None where that is the same
    number."""
    text = _change_digit(found.text)
    return text if text is not None and only_number(text).value not in (None, found.value) else None


def _change_digit(text: str) -> str | None:
    match = re.search(r"[1-9]", text) or re.search(r"0", text)
    if match is None:
        return None
    digit = int(match[0])
    return f"{text[: match.start()]}{digit + 1 if digit < 9 else digit - 1}{text[match.end() :]}"


def _wrong_mathematics(gold: str) -> list[tuple[str, str]]:
    marked = marked_answer(gold)
    text = (marked.text if marked is not None else gold).strip().strip("$").strip()
    if _WORD.search(_PLAIN_FUNCTIONS.sub("", _COMMAND.sub(" ", text))):
        return [(ALTERED, f"not {text}")]
    if not _NOT_ONE_VALUE.search(text):
        return [(PLUS_ONE, f"${text} + 1$"), (NEGATED, f"$-({text})$")]
    other = _change_digit(text)
    return [] if other is None else [(DIGIT, f"${other}$")]


def _other_choice(problem: Problem, gold: str) -> str | None:
    """Another option: by its letter where the gold answer is a letter, else by its text."""
    choices = problem.metadata.get("choices")
    texts = [str(each) for each in choices] if isinstance(choices, list | tuple) else []
    letter = _LETTER.fullmatch(gold)
    if letter is not None and gold.strip() not in texts:
        letters = [chr(ord("A") + index) for index in range(len(texts) or 4)]
        return next((each for each in letters if each != letter[1]), None)
    return next((each for each in texts if each.strip() != gold.strip()), None)


def _shown(answer: str) -> str:
    return answer if len(answer) <= 80 else answer[:77] + "..."
