"""Detectors of benchmark items in other texts: several at once, each hit with its evidence.

    exact      all words equal, after normalisation (see `questions`)
    ngram-N    a run of N words shared: 8 is the rule of open-r1 and s1, 13 that of Phi-4
    overlap    no run of 13, but many of 7: shared runs over those of the shorter text (Phi-4 technical
               report, arXiv 2412.08905, App. B, Algorithm 1). The report does not give its two thresholds;
               ours are settings. Between them a hit is `partial`: it is told, and drops nothing
    numbers    with every number masked, most runs of 8 words are shared, and two at least: the same problem
               with other numbers; of a text with the very words of the item it says nothing
    fuzzy      alike as strings (Indel similarity of the words, of the first 20,000 characters) though few
               runs are shared; candidates by MinHash

Promises: one hit per text and detector, the best one, with the item and what both share, the strongest
evidence first (long runs before likeness, short runs, which turns of phrase have too, last); a hit by runs is
confirmed on the words; texts and items too short for a detector are told, never passed over in silence.
Does not: find a translation or a retelling in other words (an embedding and a judge do, see `meaning`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rapidfuzz.distance import Indel

from tutelage.curate import ngrams
from tutelage.curate.hashed import Hashed, hashed
from tutelage.curate.sketches import sketch
from tutelage.curate.spelling import NUMBER_WORDS
from tutelage.curate.watch import BANDS, Watch, rank, width
from tutelage.questions import words

_ALIKE = 0.15  # estimated, before the edit distance is worked out
_LONGEST = 20_000
_SHOWN = 400


@dataclass(frozen=True, slots=True)
class Hit:
    """Text number `row` is too like an item. `score` is 1 for `exact`, the share of the shorter text's runs
    for detectors of runs, the similarity for `fuzzy`. `shared` is the first run of the text that counts and
    that both have, "" where there is none; `note` is what else is to be said, in one line."""

    row: int
    detector: str
    score: float
    benchmark: str
    item_id: str
    item: str
    shared: str = ""
    partial: bool = False
    note: str = ""


def find(texts: Sequence[str] | pa.Array, against: Watch, only: Sequence[str] | None = None) -> list[Hit]:
    """The hits among `texts`, by row, the strongest evidence first. `only` some detectors are
    asked (None: all)."""
    return hits(texts, hashed(texts), against, only)


def hits(
    texts: Sequence[str] | pa.Array, known: Hashed, against: Watch, only: Sequence[str] | None = None
) -> list[Hit]:
    """As `find`, where the words are `known` already."""
    look = _Look(texts, known, against)
    found: list[Hit] = []
    for detector in against.detectors:
        if only is None or detector in only:
            found += _SEARCH.get(detector, _runs)(look, detector)
    return sorted(_without_overlap(found), key=lambda hit: (hit.row, rank(hit.detector)))


def _without_overlap(found: Sequence[Hit]) -> list[Hit]:
    """The second test of Algorithm 1 is for texts that passed the first."""
    first = {hit.row for hit in found if hit.detector == "ngram-13"}
    return [hit for hit in found if hit.detector != "overlap" or hit.row not in first]


@dataclass(frozen=True, slots=True)
class _Look:
    """Texts, their words as numbers, and what to look for."""

    texts: Sequence[str] | pa.Array
    known: Hashed
    against: Watch
    seen: dict[int, list[str]] = field(default_factory=dict)
    items: dict[int, list[str]] = field(default_factory=dict)
    joined: dict[tuple[int, bool], str] = field(default_factory=dict)

    def words(self, row: int) -> list[str]:
        """The words of one text; several detectors ask."""
        if row not in self.seen:
            self.seen[row] = words(self.text(row))
        return self.seen[row]

    def item_words(self, item: int) -> list[str]:
        """The words of one item."""
        if item not in self.items:
            self.items[item] = words(self.against.item(item)[2])
        return self.items[item]

    def common(self, row: int, item: int, width: int, masked: bool, place: int) -> str | None:
        """The run of `width` words of a text at `place`, if the item has it too, else the first that it has;
        None where hashes deceived."""
        text = self.words(row)
        if (item, masked) not in self.joined:
            there = self.item_words(item)
            self.joined[item, masked] = f" {' '.join([_mask(word) for word in there] if masked else there)} "
        there_ = self.joined[item, masked]
        # Words of more than a megabyte have several numbers: there the place is not that of the word.
        for at in (place, *range(len(text) - width + 1)):
            run = text[at : at + width]
            plain = [_mask(word) for word in run] if masked else run
            if len(run) == width and f" {' '.join(plain)} " in there_:
                return " ".join(run)
        return None

    def text(self, row: int) -> str:
        """One text."""
        value = self.texts[row]
        return str((value.as_py() if isinstance(value, pa.Scalar) else value) or "")

    def hit(
        self, row: int, detector: str, score: float, item: int, *, shared: str = "", partial: bool = False
    ) -> Hit:
        """A hit with the item's names."""
        benchmark, own, text = self.against.item(item)
        return Hit(row, detector, round(score, 4), benchmark.name, own, text, shared, partial)


def _exact(look: _Look, detector: str) -> Iterator[Hit]:
    whole = look.against.whole
    for row, key in enumerate(look.known.whole().tolist()):
        item = whole.get(key)  # an item has words, so a text without any is not among them
        if item is not None and look.words(row) == look.item_words(item):
            yield look.hit(row, detector, 1.0, item)


def _runs(look: _Look, detector: str) -> Iterator[Hit]:
    """The best item for each text that shares enough runs with one."""
    index = look.against.runs[detector]
    masked = detector == "numbers"
    known = look.known.masked() if masked else look.known
    shared = index.shared(known)
    if not len(shared.text):
        return
    some, at = np.unique(shared.text, return_inverse=True)
    own = ngrams.different(_taken(known, some), index.width)
    share = shared.count / np.maximum(1, np.minimum(own[at], index.sizes[shared.item]))
    levels = look.against.thresholds
    limit = {"overlap": levels.partial, "numbers": levels.numbers}.get(detector)
    if limit is not None:
        keep = share >= limit
        if masked:  # one run is no problem told again
            keep &= shared.count >= 2
        shared, share = shared.where(keep), share[keep]
    for at_pair in _best(shared, share):
        row, item = int(shared.text[at_pair]), int(shared.item[at_pair])
        run = look.common(row, item, index.width, masked, int(shared.place[at_pair] - known.starts[row]))
        if run is None or (masked and look.words(row) == look.item_words(item)):
            continue
        score = min(1.0, float(share[at_pair]))
        part = detector == "overlap" and score < look.against.thresholds.overlap
        yield look.hit(row, detector, score, item, shared=run, partial=part)


def _taken(texts: Hashed, rows: NDArray[np.int64]) -> Hashed:
    """Some of the texts."""
    sizes = texts.sizes[rows]
    starts = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(sizes, out=starts[1:])
    at = ngrams.ranges(texts.starts[rows], sizes)
    return Hashed(texts.words[at], starts, texts.number[at])


def _best(shared: ngrams.Shared, share: NDArray[np.float64]) -> list[int]:
    """For each text the place of its best pair: the item with the largest share, of equals the first."""
    order = np.lexsort((shared.item, -share, shared.text))
    text = shared.text[order]
    first = order[np.flatnonzero(np.append(True, text[1:] != text[:-1]))] if len(text) else order
    found: list[int] = first.tolist()
    return found


def _mask(word: str) -> str:
    return "#" if word[0].isdecimal() or word in NUMBER_WORDS else word


def _fuzzy(look: _Look, detector: str) -> Iterator[Hit]:
    sketches, limit = look.against.sketches, look.against.thresholds.fuzzy
    if sketches is None or not len(look.known):
        return
    rows = np.flatnonzero(look.known.sizes >= width(detector))
    text, item = sketches.candidates(sketch(_taken(look.known, rows), BANDS), _ALIKE)
    seen = look.against.sizes[item] >= width(detector)
    text, item = text[seen], item[seen]
    best: dict[int, tuple[float, int]] = {}
    joined: dict[int, str] = {}
    items: dict[int, str] = {}
    for row, number in zip(rows[text].tolist(), item.tolist(), strict=True):
        if row not in joined:
            joined[row] = " ".join(look.words(row))[:_LONGEST]
        if number not in items:
            items[number] = " ".join(look.item_words(number))[:_LONGEST]
        score = Indel.normalized_similarity(joined[row], items[number], score_cutoff=limit)
        if score >= limit and score > best.get(row, (0.0, 0))[0]:
            best[row] = (score, number)
    for row, (score, number) in sorted(best.items()):
        yield look.hit(row, detector, score, number)


_SEARCH = {"exact": _exact, "fuzzy": _fuzzy}


def shortened(text: str, most: int = _SHOWN) -> str:
    """The beginning of a text, for evidence that is kept with a drop."""
    return text if len(text) <= most else text[:most] + "…"
