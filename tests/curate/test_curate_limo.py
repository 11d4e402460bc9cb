"""LIMO's score: what is counted, and what a score says about a set."""

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.curate.limo import KINDS, WEIGHTS, Features, features, scores


def test_words_and_kinds_are_counted() -> None:
    text = "Let me CHECK: perhaps x=3? Therefore, since it might fail, verify <b>again</b>."
    assert features(text) == Features(words=15, verification=2, tentative=2, connectives=2)
    assert features("") == features("\n\x00 … ---") == Features(0, 0, 0, 0)


@pytest.mark.parametrize("text", ["checkmate", "mighty", "re_checked_", "untested", "sincere"])
def test_parts_of_words_do_not_count(text: str) -> None:
    found = features(text)
    assert (found.tentative, found.connectives) == (0, 0)
    assert found.verification == (text == "re_checked_")  # an underscore divides


def test_the_examples_of_the_paper_are_in_the_lists_and_no_word_is_of_two_kinds() -> None:
    words = ["check", "verify", "perhaps", "might", "therefore", "since"]
    assert [KINDS[word] for word in words] == [0, 0, 1, 1, 2, 2]
    assert all(word == word.lower().strip() and features(word).words == 1 for word in KINDS)
    assert sum(WEIGHTS.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("check so maybe " * 700_000, 2_100_000),
        ("a" * 10_000_000, 1),
        ("\ud800\x1b[31m" * 1_000_000, 1_000_000),
        ("_" * 10_000_000, 0),
    ],
    ids=["words", "one word", "surrogates", "underscores"],
)
def test_ten_megabytes_of_anything(text: str, words: int) -> None:
    start = time.process_time()
    assert features(text).words == words
    assert time.process_time() - start < 10


def test_two_traces_share_out_the_weights() -> None:
    long = Features(words=100, verification=1, tentative=10, connectives=0)
    short = Features(words=10, verification=1, tentative=0, connectives=0)
    # The short one is ahead in verification (1 in 10 words against 1 in 100); connectives are a tie.
    assert scores([long, short]) == pytest.approx([0.30 + 0.25 + 0.125, 0.20 + 0.125])


def test_one_endless_trace_does_not_press_the_others_together() -> None:
    usual = [Features(words, 0, 0, 0) for words in (100, 200, 300)]
    found = scores([*usual, Features(10_000_000, 0, 0, 0)])
    assert found[2] - found[1] == pytest.approx(found[1] - found[0]) and found[1] - found[0] >= 0.099


FEATURES = st.builds(Features, st.integers(0, 9), st.integers(0, 3), st.integers(0, 3), st.integers(0, 3))


@settings(max_examples=60)
@given(st.lists(FEATURES, max_size=12), st.randoms(use_true_random=False))
def test_laws_of_a_set(compared: list[Features], random: Any) -> None:
    found = scores(compared)
    assert len(found) == len(compared) and all(-1e-12 <= score <= 1 + 1e-12 for score in found)
    if compared:
        assert sum(found) / len(found) == pytest.approx(0.5)
    order = list(range(len(compared)))
    random.shuffle(order)
    assert scores([compared[place] for place in order]) == [found[place] for place in order]


@settings(max_examples=60)
@given(st.lists(FEATURES, max_size=8), FEATURES)
def test_ahead_on_all_terms_is_ahead(others: list[Features], one: Features) -> None:
    words = 2 * one.words + 2  # and more than twice as many of each kind: a higher share of them
    ahead = Features(
        words, *(2 * words * (n + 1) for n in (one.verification, one.tentative, one.connectives))
    )
    first, second, *_ = scores([ahead, one, *others])
    assert first > second


def test_nothing_and_one() -> None:
    assert scores([]) == [] and scores([Features(7, 1, 1, 1)]) == [0.5]
