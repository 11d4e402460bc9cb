"""Bytes as word hashes: the words of one chunk of text, by tables and running sums over its bytes.

Promises: the words that `questions.words` finds in ASCII, as numbers that are the same in every process and
on every machine.
Does not: cut texts into chunks, or read other characters than ASCII (see `hashed`).

How: each byte has a kind, and a word begins where the kind changes. A word's number is a polynomial over its
bytes modulo 2^64, so that one running sum over all bytes gives every word."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tutelage.questions import words

END = 0xFF
"""Between texts; like the next one no byte of UTF-8."""
PARTED = b"\xfe"
"""Between words that are not looked into again."""
_SEPARATOR, _LETTER, _DIGIT, _OPERATOR = range(4)
_FEW = 4  # blanks behind a minus that are gone through one by one
_SOME = np.uint64(0xA0761D6478BD642F)  # so that no usual word is 0, which would add nothing to a sum
NUMBER_WORDS = (
    *("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty", "thirty"),
    *("forty", "fifty", "sixty", "seventy", "eighty", "ninety", "hundred", "thousand"),
)


def borders(data: NDArray[np.uint8], raw: bool) -> NDArray[np.int64]:
    """Where no word, and no sign with what decides about it, is on both sides."""
    kinds = np.take(_KINDS if raw else _WHOLE, data, mode="clip")
    if raw:
        kinds[_grouping(data)] = _DIGIT
        kinds[_points(data)] = _DIGIT
    before, behind = kinds[:-1], kinds[1:]
    fits = (before != behind) | (before == _OPERATOR)
    # A minus looks beyond blanks: behind a separator there must be something that it does not look for.
    fits &= (before != _SEPARATOR) | ~(_BLANK[data[1:]] | (behind == _DIGIT) | (data[1:] == ord("(")))
    return np.flatnonzero(fits) + 1


def words_of(
    data: NDArray[np.uint8], raw: bool
) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
    """The words of one chunk, the places where they begin, whether they are numbers, and the places of the
    bytes that were left out before all that."""
    lost = _grouping(data) if raw else np.empty(0, np.int64)
    if len(lost):
        kept = np.ones(len(data), np.bool_)
        kept[lost] = False
        data = data[kept]
    if raw:
        kinds = np.take(_KINDS, data, mode="clip")
        _signs(data, kinds)
    else:
        kinds = np.take(_WHOLE, data, mode="clip")
    edge = np.empty(len(kinds), np.bool_)
    edge[0] = True
    np.not_equal(kinds[1:], kinds[:-1], out=edge[1:])
    edge |= kinds == _OPERATOR
    edge &= kinds != _SEPARATOR
    begins = np.flatnonzero(edge)
    if not len(begins):
        return np.empty(0, np.uint64), begins, np.empty(0, np.bool_), lost
    power, inverse = _powers(1 << (len(data) - 1).bit_length())
    # Separators count nothing, so a word's sum may run on to where the next word begins.
    values = np.take(_VALUES, data, mode="clip")
    values *= power[: len(data)]
    total = np.cumsum(values)
    before = np.take(total, begins) - np.take(values, begins)
    found = np.append(before[1:], total[-1]) - before
    found *= np.take(inverse, begins)
    found += _SOME
    found ^= found >> np.uint64(32)
    found *= np.uint64(0xD6E8FEB86659FD93)
    found ^= found >> np.uint64(29)
    return found, begins, np.take(_DIGITS, np.take(data, begins)), lost


def _grouping(data: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The commas of 1,200: a digit before, three digits and no fourth behind."""
    commas = np.flatnonzero(data == ord(","))
    fits = commas[(commas > 0) & (commas + 3 < len(data))]
    if not len(fits):
        return fits
    for away in (1, -1, 2, 3):
        fits = fits[_DIGITS[data[fits + away]]]
    after = np.minimum(fits + 4, len(data) - 1)
    return fits[~_DIGITS[data[after]] | (fits + 4 >= len(data))]


def _signs(data: NDArray[np.uint8], kinds: NDArray[np.uint8]) -> None:
    """Points inside numbers become digits; a minus before a number or a bracket becomes an operator."""
    kinds[_points(data)] = _DIGIT
    minus = np.flatnonzero(data == ord("-"))
    ahead = minus + 1
    for _ in range(_FEW):
        if not len(minus):
            return
        there = ahead < len(data)
        minus, ahead = minus[there], ahead[there]
        byte = data[ahead]
        kinds[minus[_DIGITS[byte] | (byte == ord("("))]] = _OPERATOR
        blank = _BLANK[byte]
        minus, ahead = minus[blank], ahead[blank] + 1
    if len(minus):  # many blanks: look once for all that is not blank
        others = np.flatnonzero(~_BLANK[data])
        at = np.searchsorted(others, ahead)
        minus, at = minus[at < len(others)], at[at < len(others)]
        byte = data[others[at]]
        kinds[minus[_DIGITS[byte] | (byte == ord("("))]] = _OPERATOR


def _points(data: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The points of 1.5: a digit on both sides."""
    points = np.flatnonzero(data == ord("."))
    points = points[(points > 0) & (points + 1 < len(data))]
    return points[_DIGITS[data[points - 1]] & _DIGITS[data[points + 1]]]


def _kind(character: str) -> int:
    if not words(character):
        return _SEPARATOR
    if character.isdigit():
        return _DIGIT
    return _LETTER if len(words(character * 2)) == 1 else _OPERATOR


def _table(kinds: Sequence[int]) -> NDArray[np.uint8]:
    return np.array([*kinds, *[_LETTER] * (END - len(kinds)), _SEPARATOR], np.uint8)


_KINDS = _table([_kind(chr(code)) for code in range(128)])
_WHOLE = _table([*[_LETTER] * PARTED[0], _SEPARATOR])
_DIGITS = np.array([chr(code).isdigit() and code < 128 for code in range(256)], np.bool_)
_BLANK = np.array([code < 128 and chr(code).isspace() for code in range(256)], np.bool_)


def _values() -> NDArray[np.uint64]:
    """One number for each byte, capitals like small letters. Separators are 0, and so is the point of a
    number (1.2 and 12 differ by the places of their digits) and the minus (as the only word with 0)."""
    # The raw stream: numpy promises that one for all versions, and not what a Generator makes of it.
    drawn = np.asarray(np.random.PCG64(20240607).random_raw(256), np.uint64) | np.uint64(1)
    for code in range(ord("A"), ord("Z") + 1):
        drawn[code] = drawn[code + 32]
    drawn[:128][_KINDS[:128] == _SEPARATOR] = 0
    drawn[[PARTED[0], END]] = 0
    return drawn


_VALUES = _values()
_BASE = 0xC2B2AE3D27D4EB4F


@lru_cache(2)
def _powers(size: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Powers 0, 1, ... of an odd number and of its inverse modulo 2^64, `size` of them."""
    made = []
    for base in (_BASE, pow(_BASE, -1, 2**64)):
        steps = np.full(size, base, np.uint64)
        steps[0] = 1
        made.append(np.multiply.accumulate(steps))
    return made[0], made[1]


def _known_numbers() -> NDArray[np.uint64]:
    listed = np.frombuffer(PARTED.join(word.encode() for word in NUMBER_WORDS), np.uint8)
    return np.sort(words_of(listed, False)[0])


_KNOWN = _known_numbers()
_PERHAPS = np.zeros(1 << 16, np.bool_)
_PERHAPS[(_KNOWN >> np.uint64(48)).view(np.int64)] = True


def spelled_out(found: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Whether words are numbers written as words."""
    result = np.take(_PERHAPS, (found >> np.uint64(48)).view(np.int64))
    at = np.flatnonzero(result)  # few, so that the slower question is asked for those alone
    result[at] = np.isin(found[at], _KNOWN)
    return result
