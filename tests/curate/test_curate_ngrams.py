"""Runs of words: against sets of tuples in plain Python."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.curate import ngrams
from tutelage.curate.hashed import Hashed, hashed
from tutelage.curate.ngrams import build, different, grams, ranges

Run = tuple[str, ...]
# Three words only, so that runs repeat within a text and between texts; texts without a word among them.
TEXTS = st.lists(st.lists(st.sampled_from("abc"), max_size=9).map(" ".join), max_size=7)
WIDTHS = st.integers(1, 5)


def runs(text: str, width: int) -> list[Run]:
    found = text.split()
    return [tuple(found[at : at + width]) for at in range(len(found) - width + 1)]


def left_out(items: Sequence[str], width: int, boilerplate: int | None, allow: Sequence[str]) -> set[Run]:
    """The runs that count for nothing."""
    of_items = Counter(run for item in items for run in set(runs(item, width)))
    allowed = {run for text in allow for run in runs(text, width)}
    return {
        run
        for run, count in of_items.items()
        if run in allowed or (boilerplate is not None and count >= boilerplate)
    }


@given(TEXTS, WIDTHS)
def test_each_run_inside_a_text_has_a_number_and_its_place(texts: list[str], width: int) -> None:
    known = hashed(texts)
    numbers, places = grams(known, width)
    starts = known.starts.tolist()
    expected = [
        (start + at, run)
        for text, start in zip(texts, starts, strict=False)
        for at, run in enumerate(runs(text, width))
    ]
    assert places.tolist() == [place for place, _ in expected]
    pairs = set(zip((run for _, run in expected), numbers.tolist(), strict=True))
    assert len(pairs) == len({run for run, _ in pairs}) == len({number for _, number in pairs})


def test_runs_are_the_same_where_the_blocks_of_the_work_end(monkeypatch: pytest.MonkeyPatch) -> None:
    known = hashed([" ".join(str(at % 7) for at in range(size)) for size in (0, 1, 30, 5, 0, 12)])
    expected = grams(known, 4)
    for block in (1, 2, 5, 16):
        monkeypatch.setattr(ngrams, "_BLOCK", block)
        found = grams(known, 4)
        assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


@settings(max_examples=200, deadline=None)
@given(TEXTS, TEXTS, WIDTHS, st.sampled_from([None, 2, 3]), TEXTS)
def test_shared_runs_are_those_of_sets_of_tuples(
    items: list[str], texts: list[str], width: int, boilerplate: int | None, allow: list[str]
) -> None:
    index, out = build(
        hashed(items), width, boilerplate=boilerplate, allowed=hashed(allow) if allow else None
    )
    without = left_out(items, width, boilerplate, allow)
    assert len(out) == len(without) and index.width == width
    assert index.sizes.tolist() == [len(set(runs(item, width))) for item in items]  # those left out too
    known = hashed(texts)
    shared = index.shared(known)
    found = list(zip(shared.text.tolist(), shared.item.tolist(), shared.count.tolist(), strict=True))
    counts = {
        (row, number): len((set(runs(text, width)) & set(runs(item, width))) - without)
        for row, text in enumerate(texts)
        for number, item in enumerate(items)
    }
    assert found == [(*pair, count) for pair, count in counts.items() if count]

    numbers, places = grams(known, width)
    seen = {run for item in items for run in runs(item, width)} - without
    every = [run for text in texts for run in runs(text, width)]
    there = set(index.runs.tolist())
    assert [number in there for number in numbers.tolist()] == [run in seen for run in every]
    # The first of the runs that a pair shares.
    owner = np.searchsorted(known.starts, places, side="right") - 1
    own = [set(runs(item, width)) - without for item in items]
    expected = [
        next(
            place
            for place, run, of in zip(places.tolist(), every, owner.tolist(), strict=True)
            if of == row and run in own[number]
        )
        for row, number, _ in found
    ]
    assert shared.place.tolist() == expected
    some = shared.where(shared.count > 1)
    assert list(zip(some.text.tolist(), some.item.tolist(), some.count.tolist(), strict=True)) == [
        each for each in found if each[2] > 1
    ]
    assert some.place.tolist() == [place for place, each in zip(expected, found, strict=True) if each[2] > 1]
    assert different(known, width).tolist() == [len(set(runs(text, width))) for text in texts]


def test_runs_that_many_items_share_are_left_out_and_counted() -> None:
    items = [f"how many are left in box {name}" for name in "abcd"]
    index, out = build(hashed(items), 3, boilerplate=4)
    assert len(out) == 4 and index.sizes.tolist() == [5] * 4
    shared = index.shared(hashed(["how many are left in box a", "how many are left in town"]))
    assert (shared.text.tolist(), shared.item.tolist(), shared.count.tolist()) == ([0], [0], [1])
    index, out = build(hashed(items), 3, boilerplate=5)  # one item more than there are
    assert len(out) == 0 and index.shared(hashed(["many are left"])).item.tolist() == [0, 1, 2, 3]
    repeated, out = build(hashed(["a b a b a b"]), 2, boilerplate=2)  # often, but in one item
    assert len(out) == 0 and repeated.sizes.tolist() == [2]


def test_nothing_shares_nothing() -> None:
    known = hashed(["a b c"])
    for items in ([], ["", "?"], ["a"]):
        index, out = build(hashed(items), 2, boilerplate=2, allowed=hashed([""]))
        assert len(index.shared(known).text) == 0 and len(out) == 0 and len(index.sizes) == len(items)
    index, _ = build(known, 2)
    assert len(index.shared(hashed([])).text) == 0 and len(different(hashed([]), 2)) == 0
    none = Hashed(np.empty(0, np.uint64), np.zeros(3, np.int64), np.empty(0, np.bool_))
    assert different(none, 2).tolist() == [0, 0]


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 6))))
def test_ranges_follow_one_another(pairs: list[tuple[int, int]]) -> None:
    starts, sizes = (np.array([pair[side] for pair in pairs], np.int64) for side in (0, 1))
    assert ranges(starts, sizes).tolist() == [
        at for start, size in pairs for at in range(start, start + size)
    ]
