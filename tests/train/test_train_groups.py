"""Groups of replies as pure functions: what is chosen, what is left out, turns and temperatures."""

from __future__ import annotations

import random
import statistics
from collections import Counter
from itertools import islice, pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tutelage.train.groups import annealed, choose, in_turn, uniform_length, wants_more

few = settings(max_examples=40, deadline=None)
RIGHTS = st.lists(st.booleans(), min_size=1, max_size=40)
HALF = st.integers(1, 8)


def signs(rights: list[bool]) -> list[float]:
    return [1.0 if each else -1.0 for each in rights]


def chosen(rights: list[bool], size: int, *, drop_above: float = 1.0, balance: bool = True, seed: int = 0):  # type: ignore[no-untyped-def]
    rng = random.Random(seed)
    return choose(rights, signs(rights), size, balance=balance, drop_above=drop_above, rng=rng)


@few
@given(RIGHTS, HALF, st.integers(0, 99))
def test_a_balanced_group_holds_exactly_its_size_half_of_it_right(
    rights: list[bool], half: int, seed: int
) -> None:
    assume(any(rights) and not all(rights))
    rows = chosen(rights, 2 * half, seed=seed)
    assert len(rows) == 2 * half and all(0 <= row < len(rights) for row in rows)
    assert sum(rights[row] for row in rows) == half
    rewards = [signs(rights)[row] for row in rows]
    mean, spread = statistics.fmean(rewards), statistics.pstdev(rewards)
    assert [(each - mean) / spread for each in rewards] == rewards  # advantages of exactly +1 and -1


@few
@given(RIGHTS, HALF, st.integers(0, 99))
def test_every_right_reply_is_kept_where_there_is_room(rights: list[bool], half: int, seed: int) -> None:
    good = [row for row, is_right in enumerate(rights) if is_right]
    assume(0 < len(good) <= min(half, len(rights) - len(good)))
    rows = chosen(rights, 2 * half, seed=seed)
    assert set(good) <= set(rows)
    assert len({row for row in rows if not rights[row]}) == len(good)


@few
@given(RIGHTS, HALF, st.integers(0, 99))
def test_repeats_are_even(rights: list[bool], half: int, seed: int) -> None:
    assume(any(rights) and not all(rights))
    counts = Counter(chosen(rights, 2 * half, seed=seed))
    assert max(counts.values()) - min(counts.values()) <= 1
    if 2 * half % len(counts) == 0:
        assert len(set(counts.values())) == 1


@few
@given(st.lists(st.floats(-3, 3), min_size=2, max_size=2), st.integers(1, 6))
def test_a_repeated_groups_loss_is_that_of_the_rows_it_repeats(values: list[float], times: int) -> None:
    """Whatever is averaged over rows: one right and one wrong of them, in a group of 2 x `times`."""
    rows = chosen([True, False], 2 * times)
    assert statistics.fmean(values[row] for row in rows) == pytest.approx(statistics.fmean(values))


@few
@given(RIGHTS, HALF, st.floats(0, 1))
def test_a_share_above_the_threshold_is_left_out(rights: list[bool], half: int, most: float) -> None:
    found = chosen(rights, 2 * half, drop_above=most)
    assert (found == "too easy") == (sum(rights) / len(rights) > most)


def test_what_teaches_nothing_is_left_out_with_its_reason() -> None:
    assert chosen([False] * 8, 8) == "none right"
    assert chosen([True] * 8, 8) == "none wrong"
    assert chosen([True] * 8, 8, balance=False) == "no spread"
    assert chosen([True] * 8, 8, drop_above=0.5) == "too easy"
    assert chosen([], 8) == "no reward"
    same = choose([True, False], [0.3, 0.3], 2, balance=True, drop_above=1, rng=random.Random(0))
    assert same == "no spread"


@few
@given(RIGHTS, st.integers(2, 12))
def test_without_balance_the_first_rows_are_taken(rights: list[bool], size: int) -> None:
    rows = chosen(rights, size, balance=False)
    if isinstance(rows, str):
        assert len(set(rights)) == 1
        return
    assert len(rows) == size
    if len(set(rights[:size])) == 2 and len(rights) >= size:
        assert rows == tuple(range(size))


def test_without_balance_the_missing_kind_takes_up_to_half_of_the_rows() -> None:
    rights = [False] * 8 + [False, True, False, True]
    assert chosen(rights, 4, balance=False) == (0, 1, 9, 11)
    assert chosen(rights, 8, balance=False) == (0, 1, 2, 3, 4, 5, 9, 11)
    assert chosen([True, True, False, False], 2, balance=False) == (0, 2)


@few
@given(RIGHTS, HALF)
def test_the_same_generator_gives_the_same_group(rights: list[bool], half: int) -> None:
    assert chosen(rights, 2 * half, seed=3) == chosen(rights, 2 * half, seed=3)


def test_more_is_drawn_until_there_are_both_kinds_or_enough() -> None:
    assert wants_more([False] * 8, 8, 32, 0.5)
    assert not wants_more([False] * 31 + [True], 32, 64, 0.5)
    assert not wants_more([False] * 32, 32, 32, 0.5)
    assert not wants_more([True] * 8, 8, 32, 0.5)  # too easy already
    assert wants_more([True] * 8, 8, 32, 1.0)
    assert wants_more([], 8, 32, 0.5)  # nothing could be graded so far
    assert not wants_more([], 32, 32, 0.5)


@few
@given(st.integers(1, 300), st.floats(0.1, 2), st.floats(0.1, 2))
def test_the_temperature_falls_over_the_first_half_and_stays(steps: int, start: float, end: float) -> None:
    course = [annealed(step, steps, start, end) for step in range(steps)]
    assert course[0] == pytest.approx(start)
    low, high = sorted((start, end))
    assert all(low - 1e-9 <= each <= high + 1e-9 for each in course)
    assert all(course[step] == end for step in range(-(-steps // 2), steps))
    falls = [after - before for before, after in pairwise(course)]
    assert all(each * (end - start) >= -1e-12 for each in falls)


def test_the_published_course_of_the_temperature() -> None:
    assert [round(annealed(step, 100, 1.0, 0.6), 3) for step in (0, 25, 49, 50, 99)] == [
        1.0, 0.8, 0.608, 0.6, 0.6,
    ]  # fmt: skip


@few
@given(st.integers(1, 30), st.integers(0, 5), st.integers(0, 100), st.integers(1, 60))
def test_a_turn_is_taken_up_at_any_place(count: int, seed: int, start: int, length: int) -> None:
    whole = list(islice(in_turn(count, seed, 0), start + length))
    assert list(islice(in_turn(count, seed, start), length)) == whole[start:]
    for epoch in range(len(whole) // count):
        assert sorted(whole[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    twice = list(islice(in_turn(50, 1, 0), 100))
    assert twice[:50] != twice[50:] != list(islice(in_turn(50, 2, 0), 100))[50:]


COUNTS = st.lists(st.lists(st.integers(1, 500), min_size=2, max_size=6), min_size=1, max_size=3)


@few
@given(st.dictionaries(st.text("abcdef", min_size=1), COUNTS, min_size=1), st.floats(0.01, 1))
def test_the_problems_with_the_lowest_spread_are_kept(
    lengths: dict[str, list[list[int]]], share: float
) -> None:
    def spread(name: str) -> float:
        return statistics.fmean(statistics.pstdev(one) / statistics.fmean(one) for one in lengths[name])

    kept = uniform_length(lengths, share)
    assert len(kept) == max(1, round(share * len(lengths)))
    left = set(lengths) - set(kept)
    assert all(spread(inside) <= spread(outside) for inside in kept for outside in left)
    assert kept == [name for name in lengths if name in set(kept)]


def test_long_problems_are_not_left_out_for_being_long() -> None:
    lengths = {"long": [[900, 1000]], "short": [[1, 10]]}
    assert uniform_length(lengths, 0.5) == ["long"]
