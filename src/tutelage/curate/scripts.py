"""Which scripts texts are written in: letters counted by groups of scripts.

Promises: every letter counts (Unicode's letters, by code point), once, in one group; Latin and Greek letters
and the alphabets of mathematics are never foreign, since formulas and programs are written in them whatever
the language; what is found of a text depends on it and its question alone.
Does not: tell languages apart that share a script, or notice an English answer to a Chinese question.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tutelage.curate.columnar import Bytes, as_bytes

GROUPS = (
    "no letter", "Latin", "Greek", "Cyrillic", "Armenian or Georgian", "Hebrew", "Arabic", "Indic",
    "Southeast Asian", "Chinese or Japanese", "Korean", "another",
)  # fmt: skip
_NONE, _LATIN, _GREEK, _OTHER = 0, 1, 2, len(GROUPS) - 1
_RANGES: dict[str, tuple[tuple[int, int], ...]] = {
    "Latin": (
        (0x41, 0x24F), (0x250, 0x2AF), (0x2B0, 0x2FF), (0x1D00, 0x1DBF), (0x1E00, 0x1EFF), (0x2C60, 0x2C7F),
        (0xA720, 0xA7FF), (0xAB30, 0xAB6F), (0xFB00, 0xFB06), (0xFF21, 0xFF5A),
    ),
    "Greek": ((0x370, 0x3FF), (0x1F00, 0x1FFF)),
    "Cyrillic": ((0x400, 0x52F), (0x1C80, 0x1C8F), (0x2DE0, 0x2DFF), (0xA640, 0xA69F)),
    "Armenian or Georgian": (
        (0x530, 0x58F), (0x10A0, 0x10FF), (0x1C90, 0x1CBF), (0x2D00, 0x2D2F), (0xFB13, 0xFB17),
    ),
    "Hebrew": ((0x590, 0x5FF), (0xFB1D, 0xFB4F)),
    "Arabic": ((0x600, 0x6FF), (0x750, 0x77F), (0x860, 0x8FF), (0xFB50, 0xFDFF), (0xFE70, 0xFEFE)),
    "Indic": ((0x900, 0xDFF), (0xA8E0, 0xA8FF)),
    "Southeast Asian": (
        (0xE00, 0xEFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x1980, 0x19DF), (0xA9E0, 0xAA7F),
    ),
    "Chinese or Japanese": (
        (0x2E80, 0x312F), (0x3190, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF),
        (0xFF66, 0xFF9D), (0x1AFF0, 0x1B16F), (0x20000, 0x323AF),
    ),
    "Korean": ((0x1100, 0x11FF), (0x3130, 0x318F), (0xA960, 0xA97F), (0xAC00, 0xD7FF), (0xFFA0, 0xFFDC)),
}  # fmt: skip
_NEUTRAL = ((0x2000, 0x2BFF), (0x1D400, 0x1D7FF), (0x1EE00, 0x1EEFF))
"""Letterlike signs and the alphabets of mathematics: ℝ, ℵ, 𝑥."""
_LAST = 0x32400


@dataclass(frozen=True, slots=True)
class Foreign:
    """Text number `row` has `letters` letters of scripts that are not its question's, the `share` of all its
    letters. The first one stands at character `at`; `group` is its script."""

    row: int
    letters: int
    share: float
    group: str
    at: int


def letters(texts: pa.Array) -> NDArray[np.int64]:
    """Letters of each group of `GROUPS`, (texts, groups), of an array that `columnar.as_strings` made. ASCII
    letters are left out, which would take most of the time (see `ascii_letters`)."""
    found = as_bytes(texts)
    counts = np.zeros((len(found), len(GROUPS)), np.int64)
    for first, part in found.parts():
        at = np.flatnonzero(part.raw >= 0xC2)
        if len(at):
            owner = np.searchsorted(part.offsets, at, side="right") - 1
            group = np.take(_groups(), np.minimum(_code_points(part.raw, at), _LAST))
            own = np.bincount(owner * len(GROUPS) + group, minlength=len(part) * len(GROUPS))
            counts[first : first + len(part)] = own.reshape(len(part), len(GROUPS))
    counts[:, _NONE] = 0
    return counts


def ascii_letters(texts: Bytes) -> NDArray[np.int64]:
    """ASCII letters of each text, (texts,)."""
    counts = np.zeros(len(texts), np.int64)
    for first, part in texts.parts():
        total = np.zeros(len(part.raw) + 1, np.int64)
        np.cumsum(np.take(_ASCII, part.raw), out=total[1:])
        counts[first : first + len(part)] = np.diff(total[part.offsets])
    return counts


def foreign(questions: pa.Array, texts: pa.Array, *, share: float, least: int) -> list[Foreign]:
    """The texts with at least `least` letters, and more than `share` of all their letters, of scripts that
    are foreign to the question beside them.

    A script is a question's own when more than `share` of the question's letters are of it. For a question
    without letters the main script of the text is its own, so that only a mixture is found."""
    counts = letters(texts)
    rows = np.flatnonzero(counts[:, _GREEK + 1 :].sum(axis=1) >= least)
    if not len(rows):
        return []
    counts, asked = counts[rows], letters(questions.take(pa.array(rows)))
    counts[:, _LATIN] += ascii_letters(as_bytes(texts.take(pa.array(rows))))
    asked[:, _LATIN] += ascii_letters(as_bytes(questions.take(pa.array(rows))))
    own = asked > share * asked.sum(axis=1, keepdims=True)
    silent = asked.sum(axis=1) == 0
    own[silent] = counts[silent] == counts[silent].max(axis=1, keepdims=True)
    own[:, [_NONE, _LATIN, _GREEK]] = True
    many = np.where(own, 0, counts).sum(axis=1)
    part = many / np.maximum(counts.sum(axis=1), 1)
    found = []
    for place in np.flatnonzero((many >= least) & (part > share)).tolist():
        row = int(rows[place])
        codes = np.frombuffer(texts[row].as_py().encode("utf-32-le"), np.uint32)
        group = np.take(_groups(), np.minimum(codes, _LAST))
        at = int(np.argmax(~own[place][group]))
        found.append(Foreign(row, int(many[place]), float(part[place]), GROUPS[group[at]], at))
    return found


def _code_points(raw: NDArray[np.uint8], at: NDArray[np.int64]) -> NDArray[np.int64]:
    """The code points of the characters of two to four bytes that begin at `at`."""
    lead = raw[at].astype(np.int64)
    size = 2 + (lead >= 0xE0) + (lead >= 0xF0)
    found: NDArray[np.int64] = lead & np.take(np.array([0, 0, 0x1F, 0x0F, 0x07]), size)
    for behind in (1, 2, 3):
        more = size > behind
        following = raw[np.minimum(at + behind, len(raw) - 1)] & 0x3F
        found = np.where(more, (found << 6) | following, found)
    return found


@lru_cache(1)
def _groups() -> NDArray[np.uint8]:
    """The group of every code point up to `_LAST`."""
    found = np.full(_LAST + 1, _OTHER, np.uint8)
    for name, parts in _RANGES.items():
        for first, last in parts:
            found[first : last + 1] = GROUPS.index(name)
    for first, last in _NEUTRAL:
        found[first : last + 1] = _NONE
    for code in range(_LAST + 1):
        if not chr(code).isalpha():
            found[code] = _NONE
    return found


_ASCII = np.array([code < 128 and chr(code).isalpha() for code in range(256)], np.bool_)
