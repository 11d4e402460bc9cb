"""Sketches: equal sets, estimates, and the rates at which pairs are proposed."""

from __future__ import annotations

import random
from itertools import pairwise
from string import ascii_lowercase

import numpy as np
import pytest

from tutelage.curate import sketches as module
from tutelage.curate.hashed import hashed
from tutelage.curate.sketches import Bands, keys, resemblance, sketch, sketched

SMALL = Bands(width=1, bands=4, rows=2)
WIDE = Bands(width=1, bands=64, rows=4)


def planted(pairs: int, jaccard: tuple[int, int], seed: int) -> tuple[list[str], list[str]]:
    """Pairs of texts of different words with a Jaccard similarity of `jaccard` (shared, of how many)."""
    shared, total = jaccard
    rng = random.Random(seed)
    one, other = [], []
    for _ in range(pairs):
        words = ["".join(rng.choices(ascii_lowercase, k=14)) for _ in range(total)]
        alone = (total - shared) // 2
        one.append(" ".join(words[: shared + alone]))
        other.append(" ".join(words[:shared] + words[shared + alone :]))
    return one, other


def test_equal_sets_of_shingles_have_equal_sketches() -> None:
    texts = ["a b c d", "D, c b; a", "a a b c d d", "a b c", "a b c d e"]
    found = sketch(hashed(texts), SMALL)
    assert found.shape == (5, SMALL.minima) == (5, 8) and found.dtype == np.uint32
    assert (found[0] == found[1]).all() and (found[0] == found[2]).all()
    assert (found[0] != found[3]).any() and (found[0] != found[4]).any()
    runs = sketch(hashed(["a b a b a", "a b a b", "b a a b"]), Bands(2, 4, 2))
    assert (runs[0] == runs[1]).all() and (runs[0] != runs[2]).any()


def test_a_text_has_its_sketch_wherever_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["", "one", "?", "one two", "one two three four", "four three", "", "x"]
    bands = Bands(3, 4, 2)
    expected = sketch(hashed(texts), bands)
    for at, text in enumerate(texts):
        assert (sketch(hashed([text]), bands)[0] == expected[at]).all()
    monkeypatch.setattr(module, "_ROWS", 3)
    assert (sketch(hashed(texts), bands) == expected).all()
    assert sketch(hashed([]), bands).shape == (0, 8)
    # Too short for a shingle: by its words.
    assert (expected[3] == sketch(hashed(["two one"]), bands)[0]).all() and (expected[1] != expected[7]).any()


@pytest.mark.parametrize("jaccard", [(0, 60), (20, 60), (40, 60), (48, 60), (57, 60)])
def test_the_estimate_is_near_the_similarity(
    jaccard: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ROWS", 150)
    one, other = planted(400, jaccard, seed=3)
    shared, total = jaccard
    true = shared / total
    every = np.arange(400)
    found = resemblance(sketch(hashed(one), WIDE), sketch(hashed(other), WIDE), (every, every))
    sigma = max((true * (1 - true) / WIDE.minima) ** 0.5, 1e-3)
    assert abs(found.mean() - true) < 4 * sigma / 400**0.5 + 0.001
    assert np.abs(found - true).max() < 5 * sigma + 0.005


@pytest.mark.parametrize("bands", [Bands(1, 21, 3), Bands(1, 16, 4), Bands(1, 3, 8)])
def test_pairs_are_proposed_at_the_rate_of_the_bands(bands: Bands) -> None:
    pairs, jaccard = 1500, 0.8
    one, other = planted(pairs, (40, 50), seed=9)
    text, item = sketched(hashed(other), bands).candidates(sketch(hashed(one), bands), 0.0)
    rate = 1 - (1 - jaccard**bands.rows) ** bands.bands
    sigma = (rate * (1 - rate) / pairs) ** 0.5
    assert abs(int((text == item).sum()) / pairs - rate) < 4 * sigma + 1e-3
    assert int((text != item).sum()) <= 3  # of 2,248,500 pairs that have nothing in common


def test_each_candidate_once_in_order_and_none_below_the_least() -> None:
    one, other = planted(60, (40, 50), seed=5)
    bands = Bands(1, 21, 3)
    items = sketched(hashed([*other, *other]), bands)  # every item twice
    own = sketch(hashed(one), bands)
    text, item = items.candidates(own, 0.0)
    found = list(zip(text.tolist(), item.tolist(), strict=True))
    assert found == sorted(set(found)) and {(at, at) for at in range(60)} <= set(found)
    assert {(at, number + 60) for at, number in found if number < 60} <= set(found)
    alike = resemblance(own, items.sketches, (text, item))
    some = items.candidates(own, 0.8)
    assert 0 < len(some[0]) < len(text) and (alike >= 0.8).sum() == len(some[0])
    assert all(len(each) == 0 for each in items.candidates(own[:0], 0.0))


def test_texts_without_a_word_match_nothing() -> None:
    items = sketched(hashed(["", "?!", "a b", ""]), SMALL)
    text, item = items.candidates(sketch(hashed(["", "a b", "..."]), SMALL), 0.0)
    assert (text.tolist(), item.tolist()) == ([1], [2])
    for nothing in ([], [""]):
        empty = sketched(hashed(nothing), SMALL)
        assert all(len(each) == 0 for each in empty.candidates(sketch(hashed(["", "a"]), SMALL), 0.0))


def test_there_is_a_key_for_each_band_and_it_is_that_of_its_rows_in_their_order() -> None:
    rows = np.array([[1, 2, 3, 4], [1, 2, 4, 3], [2, 1, 3, 4], [1, 2, 3, 4]], np.uint32)
    first, second = keys(rows, Bands(1, 2, 2)).tolist()
    assert keys(rows, Bands(1, 2, 2)).shape == (2, 4)
    assert first[0] == first[1] == first[3] != first[2]
    assert second[0] == second[2] == second[3] != second[1]
    assert keys(rows[:0], Bands(1, 2, 2)).shape == (2, 0)


def test_keys_of_items_are_sorted_with_their_items() -> None:
    items = hashed([f"word{number}" for number in range(50)] + [""])
    found = sketched(items, SMALL)
    for band, own in enumerate(keys(found.sketches, SMALL)):
        assert all(a <= b for a, b in pairwise(found.keys[band].tolist()))
        assert own[found.order[band]].tolist() == found.keys[band].tolist()
        assert sorted(found.order[band].tolist()) == list(range(50))


def test_a_sketch_does_not_move() -> None:
    """Sketches are made apart, on several machines, and compared."""
    assert sketch(hashed(["a few clips"]), Bands(1, 1, 3)).tolist() == [[856342539, 1903701742, 215232446]]
