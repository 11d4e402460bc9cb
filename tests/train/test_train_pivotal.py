"""The search for pivotal tokens, on probabilities that are known."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.errors import UsageError
from tutelage.train.pivotal import (
    Attempt,
    Estimate,
    Ids,
    Memory,
    Prefix,
    Search,
    Stretch,
    midpoint,
    other_token,
    pivotal_pairs,
    subdivide,
)

OTHER = 99
"""What the model writes beside the token of the reply."""


def attempt(ids: Sequence[int], *, right: bool = True, logprob: float = -1.0, **more: Any) -> Attempt:
    fields = {"free": (True,) * len(ids), "logprobs": (logprob,) * len(ids), **more}
    return Attempt("p", "t", (7,), tuple(ids), right=right, **fields)


class Exact:
    """An oracle that knows the truth, and remembers what it was asked. `jump` at place `at` of `ids`; without
    that token the problem succeeds with what is left over."""

    def __init__(self, ids: Ids, at: int, before: float = 0.5, after: float = 0.9) -> None:
        self.ids, self.at, self.before, self.after = ids, at, before, after
        self.asked: list[tuple[list[Prefix], int, int]] = []

    def p(self, prefix: Ids) -> float:
        if len(prefix) <= self.at:
            return self.before
        return self.after if prefix[self.at] == self.ids[self.at] else 2 * self.before - self.after

    def __call__(self, prefixes: Sequence[Prefix], n: int, round_: int) -> list[Estimate]:
        self.asked.append((list(prefixes), n, round_))
        found = []
        for _, ids in prefixes:
            firsts = {}
            for token in (self.ids[len(ids)], OTHER) if len(ids) < len(self.ids) else ():
                firsts[token] = (round(self.p((*ids, token)) * n / 2), n // 2)
            found.append(Estimate(round(self.p(ids) * n), n, firsts))
        return found


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.data())
def test_a_hidden_pivotal_token_is_found(length: int, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, length - 1))
    weights = data.draw(st.lists(st.floats(-9, 0), min_size=length, max_size=length))
    good = data.draw(st.booleans())
    ids = tuple(range(length))
    oracle = Exact(ids, at, after=0.9 if good else 0.1)
    found = pivotal_pairs(
        [attempt(ids, right=good, logprobs=tuple(weights))], oracle, Search(estimate=100, confirm=100)
    )
    (pair,) = [pair for pair in found.pairs if pair.evidence["place"] == at]
    assert pair.prompt_ids == (7, *ids[:at])
    chosen, rejected = (at, OTHER) if good else (OTHER, at)
    assert (pair.chosen_ids, pair.rejected_ids) == ((chosen,), (rejected,))
    assert pair.evidence["p_before"] == 0.5 and pair.evidence["n"] == 100
    assert (pair.evidence["p_chosen"], pair.evidence["p_rejected"]) == (0.9, 0.1)
    assert found.pairs == [pair]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.data())
def test_no_prefix_is_estimated_twice_and_levels_go_together(length: int, data: st.DataObject) -> None:
    attempts = []
    for number in range(3):
        at = data.draw(st.integers(0, length - 1))
        shared = data.draw(st.integers(0, length))  # replies of one problem begin alike
        ids = tuple(k if k < shared else k + 100 * number for k in range(length))
        attempts.append((attempt(ids), at))
    asked: list[tuple[list[Prefix], int, int]] = []

    def oracle(prefixes: Sequence[Prefix], n: int, round_: int) -> list[Estimate]:
        asked.append((list(prefixes), n, round_))
        return [Estimate(60 if any(ids[: at + 1] == one.ids[: at + 1] for one, at in attempts) else 30, 100)
                for _, ids in prefixes]  # fmt: skip

    pivotal_pairs([one for one, _ in attempts], oracle, Search(gap=0.2))
    for n in (32, 64):
        each = Counter(prefix for prefixes, asked_n, _ in asked if asked_n == n for prefix in prefixes)
        assert all(times == 1 for times in each.values())
    rounds = [round_ for _, _, round_ in asked]
    assert rounds == sorted(set(rounds))  # fresh random numbers for every call
    assert len(asked) <= math.ceil(length) + 3


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.floats(0.3, 0.7))
def test_where_nothing_changes_nothing_is_found(length: int, p: float) -> None:
    asked: list[Prefix] = []

    def flat(prefixes: Sequence[Prefix], n: int, round_: int) -> list[Estimate]:
        asked.extend(prefixes)
        return [Estimate(round(p * n), n) for _ in prefixes]

    reply = attempt(tuple(range(length)))
    assert list(subdivide([reply], Memory(flat, 32), 0.75)) == [Stretch(0, 0, length)]
    assert asked == [("p", ())]  # the end has its verdict and is not estimated
    # With a gap that the verdict exceeds, the last token is a candidate; fresh ones refute it.
    found = pivotal_pairs([reply], flat, Search(gap=0.2))
    assert found.pairs == [] and found.left_out["candidates"] == found.left_out["not confirmed"] == 1


@given(st.lists(st.floats(0, 9), min_size=2, max_size=30))
def test_a_stretch_is_split_where_half_of_its_log_probability_lies(weights: list[float]) -> None:
    at = midpoint(weights)
    assert 1 <= at < len(weights)
    half = sum(weights) / 2
    if half > 0:
        off = abs(sum(weights[:at]) - half)
        assert all(off <= abs(sum(weights[:k]) - half) + 1e-9 for k in range(1, len(weights)))


def test_the_split_is_not_at_half_the_length() -> None:
    assert midpoint([9.0, 1.0, 1.0, 1.0, 1.0, 1.0]) == 1
    assert midpoint([0.1] * 8 + [5.0, 5.0]) == 9
    assert midpoint([0.0, 0.0, 0.0, 0.0]) == 2
    with pytest.raises(ValueError):
        midpoint([1.0])


def test_what_the_policy_wrote_weighs_nothing_and_is_never_a_pivot() -> None:
    ids = tuple(range(6))
    free = (True, True, True, False, True, True)
    oracle = Exact(ids, 3)
    reply = attempt(ids, free=free, logprobs=(-1.0, -1.0, -1.0, -50.0, -1.0, -1.0))
    found = pivotal_pairs([reply], oracle, Search())
    assert found.pairs == [] and found.left_out["written by the policy"] == 1
    first_split = oracle.asked[1][0][-1][1]
    assert len(first_split) in (2, 3)  # 2.5 of 5, and not right behind the forced token


@pytest.mark.parametrize(
    ("root", "kept"), [(0.1, False), (0.2, True), (0.5, True), (0.8, True), (0.9, False)]
)
def test_only_problems_in_the_band_are_searched(root: float, kept: bool) -> None:
    ids = (1, 2, 3)
    oracle = Exact(ids, 1, before=root, after=root)
    found = pivotal_pairs([attempt(ids)], oracle, Search(estimate=10, gap=0.1))
    assert found.left_out["replies outside the band"] == (0 if kept else 1)
    assert (len(oracle.asked) > 1) is kept


def test_the_same_place_in_two_replies_gives_one_pair() -> None:
    ids = (1, 2, 3)
    found = pivotal_pairs([attempt(ids), attempt(ids)], Exact(ids, 1), Search(confirm=100))
    assert len(found.pairs) == 1 and found.left_out["the same pair again"] == 1
    assert found.left_out["remembered"] > 0


def test_of_each_problem_the_clearest_places_are_kept() -> None:
    ids = (1, 2, 3, 4)

    def rising(prefixes: Sequence[Prefix], n: int, round_: int) -> list[Estimate]:
        """0.2, 0.25, 0.55, 0.8, 1.0 after so many tokens of the reply; 0 beside it."""
        steps = (0.2, 0.25, 0.55, 0.8, 1.0)
        found = []
        for _, seen in prefixes:
            p = steps[len(seen)] if OTHER not in seen else 0.0
            own = ids[len(seen)] if len(seen) < 4 else 0
            found.append(Estimate(round(p * n), n, {own: (round(p * n), n - 5), OTHER: (0, 5)}))
        return found

    places = [
        [
            pair.evidence["place"]
            for pair in pivotal_pairs([attempt(ids)], rising, search, per_problem=most).pairs
        ]
        for search in [Search(estimate=100, confirm=100)]
        for most in (None, 2, 1)
    ]
    assert places == [[1, 2, 3], [2, 3], [3]]


def test_the_other_token_is_the_one_that_leans_most_the_other_way() -> None:
    drawn = Estimate(50, 100, {1: (30, 40), 2: (18, 40), 3: (0, 1), 4: (2, 19)})
    assert other_token(drawn, 1, rises=True) == 4  # nearly ten expected, two seen; token 3 was drawn once
    assert other_token(drawn, 4, rises=False) == 1
    assert other_token(Estimate(5, 10, {1: (5, 10)}), 1, rises=True) is None
    assert other_token(Estimate(5, 10, {1: (2, 5), 2: (3, 5)}), 1, rises=True) is None


def test_an_other_token_that_fresh_continuations_do_not_bear_out_gives_no_pair() -> None:
    ids = (1, 2, 3)
    exact = Exact(ids, 1)

    def oracle(prefixes: Sequence[Prefix], n: int, round_: int) -> list[Estimate]:
        found = exact(prefixes, n, round_)
        return [
            Estimate(n, n) if i == (1, OTHER) else one for (_, i), one in zip(prefixes, found, strict=True)
        ]

    found = pivotal_pairs([attempt(ids)], oracle, Search())
    assert found.pairs == [] and found.left_out["the other token is on the same side"] == 1


@pytest.mark.parametrize(("n", "expected"), [(64, 0.027), (100, 0.006)])
def test_of_places_without_any_change_few_are_confirmed(n: int, expected: float) -> None:
    """Places at which the search saw a gap by chance, with a true probability of one half throughout."""
    drawn = random.Random(0)
    places = 6000
    attempts = [Attempt(f"p{k}", "t", (7,), (1,), (True,), (-1.0,), right=True) for k in range(places)]

    def oracle(prefixes: Sequence[Prefix], asked: int, round_: int) -> list[Estimate]:
        if asked != n:
            return [Estimate(asked // 2, asked) for _ in prefixes]
        return [Estimate(drawn.getrandbits(n).bit_count(), n) for _ in prefixes]

    found = pivotal_pairs(attempts, oracle, Search(confirm=n))
    assert found.left_out["candidates"] == places
    confirmed = 1 - found.left_out["not confirmed"] / places
    assert confirmed == pytest.approx(expected, abs=4 * math.sqrt(expected / places))


def test_settings_that_cannot_work_are_refused() -> None:
    for settings_, said in [
        ({"gap": 0.0}, "gap is 0"),
        ({"gap": 1.0}, "gap is 1"),
        ({"confirm": 63}, "at least 64 are needed"),
        ({"estimate": 0}, "estimate 0"),
        ({"band": (0.8, 0.2)}, "two rising shares"),
    ]:
        with pytest.raises(UsageError, match=said):
            Search(**settings_)  # type: ignore[arg-type]
