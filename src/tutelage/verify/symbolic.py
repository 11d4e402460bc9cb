r"""Mathematical equality by math-verify, as it runs inside a worker process.

Promises: gold goes first (the comparison is not symmetric); each gold is parsed once per worker; what cannot
be parsed, or makes the library raise, is `undecided` with the reason, never `incorrect`; a "yes" of the
library about two numbers is checked again at 30 digits, because it rounds at 6 decimals and so takes 2^-99
for 2^-98.
Does not: limit time or memory. The caller kills the process (`workers`); nothing here may run in ours.

math-verify's own timeouts are off: they use SIGALRM, work in the main thread only, and come out as "no".
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from typing import Any

import sympy  # type: ignore[import-untyped]
from math_verify import parse
from math_verify import verify as equal

from tutelage.records import Status

_DELIMITED = re.compile(r"\$|\\\(|\\\[|\\boxed")
_PROSE = re.compile(r"(?<!\\)\b[A-Za-z]{3,}\b")
_WORDS = re.compile(r"[^\W\d_]{3,}(?:[ '-][^\W\d_]+)*")
_NO_ANSWER = frozenset({"", "nan", "none", "null", "n/a"})
_EXACT_DIGITS = 12
_ROUNDED_TOLERANCE = sympy.Rational(1, 100_000)

logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it logs whole texts


def _as_math(text: str) -> str:
    """`text` inside dollar signs unless it is prose or has delimiters of its own (math-verify reads LaTeX
    only inside a math environment); upright e and i are the constants."""
    text = re.sub(r"\\(?:mathrm|text|rm)\s*\{\s*([ei])\s*\}", r"\1", text.strip())
    if _DELIMITED.search(text) or _PROSE.search(
        re.sub(r"\\(?:text|mathrm|mbox)\s*\{[^{}]*\}|\\[A-Za-z]+", "", text)
    ):
        return text
    return f"${text}$"


def _parse(text: str) -> list[Any]:
    return [
        item
        for item in parse(_as_math(text), parsing_timeout=None, raise_on_error=True)
        if not isinstance(item, str)
    ]


@lru_cache(maxsize=4096)
def _gold(text: str) -> list[Any]:
    return _parse(text)


def _undefined(items: list[Any]) -> bool:
    return any(isinstance(item, sympy.Basic) and item.has(sympy.nan, sympy.zoo) for item in items)


def _really_equal(gold: Any, answer: Any) -> bool | None:
    """Whether two numbers are equal at a precision relative to their size; None when they are not two finite
    numbers. Exact forms must agree to 12 digits; where a decimal was written, to 5."""
    if not (isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr)):
        return None
    if not (gold.is_number and answer.is_number):
        return None
    a, b = gold.doit(), answer.doit()
    difference = sympy.N(abs(a - b), 30, maxn=1000)
    size = sympy.N(sympy.Max(abs(sympy.N(a, 30, maxn=1000)), abs(sympy.N(b, 30, maxn=1000))), 30)
    if not (difference.is_Float or difference.is_Integer) or not size.is_finite:
        return None
    rounded = bool(gold.atoms(sympy.Float) or answer.atoms(sympy.Float))
    return bool(
        difference <= size * (_ROUNDED_TOLERANCE if rounded else sympy.Rational(1, 10**_EXACT_DIGITS))
    )


def _decide_words(gold: str, answer: str) -> tuple[Status, str]:
    # As LaTeX, "stop" would be s*t*o*p and equal to "pots".
    if gold == answer:
        return "correct", "same text"
    if gold in answer or sorted(gold) == sorted(answer):
        return "undecided", "the gold answer is words, and the answer is similar but not the same text"
    return "incorrect", "the gold answer is words, and the text differs"


def equality(gold: str, answer: str) -> tuple[Status, str]:
    """The status and the reason for one extracted `answer` against `gold`."""
    if gold.strip().casefold() in _NO_ANSWER:
        return "undecided", f"the gold answer {gold.strip()!r} is not an answer"
    words = re.sub(r"^\\(?:text|mathrm)\s*\{([^{}]*)\}$", r"\1", gold.strip().strip("$")).strip()
    if _WORDS.fullmatch(words):
        said = re.sub(r"^\\(?:text|mathrm)\s*\{([^{}]*)\}$", r"\1", answer.strip().strip("$")).strip()
        return _decide_words(words.casefold(), said.rstrip(".").casefold())
    wanted = _gold(gold)
    if not wanted:
        return "undecided", "math-verify cannot parse the gold answer"
    if _undefined(wanted):
        return "undecided", "the gold answer has no value"
    given = _parse(answer)
    if not given:
        return "undecided", "math-verify cannot parse the answer"
    if _undefined(given):
        return "incorrect", "the answer has no value"
    if not equal(wanted, given, timeout_seconds=None, raise_on_error=True):
        return "incorrect", "math-verify: not equal"
    if "%" not in gold + answer and _really_equal(wanted[0], given[0]) is False:
        return "incorrect", "equal only after rounding to 6 decimals"
    return "correct", "math-verify: equal"
