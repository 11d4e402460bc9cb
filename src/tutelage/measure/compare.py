"""Two evaluated arms against each other, on the same items.

Promises: pairs scores by problem id, whatever their order; refuses when the two arms did not answer the same
problems; returns the entry of `summary.json` with JSON-ready values. Does not: read files or score traces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tutelage.errors import UsageError
from tutelage.measure.statistics import holm, paired

Scores = Mapping[str, Sequence[float]]


def compare(
    a: str,
    b: str,
    scores_a: Scores,
    scores_b: Scores,
    seed: int,
    resamples: int = 2000,
    bootstrap_seed: int = 0,
) -> dict[str, Any]:
    """Arm `a` minus arm `b`, both trained with `seed`: per problem id the scores in [0, 1] of its samples.

    Returns {a, b, seed, difference, ci95: [lo, hi], n, p, test}; see `statistics.paired` for how.
    Raises UsageError when the sets of problem ids differ or are empty."""
    only_a, only_b = len(scores_a.keys() - scores_b.keys()), len(scores_b.keys() - scores_a.keys())
    if only_a or only_b:
        raise UsageError(
            f"cannot compare {a!r} with {b!r} (seed {seed}): {only_a} problems were answered only by {a!r} "
            f"and {only_b} only by {b!r}; evaluate both on the same problems"
        )
    # Sorted, so that the same scores in another order give the same interval.
    ids = sorted(scores_a)
    found = paired(
        [scores_a[i] for i in ids], [scores_b[i] for i in ids], seed=bootstrap_seed, resamples=resamples
    )
    return {
        "a": a,
        "b": b,
        "seed": seed,
        "difference": found.mean,
        "ci95": [found.lo, found.hi],
        "n": found.n,
        "p": found.p,
        "test": found.test,
    }


def with_holm(comparisons: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The comparisons with `p_holm` beside `p`: corrected for having looked at all of them."""
    if not comparisons:
        return []
    adjusted = holm([float(entry["p"]) for entry in comparisons])
    return [{**entry, "p_holm": p} for entry, p in zip(comparisons, adjusted, strict=True)]
