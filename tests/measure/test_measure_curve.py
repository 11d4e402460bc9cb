"""Area and target of a line: known answers, the axis, "not reached", and intervals that cover."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.errors import UsageError
from tutelage.measure.curve import Line, area_under, described, tokens_to_reach

FREE = (None, None)


def line(tokens, scores, bounds=None) -> Line:
    """A line from per-point rows; one number stands for all of `n` problems."""
    n = max([np.size(row) for row in [*tokens, *scores]])
    wide = [np.array([np.broadcast_to(row, n) for row in rows], float) for rows in (tokens, scores)]
    labels = tuple(f"p{i}" for i in range(len(tokens)))
    return Line("a line", labels, *wide, tuple(bounds or [FREE] * len(tokens)))


def test_the_area_is_the_mean_height_over_doublings():
    # 0 -> 1 over one doubling, then 1 over two more: (0.5 + 2) / 3.
    found = area_under(line([10, 20, 80], [0, 1, 1]))
    assert found.value == pytest.approx(2.5 / 3) and (found.start, found.end) == (10, 80)
    # The order in which points are given does not matter, nor does a point that adds nothing.
    assert area_under(line([80, 10, 20, 20], [1, 0, 1, 1])).value == pytest.approx(2.5 / 3)


def test_a_point_without_thinking_is_left_out_of_the_area():
    with_zero = area_under(line([0, 10, 20], [0, 0.2, 0.4]))
    assert with_zero.value == area_under(line([10, 20], [0.2, 0.4])).value == pytest.approx(0.3)
    assert area_under(line([0, 10], [0, 1])) is None
    assert area_under(line([10, 10], [0, 1])) is None


@pytest.mark.parametrize(
    ("tokens", "scores", "target", "expected"),
    [
        ([10, 40], [0.0, 1.0], 0.5, 20.0),  # half the way on a log2 axis
        ([10, 20, 40], [0.2, 0.6, 0.4], 0.6, 20.0),
        ([10, 20, 40], [0.5, 0.6, 0.7], 0.4, 10.0),  # reached at the first point already
        ([0, 16], [0.0, 1.0], 0.5, 16.0),  # nothing is interpolated from zero
        ([0, 16], [0.6, 1.0], 0.5, 0.0),
        ([10, 20], [0.1, 0.2], 0.5, None),
        ([20, 10], [1.0, 0.0], 0.5, math.sqrt(200)),
    ],
)
def test_tokens_to_reach_a_target(tokens, scores, target, expected):
    found = tokens_to_reach(line(tokens, scores), target)
    assert found.tokens == (None if expected is None else pytest.approx(expected))
    assert found.share == (0.0 if expected is None else 1.0)


def test_a_target_that_some_resamples_miss_has_an_open_interval():
    rng = np.random.default_rng(1)
    right = (rng.random(40) < 0.52).astype(float)
    found = tokens_to_reach(line([8, 32], [np.zeros(40), right]), float(right.mean()))
    assert found.tokens == pytest.approx(32) and found.hi is None
    assert 0.3 < found.share < 0.7 and found.lo < 32


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """Problems differ in difficulty; each has tokens and scores of its own at three budgets."""
    rng = np.random.default_rng(2)
    truth, hits = 0.5, 0
    for _ in range(120):
        hard = rng.random(60)
        scores = [(hard < share).astype(float) for share in (0.25, 0.5, 0.75)]
        found = area_under(line([8, 16, 32], scores), resamples=300)
        hits += found.lo <= truth <= found.hi
    assert 0.85 < hits / 120 <= 1


POINTS = st.lists(st.tuples(st.integers(0, 500), st.integers(0, 6)), min_size=1, max_size=6)


@settings(deadline=None, max_examples=60)
@given(POINTS, st.integers(1, 6), st.sampled_from((0.25, 0.5, 1.0)))
def test_any_line_has_numbers_in_their_ranges(points, n, target):
    tokens = [[t * (1 + i) for i in range(n)] for t, _ in points]
    scores = [[float(i < right) for i in range(n)] for _, right in points]
    made = line(tokens, scores, [(None, float(t)) for t, _ in points])
    area, reach = area_under(made, resamples=100), tokens_to_reach(made, target, resamples=100)
    used = sorted({np.mean(row) for row in tokens} - {0.0})
    assert (area is None) == (len(used) < 2)
    if area is not None:
        assert 0 <= area.lo <= area.value <= area.hi <= 1
        assert (area.start, area.end) == pytest.approx((used[0], used[-1]))
    best = max(np.mean(row) for row in scores)
    assert (reach.tokens is None) == (best < target - 1e-9)
    if reach.tokens is not None:
        assert reach.lo <= reach.tokens and (reach.hi is None or reach.tokens <= reach.hi)
        assert 0 <= reach.tokens <= max(np.mean(row) for row in tokens) + 1e-9
    told = json.dumps(described(made, (target,)), allow_nan=False)
    assert json.loads(told)["n"] == n


def test_the_three_measures_of_s1_stand_beside_the_area():
    made = line([0, 8, 14, 40], [0.1, 0.2, 0.4, 0.4], [(None, 0), (None, 8), (None, 12), FREE])
    told = described(made, (0.3, 0.9))
    assert told["control"] == pytest.approx(200 / 3)  # 14 is more than the 12 that were asked for
    assert told["performance"] == pytest.approx(40)
    slopes = [20 / math.log2(14 / 8), 20 / math.log2(40 / 8), 0]
    assert told["scaling"] == pytest.approx(sum(slopes) / 3)
    assert [reach["tokens"] is None for reach in told["targets"]] == [False, True]
    assert described(line([5], [1.0]))["scaling"] is None is described(line([5], [1.0]))["control"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Line("x", ("a",), np.ones((2, 3)), np.ones((2, 3)), (FREE, FREE)), "differ in length"),
        (lambda: Line("x", ("a",), np.ones((1, 3)), np.ones((1, 2)), (FREE,)), "differ in length"),
        (lambda: Line("x", ("a",), np.ones((1, 0)), np.ones((1, 0)), (FREE,)), "points, problems"),
        (lambda: line([5], [1.5]), r"lie in \[0, 1\]"),
        (lambda: line([-5], [0.5]), "not negative"),
        (lambda: tokens_to_reach(line([5], [0.5]), 0.0), "no accuracy to reach"),
        (lambda: tokens_to_reach(line([5], [0.5]), 50), "no accuracy to reach"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(UsageError, match=message):
        make()
