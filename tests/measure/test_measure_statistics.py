"""Promises of measure/statistics.py."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.errors import UsageError
from tutelage.measure.statistics import (
    accuracy,
    cluster_bootstrap,
    holm,
    item_means,
    mcnemar,
    paired,
    percentile_of_means,
    wilson,
)

unit_rows = st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=4), min_size=1, max_size=20)


@pytest.mark.parametrize(
    ("successes", "n", "lo", "hi"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe (1998), Table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_matches_newcombes_published_table(successes: int, n: int, lo: float, hi: float) -> None:
    interval = wilson(successes, n)
    assert interval.lo == pytest.approx(lo, abs=5e-5)
    assert interval.hi == pytest.approx(hi, abs=5e-5)


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_proportion_mirrors_and_inverts_the_score_test(case: tuple[int, int]) -> None:
    successes, n = case
    interval, mirror = wilson(successes, n), wilson(n - successes, n)
    p = successes / n
    assert 0 <= interval.lo <= p <= interval.hi <= 1
    assert interval.lo == pytest.approx(1 - mirror.hi, abs=1e-12)
    for bound in (interval.lo, interval.hi):
        if 1e-9 < bound < 1 - 1e-9:
            assert abs(p - bound) / math.sqrt(bound * (1 - bound) / n) == pytest.approx(1.959964, rel=1e-5)


@pytest.mark.parametrize(
    "call",
    [
        lambda: wilson(0, 0),
        lambda: wilson(3, 2),
        lambda: wilson(-1, 2),
        lambda: wilson(1, 2, level=1.0),
        lambda: cluster_bootstrap([]),
        lambda: cluster_bootstrap([[1.0], []]),
        lambda: cluster_bootstrap([0.0, float("nan")]),
        lambda: cluster_bootstrap([0.0, float("inf")], bounds=None),
        lambda: cluster_bootstrap([0.0, 2.0]),
        lambda: cluster_bootstrap(np.zeros((2, 2, 2))),
        lambda: cluster_bootstrap([["yes"], ["no"]]),  # type: ignore[list-item]
        lambda: cluster_bootstrap([0.0, 1.0], resamples=1),
        lambda: paired([0.0, 1.0], [0.0]),
        lambda: paired([], []),
        lambda: mcnemar(-1, 0),
        lambda: holm([]),
        lambda: holm([0.1, float("nan")]),
        lambda: holm([1.5]),
    ],
)
def test_empty_nan_and_impossible_input_is_refused_in_one_line(call: Callable[[], object]) -> None:
    with pytest.raises(UsageError) as caught:
        call()
    assert "\n" not in str(caught.value)


@settings(max_examples=40, deadline=None)
@given(unit_rows, st.integers(0, 2**32))
def test_bootstrap_is_repeatable_and_contains_the_mean_of_item_means(
    rows: list[list[float]], seed: int
) -> None:
    one = cluster_bootstrap(rows, seed=seed, resamples=200)
    assert one == cluster_bootstrap(rows, seed=seed, resamples=200)
    assert one.mean == pytest.approx(np.mean([np.mean(row) for row in rows]))
    assert 0 <= one.lo <= one.mean <= one.hi <= 1
    assert one.lo < one.hi  # equal scores never claim certainty
    assert (one.n, one.samples) == (len(rows), sum(map(len, rows)))


def test_repeating_every_sample_does_not_narrow_the_interval() -> None:
    rng = np.random.default_rng(5)
    single = (rng.random(200) < 0.4).astype(float)
    repeated = np.repeat(single[:, None], 8, axis=1)
    one, many = cluster_bootstrap(single), cluster_bootstrap(repeated)
    assert (many.lo, many.hi) == (one.lo, one.hi)
    assert (one.samples, many.samples) == (200, 1600)
    pooled = cluster_bootstrap(repeated.ravel())  # the mistake: 1600 samples taken as independent
    assert (pooled.hi - pooled.lo) < 0.5 * (many.hi - many.lo)


def test_bootstrap_interval_agrees_with_the_normal_one_on_many_items() -> None:
    values = np.random.default_rng(1).random((2000, 3))
    means = values.mean(axis=1)
    half = 1.96 * means.std(ddof=1) / math.sqrt(2000)
    found = cluster_bootstrap(values, resamples=4000)
    assert found.hi - found.mean == pytest.approx(half, rel=0.08)
    assert found.mean - found.lo == pytest.approx(half, rel=0.08)


def test_bootstrap_covers_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(7)
    hits = 0
    for trial in range(200):
        difficulty = rng.beta(2, 2, 80)
        scores = rng.random((80, 4)) < difficulty[:, None]
        found = cluster_bootstrap(scores.astype(float), seed=trial, resamples=400)
        hits += found.lo <= 0.5 <= found.hi
    assert 180 <= hits <= 200


def test_equal_scores_give_the_width_that_n_items_cannot_exclude() -> None:
    found = cluster_bootstrap([0.0] * 400)
    assert (found.mean, found.lo) == (0.0, 0.0)
    assert found.hi == pytest.approx(1 - 0.025 ** (1 / 400))
    gap = paired([1.0] * 10, [1.0] * 10)
    assert gap.lo < 0 < gap.hi
    assert gap.p == 1.0


def test_tokens_are_bootstrapped_without_bounds() -> None:
    found = cluster_bootstrap([100.0, 300.0, 500.0], bounds=None)
    assert found.mean == 300.0
    assert 100 <= found.lo < found.hi <= 500


def test_working_in_small_blocks_gives_the_same_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(3).random(1000)
    whole = cluster_bootstrap(values, resamples=300)
    monkeypatch.setattr("tutelage.measure.statistics._BLOCK", 7000)
    split = cluster_bootstrap(values, resamples=300)
    assert split.lo == pytest.approx(whole.lo, abs=0.005)
    assert split.hi == pytest.approx(whole.hi, abs=0.005)


def test_accuracy_uses_wilson_for_one_binary_sample_and_the_bootstrap_for_several() -> None:
    single = accuracy([1, 0, 1, 1])
    assert (single.lo, single.hi) == (wilson(3, 4).lo, wilson(3, 4).hi)
    rows = [[1, 0], [1, 1], [0, 0], [1, 0]]
    assert accuracy(rows) == cluster_bootstrap(rows)
    assert accuracy([0.5, 1.0, 0.0]) == cluster_bootstrap([0.5, 1.0, 0.0])


@settings(max_examples=30, deadline=None)
@given(unit_rows, st.randoms(use_true_random=False))
def test_a_paired_difference_changes_sign_when_the_arms_are_swapped(rows: list[list[float]], rng) -> None:  # type: ignore[no-untyped-def]
    other = [[float(rng.random() < 0.5)] for _ in rows]
    ab, ba = paired(rows, other, resamples=400), paired(other, rows, resamples=400)
    assert ab.mean == pytest.approx(-ba.mean)
    assert ab.lo == pytest.approx(-ba.hi, abs=1e-9)
    assert ab.p == pytest.approx(ba.p)
    assert 0 < ab.p <= 1
    assert -1 <= ab.lo <= ab.mean <= ab.hi <= 1


def test_pairing_is_used_not_just_the_two_means() -> None:
    rng = np.random.default_rng(11)
    a = (rng.random(400) < 0.6).astype(float)
    close = a.copy()
    close[np.flatnonzero(a)[:20]] = 0.0  # b loses 20 items that a has, and nothing else changes
    shuffled = rng.permutation(close)
    tight, loose = paired(a, close), paired(a, shuffled)
    assert tight.mean == loose.mean == pytest.approx(0.05)
    assert tight.lo > 0 > loose.lo
    assert tight.p == pytest.approx(2 / 2**20)
    assert tight.test == "mcnemar"


def test_sign_flip_is_used_for_several_samples_and_finds_a_clear_difference() -> None:
    a, b = np.full((60, 4), 0.75), np.zeros((60, 4))
    b[:30] = 0.5
    found = paired(a, b)
    assert found.test == "sign-flip"
    assert found.p == pytest.approx(1 / 2001)
    assert found.lo > 0


def test_sign_flip_p_is_uniform_enough_when_nothing_differs() -> None:
    rng = np.random.default_rng(2)
    small = sum(
        paired(rng.random((30, 2)), rng.random((30, 2)), resamples=200, seed=i).p <= 0.1 for i in range(200)
    )
    assert 8 <= small <= 35  # expected 20


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"), [(0, 0, 1.0), (5, 0, 0.0625), (1, 9, 22 / 1024), (4, 4, 1.0), (0, 2000, 0.0)]
)
def test_mcnemar_matches_hand_worked_values(only_a: int, only_b: int, p: float) -> None:
    assert mcnemar(only_a, only_b) == pytest.approx(p, abs=1e-300)
    assert mcnemar(only_b, only_a) == mcnemar(only_a, only_b)


def test_holm_matches_a_hand_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_only_raises_p_keeps_order_and_is_at_most_bonferroni(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    for p, q in zip(p_values, adjusted, strict=True):
        assert p <= q <= min(1.0, p * len(p_values))
    ranked = [adjusted[i] for i in sorted(range(len(p_values)), key=lambda i: p_values[i])]
    assert ranked == sorted(ranked)


def test_item_means_take_ragged_rows() -> None:
    means, samples = item_means([[1.0, 0.0], [1.0], [0.0, 0.0, 0.0, 1.0]])
    assert means.tolist() == [0.5, 1.0, 0.25]
    assert samples == 7


def test_a_function_of_means_has_the_interval_of_the_same_bootstrap():
    rng = np.random.default_rng(3)
    scores = rng.random((1, 80))
    one = percentile_of_means(scores, lambda means: means[0], resamples=4000)
    other = cluster_bootstrap(scores[0], resamples=4000)
    assert one.value == pytest.approx(other.mean) and one.finite == 1
    assert (one.lo, one.hi) == pytest.approx((other.lo, other.hi), abs=0.01)
    # Rows are resampled together: the ratio of a row to its double is never in doubt.
    ratio = percentile_of_means(np.vstack([scores, 2 * scores]), lambda means: means[1] / means[0])
    assert (ratio.lo, ratio.hi) == pytest.approx((2, 2))
    never = percentile_of_means(scores, lambda means: np.full(means.shape[1], np.inf))
    assert (never.value, never.lo, never.hi, never.finite) == (np.inf, np.inf, np.inf, 0)
    for rows in (np.ones((1, 0)), np.ones(3), np.array([[1.0, np.nan]])):
        with pytest.raises(UsageError, match="statistics"):
            percentile_of_means(rows, lambda means: means[0])
