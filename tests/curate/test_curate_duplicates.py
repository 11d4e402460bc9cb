"""Of records that are there twice, or nearly, the first stays."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tutelage.curate.duplicates import Sketches, repeated, repeats
from tutelage.errors import UsageError
from tutelage.questions import words

WORDS = "river stone market garden teacher ladder music engine pocket winter bridge candle letter harbor"


def text(seed: int, size: int = 60) -> str:
    draw = random.Random(f"text {seed}")
    return " ".join(draw.choice(WORDS.split()) + str(draw.randrange(9)) for _ in range(size))


def changed(base: str, *places: int) -> str:
    """The text with other words at some places."""
    own = base.split()
    for place in places:
        own[place] = f"other{place}"
    return " ".join(own)


def jaccard(one: str, other: str) -> float:
    runs = [
        {tuple(found[at : at + 3]) for at in range(len(found) - 2)} for found in (words(one), words(other))
    ]
    return len(runs[0] & runs[1]) / len(runs[0] | runs[1])


def names(count: int) -> list[str]:
    return [f"r{number}" for number in range(count)]


def test_equal_words_are_a_duplicate_of_the_first() -> None:
    texts = ["How many, then?", "Other", "how MANY then", "HOW many... then?"]
    first, second = repeats(names(4), texts)
    assert (first.record_id, first.rule, first.matched_id, first.score) == ("r2", "duplicate", "r0", 1.0)
    assert (second.record_id, second.matched_id) == ("r3", "r0")
    assert first.stage == "duplicates" and first.matched_text == texts[0] and "r0" in first.reason


@pytest.mark.parametrize("near", [None, 0.8])
def test_texts_without_words_are_compared_as_they_stand(near: float | None) -> None:
    texts = ["", "?", " ? ", "", "\ud800"]
    assert [drop.record_id for drop in repeats(names(5), texts, near=near)] == ["r2", "r3"]


def test_a_near_duplicate_names_how_much_is_shared() -> None:
    base = text(1)
    texts = [base, text(2), changed(base, 30)]
    (drop,) = repeats(names(3), texts, near=0.8)
    assert (drop.record_id, drop.rule, drop.matched_id) == ("r2", "near-duplicate", "r0")
    assert drop.score == round(jaccard(base, texts[2]), 4) and f"{drop.score:.0%}" in drop.reason
    assert repeats(names(3), texts) == [] and repeats(names(3), texts, near=0.95) == []


def test_a_record_is_dropped_for_one_that_stays() -> None:
    """A chain: each is like the one before it, the last no longer like the first."""
    base = text(3)
    chain = [changed(base, *range(0, 3 * step, 3)) for step in range(6)]
    found = repeats(names(6), chain, near=0.8)
    dropped = {drop.record_id for drop in found}
    assert found and all(drop.matched_id not in dropped for drop in found)
    for drop in found:
        one, other = (chain[int(name[1:])] for name in (drop.record_id, drop.matched_id))
        assert jaccard(one, other) >= 0.8 and int(drop.matched_id[1:]) < int(drop.record_id[1:])


@pytest.mark.parametrize("near", [0.0, -1.0, 1.5, float("nan")])
def test_a_threshold_that_is_no_share_is_refused(near: float) -> None:
    with pytest.raises(UsageError, match=r"near is .*; it must be above 0 and at most 1"):
        repeats(["a"], ["x"], near=near)


def test_sketches_of_parts_are_those_of_the_whole() -> None:
    texts = [text(seed) for seed in range(7)] + ["", "one", "\ud800 x"]
    whole = Sketches.of(texts)
    parts = Sketches.join([Sketches.of(texts[:3]), Sketches.of(texts[3:4]), Sketches.of(texts[4:])])
    assert np.array_equal(whole.whole, parts.whole) and np.array_equal(whole.minima, parts.minima)
    ids = names(len(texts))
    assert repeated(ids, texts, parts, near=0.8) == repeats(ids, texts, near=0.8)


def test_equal_numbers_are_no_proof() -> None:
    """Sketches that say "equal" of all texts: the words decide."""
    texts = ["a b c", "d e f", "A b, c"]
    found = Sketches.of(texts)
    lying = Sketches(np.zeros_like(found.whole), np.zeros_like(found.minima))
    (drop,) = repeated(names(3), texts, lying, near=0.8)
    assert (drop.record_id, drop.matched_id) == ("r2", "r0")


def test_nearly_all_pairs_above_the_threshold_are_found() -> None:
    bases = [text(seed) for seed in range(300)]
    # Two of 60 words changed: Jaccard 52 / 64 = 0.81, just above.
    texts = [*bases, *(changed(base, 20, 40) for base in bases)]
    found = repeats(names(600), texts, near=0.8)
    assert all(drop.matched_id == f"r{int(drop.record_id[1:]) - 300}" for drop in found)
    assert len(found) >= 297


TEXT = st.lists(st.sampled_from(["a", "b", "c", "3", "?", "A,"]), max_size=7).map(" ".join)


@settings(max_examples=60, deadline=None)
@example(["b b", "b", "b"], 0.5)
@given(st.lists(TEXT, max_size=12), st.sampled_from([None, 0.5, 0.8, 1.0]))
def test_what_stays_and_why_not_the_rest(texts: list[str], near: float | None) -> None:
    ids = names(len(texts))
    drops = repeats(ids, texts, near=near)
    assert drops == repeats(ids, texts, near=near)
    dropped = [drop.record_id for drop in drops]
    assert dropped == [name for name in ids if name in dropped]  # once each, in order
    kept = [
        words(each) or [each.strip()] for each, name in zip(texts, ids, strict=True) if name not in dropped
    ]
    assert len({tuple(key) for key in kept}) == len(kept)
    for drop in drops:
        assert drop.matched_id not in dropped and ids.index(drop.matched_id) < ids.index(drop.record_id)
        assert drop.score is not None and drop.score >= (near or 1.0)


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(8)))
def test_the_stated_order_decides_which_one_stays(order: list[int]) -> None:
    base, alone = text(5), [text(seed) for seed in range(6, 10)]
    family = [base, changed(base, 10), changed(base, 50), base.upper()]
    texts = [*family, *alone]
    drops = repeats([f"r{at}" for at in order], [texts[at] for at in order], near=0.8)
    first = next(at for at in order if at < 4)
    assert all(drop.matched_id == f"r{first}" for drop in drops if drop.rule == "near-duplicate")
    kept = {f"r{at}" for at in range(8)} - {drop.record_id for drop in drops}
    assert f"r{first}" in kept and {"r4", "r5", "r6", "r7"} <= kept
