"""s1's three measures against the numbers it prints, and on curves whose answer is known."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.errors import UsageError
from tutelage.measure.scaling import control, performance, scaling

ASKED = (1024, 2048, 4096, 8192, 16384)
STEPS = (16, 32, 64, 128, 256)
QUESTIONS = 30
# Thinking tokens, and how many of the 30 questions of AIME24 were right, from the paper's tables 11
# (token-conditional), 12 (step-conditional) and 13 (class-conditional), without and with a forced end. The
# paper prints per cent; its -24 needs the counts behind them (26.7 is 8 of 30).
TOKEN = ((7939, 7158, 8263, 7108, 7500), (8, 9, 10, 10, 12))
TOKEN_FORCED = ((1024, 2048, 4031, 5664, 6330), (1, 9, 10, 10, 12))
STEP = ((7252, 6277, 5396, 5552, 7551), (10, 7, 10, 11, 10))
STEP_FORCED = ((1517, 2963, 4636, 5409, 7551), (7, 7, 10, 11, 10))
CLASS = ((8033, 9651), (9, 11))


@pytest.mark.parametrize(
    ("runs", "bounds", "printed"),
    [
        (TOKEN, [(None, most) for most in ASKED], (40, -24, 40.0)),
        (TOKEN_FORCED, [(None, most) for most in ASKED], (100, 13, 40.0)),
        (STEP, [(None, 100 * steps) for steps in STEPS], (60, 3, 36.7)),
        (STEP_FORCED, [(None, 100 * steps) for steps in STEPS], (100, 6, 36.7)),
        # Short must think less than without a prompt (6,109 tokens), long more.
        (CLASS, [(None, 6109), (6109, None)], (50, 25, 36.7)),
    ],
    ids=["token", "token, forced end", "step", "step, forced end", "class"],
)
def test_the_published_tables_give_the_published_numbers(runs, bounds, printed):
    tokens, right = runs
    accuracy = [count / QUESTIONS for count in right]
    assert round(control(tokens, bounds)) == printed[0]
    assert round(scaling(tokens, accuracy)) == printed[1]
    assert round(performance(accuracy), 1) == printed[2]


def test_slopes_are_per_doubling():
    assert scaling([100, 200, 400, 800], [0.1, 0.2, 0.3, 0.4]) == pytest.approx(10)
    # Runs at equal tokens have no slope between them.
    assert scaling([100, 100, 200], [0.1, 0.3, 0.4]) == pytest.approx((30 + 10) / 2)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(1, 1e5), st.floats(0, 1)), min_size=2, max_size=8),
    st.randoms(use_true_random=False),
    st.floats(0.5, 64),
)
def test_the_order_of_runs_and_the_unit_of_tokens_do_not_matter(runs, shuffle, factor):
    if max(t for t, _ in runs) < 1.01 * min(t for t, _ in runs):
        runs.append((3e5, 0.5))
    # Tokens that differ by less than rounding have slopes without meaning.
    runs = [(2 ** round(math.log2(t), 2), a) for t, a in runs]
    before = scaling(*zip(*runs, strict=True))
    shuffle.shuffle(runs)
    after = scaling([factor * t for t, _ in runs], [a for _, a in runs])
    assert after == pytest.approx(before, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: control([], []), "one bound for each run"),
        (lambda: control([1.0], []), "one bound for each run"),
        (lambda: scaling([10], [0.5]), "at least two runs"),
        (lambda: scaling([10, 10], [0.5, 0.6]), "at least two runs"),
        (lambda: scaling([0, 10], [0.5, 0.6]), "leave it out"),
        (lambda: scaling([5, 10], [50, 60]), "between 0 and 1"),
        (lambda: scaling([5], [0.1, 0.2]), "give pairs"),
        (lambda: performance([]), "give pairs"),
        (lambda: performance([math.nan]), "between 0 and 1"),
    ],
)
def test_what_cannot_be_computed_is_refused(call, message):
    with pytest.raises(UsageError, match=message):
        call()
