"""MinHash sketches of texts: which pairs of many are alike enough to be looked at closely.

Promises: the same text has the same sketch everywhere (one seed, one version of the hash function);
candidates are proposed only, with an estimate of how alike they are.
Does not: confirm (the rates are those of the bands: at a Jaccard similarity s of the shingles a pair is
proposed with probability 1 - (1 - s^rows)^bands), or hash (the package rensa does).

Source: Broder 1997, "On the resemblance and containment of documents"; banding as in Leskovec, Rajaraman and
Ullman, "Mining of Massive Datasets", section 3.4."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash

from tutelage.curate.hashed import Hashed
from tutelage.curate.ngrams import grams, ranges

SEED = 1
_ROWS = 10_000


@dataclass(frozen=True, slots=True)
class Bands:
    """How sketches are compared: `bands` groups of `rows` minima of shingles of `width` words."""

    width: int
    bands: int
    rows: int

    @property
    def minima(self) -> int:
        """Numbers in a sketch."""
        return self.bands * self.rows


def sketch(texts: Hashed, bands: Bands) -> NDArray[np.uint32]:
    """The sketches of `texts`, (texts, minima). A text of fewer words than a shingle has is sketched by its
    words."""
    runs, places = grams(texts, bands.width)
    owner = texts.owners()[places]
    many = np.bincount(owner, minlength=len(texts))
    short = np.flatnonzero((many == 0) & (texts.sizes > 0))
    if len(short):
        words = texts.words[ranges(texts.starts[short], texts.sizes[short])]
        runs = np.concatenate([runs, words])
        owner = np.concatenate([owner, np.repeat(short, texts.sizes[short])])
        order = np.argsort(owner, kind="stable")
        runs, owner = runs[order], owner[order]
        many = np.bincount(owner, minlength=len(texts))
    offsets = np.zeros(len(texts) + 1, np.int64)
    np.cumsum(many, out=offsets[1:])
    found = np.empty((len(texts), bands.minima), np.uint32)
    for start in range(0, len(texts), _ROWS):  # rensa hands its rows out as Python lists
        stop = min(len(texts), start + _ROWS)
        own = runs[offsets[start] : offsets[stop]]
        places = (offsets[start : stop + 1] - offsets[start]).astype(np.uint64)
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(own, places, bands.minima, SEED)
        found[start:stop] = matrix.to_rows()
    return found


def keys(sketches: NDArray[np.uint32], bands: Bands) -> NDArray[np.uint64]:
    """One number for each band of each sketch, (bands, texts): equal where all rows of the band are."""
    found = np.zeros((bands.bands, len(sketches)), np.uint64)
    for band in range(bands.bands):
        for row in range(bands.rows):
            found[band] *= np.uint64(0x9FB21C651E98DF25)
            found[band] += sketches[:, band * bands.rows + row]
            found[band] ^= found[band] >> np.uint64(29)
    return found


def resemblance(
    one: NDArray[np.uint32], other: NDArray[np.uint32], pairs: tuple[NDArray[np.int64], NDArray[np.int64]]
) -> NDArray[np.float64]:
    """The estimated Jaccard similarity of pairs of sketches, [pairs]."""
    found = np.empty(len(pairs[0]))
    for start in range(0, len(found), _ROWS):
        part = slice(start, start + _ROWS)
        found[part] = (one[pairs[0][part]] == other[pairs[1][part]]).mean(axis=1)
    return found


@dataclass(frozen=True, slots=True)
class Sketched:
    """Items that others are compared with: their sketches, and for each band the keys, sorted, with the items
    in that order."""

    bands: Bands
    sketches: NDArray[np.uint32]
    keys: NDArray[np.uint64]
    order: NDArray[np.int64]

    def candidates(
        self, sketches: NDArray[np.uint32], least: float
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Texts and items that share a band and are estimated to be at least so much alike, each pair once,
        by text, then item."""
        pairs = []
        for band, own in enumerate(keys(sketches, self.bands)):
            first = np.searchsorted(self.keys[band], own, side="left")
            many = np.searchsorted(self.keys[band], own, side="right") - first
            texts = np.flatnonzero(many)
            items = self.order[band][ranges(first[texts], many[texts])]
            pairs.append((np.repeat(texts, many[texts]) << 32) | items)
        both = np.unique(np.concatenate(pairs))
        found = (both >> 32, both & 0xFFFFFFFF)
        alike = resemblance(sketches, self.sketches, found) >= least
        return found[0][alike], found[1][alike]


def sketched(items: Hashed, bands: Bands) -> Sketched:
    """`items` to compare others with. Those without a word match nothing."""
    sketches = sketch(items, bands)
    some = np.flatnonzero(items.sizes > 0)
    own = keys(sketches[some], bands)
    order = np.argsort(own, axis=1, kind="stable")
    return Sketched(bands, sketches, np.take_along_axis(own, order, axis=1), some[order])
