r"""Mathematical equality by math-verify, as it runs inside a worker process.

Promises: gold goes first (the comparison is not symmetric); each gold is parsed once per worker; what cannot
be parsed, or makes the library raise, is `undecided` with the reason, never `incorrect`; a "yes" of the
library about two numbers is checked again at 30 digits, because it rounds at 6 decimals and so takes 2^-99
for 2^-98.
A decimal equals an exact form when it is its value, rounded or cut to the decimals shown, from 6 on; inside a
longer expression a decimal is exact or the verdict is open.
Of words with several numbers ("2 cats and 7 dogs") the library would compare one number: the same text is
equal, as many other numbers differ, all else is open. "3 and 5" is "3, 5".
Does not: limit time or memory. The caller kills the process (`workers`); nothing here may run in ours.

math-verify's own timeouts are off: they use SIGALRM, work in the main thread only, and come out as "no".
"""

from __future__ import annotations

import logging
import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

import sympy  # type: ignore[import-untyped]
from latex2sympy2_extended import NormalizationConfig  # type: ignore[import-untyped]
from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse
from math_verify import verify as equal

from tutelage.records import Status

_DELIMITED = re.compile(r"\$|\\\(|\\\[|\\boxed")
_PROSE = re.compile(r"(?<!\\)\b[A-Za-z]{3,}\b")
_WORDS = re.compile(r"[^\W\d_]{3,}(?:[ '-][^\W\d_]+)*")
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\s*\{[a-z]*\*?\}")
# Its list of units has ab, st and m: 5ab would be 5. The caller takes units off (`mathematics`).
_FORM = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all")
_WHOLE = [LatexExtractionConfig(boxed_match_priority=0, normalization_config=_FORM)]
_PROSE_TOO = [*_WHOLE, ExprExtractionConfig()]
_NUMBER = re.compile(r"[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?")
_AND = re.compile(r",?(?:\s*\\(?:text|mathrm|mbox)\s*\{\s*and\s*\}\s*|\s+and\s+)")
_FUNCTION = re.compile(r"(?:a|arc)?(?:sin|cos|tan|cot|sec|csc)h?|exp|gcd|lcm|lim|log|max|min|mod|sqrt")
_NO_ANSWER = frozenset({"", "nan", "none", "null", "n/a", "inf", "infinity", "undefined"})
_EXACT = sympy.Rational(1, 10**12)
_DECIMAL = re.compile(r"[0-9]*\.([0-9]+)")
_ONLY_ROUNDED = "equal only after rounding to 6 decimals"

logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it logs whole texts


def _as_math(text: str) -> tuple[str, bool]:
    """`text` inside dollar signs unless it is prose or has delimiters of its own (math-verify reads LaTeX
    only inside a math environment), and whether it is one expression as a whole; upright e and i are the
    constants."""
    text = re.sub(r"\\(?:mathrm|text|rm)\s*\{\s*([ei])\s*\}", r"\1", text.strip())
    listed = _AND.sub(", ", text)
    bare = re.sub(r"\\(?:text|mathrm|mbox)\s*\{[^{}]*\}|\\[A-Za-z]+", "", _ENVIRONMENT.sub("", listed))
    if _DELIMITED.search(text) or _PROSE.search(bare):
        return text, False
    return f"${listed}$", True


def _parse(text: str) -> list[Any]:
    math, whole = _as_math(text)
    # Where all of the text is the expression, its last number is no second guess: 1+1+...+1 is not 1.
    found = parse(math, _WHOLE if whole else _PROSE_TOO, parsing_timeout=None, raise_on_error=True)
    return [item for item in found if not isinstance(item, str)]


@lru_cache(maxsize=4096)
def _gold(text: str) -> list[Any]:
    return _parse(text)


def _undefined(items: list[Any]) -> bool:
    return any(isinstance(item, sympy.Basic) and item.has(sympy.nan, sympy.zoo) for item in items)


def _exactly(value: Any) -> Any:
    """The expression with its decimals as exact fractions."""
    return value.xreplace({each: sympy.Rational(str(each)) for each in value.atoms(sympy.Float)})


def _same_number(gold: Any, answer: Any) -> bool | None:
    """Whether two numbers agree to 12 digits; None when they are not finite numbers."""
    if not (isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr)):
        return None
    if not (gold.is_number and answer.is_number):
        return None
    a, b = _exactly(gold).doit(), _exactly(answer).doit()
    difference = sympy.N(abs(a - b), 30, maxn=1000)
    size = sympy.N(sympy.Max(abs(sympy.N(a, 30, maxn=1000)), abs(sympy.N(b, 30, maxn=1000))), 30)
    if not (difference.is_Float or difference.is_Integer) or not size.is_finite:
        return None
    return bool(difference <= size * _EXACT)


def _is_rounded(exact: Any, shown: Any, text: str) -> bool | None:
    """Whether `shown`, a plain decimal written in `text`, is `exact` rounded or cut to its decimals; None
    when it is not a plain decimal beside an exact form."""
    written = _DECIMAL.findall(text)
    if not shown.is_Float or len(written) != 1 or exact.atoms(sympy.Float):
        return None
    places = len(written[0])
    scaled = sympy.N(abs(exact.doit()), places + 30) * 10**places
    given = abs(_exactly(shown)) * 10**places
    same_sign = bool(sympy.N(exact * shown, 30) > 0)
    return same_sign and given in (sympy.floor(scaled), sympy.floor(scaled + sympy.Rational(1, 2)))


def _second_look(gold: tuple[Any, str], answer: tuple[Any, str]) -> tuple[Status, str] | None:
    """What is to say against the library's "yes" about two numbers; None when nothing is."""
    if _same_number(gold[0], answer[0]) is not False:
        return None
    if not (gold[0].atoms(sympy.Float) or answer[0].atoms(sympy.Float)):
        return "incorrect", _ONLY_ROUNDED
    for exact, (shown, text) in ((gold[0], answer), (answer[0], gold)):
        rounded = _is_rounded(exact, shown, text)
        if rounded is not None:
            return None if rounded else ("incorrect", _ONLY_ROUNDED)
    both = gold[0].is_Float and answer[0].is_Float
    return ("incorrect" if both else "undecided"), _ONLY_ROUNDED


def _decide_words(gold: str, answer: str) -> tuple[Status, str]:
    # As LaTeX, "stop" would be s*t*o*p and equal to "pots".
    if gold == answer:
        return "correct", "same text"
    if gold in answer or sorted(gold) == sorted(answer):
        return "undecided", "the gold answer is words, and the answer is similar but not the same text"
    return "incorrect", "the gold answer is words, and the text differs"


def _values(text: str) -> list[Fraction]:
    """The numbers in `text`, smallest first; 1,200 is 1200, and 2.0 is 2."""
    return sorted(Fraction(number.replace(",", "")) for number in _NUMBER.findall(text))


def _numbers_in_words(gold: str, answer: str) -> tuple[Status, str] | None:
    """The decision where the gold answer is words with several numbers; None where it is not."""
    words = [
        word for word in _PROSE.findall(_AND.sub(", ", gold)) if not _FUNCTION.fullmatch(word.casefold())
    ]
    numbers = _values(gold)
    if len(numbers) < 2 or not words or _DELIMITED.search(gold) or "\\" in gold:
        return None
    if " ".join(gold.casefold().rstrip(" .").split()) == " ".join(answer.casefold().rstrip(" .").split()):
        return "correct", "same text"
    said = _values(answer)
    if len(said) == len(numbers) and said != numbers:  # fewer may be spelled out
        return "incorrect", "the gold answer is words with several numbers, and the numbers differ"
    return "undecided", "the gold answer is words with several numbers, and the text differs"


def equality(gold: str, answer: str) -> tuple[Status, str]:
    """The status and the reason for one extracted `answer` against `gold`."""
    if gold.strip().casefold() in _NO_ANSWER:
        return "undecided", f"the gold answer {gold.strip()!r} is not an answer"
    words = re.sub(r"^\\(?:text|mathrm)\s*\{([^{}]*)\}$", r"\1", gold.strip().strip("$")).strip()
    if _WORDS.fullmatch(words):
        said = re.sub(r"^\\(?:text|mathrm)\s*\{([^{}]*)\}$", r"\1", answer.strip().strip("$")).strip()
        return _decide_words(words.casefold(), said.rstrip(".").casefold())
    if (decided := _numbers_in_words(gold, answer)) is not None:
        return decided
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
    against = None if "%" in gold + answer else _second_look((wanted[0], gold), (given[0], answer))
    return against or ("correct", "math-verify: equal")
