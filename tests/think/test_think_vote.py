"""Promises of votes."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.errors import UsageError
from tutelage.measure.at_k import majority_at_k
from tutelage.think.vote import vote

ANSWERS = st.lists(st.none() | st.sampled_from("abcd"), max_size=8)


def sums(answers, weights):
    return {
        a: math.fsum(w for b, w in zip(answers, weights, strict=True) if b == a)
        for a in set(answers) - {None}
    }


@given(
    pairs=st.lists(st.tuples(st.none() | st.sampled_from("abcd"), st.floats(0, 1e6)), max_size=8),
    rng=st.randoms(use_true_random=False),
)
@settings(deadline=None)
def test_order_decides_ties_only(pairs, rng):
    rng.shuffle(pairs)
    answers, weights = [a for a, _ in pairs], [w for _, w in pairs]
    totals = sums(answers, weights)
    picked = vote(answers, weights)
    if not totals:
        assert picked is None
        return
    tied = [answer for answer in totals if totals[answer] == max(totals.values())]
    first = min(tied, key=answers.index)
    assert picked == answers.index(first)


@given(answers=ANSWERS)
@settings(deadline=None)
def test_equal_weights_are_a_plain_vote(answers):
    assert vote(answers) == vote(answers, [2.5] * len(answers))


@given(pairs=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 4)), min_size=1, max_size=6))
@settings(deadline=None)
def test_a_whole_weight_is_so_many_votes(pairs):
    many = [answer for answer, weight in pairs for _ in range(weight)]
    picked = vote([answer for answer, _ in pairs], [weight for _, weight in pairs])
    if many:
        # Ties may fall otherwise: the answer that came first may have weighed nothing there.
        tally = {answer: many.count(answer) for answer in many}
        assert tally.get(pairs[picked][0], 0) == max(tally.values())


@given(
    answers=st.lists(st.none() | st.sampled_from("abc"), min_size=1, max_size=6),
    right=st.sets(st.sampled_from("abc")),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_the_mean_over_all_orders_is_the_expectation_of_at_k(answers, right, data):
    k = data.draw(st.integers(1, len(answers)))
    hits = []
    for drawn in itertools.permutations(answers, k):
        picked = vote(drawn)
        hits.append(picked is not None and drawn[picked] in right)
    correct = [answer in right for answer in answers]
    assert math.isclose(np.mean(hits), majority_at_k(answers, correct, k), abs_tol=1e-12)


def test_sums_do_not_depend_on_the_order():
    """Naive sums would: 0.1 + 0.2 + 0.3 is not 0.3 + 0.2 + 0.1."""
    answers, weights = ["a", "a", "a", "b", "b", "b"], [0.1, 0.2, 0.3, 0.3, 0.2, 0.1]
    assert vote(answers, weights) == 0 and vote(answers[::-1], weights[::-1]) == 0


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [1.0, math.nan], [math.inf, 1.0]])
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(UsageError, match=r"vote: "):
        vote(["a", "b"], weights)
