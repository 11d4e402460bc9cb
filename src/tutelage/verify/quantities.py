r"""Checker `number`: the number that an answer gives against the gold number.

Rules, in this order; the reason names the one that decided:
- Exact: values are Fractions, and 0.3333 is not 1/3. `metadata["tolerance"]` opts in to a relative tolerance
  (0.01: within 1 % of the gold value); a gold of 0 stays exact.
- Units: where gold and answer both carry a known unit, both are converted exactly; units of different kinds
  are incorrect ("unit differs: kg for km"). Where one side has none, the numbers are compared as they stand.
  "5 feet 3 inches" is one quantity where the gold has a unit.
- Percent and "million": written on both sides, they apply on both; written on one side only, the number may
  be meant with or without (50% equals 0.5 and 50).
- Words after a number that are no unit ("18 apples") are ignored.
Promises: never raises on any text; needs no worker; what cannot be read as one plain number is `undecided`,
so that NaN, infinity and 0/0 are never right.
Does not: read numbers (`numbers`) or units (`units`); round.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from tutelage.errors import UsageError
from tutelage.records import Problem, Status
from tutelage.verify import units
from tutelage.verify.answers import last_line, marked_answer
from tutelage.verify.decision import Decision, before_judging
from tutelage.verify.numbers import Found, first_number, last_number, only_number, plain
from tutelage.verify.workers import WorkerPool

TOLERANCE = "tolerance"
_ZERO = Fraction(0)
_PERCENT = Fraction(1, 100)
_ONE = r"[0-9][0-9,]*(?:\.[0-9]+)?\s*-?\s*[A-Za-z]+"
_HEDGE = re.compile(r"\s+or\s+[-$\d]")
_PART = re.compile(r"([0-9][0-9,]*(?:\.[0-9]+)?)\s*-?\s*([A-Za-z]+)")
_COMPOUND = re.compile(rf"(?<![\w.,-])(?:{_ONE}\.?,?(?:\s+and)?\s+){{1,3}}{_ONE}[.\s*$)}}]*\Z")


@dataclass(frozen=True, slots=True)
class Gold:
    """A gold number, read once: `tail` is its scale and unit."""

    found: Found
    value: Fraction
    tail: units.Tail
    bare: bool  # neither scale nor unit


def tolerance(problem: Problem) -> Fraction:
    """The relative tolerance that the problem asks for, 0 when it asks for none. Raises UsageError unless it
    is a number from 0 up to 1."""
    given = problem.metadata.get(TOLERANCE)
    if given is None:
        return Fraction(0)
    try:
        found = Fraction(str(given))
    except (ValueError, ZeroDivisionError):
        found = Fraction(-1)
    if isinstance(given, bool) or not 0 <= found < 1:
        raise UsageError(
            f"problem {problem.id!r}: tolerance is {given!r}; it is relative, from 0 up to 1 (0.01 is 1 %)"
        )
    return found


@lru_cache(maxsize=4096)
def read_gold(gold: str) -> Gold | Found:
    """The gold answer as a number; the Found with its problem where it is none."""
    marked = marked_answer(gold)
    text = marked.text if marked is not None else gold
    found = only_number(text)
    if found.value is None:
        found = compound(text) or found
    if found.value is None:
        return found
    tail = units.read_tail(found.after, found.before)
    return Gold(found, found.value, tail, tail.unit is None and not tail.scale_name)


def compound(text: str) -> Found | None:
    """The quantity that ends the last line in several numbers, largest unit first ("5 feet 3 inches"), as
    one number of its last unit; None when there is none."""
    match = _COMPOUND.search(plain(last_line(text)[0]))
    if match is None:
        return None
    parts = [(Fraction(number.replace(",", "")), word) for number, word in _PART.findall(match[0])]
    read = [(value, unit) for value, word in parts if (unit := units.read_tail(word).unit) is not None]
    if len(read) < len(parts) or len(read) < 2:
        return None
    total, (_, last) = Fraction(0), read[-1]
    larger: Fraction | None = None
    for value, unit in read:
        pair = next(units.conversions(Fraction(1), unit, Fraction(1), last), None)
        if pair is None or "temperature" in units.kinds(unit):
            return None
        size = pair[0] / pair[1]
        if larger is not None and not size < larger:
            return None
        total, larger = total + value * size, size
    return Found(match[0].strip(), total, "", "", f" {last.name}")


def extract_number(answer: str) -> tuple[Found | None, str]:
    """The number that `answer` gives as its result, and how it was found; None when there is none."""
    marked = marked_answer(answer)
    if marked is not None:
        text = marked.text
        if marked.how == "boxed":
            return only_number(text), "boxed"
        found = first_number(text.rsplit("=", 1)[-1] if "=" in text else text)
        if found is not None:
            if found.after and _HEDGE.match(found.after):
                return Found(text[:200], None, "several numbers"), marked.how
            return found, marked.how
    return last_number(answer), "last number"


def extract_compound(answer: str) -> Found | None:
    """The quantity of several units that `answer` gives as its result; None when there is none."""
    marked = marked_answer(answer)
    return compound(answer if marked is None else marked.text)


def compare(found: Found, gold: Gold, allowed: Fraction = _ZERO) -> tuple[Status, str]:
    """The status and the reason for a number that has a value."""
    value = found.value
    assert value is not None
    if gold.bare and value == gold.value:
        return "correct", "equal" if not found.after.startswith("%") else "equal without %"
    tail = units.read_tail(found.after, found.before) if found.after or found.before else units.Tail()
    for given, wanted, how in _pairs(value, tail, gold):
        if given == wanted:
            return "correct", f"equal{how}"
        if allowed and abs(given - wanted) <= allowed * abs(wanted):
            return "correct", f"equal{how} within the relative tolerance {float(allowed):g}"
    a, b = _kind(tail), _kind(gold.tail)
    if a and b and not a & b:
        name, wanted_name = _name(tail), _name(gold.tail)
        if {"time", "calendar"} <= a | b:
            return "undecided", f"{name} and {wanted_name} do not convert exactly"
        return "incorrect", f"unit differs: {name} for {wanted_name}"
    unit = "" if gold.bare or gold.found.text[-1:].isalpha() else f" {_name(gold.tail)}"
    return "incorrect", f"not equal to {gold.found.text[:80]}{unit}"


def _kind(tail: units.Tail) -> frozenset[str]:
    if tail.unit is not None:
        return units.kinds(tail.unit)
    return frozenset(["%"]) if tail.scale == _PERCENT else frozenset()


def _name(tail: units.Tail) -> str:
    return tail.unit.name if tail.unit is not None else tail.scale_name


def _pairs(value: Fraction, tail: units.Tail, gold: Gold) -> Iterator[tuple[Fraction, Fraction, str]]:
    """The values to compare, answer and gold, one pair for each way to read them, and how they were read."""
    scaled = value * tail.scale, gold.value * gold.tail.scale
    if bool(tail.scale_name) == bool(gold.tail.scale_name):
        readings = [(*scaled, "")]
    else:
        name = tail.scale_name or gold.tail.scale_name
        readings = [(value, gold.value, f" without {name}"), (*scaled, f" with {name} applied")]
    kinds = _kind(tail), _kind(gold.tail)
    if tail.unit is None or gold.tail.unit is None:
        if kinds[0] and kinds[1] and kinds[0] != kinds[1]:  # a percentage for kilograms
            return
        yield from readings
        return
    converted = "" if tail.unit == gold.tail.unit else f" after conversion to {gold.tail.unit.name}"
    for given, wanted, how in readings:
        for pair in units.conversions(given, tail.unit, wanted, gold.tail.unit):
            yield (*pair, how + converted)


def decide(problem: Problem, answer: str, pool: WorkerPool) -> Decision:
    """Checker `number`. No worker is needed."""
    if (early := before_judging(problem, answer, "number")) is not None:
        return early
    gold = read_gold(problem.gold or "")
    if isinstance(gold, Found):
        reason = f"the gold answer {gold.text[:80]!r} is not a number: {gold.problem}"
        return "undecided", reason, "number", None
    found, how = extract_number(answer)
    if gold.tail.unit is not None:
        found = extract_compound(answer) or found
    if found is None:
        return "incorrect", "no number in the answer", "number", None
    if found.value is None:
        if found.problem == "no number":
            return "incorrect", f"no number in the answer ({how})", "number", found.text
        return "undecided", f"{how}: {found.problem}", "number", found.text
    status, reason = compare(found, gold, tolerance(problem) if problem.metadata else _ZERO)
    return status, f"{how}: {reason}", "number", found.text
