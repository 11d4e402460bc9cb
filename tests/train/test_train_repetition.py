"""Repetition of a reply in n-grams of ids: bounds, the published values, and the loops that it is for."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.errors import UsageError
from tutelage.train.repetition import repetition

few = settings(max_examples=40, deadline=None)
IDS = st.lists(st.integers(0, 3), max_size=60)


@few
@given(IDS)
def test_it_lies_between_minus_one_and_zero(ids: list[int]) -> None:
    assert -1.0 <= repetition(ids) <= 0.0


@few
@given(st.integers(0, 9), st.integers(25, 400))
def test_a_loop_of_one_token_is_clamped(token: int, count: int) -> None:
    # Unclamped: (count - 4) / (count / 5), which is more than 4.
    assert repetition([token] * count) == -1.0


@few
@given(st.integers(10, 80))
def test_a_loop_of_five_tokens_comes_near_to_one(rounds: int) -> None:
    # Each 5-gram of the loop occurs in one place of five: (n - 4) / 5 times, rounded up.
    ids = [1, 2, 3, 4, 5] * rounds
    assert repetition(ids) == pytest.approx(-rounds / (len(ids) / 5) if rounds == 1 else -1.0, abs=1e-9)


def test_a_reply_without_repetition_pays_five_over_its_length() -> None:
    """The published formula: the most frequent 5-gram occurs once."""
    assert repetition(range(5)) == -1.0
    assert repetition(range(100)) == pytest.approx(-0.05)
    assert repetition(range(25_600)) == pytest.approx(-5 / 25_600)


def test_the_share_of_frequent_n_grams_counts() -> None:
    # 40 different pairs once, then "7 7" nine times over: one distinct frequent pair of 50.
    ids = [*range(100, 141), *[7] * 10]
    pairs = len(ids) - 1
    assert repetition(ids, width=2, often=5) == -max(1 / pairs, 9 / (len(ids) / 2))
    many = [each for start in range(0, 40, 2) for each in [start, start + 1] * 7]
    frequent = sum(
        [tuple(many[k : k + 2]) for k in range(len(many) - 1)].count(pair) > 5
        for pair in {tuple(many[k : k + 2]) for k in range(len(many) - 1)}
    )
    assert repetition(many, width=2, often=5) == pytest.approx(
        -max(frequent / (len(many) - 1), 7 / (len(many) / 2))
    )


@few
@given(st.lists(st.integers(0, 3), max_size=4))
def test_what_is_shorter_than_an_n_gram_repeats_nothing(ids: list[int]) -> None:
    assert repetition(ids) == 0.0


@few
@given(IDS)
def test_the_names_of_the_ids_do_not_matter(ids: list[int]) -> None:
    assert repetition(ids) == repetition([each + 1000 for each in ids])


@pytest.mark.parametrize("counts", [{"width": 0}, {"often": 0}])
def test_counts_below_one_are_refused(counts: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        repetition([1, 2], **counts)
