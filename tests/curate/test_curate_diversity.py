"""The samplers: the distribution they promise, and independence of the order of rows."""

import time
from collections import Counter
from collections.abc import Callable
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.curate.diversity import (
    Candidates,
    PreRule,
    at_random,
    benchmark_weights,
    everything,
    long_short,
    longest,
    preselected,
    s1,
    s1_code,
    uniform_domains,
)
from tutelage.errors import UsageError

Row = tuple[str, str, int]  # id, domain, length


def candidates(rows: list[Row]) -> Candidates:
    ids, domains, lengths = zip(*rows, strict=True) if rows else ((), (), ())
    return Candidates(ids, domains, np.array(lengths, np.int64))


def one_domain(count: int, domain: str = "d") -> list[Row]:
    """Ids in the order of their ranks: the first is the longest."""
    return [(f"{domain}{i}", domain, 100 - i) for i in range(count)]


# Few domains and lengths, so that there are ties and domains run dry.
ROWS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 4)), max_size=30).map(
    lambda found: [(f"q{i:02}", domain, length) for i, (domain, length) in enumerate(found)]
)
Sampler = Callable[[Candidates, int], list[int]]
WEIGHTS = {"a": 1.0, "b": 3.0, "elsewhere": 9.0}
SAMPLERS: dict[str, Sampler] = {
    "s1": lambda c, target: s1(c, target, 7),
    "s1_code": lambda c, target: s1_code(c, target, 7, WEIGHTS, uniform=0.5),
    "uniform_domains": lambda c, target: uniform_domains(c, target, 7),
    "at_random": lambda c, target: at_random(c, target, 7),
    "longest": longest,
    "everything": lambda c, target: everything(c)[:target],
}


def usable(name: str, rows: list[Row]) -> bool:
    return name != "s1_code" or not rows or any(domain in WEIGHTS for _, domain, _ in rows)


@pytest.mark.parametrize("name", SAMPLERS)
@settings(max_examples=40)
@given(rows=ROWS, target=st.integers(1, 35), random=st.randoms(use_true_random=False))
def test_as_many_as_asked_for_whatever_the_order_of_rows(
    name: str, rows: list[Row], target: int, random: Any
) -> None:
    if not usable(name, rows):
        return
    places = SAMPLERS[name](candidates(rows), target)
    assert len(places) == len(set(places)) == min(target, len(rows))
    shuffled = list(rows)
    random.shuffle(shuffled)
    again = SAMPLERS[name](candidates(shuffled), target)
    assert [shuffled[place][0] for place in again] == [rows[place][0] for place in places]


@pytest.mark.parametrize("name", ["s1", "uniform_domains", "at_random", "longest", "everything"])
@settings(max_examples=30)
@given(rows=ROWS, less=st.integers(1, 30), more=st.integers(0, 30))
def test_a_longer_choice_begins_with_the_shorter_one(
    name: str, rows: list[Row], less: int, more: int
) -> None:
    c = candidates(rows)
    assert SAMPLERS[name](c, less + more)[:less] == SAMPLERS[name](c, less)


@pytest.mark.parametrize("name", ["s1", "uniform_domains", "at_random", "s1_code"])
def test_the_seed_decides(name: str) -> None:
    c = candidates([*one_domain(30, "a"), *one_domain(30, "b")])
    sample: dict[str, Callable[[int], list[int]]] = {
        "s1": lambda seed: s1(c, 20, seed),
        "uniform_domains": lambda seed: uniform_domains(c, 20, seed),
        "at_random": lambda seed: at_random(c, 20, seed),
        "s1_code": lambda seed: s1_code(c, 20, seed, {"a": 1}),
    }
    assert len({tuple(sample[name](seed)) for seed in range(5)}) == 5


def test_the_same_choice_on_every_machine() -> None:
    """Written down once: a change of it would change published sets of records."""
    c = candidates([*one_domain(5, "a"), *one_domain(4, "b")])
    assert [c.ids[place] for place in s1(c, 5, 0)] == ["a0", "a1", "b2", "a3", "b3"]
    assert [c.ids[place] for place in at_random(c, 5, 0)] == ["a3", "b1", "b0", "b3", "a4"]


def chi_square(found: Counter[Any], expected: dict[Any, float]) -> float:
    assert found.keys() <= expected.keys()
    return sum((found[key] - want) ** 2 / want for key, want in expected.items())


def test_ranks_have_weights_that_halve() -> None:
    """All six orders of three candidates against the closed form: 4:2:1, then 2:1 of those left. (The 0.999
    quantile of chi-square with 5 degrees of freedom is 20.5; seeds are fixed, so the test is too.)"""
    draws = 7000
    c = candidates(one_domain(3))
    found = Counter(tuple(s1(c, 3, seed)) for seed in range(draws))
    expected = {}
    for order in permutations(range(3)):
        left, chance = [0, 1, 2], 1.0
        for place in order:
            ranks = [2.0**-rank for rank in range(len(left))]
            chance *= ranks[left.index(place)] / sum(ranks)
            left.remove(place)
        expected[order] = draws * chance
    assert chi_square(found, expected) < 20.5


def test_domains_are_drawn_evenly_however_large() -> None:
    draws = 3000
    c = candidates([*one_domain(1, "a"), *one_domain(40, "b"), *one_domain(5, "c")])
    for sampler in (s1, uniform_domains):
        found = Counter(c.domains[sampler(c, 1, seed)[0]] for seed in range(draws))
        assert chi_square(found, dict.fromkeys("abc", draws / 3)) < 13.8  # 2 degrees of freedom


def test_uniform_domains_does_not_look_at_the_length() -> None:
    draws = 3000
    c = candidates(one_domain(3))
    found = Counter(uniform_domains(c, 1, seed)[0] for seed in range(draws))
    assert chi_square(found, dict.fromkeys(range(3), draws / 3)) < 13.8
    assert (
        chi_square(Counter(at_random(c, 1, s)[0] for s in range(draws)), dict.fromkeys(range(3), 1000)) < 13.8
    )


def test_the_pool_of_s1_takes_less_than_a_second() -> None:
    rng = np.random.default_rng(0)
    count = 59_000
    domains = [f"d{n}" for n in rng.zipf(1.3, count) % 60]
    c = Candidates([f"q{n}" for n in range(count)], domains, rng.integers(100, 9000, count))
    start = time.process_time()
    places = s1(c, 1000, 0)
    assert time.process_time() - start < 1
    assert len({c.domains[place] for place in places}) == len(set(domains))
    assert c.lengths[places].mean() > c.lengths.mean() + 1000


def test_the_published_code_turns_to_weighted_domains() -> None:
    rows = [row for domain in "abcd" for row in one_domain(400, domain)]
    c = candidates(rows)
    places = s1_code(c, 400, 3, {"a": 3, "b": 1, "c": 0})
    assert places[:280] == s1(c, 280, 3) and s1(c, 281, 3)[:280] == places[:280]
    late = Counter(c.domains[place] for place in places[280:])
    assert late.keys() == {"a", "b"} and 75 <= late["a"] <= 105  # 90 expected, 4.7 the standard deviation


def test_without_weighted_domains_left_it_is_uniform_again() -> None:
    c = candidates([*one_domain(2, "a"), *one_domain(6, "b"), *one_domain(6, "c")])
    places = s1_code(c, 12, 0, {"a": 1}, uniform=0)
    assert [c.domains[place] for place in places[:2]] == ["a", "a"]
    assert {c.domains[place] for place in places[2:]} == {"b", "c"} and len(places) == 12


def test_what_is_taken_first_comes_first_and_counts() -> None:
    c = candidates(one_domain(9))
    for chosen in (s1(c, 5, 0, first=[7, 2]), s1_code(c, 5, 0, {"d": 1}, first=[7, 2])):
        assert chosen[:2] == [7, 2] and len(set(chosen)) == 5
    assert s1(c, 1, 0, first=[7, 2]) == [7]


def test_rules_for_what_is_taken_first() -> None:
    c = Candidates(
        ["m1", "m2", "m3", "a1", "a2", "x1"],
        ["geometry"] * 5 + ["biology"],
        np.array([5600, 5601, 9000, 10, 20, 1]),
        sources=["MATH", "MATH", "MATH", "AIME", "AIME", "other"],
        correct=[True, True, False, True, False, True],
    )
    rules = [PreRule(source="AIME"), PreRule(source="MATH", least_length=5601)]
    assert [c.ids[place] for place in preselected(c, rules)] == ["a1", "m2"]
    assert [c.ids[p] for p in preselected(c, [*rules, PreRule()])] == ["a1", "m2", "m1", "x1"]
    assert [c.ids[p] for p in preselected(c, [PreRule(domain="biology")])] == ["x1"]
    assert preselected(candidates(one_domain(3)), []) == []


def test_a_benchmark_weighs_as_it_is_told_not_by_its_size() -> None:
    counts = {"aime": {"11": 20, "05": 10}, "gpqa": {"11": 99, "92": 99}}
    assert benchmark_weights(counts, {"aime": 1, "gpqa": 0.5}) == pytest.approx(
        {"05": 2 / 9, "11": 4 / 9 + 1 / 6, "92": 1 / 6}
    )
    even = benchmark_weights(counts)
    assert even["92"] == pytest.approx(0.25) and sum(even.values()) == pytest.approx(1)


@settings(max_examples=60)
@given(rows=ROWS, long=st.integers(1, 2), short=st.integers(1, 3), target=st.integers(1, 30))
def test_long_and_short_in_whole_shares(rows: list[Row], long: int, short: int, target: int) -> None:
    c = candidates(rows)
    above = {place for place, row in enumerate(rows) if row[2] > 1}
    shares = min(len(above) // long, (len(rows) - len(above)) // short)
    if rows and (target < long + short or not shares):
        with pytest.raises(UsageError, match=f"mix {long}:{short}"):
            long_short(c, target, 0, long, short, border=1)
        return
    places = long_short(c, target, 0, long, short, border=1)
    assert len(set(places)) == len(places) == min(shares, target // (long + short)) * (long + short)
    for place in range(0, len(places), long + short):
        assert sum(p in above for p in places[place : place + long + short]) == long
    back = candidates(rows[::-1])
    assert [back.ids[p] for p in long_short(back, target, 0, long, short, border=1)] == [
        c.ids[p] for p in places
    ]


def test_long_and_short_are_divided_by_the_median() -> None:
    c = candidates(one_domain(10))  # lengths 91 to 100
    places = long_short(c, 5, 1)
    assert sum(c.lengths[place] > 95.5 for place in places) == 1 and len(places) == 5
    assert len({tuple(long_short(c, 5, seed)) for seed in range(5)}) == 5


PAIR = one_domain(2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: s1(candidates(PAIR), 0, 0), "target is 0"),
        (lambda: longest(candidates(PAIR), -1), "target is -1"),
        (lambda: s1(candidates(PAIR), 1, 0, first=[2]), "first: give places below 2"),
        (lambda: s1(candidates(PAIR), 1, 0, first=[1, 1]), "first: give places below 2, none of them twice"),
        (lambda: s1_code(candidates(PAIR), 1, 0, {"d": 1}, uniform=1.5), "uniform is 1.5"),
        (lambda: s1_code(candidates(PAIR), 1, 0, {"d": -1}), "weights: 'd' has -1"),
        (lambda: s1_code(candidates(PAIR), 1, 0, {"d": float("nan")}), "weights: 'd' has nan"),
        (lambda: s1_code(candidates(PAIR), 1, 0, {"d": 0, "e": 1}), "weights: no candidate is of a domain"),
        (lambda: candidates([PAIR[0], PAIR[0]]), "ids: 'd0' is there twice"),
        (lambda: Candidates(["a"], [], np.array([1])), "domains: 0 values for 1 candidates"),
        (lambda: Candidates(["a"], ["d"], np.array([1.5])), "lengths: give one whole number"),
        (lambda: Candidates(["a"], ["d"], np.array([1]), correct=[True, False]), "correct: 2 values for 1"),
        (lambda: preselected(candidates(PAIR), [PreRule()]), "correct: a rule"),
        (
            lambda: preselected(Candidates(["a"], ["d"], np.array([1]), correct=[True]), [PreRule("AIME")]),
            "sources: a rule",
        ),
        (lambda: benchmark_weights({}), "shares: give each benchmark"),
        (lambda: benchmark_weights({"a": {}}), "benchmark 'a': its domains need counts"),
        (lambda: benchmark_weights({"a": {"d": 1}}, {"b": 1}), "shares: 'a' is not in both"),
        (lambda: benchmark_weights({"a": {"d": 1}}, {"a": 0}), "shares: give each benchmark"),
    ],
)
def test_what_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
