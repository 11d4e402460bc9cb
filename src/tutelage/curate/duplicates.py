"""Records that are there twice, or nearly: the first one stays.

Promises: of equal questions, and of those whose word shingles have a Jaccard similarity of at least a
threshold, the first in a stated order stays; near pairs are proposed by MinHash (see `sketches`) and
confirmed on the words, so that nothing is dropped by an estimate; a record is dropped for one that stays,
never for one that is dropped itself; the same records in the same order give the same drops.
Does not: promise to find every pair (at the threshold 0.8 the bands propose 99.9 % of pairs), or compare
pairs inside a crowd: of many texts in one bucket each is compared with the first of them and the one before
it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tutelage.curate.detectors import shortened
from tutelage.curate.drops import Drop
from tutelage.curate.hashed import Hashed, hashed
from tutelage.curate.sketches import Bands, keys, resemblance, sketch
from tutelage.errors import UsageError
from tutelage.questions import words

STAGE = "duplicates"
BANDS = Bands(width=3, bands=16, rows=4)
_MARGIN = 0.2  # how far below the threshold an estimate from 64 minima may lie (more than three sigma)


@dataclass(frozen=True, slots=True)
class Sketches:
    """What is kept of texts to find duplicates among them: a number for all words of each, (texts,), and
    sketches, (texts, minima). It is small (264 bytes a text), so many parts can be made apart and joined."""

    whole: NDArray[np.uint64]
    minima: NDArray[np.uint32]

    @staticmethod
    def of(texts: Sequence[str] | pa.Array, known: Hashed | None = None) -> Sketches:
        """Of some texts; their words may be `known` already."""
        found = hashed(texts) if known is None else known
        return Sketches(found.whole(), sketch(found, BANDS))

    @staticmethod
    def join(parts: Sequence[Sketches]) -> Sketches:
        """Of all texts of several parts."""
        return Sketches(
            np.concatenate([part.whole for part in parts]), np.concatenate([part.minima for part in parts])
        )


def repeats(ids: Sequence[str], texts: Sequence[str], *, near: float | None = None) -> list[Drop]:
    """A drop for each text that repeats an earlier one: by equality of its words, and with `near` (a Jaccard
    similarity of runs of three words) by likeness. Texts without a word are compared as they stand.

    Raises UsageError for a `near` outside (0, 1]."""
    return repeated(ids, texts, Sketches.of(texts) if near is not None else None, near=near)


def repeated(
    ids: Sequence[str], texts: Sequence[str], sketches: Sketches | None, *, near: float | None = None
) -> list[Drop]:
    """As `repeats`, where the sketches are known already."""
    if near is not None and not 0 < near <= 1:
        raise UsageError(f"near is {near}; it must be above 0 and at most 1, or none")
    first: dict[str, int] = {}
    equal: dict[int, int] = {}
    whole = hashed(texts).whole() if sketches is None else sketches.whole
    seen: dict[int, int] = {}
    for row, number in enumerate(whole.tolist()):
        before = seen.setdefault(number, row)
        if before != row:  # the same number: look at the words themselves
            key = _key(texts[row])
            first.setdefault(_key(texts[before]), before)
            kept = first.setdefault(key, row)
            if kept != row:
                equal[row] = kept
    alike = _near(texts, sketches, near, equal) if near is not None and sketches is not None else {}
    # What equals a record that is near another one is as near to that.
    alike |= {row: alike[kept] for row, kept in equal.items() if kept in alike}
    equal = {row: kept for row, kept in equal.items() if row not in alike}
    drops = []
    for row in sorted(equal.keys() | alike.keys()):
        rule, other, score = (
            ("duplicate", equal[row], 1.0) if row in equal else ("near-duplicate", *alike[row])
        )
        what = (
            "has the same words as" if rule == "duplicate" else f"shares {score:.0%} of its word triples with"
        )
        drops.append(
            Drop(
                ids[row],
                ids[row],
                STAGE,
                rule,
                f"{what} {ids[other]}, which comes first",
                round(score, 4),
                ids[other],
                shortened(texts[other]),
            )
        )
    return drops


def _key(text: str) -> str:
    return " ".join(words(text)) or "\0" + text.strip()


def _near(
    texts: Sequence[str], sketches: Sketches, near: float, equal: dict[int, int]
) -> dict[int, tuple[int, float]]:
    """For each near-duplicate the earlier record that stays, and how alike they are."""
    left, right = _pairs(sketches.minima, equal)
    likely = resemblance(sketches.minima, sketches.minima, (left, right)) >= near - _MARGIN
    left, right = left[likely], right[likely]
    shingles: dict[int, frozenset[tuple[str, ...]]] = {}
    found: dict[int, tuple[int, float]] = {}
    order = np.lexsort((left, right))
    for earlier, later in zip(left[order].tolist(), right[order].tolist(), strict=True):
        if later in found:
            continue
        # What was dropped stands for what it was dropped for.
        kept = found[earlier][0] if earlier in found else earlier
        score = _jaccard(shingles, texts, kept, later)
        if score >= near:
            found[later] = (kept, score)
    return found


def _pairs(minima: NDArray[np.uint32], equal: dict[int, int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs (earlier, later) that share a band."""
    rows = np.setdiff1d(np.arange(len(minima)), np.fromiter(equal, np.int64, len(equal)))
    found = []
    for band in keys(minima[rows], BANDS):
        order = np.argsort(band, kind="stable")
        same = band[order][1:] == band[order][:-1]
        begins = np.append(True, ~same) if len(order) else np.empty(0, np.bool_)
        head = np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))
        at = np.flatnonzero(~begins)
        for other in (head[at], at - 1):
            found.append((rows[order[other]] << 32) | rows[order[at]])
    both = np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)
    return both >> 32, both & 0xFFFFFFFF


def _jaccard(
    known: dict[int, frozenset[tuple[str, ...]]], texts: Sequence[str], one: int, other: int
) -> float:
    for row in (one, other):
        if row not in known:
            found = words(texts[row])
            size = BANDS.width if len(found) >= BANDS.width else 1
            known[row] = frozenset(tuple(found[at : at + size]) for at in range(len(found) - size + 1))
    both = known[one] | known[other]
    return len(known[one] & known[other]) / len(both) if both else 0.0
