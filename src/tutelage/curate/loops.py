"""Texts that go round in circles: runs of words that were there before, and ends that repeat themselves.

Promises: a text is read once, in time linear in its bytes but for one sort of its runs; what is found of a
text does not depend on the others; the same texts give the same answer everywhere; a text without any space
is measured too.
Does not: see a loop whose words change at every turn (a counter that goes up), or tell a loop from a text
that has to repeat itself, such as a long table: the threshold is the caller's.

A word is what stands between blanks and control characters, as it is written: `questions.words` takes 140 ns
a byte where a text is not ASCII, and a loop repeats itself to the letter. A Chinese, Japanese or Korean
character begins a word of its own; longer words are cut every 16 bytes, so that two numbers of 64 bits hold
each."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tutelage.curate.columnar import Bytes, as_bytes
from tutelage.curate.hashed import Hashed
from tutelage.curate.ngrams import grams, ranges

_LONGEST = 16
_SHOWN = 400  # bytes
_OWNER_BITS = 20  # more texts than a part can have
_A, _B = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)
_MASKS = np.array([(1 << 8 * size) - 1 for size in range(9)], np.uint64)
_BLANK = 0x20  # and all below
_FIRST, _LAST = 0xE3, 0xED  # first bytes in UTF-8 of U+3000 to U+DFFF


@dataclass(frozen=True, slots=True)
class Loop:
    """Text number `row` repeats itself: of its runs of words, the share `again` (0 to 1) had occurred before,
    and its end repeats `turns` times in a row (1: not more often than was asked for). `run` is its most
    frequent run, which occurs `times`, first at byte `at`."""

    row: int
    again: float
    turns: int
    run: str
    times: int
    at: int


def word_counts(texts: pa.Array) -> NDArray[np.int64]:
    """Words of each text, (texts,), of an array that `columnar.as_strings` made."""
    found = as_bytes(texts)
    counts = np.zeros(len(found), np.int64)
    for first, part in found.parts():
        counts[first : first + len(part)] = np.diff(_split(part)[2])
    return counts


def loops(texts: pa.Array, *, width: int, share: float, turns: int) -> list[Loop]:
    """The texts of which more than `share` of all runs of `width` words occurred before in the same text, or
    whose end repeats more than `turns` times in a row, in their order.

    A turn at the end is what repeats there, or `width` words where that is shorter. A last word that
    a limit cut in two hides no turn. Takes an array that `columnar.as_strings` made."""
    found = []
    for first, part in as_bytes(texts).parts():
        at, sizes, starts = _split(part)
        runs, places = grams(Hashed(_numbers(part.raw, at, sizes), starts, np.empty(0, np.bool_)), width)
        many = np.maximum(np.diff(starts) - width + 1, 0)
        bounds = np.zeros(len(part) + 1, np.int64)
        np.cumsum(many, out=bounds[1:])
        again = _repeated(runs, many) / np.maximum(many, 1)
        ends = _ends(runs, bounds, width, turns)
        for row in np.flatnonzero((again > share) | (ends > turns)).tolist():
            own = runs[bounds[row] : bounds[row + 1]]
            _, where, times = np.unique(own, return_index=True, return_counts=True)
            most = int(np.lexsort((where, -times))[0])
            place = int(places[bounds[row] + where[most]])
            begin, end = int(at[place]), int(at[place + width - 1] + sizes[place + width - 1])
            shown = part.raw[begin : min(end, begin + _SHOWN)].tobytes().decode("utf-8", "replace")
            offset = begin - int(part.offsets[row])
            found.append(
                Loop(first + row, float(again[row]), int(ends[row]), shown, int(times[most]), offset)
            )
    return found


def _split(texts: Bytes) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The places of all words, their bytes, and where the words of each text begin among them (texts + 1)."""
    if not len(texts.raw):
        return np.empty(0, np.int64), np.empty(0, np.int64), np.zeros(len(texts) + 1, np.int64)
    inside = texts.raw > _BLANK
    begin = (texts.raw - np.uint8(_FIRST)) <= _LAST - _FIRST  # bytes below _FIRST wrap round
    begin[1:] |= inside[1:] & ~inside[:-1]
    borders = texts.offsets[:-1][texts.sizes > 0]
    begin[borders] = inside[borders]
    end = inside.copy()
    end[:-1] &= begin[1:] | ~inside[1:]
    at = np.flatnonzero(begin)
    sizes = np.flatnonzero(end) + 1 - at
    if len(sizes) and int(sizes.max()) > _LONGEST:
        pieces = -(-sizes // _LONGEST)
        steps = ranges(np.zeros(len(pieces), np.int64), pieces) * _LONGEST
        at, sizes = np.repeat(at, pieces) + steps, np.minimum(np.repeat(sizes, pieces) - steps, _LONGEST)
    return at, sizes, np.searchsorted(at, texts.offsets)


def _numbers(raw: NDArray[np.uint8], at: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A number for each word, from its first and its last 8 bytes."""
    padded = np.zeros(len(raw) + 2 * _LONGEST, np.uint8)
    padded[: len(raw)] = raw
    # The 8 bytes from every byte on, unaligned.
    eight: NDArray[np.uint64] = np.ndarray((len(raw) + _LONGEST,), "<u8", padded.data, 0, (1,))
    found = eight[at] & np.take(_MASKS, np.minimum(sizes, 8))
    found *= _A
    found ^= found >> np.uint64(32)
    found += eight[at + 8] & np.take(_MASKS, np.maximum(sizes, 8) - 8)
    found *= _B
    found ^= found >> np.uint64(29)
    return found


def _repeated(runs: NDArray[np.uint64], many: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many of the runs of each text have occurred before in it, (texts,)."""
    owner = np.repeat(np.arange(len(many), dtype=np.uint64), many)
    keys = (owner << np.uint64(64 - _OWNER_BITS)) | (runs >> np.uint64(_OWNER_BITS))
    keys.sort()
    again = keys[1:][keys[1:] == keys[:-1]]
    return np.bincount((again >> np.uint64(64 - _OWNER_BITS)).view(np.int64), minlength=len(many))


def _ends(runs: NDArray[np.uint64], bounds: NDArray[np.int64], width: int, turns: int) -> NDArray[np.int64]:
    """How often the end of each text repeats in a row, (texts,); 1 where that is not more than `turns`."""
    many = np.diff(bounds)
    found = np.ones(len(many), np.int64)
    fit = np.flatnonzero(many > width * turns)  # fewer runs than that do not hold so many turns
    for left_out in (0, 1):
        last = np.zeros(len(many), np.uint64)
        last[fit] = runs[bounds[fit + 1] - left_out - 1]
        same = np.flatnonzero(runs == np.repeat(last, many))
        owner = np.searchsorted(bounds, same, side="right") - 1
        for row in fit[np.bincount(owner, minlength=len(many))[fit] > turns].tolist():
            own = runs[bounds[row] : bounds[row + 1] - left_out]
            found[row] = max(found[row], _turns(own, width))
    return found


def _turns(runs: NDArray[np.uint64], width: int) -> int:
    """How often the end of one text repeats in a row."""
    before = np.flatnonzero(runs[:-1] == runs[-1])
    if not len(before):
        return 1
    period = len(runs) - 1 - int(before[-1])
    broken = np.flatnonzero(runs[period:] != runs[:-period])
    # Runs back to where one differs from the one a period later, and the other words of the last of them.
    words = len(runs) - (int(broken[-1]) + 1 if len(broken) else 0) + width - 1
    return max(1, words // max(period, width))


assert sys.byteorder == "little", "words are read from Arrow buffers as little-endian"
