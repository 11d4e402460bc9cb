"""Promises of votes."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from talkers import Talker, questions, talking_solver

from tutelage.errors import UsageError
from tutelage.measure.at_k import majority_at_k
from tutelage.think.control import BudgetForcing
from tutelage.think.methods import reply_seed, solve
from tutelage.think.vote import RIGHT, BestOf, Score, ShortestOfCorrect, Vote, vote

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


def replies(*said):
    """A model whose reply number i to problem p0 is said[i]."""
    text = {reply_seed(0, "p0", i): each for i, each in enumerate(said)}
    return talking_solver(Talker(lambda prompt, seed: text[seed]))


def test_most_answers_win_and_the_first_of_them_is_shown():
    solver = replies("a|7", "bb|8", "ccc|8", "dddd|7", "e|8")
    outcome = Vote(5).run(solver, questions(1))[0]
    assert (outcome.answer, outcome.picked) == ("8", 1)
    assert outcome.thinking == (11, 0) and len(outcome.attempts) == 5


def test_votes_over_budget_forced_replies():
    solver = replies("aaaa|7", "bbbb|8", "cccc|8")
    outcome = Vote(3, of=BudgetForcing(max_tokens=2)).run(solver, questions(1))[0]
    assert outcome.thinking == (6, 0)
    assert {attempt.completion.closed_by for attempt in outcome.attempts} == {"budget"}


def test_a_weight_can_turn_the_vote():
    heavy = Score("length", lambda problem, tried: [sum(a.completion.count("thinking")) ** 2 for a in tried])
    solver = replies("a|8", "b|8", "ccccc|7")
    plain, weighted = solve([(solver, Vote(3)), (solver, Vote(3, weight=heavy))], questions(1))
    assert (plain[0].answer, weighted[0].answer) == ("8", "7")
    assert Vote(3, weight=heavy).row() == {"of": "natural", "votes": 3, "score": "length", "oracle": False}


def test_best_of_takes_the_best_reply_that_answers():
    short = Score("short", lambda problem, tried: [-len(a.completion.ids) for a in tried])
    outcome = BestOf(3, by=short).run(replies("aaa|7", "|", "b|8"), questions(1))[0]
    assert outcome.answer == "8" and outcome.attempts[1].answer is None
    none = BestOf(2, by=short).run(replies("a|", "b|"), questions(1))[0]
    assert none.picked is None and none.thinking == (2, 0)


def test_the_oracle_is_labelled_and_finds_the_shortest_right_reply():
    solver = replies("aaa|7", "|8", "b|7", "c|7")
    method = ShortestOfCorrect(4)
    outcome = method.run(solver, questions(1, gold="7"))[0]
    assert outcome.picked == 2 and method.oracle and method.row()["oracle"] is True
    assert not Vote(4).oracle and BestOf(4, by=RIGHT).oracle
    assert method.run(solver, questions(1, gold="5"))[0].picked is None


@pytest.mark.parametrize("bad", [[1.0], [math.nan] * 3])
def test_scores_that_are_none_are_refused(bad):
    method = BestOf(3, by=Score("bad", lambda problem, tried: bad))
    with pytest.raises(UsageError, match="bad"):
        method.run(replies("a|7", "b|7", "c|7"), questions(1))
