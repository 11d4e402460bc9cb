"""Texts as arrays of word hashes: `questions.words`, made for hundreds of thousands of texts a second.

Promises: one 64-bit number for each word that `questions.words` finds, in its order (a test holds the two
against each other on any text; only a word of more than a megabyte has several); equal words have equal
numbers, in every process and on every machine; one text of any size takes memory for its bytes and its words
only.
Does not: promise that different words have different numbers (2^-64 by chance, more easily on purpose): what
is found by hashes is confirmed on the words themselves before it counts.

How: plain ASCII goes through numpy (`spelling`), many texts at once, which also leaves the other cores free
(numpy lets go of Python's lock); a text with any other character is cut into words by `questions.words` and
joins the others after that."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tutelage.curate.spelling import END, PARTED, borders, spelled_out, words_of
from tutelage.questions import words

CHUNK = 1 << 17
"""Bytes that are worked on at once: what the arrays take then fits the cache of a core."""
_LARGEST = 1 << 20
"""A word of more bytes than this is cut there; a minus does not see a number behind so many blanks."""
_USUAL = 1 << 12  # so far before the end of a chunk a text can nearly always be cut
NUMBER = np.uint64(0x9E3779B97F4A7C15)
"""What stands for any number where numbers are masked."""


@dataclass(frozen=True, slots=True)
class Hashed:
    """Texts, one after another: `words` (all words,), `starts` (texts + 1,) where each begins in it, and
    whether a word is a `number` in digits (all words,)."""

    words: NDArray[np.uint64]
    starts: NDArray[np.int64]
    number: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Words of each text, (texts,)."""
        return np.diff(self.starts)

    def owners(self) -> NDArray[np.int64]:
        """Which text each word is of, (all words,)."""
        return np.repeat(np.arange(len(self)), self.sizes)

    def whole(self) -> NDArray[np.uint64]:
        """One number for all words of a text in their order, (texts,): a sum in which each place counts
        differently. It is 0 for a text without a word."""
        place = np.arange(1, len(self.words) + 1, dtype=np.uint64)
        place -= np.repeat(self.starts[:-1], self.sizes).view(np.uint64)
        place *= np.uint64(0x9E3779B97F4A7C15)
        place ^= place >> np.uint64(32)
        place |= np.uint64(1)
        total = np.zeros(len(self.words) + 1, np.uint64)
        np.cumsum(self.words * place, out=total[1:])
        return total[self.starts[1:]] - total[self.starts[:-1]]

    def masked(self) -> Hashed:
        """The same texts with every number alike, in digits or spelled out."""
        number = self.number | spelled_out(self.words)
        return Hashed(np.where(number, NUMBER, self.words), self.starts, number)


def hashed(texts: Sequence[str] | pa.Array) -> Hashed:
    """The words of `texts` as numbers (None: no words)."""
    column = _binary(texts)
    if not len(column):
        return Hashed(np.empty(0, np.uint64), np.zeros(1, np.int64), np.empty(0, np.bool_))
    offsets = np.frombuffer(column.buffers()[1], np.int64, len(column) + 1, column.offset * 8)
    raw = np.frombuffer(column.buffers()[2], np.uint8, offsets[-1]) if offsets[-1] else np.empty(0, np.uint8)
    other = _not_ascii(raw, offsets)
    if not len(other):
        return _merged(len(column), [(np.arange(len(column)), _spelled(column, True))])
    plain = np.setdiff1d(np.arange(len(column)), other, assume_unique=True)
    ascii_part = _spelled(column.take(pa.array(plain)), True)
    return _merged(len(column), [(plain, ascii_part), (other, _spelled_others(column, other))])


def _binary(texts: Sequence[str] | pa.Array) -> pa.Array:
    """The texts as one array of bytes with 64-bit offsets and no nulls."""
    if not isinstance(texts, pa.Array | pa.ChunkedArray):
        texts = pa.array([_encoded(text) for text in texts], pa.large_binary())
    column = texts.cast(pa.large_binary()) if texts.type != pa.large_binary() else texts
    if isinstance(
        column, pa.ChunkedArray
    ):  # after the cast: together they may be too much for 32-bit offsets
        column = column.combine_chunks()
    return pc.fill_null(column, b"") if column.null_count else column


def _encoded(text: str | None) -> bytes | None:
    # A lone surrogate is a word, and one differs from another, so none is replaced.
    return None if text is None else text.encode("utf-8", "surrogatepass")


def _spelled_others(column: pa.Array, places: NDArray[np.int64]) -> _Part:
    """The words of the texts at `places`, which are not ASCII."""
    joined: list[bytes] = []
    digits: set[str] = set()
    for at in places.tolist():
        found = words(column[at].as_py().decode("utf-8", "surrogatepass"))
        digits.update(word for word in found if not word.isascii() and word[0].isdecimal())
        joined.append(PARTED.join(word.encode("utf-8", "surrogatepass") for word in found))
    own, sizes, number = _spelled(pa.array(joined, pa.large_binary()), False)
    if digits:  # of another script
        listed = pa.array([digit.encode() for digit in digits], pa.large_binary())
        number |= np.isin(own, _spelled(listed, False)[0])
    return own, sizes, number


def _not_ascii(raw: NDArray[np.uint8], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which texts have a byte above 127."""
    high: NDArray[np.int64] = np.flatnonzero(raw[offsets[0] :] >= 128) + offsets[0]
    if not len(high):
        return high
    return np.unique(np.searchsorted(offsets, high, side="right") - 1)


_Part = tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.bool_]]
"""Words, words of each text, whether they are numbers."""


def _merged(count: int, parts: Sequence[tuple[NDArray[np.int64], _Part]]) -> Hashed:
    """Parts of the texts, each with the places of its texts, as one."""
    sizes = np.zeros(count, np.int64)
    for places, (_, own, _) in parts:
        sizes[places] = own
    starts = np.zeros(count + 1, np.int64)
    np.cumsum(sizes, out=starts[1:])
    if len(parts) == 1:
        return Hashed(parts[0][1][0], starts, parts[0][1][2])
    found = np.empty(starts[-1], np.uint64)
    number = np.empty(starts[-1], np.bool_)
    for places, (own_words, own, own_number) in parts:
        shift = np.repeat(starts[places] - (np.cumsum(own) - own), own)
        target = shift + np.arange(len(own_words))
        found[target] = own_words
        number[target] = own_number
    return Hashed(found, starts, number)


def _spelled(column: pa.Array, raw: bool) -> _Part:
    """The words of texts that are ASCII (`raw`) or have been cut into words already."""
    joined = np.frombuffer(_joined(column), np.uint8)
    ends = np.flatnonzero(joined == END) if len(column) else np.empty(0, np.int64)
    sizes = np.zeros(len(column), np.int64)
    found: list[NDArray[np.uint64]] = []
    numbers: list[NDArray[np.bool_]] = []
    for start, stop in _chunks(joined, ends, raw):
        own, at, digits, lost = words_of(joined[start:stop], raw)
        found.append(own)
        numbers.append(digits)
        first, last = np.searchsorted(ends, [start, stop])
        inside = ends[first:last] - start
        inside -= np.searchsorted(lost, inside)
        # Words before each end that lies in the chunk; the rest belongs to the text that goes on.
        before = np.searchsorted(at, inside)
        sizes[first:last] += np.diff(before, prepend=0)
        if last < len(sizes):
            sizes[last] += len(own) - (before[-1] if len(before) else 0)
    if not found:
        return np.empty(0, np.uint64), sizes, np.empty(0, np.bool_)
    return np.concatenate(found), sizes, np.concatenate(numbers)


def _joined(column: pa.Array) -> bytes | pa.Buffer:
    """All texts, each with the end mark behind it."""
    if not len(column):
        return b""
    whole = pa.LargeListArray.from_arrays(pa.array([0, len(column)], pa.int64()), column)
    text = pc.binary_join(whole, pa.scalar(bytes([END]), pa.large_binary()))[0].as_buffer()
    return b"".join((text, bytes([END])))


def _chunks(joined: NDArray[np.uint8], ends: NDArray[np.int64], raw: bool) -> Iterator[tuple[int, int]]:
    """Pieces of about CHUNK bytes that no word and no sign with its surroundings crosses."""
    start, size = 0, len(joined)
    while start < size:
        stop = min(size, start + CHUNK)
        if stop < size:
            last = np.searchsorted(ends, stop) - 1
            if last >= 0 and ends[last] >= start:
                stop = int(ends[last]) + 1
            else:
                stop = _cut(joined, start, stop, raw)
        yield start, stop
        start = stop


def _cut(joined: NDArray[np.uint8], start: int, stop: int, raw: bool) -> int:
    """The last place from `start` to `stop`, or a place behind that, where a long text can be cut."""
    for low in (max(start, stop - _USUAL), start):
        if place := _last_border(joined, low, stop, raw):
            return place
    while stop - start < _LARGEST and stop < len(joined) - 1:
        low, stop = stop, min(len(joined) - 1, stop + CHUNK)
        if place := _last_border(joined, low, stop, raw):
            return place
    return stop


def _last_border(joined: NDArray[np.uint8], low: int, stop: int, raw: bool) -> int:
    """The last place after `low`, up to `stop`, that a cut harms nothing; 0 where there is none."""
    places = borders(joined[low : stop + 5], raw)  # as far as the comma of 1,200 looks
    places = places[places <= stop - low]
    return low + int(places[-1]) if len(places) else 0


assert sys.byteorder == "little", "word hashes are read from Arrow buffers as little-endian"
