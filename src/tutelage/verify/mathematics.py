r"""Checker `math`: mathematical equality, the certain cases first, the rest by math-verify in a worker.

Rules, in this order; the reason names the one that decided:
- Two plain numbers (digits, fractions, units, percent; "5 feet 3 inches") are compared exactly, by the rules
  of `quantities`.
- An exact gold (1/3) also equals its own value rounded or cut to the decimals that the answer shows, from
  6 decimals on (0.333333); and the other way round. 18.0000001 is not 18, and 0.33 is not 1/3.
- Anything else is for math-verify (`symbolic`), gold first, in a worker process that can be killed.
Promises: never raises; a time-out is `undecided` and its reason begins with "timeout"; a crash, something
unparseable, too long or nested too deeply is `undecided` with the reason.
Does not: import sympy or math-verify (`symbolic` does, inside the worker process).
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

from tutelage.records import Problem, Status
from tutelage.verify.answers import last_line, marked_answer
from tutelage.verify.decision import Decision, before_judging
from tutelage.verify.numbers import Found, only_number, plain
from tutelage.verify.quantities import Gold, compare, compound, read_gold, tolerance
from tutelage.verify.units import Unit, kinds, read_tail
from tutelage.verify.workers import WorkerPool

MATH_LIMIT = 4000
"""Characters of an answer that are given to math-verify; a longer marked answer is not judged, of a
longer last line only the end is read."""
DEPTH_LIMIT = 200
"""Nested brackets that are given to math-verify: 500 take it 4 s, and then it fails."""
DECIMALS = 6
_LINE_LIMIT = 100_000
_LOAD_MATH = {"op": "load-math"}
_UNIT_END = re.compile(
    r"\\(?:text|mathrm|mbox)\s*\{[^{}]*\}(?:\s*\^\s*\{?\s*[23]\s*\}?|[²³])?[\s.$]*\Z"
    r"|(?<=[\d}\s])[ ][A-Za-z]+(?:\s*\^\s*\{?\s*[23]\s*\}?|[²³])?[\s.$]*\Z"
)
_BRACKET = re.compile(r"[(\[{)\]}]")
_DECIMAL = re.compile(r"-?[0-9,]*\.([0-9]+)")


@lru_cache(maxsize=4096)
def _gold(text: str) -> tuple[str, Gold | None]:
    """The gold answer without its wrapping, and its number where it is one plain number."""
    marked = marked_answer(text)
    wanted = marked.text if marked is not None else text.strip()
    if only_number(wanted, equations=False).value is None and compound(wanted) is None:
        return wanted, None
    gold = read_gold(wanted)
    return wanted, gold if isinstance(gold, Gold) else None


def _decimals(found: Found) -> int:
    match = _DECIMAL.fullmatch(found.text)
    return len(match[1]) if match is not None else 0


def _is_rounded(exact: Fraction, shown: Fraction, decimals: int) -> bool:
    """Whether `shown` is `exact` rounded or cut to so many decimals."""
    scaled, given = abs(exact) * 10**decimals, abs(shown) * 10**decimals
    return exact * shown > 0 and given in (int(scaled), int(scaled + Fraction(1, 2)))


def rounded(found: Found, gold: Found) -> int:
    """The decimals to which one of the two is the other, rounded; 0 when that is not so, or when both are
    decimals."""
    a, b = _decimals(found), _decimals(gold)
    assert found.value is not None and gold.value is not None
    if bool(a) == bool(b) or max(a, b) < DECIMALS or max(a, b) > 100:
        return 0
    exact, shown = (gold.value, found.value) if a else (found.value, gold.value)
    return max(a, b) if _is_rounded(exact, shown, max(a, b)) else 0


def depth(text: str) -> int:
    """How deeply brackets of any kind are nested."""
    deepest = now = 0
    for match in _BRACKET.finditer(text):
        now = now + 1 if match[0] in "([{" else max(0, now - 1)
        deepest = max(deepest, now)
    return deepest


def without_doubles(text: str) -> str:
    """`text` with brackets around brackets removed: ((x)) becomes (x). Linear; what is unbalanced stays."""
    closing: dict[int, int] = {}
    opened: list[int] = []
    for index, letter in enumerate(text):
        if letter == "(":
            opened.append(index)
        elif letter == ")" and opened:
            closing[opened.pop()] = index
    spare = {
        at
        for start, stop in closing.items()
        if closing.get(start + 1) == stop - 1
        for at in (start + 1, stop - 1)
    }
    return "".join(letter for index, letter in enumerate(text) if index not in spare) if spare else text


def decide(problem: Problem, answer: str, pool: WorkerPool) -> Decision:
    """Checker `math`. Asks a worker only where the numbers alone do not decide."""
    if (early := before_judging(problem, answer, "math")) is not None:
        return early
    wanted, gold = _gold(problem.gold or "")
    marked = marked_answer(answer)
    how = marked.how if marked is not None else "last line"
    line = marked.text if marked is not None else last_line(answer, _LINE_LIMIT)[0]
    if len(line) > _LINE_LIMIT:
        return "undecided", f"{how}: {len(line):,} characters are too many to judge", "math", line
    if gold is not None:
        found = only_number(line, equations=False)
        if found.value is None:
            found = compound(line) or found
        if found.value is not None:
            status, reason = compare(found, gold, tolerance(problem))
            if status == "incorrect" and (places := rounded(found, gold.found)):
                status, reason = "correct", f"equal when rounded to {places} decimals"
            return status, f"{how}: {reason}", "number", found.text
    return _by_library(wanted, line, how, marked is None, pool)


def _without_unit(text: str) -> tuple[str, Unit | None]:
    """An expression without the words or the unit at its end, and the unit where it is known."""
    end = _UNIT_END.search(text)
    before = "" if end is None else text[: end.start()].strip(" $")
    if end is None or not before or before[-1] in "+-*/^=_<>,([{":  # all of it, or a part: 1/\text{e}
        return text, None
    unit = read_tail(plain(end[0])).unit
    if unit is None and "\\" not in end[0]:
        return text, None
    dollar = "$" if text.rstrip(" .").endswith("$") else ""
    return text[: end.start()].rstrip() + dollar, unit


def _units_differ(unit: Unit | None, wanted: Unit | None) -> tuple[Status, str] | None:
    """The decision on two expressions whose units differ; None when they agree, or one has none."""
    if unit is None or wanted is None or set(unit.readings) & set(wanted.readings):
        return None
    if not kinds(unit) & kinds(wanted):
        return "incorrect", f"unit differs: {unit.name} for {wanted.name}"
    return "undecided", f"units differ, {unit.name} and {wanted.name}, and are not converted in expressions"


def _by_library(wanted: str, line: str, how: str, may_cut: bool, pool: WorkerPool) -> Decision:
    cut = may_cut and len(line) > MATH_LIMIT
    given = without_doubles(line[-MATH_LIMIT:] if cut else line)
    if len(given) > MATH_LIMIT:
        reason = f"{how}: {len(given):,} characters; more than {MATH_LIMIT:,} are not judged"
        return "undecided", reason, "math", line
    if len(wanted) > MATH_LIMIT:
        return "undecided", f"the gold answer has {len(wanted):,} characters", "math", line
    shown = given
    given, unit = _without_unit(given)
    wanted, wanted_unit = _without_unit(wanted)
    if (apart := _units_differ(unit, wanted_unit)) is not None:
        return apart[0], f"{how}: {apart[1]}", "number", shown
    if (deepest := max(depth(given), depth(wanted))) > DEPTH_LIMIT:
        return (
            "undecided",
            f"{how}: brackets {deepest} deep; more than {DEPTH_LIMIT} are not judged",
            "math",
            line,
        )
    reply = pool.ask({"op": "math", "gold": wanted, "answer": given}, _LOAD_MATH)
    if "failed" in reply:
        failed: str = reply["failed"]
        reason = failed if failed.startswith("timeout") else f"{how}: {failed}"
        return "undecided", reason, "math", shown
    status, reason = reply["status"], reply["reason"]
    if cut and status == "incorrect":
        return "undecided", f"{how}, only its last {len(given):,} characters: {reason}", "math", shown
    return status, f"{how}{' (cut)' if cut else ''}: {reason}", "math", shown
