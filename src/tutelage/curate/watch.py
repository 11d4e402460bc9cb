"""What to look out for: the items of benchmarks, made ready for the detectors that will be asked.

Promises: items are read and hashed once, whatever is held against them later; a Watch can be sent to another
process; items that a detector cannot see are listed.
Does not: search (see `detectors`), or read benchmarks (see `benchmarks`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tutelage.curate import ngrams
from tutelage.curate.benchmarks import Benchmark
from tutelage.curate.hashed import hashed
from tutelage.curate.sketches import Bands, Sketched, sketched
from tutelage.errors import UsageError

DETECTORS = ("exact", "ngram-13", "overlap", "numbers", "fuzzy", "ngram-8")
"""Those that are asked unless others are named; `ngram-N` takes any N from 2."""
BOILERPLATE = 10
"""A run of words that so many items share counts for nothing, unless another number is given."""
BANDS = Bands(width=2, bands=21, rows=3)
"""Of the sketches for likeness."""
_PHRASE = 9  # words: as long as that a turn of phrase may be
_NUMBERS = frozenset(map(str, range(2, 1000)))
RUNS = {"overlap": 7, "numbers": 8}
"""Words of a run, where the detector's name does not say it."""
_WIDTHS = {"exact": 1, "overlap": 7, "numbers": 9, "fuzzy": 4}  # numbers: two runs


def width(detector: str) -> int:
    """The fewest words that a detector can say anything about. Raises UsageError where there is no such."""
    name, _, number = detector.partition("-")
    if name == "ngram" and number in _NUMBERS:
        return int(number)
    if detector not in _WIDTHS:
        listed = ", ".join(DETECTORS)
        raise UsageError(f"no detector {detector!r}; there are {listed}, and ngram-N for N from 2 to 999")
    return _WIDTHS[detector]


def by_runs(detector: str) -> bool:
    """Whether a detector means something where a text is much longer than an item, as a trace is."""
    return detector == "overlap" or detector.startswith("ngram-")


@dataclass(frozen=True, slots=True)
class Thresholds:
    """`partial` and `overlap`: shares of runs of 7 from which a text is partly, or wholly, contaminated
    (equal: nothing is partly so).
    `numbers`: share of masked runs of 8. `fuzzy`: Indel similarity (OpenThoughts3 used 0.75)."""

    partial: float = 0.2
    overlap: float = 0.4
    numbers: float = 0.6
    fuzzy: float = 0.75

    def __post_init__(self) -> None:
        for name in ("partial", "overlap", "numbers", "fuzzy"):
            if not 0 < getattr(self, name) <= 1:
                raise UsageError(
                    f"thresholds.{name} is {getattr(self, name)}; it must be above 0 and at most 1"
                )
        if self.partial > self.overlap:
            raise UsageError(
                f"thresholds.partial is {self.partial}, above thresholds.overlap, {self.overlap}; lower it"
            )


@dataclass(frozen=True, slots=True)
class Watch:
    """Items to look out for, made ready for some detectors. It can be sent to another process."""

    benchmarks: tuple[Benchmark, ...]
    detectors: tuple[str, ...]
    thresholds: Thresholds
    whole: Mapping[int, int]
    sizes: NDArray[np.int64]
    runs: Mapping[str, ngrams.Index]
    sketches: Sketched | None
    left_out: Mapping[str, int]
    places: NDArray[np.int64] = field(repr=False)

    def item(self, number: int) -> tuple[Benchmark, str, str]:
        """The benchmark, id and question of an item."""
        own = int(np.searchsorted(self.places, number, side="right")) - 1
        return self.benchmarks[own], *self.benchmarks[own].items[number - int(self.places[own])]

    def short_items(self) -> Iterator[tuple[str, str, int, tuple[str, ...]]]:
        """Items that some detectors cannot see: benchmark, id, words, detectors."""
        for number in np.flatnonzero(self.sizes < max(map(width, self.detectors), default=0)):
            size = int(self.sizes[number])
            if blind := blind_to(size, self.detectors):
                benchmark, own, _ = self.item(int(number))
                yield benchmark.name, own, size, blind


def blind_to(size: int, detectors: Sequence[str]) -> tuple[str, ...]:
    """The detectors that say nothing about a text of `size` words."""
    return tuple(each for each in detectors if size < width(each))


def watch(
    benchmarks: Sequence[Benchmark],
    detectors: Sequence[str] = DETECTORS,
    *,
    thresholds: Thresholds | None = None,
    boilerplate: int | None = BOILERPLATE,
    allow: Sequence[str] = (),
) -> Watch:
    """Make `benchmarks` ready. Runs of words that `boilerplate` or more of their items share, and those of
    the texts `allow`, count for nothing (None: all count).

    Raises UsageError for an unknown detector and for a `boilerplate` below 2."""
    if boilerplate is not None and boilerplate < 2:
        raise UsageError(f"boilerplate is {boilerplate}; it must be at least 2, or none")
    detectors = sorted(dict.fromkeys(detectors), key=rank)
    items = hashed([question for benchmark in benchmarks for _, question in benchmark.items])
    allowed = hashed(list(allow)) if allow else None
    counts = [len(benchmark.items) for benchmark in benchmarks]
    runs, left_out = {}, {}
    for detector in detectors:
        if by_runs(detector) or detector == "numbers":
            masked = detector == "numbers"
            runs[detector], out = ngrams.build(
                items.masked() if masked else items,
                RUNS.get(detector) or width(detector),
                boilerplate=boilerplate,
                allowed=allowed.masked() if masked and allowed is not None else allowed,
            )
            left_out[detector] = len(out)
    whole: dict[int, int] = {}
    if "exact" in detectors:
        for number, key in enumerate(items.whole().tolist()):
            if items.sizes[number]:
                whole.setdefault(key, number)
    return Watch(
        tuple(benchmarks),
        tuple(detectors),
        thresholds or Thresholds(),
        whole,
        items.sizes,
        runs,
        sketched(items, BANDS) if "fuzzy" in detectors and len(items) else None,
        left_out,
        np.cumsum([0, *counts])[:-1],
    )


def rank(detector: str) -> tuple[int, int]:
    """The strongest evidence first: equality, long runs, many runs, likeness, and short runs (which turns of
    phrase have too) last."""
    fewest = width(detector)
    if detector.startswith("ngram-"):
        return (1 if fewest > _PHRASE else 5), -fewest
    return {"exact": 0, "overlap": 2, "numbers": 3, "fuzzy": 4}[detector], 0
