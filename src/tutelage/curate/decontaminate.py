"""Training problems that are also in the test set, and training problems that are there twice.

Promises: a training question that a detector finds in a test question never stays; of equal training
questions the first stays; every drop keeps its evidence (which item, by which detector, how alike, what both
share).
Does not: know the detectors (see `detectors`), or find near-duplicates (see `duplicates`).

Detectors of runs are made for natural text: questions from a few templates share runs without being the same,
so name `exact` alone for those."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from tutelage.curate.benchmarks import Benchmark, of_problems
from tutelage.curate.detectors import Hit, find, shortened
from tutelage.curate.drops import Drop
from tutelage.curate.duplicates import repeats
from tutelage.curate.watch import Thresholds, watch
from tutelage.records import Problem

STAGE = "decontamination"
USUAL = ("exact", "ngram-13")


def decontaminate(
    train: Sequence[Problem],
    test: Sequence[Problem] | Sequence[Benchmark],
    *,
    detectors: Sequence[str] = USUAL,
    thresholds: Thresholds | None = None,
) -> tuple[list[Problem], list[Drop]]:
    """The training problems that stay, in their order, and the drops. `test` are problems or benchmarks.

    Raises UsageError for an unknown detector."""
    given = [each for each in test if isinstance(each, Benchmark)]
    asked = [each for each in test if isinstance(each, Problem)]
    benchmarks = [*given, *([of_problems("test", asked)] if asked else [])]
    against = watch(benchmarks, detectors, thresholds=thresholds, boilerplate=None)
    found = first_hits(find([problem.question for problem in train], against))
    left = [problem for row, problem in enumerate(train) if row not in found]
    again = repeats([problem.id for problem in left], [problem.question for problem in left])
    drops = {train[row].id: drop_for(train[row].id, train[row].id, hit) for row, hit in found.items()}
    drops |= {drop.record_id: drop for drop in again}
    return (
        [problem for problem in train if problem.id not in drops],
        [drops[problem.id] for problem in train if problem.id in drops],
    )


def first_hits(hits: Sequence[Hit]) -> dict[int, Hit]:
    """The hit of each row that drops it: of several the first detector's; partial ones drop nothing."""
    found: dict[int, Hit] = {}
    for hit in hits:
        if not hit.partial:
            found.setdefault(hit.row, hit)
    return found


def partly(names: Collection[str]) -> list[str]:
    """A note on the records with a partial hit of `overlap`, none where there is none. (`meaning` tells of
    its own.)"""
    if not names:
        return []
    many = "1 record is" if len(names) == 1 else f"{len(names):,} records are"
    return [f"{many} partly like an item (overlap, below its threshold); nothing was dropped for that"]


def drop_for(record_id: str, problem_id: str, hit: Hit, field: str = "question") -> Drop:
    """The drop that a hit is the evidence of."""
    shared = f"; both have: {shortened(hit.shared, 200)}" if hit.shared else ""
    note = f"; {hit.note}" if hit.note else ""
    return Drop(
        record_id,
        problem_id,
        STAGE,
        hit.detector,
        f"its {field} is like {hit.item_id} of {hit.benchmark} ({hit.detector} {hit.score:g}){shared}{note}",
        hit.score,
        hit.item_id,
        shortened(hit.item),
        hit.benchmark,
    )
