"""Promises of measure/at_k.py: compared with brute force over every subset and every order of ties."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.errors import UsageError
from tutelage.measure.at_k import _resampled, majority_at_k, pass_at_k


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_equals_the_share_of_subsets_with_a_right_attempt(case: tuple[int, int, int]) -> None:
    n, c, k = case
    subsets = list(itertools.combinations([1] * c + [0] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_stays_finite_for_large_n() -> None:
    assert pass_at_k(10_000, 10, 1000) == pytest.approx(1 - 0.9**10, abs=2e-3)
    assert pass_at_k(5, 3, 3) == 1.0


def _vote(attempts: tuple[tuple[str | None, bool], ...]) -> bool:
    """A vote as deployed: in order of arrival, the first answer to hold the most votes wins."""
    votes = Counter(answer for answer, _ in attempts if answer is not None)
    if not votes:
        return False
    top = max(votes.values())
    return next(ok for answer, ok in attempts if answer is not None and votes[answer] == top)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(["7", "8", "9", None]), min_size=1, max_size=6).flatmap(
        lambda answers: st.tuples(st.just(answers), st.integers(1, len(answers)))
    ),
    st.sets(st.sampled_from(["7", "8"])),
)
def test_majority_equals_the_average_over_every_ordered_draw(
    case: tuple[list[str | None], int], right: set[str]
) -> None:
    answers, k = case
    correct = [answer in right for answer in answers]
    draws = list(itertools.permutations(zip(answers, correct, strict=True), k))
    expected = sum(map(_vote, draws)) / len(draws)
    assert majority_at_k(answers, correct, k) == pytest.approx(expected)


def test_majority_of_one_is_plain_accuracy_and_of_all_is_the_vote() -> None:
    answers = ["4", "4", "4", "5", "5", None, "6", "7"]
    correct = [a == "5" for a in answers]
    assert majority_at_k(answers, correct, 1) == pytest.approx(2 / 8)
    assert majority_at_k(answers, correct, 8) == 0.0
    assert majority_at_k(answers, [a == "4" for a in answers], 8) == 1.0


def test_no_answer_never_wins() -> None:
    assert majority_at_k([None] * 5, [False] * 5, 3) == 0.0
    assert majority_at_k([None] * 5 + ["1"], [False] * 5 + [True], 6) == 1.0


def test_a_tie_of_two_counts_half() -> None:
    assert majority_at_k(["1", "2"], [True, False], 2) == pytest.approx(0.5)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.sampled_from(["7", "8", "9", None]), min_size=6, max_size=12), st.integers(2, 6))
def test_resampling_agrees_with_the_exact_value_and_is_seeded(answers: list[str | None], k: int) -> None:
    counts = Counter(answer for answer in answers if answer is not None)
    right = {answer: answer == "7" for answer in counts}
    if not counts:
        return
    exact = majority_at_k(answers, [answer == "7" for answer in answers], k)
    sampled = _resampled(counts, right, len(answers), k, seed=1)
    assert sampled == pytest.approx(exact, abs=0.04)  # five standard errors of 4,000 draws
    assert sampled == _resampled(counts, right, len(answers), k, seed=1)


def test_large_k_is_resampled_and_close_to_the_certain_winner() -> None:
    answers: list[str | None] = ["1"] * 700 + ["2"] * 300
    assert majority_at_k(answers, [a == "1" for a in answers], 101) > 0.99


@pytest.mark.parametrize(
    "call",
    [
        lambda: pass_at_k(0, 0, 1),
        lambda: pass_at_k(4, 5, 1),
        lambda: pass_at_k(4, 1, 5),
        lambda: pass_at_k(4, 1, 0),
        lambda: majority_at_k([], [], 1),
        lambda: majority_at_k(["1"], [True], 2),
        lambda: majority_at_k(["1", "2"], [True], 1),
        lambda: majority_at_k(["1", "1"], [True, False], 1),
    ],
)
def test_impossible_questions_are_refused(call: Callable[[], float]) -> None:
    with pytest.raises(UsageError):
        call()
