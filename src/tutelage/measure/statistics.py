"""Numbers with their uncertainty: intervals, paired differences, multiple comparisons.

Promises: pure functions of their arguments (a `seed` makes every resampling repeatable); an item with many
samples counts once, samples are averaged within an item first; no interval of width zero is claimed from
scores that merely happen to be equal; NaN, infinities, empty input and scores out of bounds raise UsageError.
Does not: judge answers, read files, or estimate pass@k and maj@k (see `at_k`).

Which interval where: `accuracy` uses Wilson for one right-or-wrong sample per item (exact inversion of the
score test, sound at 30 items and near 0 or 1 where the normal approximation is not) and the bootstrap over
items for everything else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tutelage.errors import UsageError

Floats = NDArray[np.float64]
Bounds = tuple[float, float]
UNIT: Bounds = (0.0, 1.0)
# Indices drawn at once by the bootstrap: 32 MiB, whatever the number of items.
_BLOCK = 4_000_000


@dataclass(frozen=True, slots=True)
class Interval:
    """A confidence interval, both ends included."""

    lo: float
    hi: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over `n` items, its interval, and `samples`, the number of scores behind it (n times K)."""

    mean: float
    lo: float
    hi: float
    n: int
    samples: int


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean of per-item differences (a minus b) over `n` shared items, its interval, the two-sided `p` of "no
    difference", and the `test` that gave p: `mcnemar` (exact) or `sign-flip` (seeded randomisation)."""

    mean: float
    lo: float
    hi: float
    n: int
    p: float
    test: str


@dataclass(frozen=True, slots=True)
class Percentiles:
    """A quantity of item means, and the percentiles of its bootstrap. `value`, `lo` and `hi` may be infinite
    where the quantity is; `finite` is the share of resamples in which it was not."""

    value: float
    lo: float
    hi: float
    finite: float


def wilson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Wilson score interval of a binomial proportion.

    (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n), z the (1+level)/2 quantile of the standard normal.
    Source: E. B. Wilson, JASA 22 (1927) 209-212. Raises UsageError unless 0 <= successes <= n and n > 0."""
    _check_level(level)
    if n <= 0:
        raise UsageError(f"Wilson interval: n must be at least 1, not {n}; there is nothing to measure")
    if not 0 <= successes <= n:
        raise UsageError(f"Wilson interval: {successes} successes out of {n} is impossible")
    z = NormalDist().inv_cdf((1 + level) / 2)
    p = successes / n
    centre = p + z * z / (2 * n)
    spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # At 0 and n the formula gives 0 and 1 exactly; rounding must not turn that into 1e-17 beyond.
    lo = 0.0 if successes == 0 else (centre - spread) / scale
    hi = 1.0 if successes == n else (centre + spread) / scale
    return Interval(min(lo, p), max(hi, p))


def item_means(scores: ArrayLike | Sequence[ArrayLike]) -> tuple[Floats, int]:
    """Per-item means (n_items,) and the number of scores, from (n_items,), (n_items, k), or a list of one
    score array per item (lengths may differ).

    Raises UsageError when there is no item, an item has no score, or a score is NaN or infinite."""
    rows = _rows(scores)
    if not rows:
        raise UsageError("statistics: no items were scored; check that the evaluation produced traces")
    means = np.empty(len(rows))
    for index, row in enumerate(rows):
        if row.size == 0:
            raise UsageError(f"statistics: item {index} has no scores; every item needs at least one sample")
        if not np.isfinite(row).all():
            raise UsageError(f"statistics: item {index} has a score that is NaN or infinite")
        means[index] = row.mean()
    return means, sum(row.size for row in rows)


def cluster_bootstrap(
    scores: ArrayLike | Sequence[ArrayLike],
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
    bounds: Bounds | None = UNIT,
) -> Estimate:
    """Mean over items with the percentile interval of a bootstrap that resamples whole items.

    `scores` as in `item_means`; the K samples of an item stay together because they share its difficulty:
    pooling K·n scores as independent makes intervals too narrow. Equal item means would give an interval of
    width zero; with `bounds` it is widened to what n items cannot exclude (see `_equal_scores`). Pass None as
    `bounds` for unbounded quantities such as tokens.
    Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapter 13; clusters: Miller,
    arXiv:2411.00640, section 2.2. Below about 30 items percentile intervals are somewhat too narrow.
    Raises UsageError as `item_means`, and when a score is outside `bounds`."""
    _check_level(level)
    _check_resamples(resamples)
    means, samples = item_means(scores)
    _check_bounds(means, bounds)
    interval = _bootstrap_interval(means, seed, resamples, level, bounds)
    return Estimate(float(means.mean()), interval.lo, interval.hi, means.size, samples)


def accuracy(
    scores: ArrayLike | Sequence[ArrayLike], seed: int = 0, resamples: int = 2000, level: float = 0.95
) -> Estimate:
    """Accuracy with the interval that fits: Wilson when every item has one score that is 0 or 1, else the
    cluster bootstrap. Scores in [0, 1]; shapes and errors as in `cluster_bootstrap`."""
    means, samples = item_means(scores)
    if samples == means.size and _is_binary(means):
        interval = wilson(int(means.sum()), means.size, level)
        return Estimate(float(means.mean()), interval.lo, interval.hi, means.size, samples)
    return cluster_bootstrap(scores, seed, resamples, level)


def paired(
    a: ArrayLike | Sequence[ArrayLike],
    b: ArrayLike | Sequence[ArrayLike],
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
    bounds: Bounds | None = UNIT,
) -> Difference:
    """Mean difference a − b on the same items: row i of `a` and row i of `b` answer the same question.

    Interval: bootstrap over items of d_i = mean(a_i) − mean(b_i), which keeps the pairing (Miller,
    arXiv:2411.00640, section 4). p: exact McNemar when every item has one 0-or-1 score on both sides, else a
    sign-flip randomisation test of the mean (Pitman 1937). Interval and test answer slightly different
    questions and can disagree at the edge; the interval is the one we quote. `a` and `b` may have different
    numbers of samples.
    Raises UsageError as `cluster_bootstrap`, and when a and b have different numbers of items."""
    _check_level(level)
    _check_resamples(resamples)
    means_a, samples_a = item_means(a)
    means_b, samples_b = item_means(b)
    if means_a.size != means_b.size:
        raise UsageError(
            f"paired difference: {means_a.size} items against {means_b.size}; score both on the same items"
        )
    _check_bounds(means_a, bounds)
    _check_bounds(means_b, bounds)
    gaps = means_a - means_b
    width = None if bounds is None else (bounds[0] - bounds[1], bounds[1] - bounds[0])
    interval = _bootstrap_interval(gaps, seed, resamples, level, width)
    single = samples_a == samples_b == gaps.size
    if single and _is_binary(means_a) and _is_binary(means_b):
        p, test = mcnemar(int((gaps > 0).sum()), int((gaps < 0).sum())), "mcnemar"
    else:
        p, test = _sign_flip(gaps, seed, resamples), "sign-flip"
    return Difference(float(gaps.mean()), interval.lo, interval.hi, gaps.size, p, test)


def percentile_of_means(
    rows: Floats,
    quantity: Callable[[Floats], Floats],
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
) -> Percentiles:
    """A quantity that is a function of several means over the same items, with its percentile interval.

    `rows` (rows, items): an item keeps its column whole when items are resampled. `quantity` turns means
    (rows, resamples) into values (resamples,). Source: Efron & Tibshirani (1993), chapter 13. Percentiles are
    order statistics, so that infinite values do no harm. Raises UsageError when there is no item or a value
    is NaN or infinite."""
    _check_level(level)
    _check_resamples(resamples)
    if rows.ndim != 2 or not rows.size:
        raise UsageError("statistics: rows must be (rows, items), with at least one item")
    if not np.isfinite(rows).all():
        raise UsageError("statistics: a value is NaN or infinite")
    items = rows.shape[1]
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // items)
    # How often each item was drawn says all about a resample.
    found = np.concatenate(
        [
            quantity(
                rows
                @ rng.multinomial(items, np.full(items, 1 / items), min(block, resamples - start)).T
                / items
            )
            for start in range(0, resamples, block)
        ]
    )
    ranked = np.sort(found)
    value = float(quantity(rows.mean(axis=1, keepdims=True))[0])
    tail = (1 - level) / 2
    lo = float(ranked[int(tail * (resamples - 1))])
    hi = float(ranked[math.ceil((1 - tail) * (resamples - 1))])
    return Percentiles(value, min(lo, value), max(hi, value), float(np.isfinite(found).mean()))


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided McNemar (sign) test: the items only a, or only b, got right; ties say nothing.

    p = min(1, 2 Σ_{i ≤ min} C(m, i) / 2^m), m = only_a + only_b; 1 when m is 0.
    Source: McNemar, Psychometrika 12 (1947) 153-157, exact binomial. Raises UsageError if negative."""
    if only_a < 0 or only_b < 0:
        raise UsageError(f"McNemar test: counts must not be negative, got {only_a} and {only_b}")
    m = only_a + only_b
    term = total = 1
    for i in range(min(only_a, only_b)):
        term = term * (m - i) // (i + 1)
        total += term
    tail: float = 2 * total / 2**m
    return min(1.0, tail)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given; reject where adjusted <= alpha.

    adjusted_(i) = max_{j ≤ i} min(1, (m − j + 1) p_(j)). Holds the family-wise error under any dependence.
    Source: S. Holm, Scandinavian Journal of Statistics 6 (1979) 65-70. Raises UsageError when empty or when a
    value is not in [0, 1]."""
    if len(p_values) == 0:
        raise UsageError("Holm correction: no p-values given")
    for p in p_values:
        if not 0 <= p <= 1:
            raise UsageError(f"Holm correction: {p} is not a probability")
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def _rows(scores: ArrayLike | Sequence[ArrayLike]) -> list[Floats]:
    try:
        if isinstance(scores, np.ndarray) and scores.ndim not in (1, 2):
            raise UsageError(f"statistics: scores must be (items,) or (items, samples), not {scores.ndim}-D")
        items = list(scores)  # type: ignore[arg-type]
        rows = [np.atleast_1d(np.asarray(item, dtype=np.float64)) for item in items]
    except (TypeError, ValueError) as error:
        raise UsageError(f"statistics: scores must be numbers ({error})") from error
    if any(row.ndim != 1 for row in rows):
        raise UsageError("statistics: scores must be (items,) or (items, samples)")
    return rows


def _is_binary(values: Floats) -> bool:
    return bool(np.isin(values, (0.0, 1.0)).all())


def _bootstrap_interval(
    values: Floats, seed: int, resamples: int, level: float, bounds: Bounds | None
) -> Interval:
    if bounds is not None and np.ptp(values) == 0:
        return _equal_scores(float(values[0]), values.size, level, bounds)
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // values.size)
    means = np.concatenate(
        [
            values[rng.integers(0, values.size, (min(block, resamples - start), values.size))].mean(axis=1)
            for start in range(0, resamples, block)
        ]
    )
    lo, hi = np.quantile(means, ((1 - level) / 2, (1 + level) / 2))
    mean = float(values.mean())
    return Interval(min(float(lo), mean), max(float(hi), mean))


def _equal_scores(value: float, n: int, level: float, bounds: Bounds) -> Interval:
    """All n items scored `value`: a share q of other items may still exist, q = 1 − ((1−level)/2)^(1/n) (the
    Clopper-Pearson bound at 0 of n), and may sit at either bound."""
    share = 1 - ((1 - level) / 2) ** (1 / n)
    return Interval(value - share * (value - bounds[0]), value + share * (bounds[1] - value))


def _sign_flip(gaps: Floats, seed: int, resamples: int) -> float:
    """Two-sided p of mean 0 when each difference is equally likely to have either sign; (1 + hits)/(1 + B),
    so never 0 (Phipson & Smyth 2010)."""
    moved = np.abs(gaps[gaps != 0])
    if moved.size == 0:
        return 1.0
    observed = abs(float(gaps.sum()))
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // moved.size)
    hits = 0
    for start in range(0, resamples, block):
        signs = rng.integers(0, 2, (min(block, resamples - start), moved.size), dtype=np.int8) * 2 - 1
        # A hair of slack: the same sum added in another order must count as a tie.
        hits += int((np.abs(signs @ moved) >= observed - 1e-9 * max(1.0, observed)).sum())
    return (1 + hits) / (1 + resamples)


def _check_bounds(means: Floats, bounds: Bounds | None) -> None:
    if bounds is not None and (means.min() < bounds[0] or means.max() > bounds[1]):
        raise UsageError(
            f"statistics: a score lies outside {list(bounds)}; pass bounds=None for unbounded quantities"
        )


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise UsageError(f"statistics: the level must lie between 0 and 1, not {level}")


def _check_resamples(resamples: int) -> None:
    if resamples < 100:
        raise UsageError(f"statistics: at least 100 resamples are needed for an interval, not {resamples}")
