"""Which texts share runs of words (n-grams) with the items of an index, and how many.

Promises: an index answers for many texts at once; every count is of different runs; the same texts and items
give the same answer in any order of calls. Runs that are boilerplate can be left out, and are counted.
Does not: look at the words themselves; hashes can collide, so who drops by this confirms it on the words.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tutelage.curate.hashed import Hashed

_STEP = np.uint64(0x9FB21C651E98DF25)
_BLOCK = 1 << 16


def grams(texts: Hashed, width: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """A number for each run of `width` words inside a text, and the place of its first word in
    `texts.words`."""
    count = len(texts.words) - width + 1
    if count <= 0:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    found = np.empty(count, np.uint64)
    for start in range(0, count, _BLOCK):
        stop = min(count, start + _BLOCK)
        # Horner's scheme: every word moves on by one step for each word behind it.
        block = texts.words[start:stop].copy()
        for behind in range(1, width):
            block *= _STEP
            block += texts.words[start + behind : stop + behind]
        block ^= block >> np.uint64(31)
        block *= np.uint64(0x9E3779B97F4A7C15)
        block ^= block >> np.uint64(30)
        found[start:stop] = block
    inside = np.ones(count, np.bool_)
    for behind in range(1, width):  # runs that begin so far before the end of a text leave it
        last = texts.starts[1:] - behind
        last = last[(last >= texts.starts[:-1]) & (last < count)]
        inside[last] = False
    places = np.flatnonzero(inside)
    return found[places], places


@dataclass(frozen=True, slots=True)
class Index:
    """The runs of `width` words of some items. `runs` are sorted, each once; those of number i are in the
    items `items[starts[i] : starts[i + 1]]`. `sizes` are the different runs of each item, `perhaps` a table
    that says no quickly."""

    width: int
    runs: NDArray[np.uint64]
    starts: NDArray[np.int64]
    items: NDArray[np.int32]
    sizes: NDArray[np.int64]
    perhaps: NDArray[np.bool_]

    def _numbers(self, runs: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which of `runs` are in the index (places), and their numbers there."""
        shift = np.uint64(65 - len(self.perhaps).bit_length())
        at = np.flatnonzero(np.take(self.perhaps, (runs >> shift).view(np.int64)))
        number = np.searchsorted(self.runs, runs[at])
        number[number == len(self.runs)] = 0
        there = self.runs[number] == runs[at] if len(self.runs) else np.zeros(len(at), np.bool_)
        return at[there], number[there]

    def shared(self, texts: Hashed) -> Shared:
        """What `texts` share with the items."""
        runs, places = grams(texts, self.width)
        at, number = self._numbers(runs)
        text = np.searchsorted(texts.starts, places[at], side="right") - 1
        # Each different run of a text once, at its first place.
        order = np.lexsort((at, number, text))
        at, text, number = at[order], text[order], number[order]
        new = np.ones(len(order), np.bool_)
        new[1:] = (text[1:] != text[:-1]) | (number[1:] != number[:-1])
        text, number, first = text[new], number[new], places[at[new]]
        many = self.starts[number + 1] - self.starts[number]
        pair = (np.repeat(text, many) << 32) | self.items[ranges(self.starts[number], many)]
        first = np.repeat(first, many)
        order = np.lexsort((first, pair))
        pair, first = pair[order], first[order]
        begins = np.flatnonzero(np.append(True, pair[1:] != pair[:-1])) if len(pair) else order
        counts = np.diff(np.append(begins, len(pair)))
        return Shared(pair[begins] >> 32, pair[begins] & 0xFFFFFFFF, counts, first[begins])


@dataclass(frozen=True, slots=True)
class Shared:
    """Pairs of a text and an item that have `count` different runs in common, by text, then item. The first
    of those runs begins at `place` in the texts' words."""

    text: NDArray[np.int64]
    item: NDArray[np.int64]
    count: NDArray[np.int64]
    place: NDArray[np.int64]

    def where(self, kept: NDArray[np.bool_] | NDArray[np.int64]) -> Shared:
        """Some of the pairs."""
        return Shared(self.text[kept], self.item[kept], self.count[kept], self.place[kept])


def different(texts: Hashed, width: int) -> NDArray[np.int64]:
    """How many different runs of `width` words each text has."""
    runs, places = grams(texts, width)
    return _different(runs, texts.owners()[places], len(texts))


def build(
    items: Hashed, width: int, *, boilerplate: int | None = None, allowed: Hashed | None = None
) -> tuple[Index, NDArray[np.uint64]]:
    """The index of `items`, and the runs left out of it: those that `boilerplate` or more items share, and
    those of the texts `allowed`."""
    runs, places = grams(items, width)
    item = np.searchsorted(items.starts, places, side="right") - 1
    sizes = _different(runs, item, len(items))
    order = np.lexsort((item, runs))
    runs, item = runs[order], item[order]
    new = np.ones(len(runs), np.bool_)
    new[1:] = (runs[1:] != runs[:-1]) | (item[1:] != item[:-1])
    runs, item = runs[new], item[new]
    firsts = np.flatnonzero(np.append(True, runs[1:] != runs[:-1])) if len(runs) else np.empty(0, np.int64)
    many = np.diff(np.append(firsts, len(runs)))
    distinct = runs[firsts]
    left_out = np.zeros(len(distinct), np.bool_)
    if boilerplate is not None:
        left_out |= many >= boilerplate
    if allowed is not None:
        left_out |= np.isin(distinct, grams(allowed, width)[0])
    kept = ~left_out
    starts = np.zeros(int(kept.sum()) + 1, np.int64)
    np.cumsum(many[kept], out=starts[1:])
    own = item[ranges(firsts[kept], many[kept])].astype(np.int32)
    perhaps = np.zeros(1 << max(16, min(24, (32 * len(starts)).bit_length())), np.bool_)
    shift = np.uint64(65 - len(perhaps).bit_length())
    perhaps[(distinct[kept] >> shift).view(np.int64)] = True
    return Index(width, distinct[kept], starts, own, sizes, perhaps), distinct[left_out]


def _different(runs: NDArray[np.uint64], text: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """How many different `runs` each of `count` texts has. Runs that a text has twice are few, so that only
    those are looked at closely."""
    many = np.bincount(text, minlength=count)
    keys = runs ^ (text.astype(np.uint64) * _STEP)
    ordered = np.sort(keys)
    twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if len(twice):
        at = np.flatnonzero(np.isin(keys, twice))
        order = at[np.lexsort((runs[at], text[at]))]
        again = (text[order][1:] == text[order][:-1]) & (runs[order][1:] == runs[order][:-1])
        many -= np.bincount(text[order][1:][again], minlength=count)
    return many


def ranges(starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """The places start, start + 1, ... of each range, one after another."""
    if not len(sizes):
        return np.empty(0, np.int64)
    shift = np.repeat(starts - (np.cumsum(sizes) - sizes), sizes)
    return shift + np.arange(len(shift))
