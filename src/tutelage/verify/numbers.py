r"""Numbers in text, read exactly.

Promises: values are `Fraction`s, never floats, so 0.1 equals 1/10 and nothing equals "nearly"; time is linear
in the length of the text, also for 10 MB of digits; no text raises. Understood: thousands groups (1,234 and
1,00,000, `10{,}000`, thin spaces), decimals, fractions `a/b`, `\frac{a}{b}` and `1 1/2`, `1.5e3`,
`1.5 \times 10^3`, currency and percent signs (kept apart in `before` and `after`: 50% reads as 50), the
Unicode minus, decimal digits of every script (Arabic-Indic, full-width), invisible characters inside.
Does not: compare units (`units` does), do arithmetic (`3 + 4` and `2^5` are not plain numbers), read number
words, or read `3,5` as 3.5 and `1.234,56` as 1234.56 (both may be lists: no value). Clock times and ratios
such as `4:30` are not numbers."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

from tutelage.verify.units import read_tail

MAX_DIGITS = 1000
"""Longer literals are found but have no value: nobody asked for them, and int() is quadratic."""
MAX_TEXT = 100_000
"""A longer text is not read as one number."""

_SHOWN = 200
_BESIDE = 40
_INVISIBLE = re.compile("[\u00ad\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]")
_SAME_AS = str.maketrans("−﹣－，．٫٬٪％／⁄∕＄＝", "---,..,%%///$=")
_GROUP_SPACE = re.compile(r"(?<=\d)(?:[\u00a0\u2009\u202f]|\\,|\\!|\{,\}|,\\!)(?=\d{3}(?!\d))")
_ANY_DIGIT = re.compile(r"\d")
_DIGIT = re.compile(r"[^\x00-\x7f\D]")
_WRAPPER = re.compile(r"\\(?:text|mathrm|textbf|mathbf|textit|mbox|operatorname)\s*\{([^{}]*)\}")
_DEGREE = re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)|\\degree|°")
_SPACING = re.compile(r"\\[,;:! ]|\\q?quad|\\left(?![a-z])|\\right(?![a-z])|~")

_UNSIGNED = (
    r"(?:\d{1,3}(?:,\d{3})++(?!,?\d)|\d{1,2}(?:,\d{2})++,\d{3}(?!,?\d)|\d++(?:,\d++)*+)(?:\.\d++)?+|\.\d++"
)
_TOKEN = re.compile(
    rf"""
    (?P<sign>(?<![\w)\]}}])[-+](?![ ])|(?<=[=:][ ])[-+][ ])?(?:[$€£¥₹][ ]?)?(?P<sign2>(?<=[$€£¥₹])-)?
    (?:
      \\[dtc]?frac\s*+\{{\s*+(?P<fn>-?(?:{_UNSIGNED}))\s*+\}}\s*+\{{\s*+(?P<fd>{_UNSIGNED})\s*+\}}
    |
      (?<!\d)(?<!\d[.,:])(?:(?<![A-Za-z_])|(?<=USD|EUR|GBP|INR|JPY|CHF))
      (?:
        (?P<whole>\d++)[ ](?P<mn>\d++)/(?P<md>\d++)(?![\d/.])
      |
        (?P<num>{_UNSIGNED})(?!:\d)(?P<tail>(?:[.,]\d++)*+)
        (?:
          [eE](?P<e>[-+]?\d{{1,3}})(?![\w.])
        |
          \s*+(?:\\times|\\cdot|[×·*x])\s*+10\s*+\^\s*+(?:\{{\s*+(?P<p>[-+]?\d{{1,3}})\s*+\}}|(?P<q>[-+]?\d{{1,3}}))(?!\d)
        |
          \s*+/\s*+(?P<den>{_UNSIGNED})(?P<chain>(?:\s*+/\s*+\d++)*+)
        )?
      )
    )
    """,
    re.VERBOSE,
)
_SIMPLE = re.compile(r"\s{0,8}([$]?)(-?[0-9]{1,15}(?:\.[0-9]{1,15})?)\.?\s{0,8}")
_LIST = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d{1,2}(?:,\d{2})+,\d{3}(?:\.\d+)?")
_UNIT_POWER = re.compile(r"[A-Za-z]\s*\^\s*\{?\s*-?$")
_INSIDE = re.compile(
    r"-[({\[]+\s*-?$|[\d)]\s*[*×·÷]\s*-?$|[\d.][eE][-+]?$"
    r"|(?:[\d)}\]]\s*\^|\\sqrt|√|\\log|\\ln|_)\s*[{(\[]*\s*-?$"
)
_NOT_PLAIN = re.compile(r"[\d\\+*/^=<>√π∞_×÷!]|(?<![^\W_°])(?![aAmgshlLCFKI])[^\W\d_](?![^\W_])")
_ATTACHED = re.compile(r"[A-Za-z]{1,3}(?![^\W\d_])")
_MONEY = re.compile(r"-?[$][ ]?-?[\d.]")
_RATE = re.compile(r"(?<=[a-z])\s*/\s*(?=(?:s|h|hr|sec|second|min|minute|hour)\b)")
_ENDINGS = frozenset({"st", "nd", "rd", "th"})


@dataclass(frozen=True, slots=True)
class Found:
    """A number in a text: as written, and its value. `value` is None where it is not one plain number; then
    `problem` says why. `before` and `after` are the plain text around it, a few words at most."""

    text: str
    value: Fraction | None
    problem: str = ""
    before: str = ""
    after: str = ""


def plain(text: str) -> str:
    """`text` with look-alike signs, digits of other scripts, LaTeX spacing and text wrappers made plain."""
    if not text.isascii():
        text = _INVISIBLE.sub("", text).translate(_SAME_AS)
        text = _DIGIT.sub(lambda m: str(unicodedata.decimal(m[0])), text)
    text = _GROUP_SPACE.sub(lambda m: "," if "," in m[0] and m[0] != "\\," else "", text)
    if "\\" in text or not text.isascii() or "~" in text:
        text = text.replace("\\$", "$").replace("\\%", "%")
        text = _WRAPPER.sub(r" \1 ", _DEGREE.sub("°", text))
        text = _SPACING.sub(" ", text)
    return text


def _literal(text: str) -> Fraction | None:
    if "," in text:
        if not _LIST.fullmatch(text):
            return None
        text = text.replace(",", "")
    if len(text) > MAX_DIGITS:
        text = text.lstrip("0").rstrip("0") if "." in text else text.lstrip("0")
        if len(text) > MAX_DIGITS:
            return None
    return Fraction(text if text not in {"", "."} else "0")


def _found(match: re.Match[str]) -> Found:
    """The token with its value; a currency sign counts as before the number."""
    start, stop = match.span()
    for name in ("fn", "whole", "num"):
        if match[name] is not None:
            start = match.start(name)
    text = match[0].strip()
    text = text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
    value, problem = _value(match)
    around = match.string
    if value is not None and _is_factor(around, stop):
        value, problem = None, "not a plain number"
    return Found(text, value, problem, around[max(0, start - _BESIDE) : start], around[stop : stop + _BESIDE])


def _is_factor(text: str, stop: int) -> bool:
    """Whether letters that are no unit stand directly after a number: 5x, 5ab, 1e9999; not 5cm, 5th."""
    word = _ATTACHED.match(text, stop)
    return word is not None and word[0].lower() not in _ENDINGS and read_tail(word[0]).unit is None


def _value(match: re.Match[str]) -> tuple[Fraction | None, str]:
    if match["chain"]:
        return None, "several divisions in a row"
    if match["tail"]:
        return None, "numbers joined by commas or points"
    parts = [match[name] for name in ("whole", "mn", "md", "num", "den", "fn", "fd") if match[name]]
    numbers = [value for part in parts if (value := _literal(part.removeprefix("-"))) is not None]
    if len(numbers) < len(parts):
        if any(len(part) > MAX_DIGITS for part in parts):
            return None, f"a number of more than {MAX_DIGITS} digits"
        return None, "numbers joined by commas"
    if match["whole"] is not None:
        whole, numerator, denominator = numbers
        if not 0 < numerator < denominator:
            return None, "not a mixed number"
        value = whole + numerator / denominator
    elif len(numbers) == 2:
        if numbers[1] == 0:
            return None, "a division by zero"
        value = numbers[0] / numbers[1]
        if match["fn"] and match["fn"].startswith("-"):
            value = -value
    else:
        power = match["e"] or match["p"] or match["q"]
        value = numbers[0] * Fraction(10) ** int(power) if power else numbers[0]
    if (match["sign"] or "").startswith("-") or match["sign2"] == "-":
        value = -value
    return value, ""


def _simple(text: str) -> Found | None:
    """The number where the whole text is digits, perhaps with a sign, a $ or a final period: the common case,
    ten times faster than the grammar."""
    match = _SIMPLE.fullmatch(text)
    if match is None:
        return None
    digits = match[2]
    value = Fraction(digits) if "." in digits else Fraction(int(digits))
    return Found(digits, value, "", match[1])


def _tokens(text: str) -> list[tuple[re.Match[str], str]]:
    """The number tokens of a plain text, each with the text just before it; powers of units are left out."""
    tokens = []
    for match in _TOKEN.finditer(text):
        before = text[max(0, match.start() - 12) : match.start()]
        if not _UNIT_POWER.search(before):
            tokens.append((match, before))
    return tokens


def last_number(text: str) -> Found | None:
    """The last number in `text`; None when there is none. Reads backwards in windows that double, so a number
    near the end of 10 MB costs nothing."""
    text = _up_to_last_digit(text)
    size = 4096
    while text:
        window = plain(text[-size:])
        tokens = _tokens(window)
        # A token at the very start of a window may be the tail of a longer one: look at more of the text.
        if tokens and (tokens[-1][0].start() > 16 or size >= len(text)):
            match, before = tokens[-1]
            if _INSIDE.search(before):
                return Found(match[0].strip()[:_SHOWN], None, "part of an expression")
            return _found(match)
        if size >= len(text):
            return None
        size *= 4
    return None


def _up_to_last_digit(text: str, chunk: int = 65536) -> str:
    """`text` without the end that holds no digit (kept to the chunk), "" when there is no digit at all."""
    for end in range(len(text), 0, -chunk):
        if _ANY_DIGIT.search(text, max(0, end - chunk), end):
            return text[: end + 16]
    return ""


def first_number(text: str) -> Found | None:
    """The first number in `text` (pass one line, not a book); None when there is none."""
    if (simple := _simple(text)) is not None:
        return simple
    window = plain(text)
    match = _TOKEN.search(window)
    if match is None:
        return None
    if _INSIDE.search(window[max(0, match.start() - 12) : match.start()]):
        return Found(match[0].strip()[:_SHOWN], None, "part of an expression")
    return _found(match)


def only_number(text: str, *, equations: bool = True) -> Found:
    """`text` as one number, perhaps with a unit, after its last equals sign. `value` is None, with the
    reason, when it holds no number, several, or an expression (or an
    equation, unless `equations`)."""
    if (simple := _simple(text)) is not None:
        return simple
    shown = text.strip()[:_SHOWN]
    if len(text) > MAX_TEXT:
        return Found(shown, None, f"more than {MAX_TEXT:,} characters")
    if not equations and "=" in text:
        return Found(shown, None, "an equation")
    window = re.split(r"=|≈|\\approx", plain(text))[-1].strip()
    if window.count("$") > 1 or not _MONEY.match(window):  # the signs of LaTeX, or half a pair of them
        window = window.strip("$").strip()
    window = re.sub(r"\A([-+])\s+", r"\1", window)
    tokens = [match for match, _ in _tokens(window)]
    if not tokens:
        return Found(shown, None, "no number")
    if len(tokens) > 1:
        return Found(shown, None, "several numbers")
    match = tokens[0]
    # "5x", "5ab", "5π", "√5" and "-(5)" are not 5; "5 apples", "5cm", "5 m/s" and "(5)" are.
    rest = window[: match.start()] + " " + window[match.end() :]
    rest = re.sub(r"(?<=[A-Za-z])\s*\^\s*\{?-?\d\}?", "", rest).replace("\\\\", "")
    negated = re.search(r"-\s*[({\[][({\[\s]*$", window[: match.start()])
    if negated or _NOT_PLAIN.search(_RATE.sub(" per ", rest)):
        return Found(shown, None, "not a plain number")
    return _found(match)
