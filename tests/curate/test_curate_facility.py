"""Facility location: the guarantee against brute force, and the same choice however it is computed."""

import math
from itertools import combinations
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from tutelage.curate import facility
from tutelage.curate.facility import SCALE, coverage, facility_location
from tutelage.errors import UsageError

Vectors = NDArray[np.float32]
# Small whole numbers: many equal directions, opposite ones, and zeros.
VECTORS = st.tuples(st.integers(1, 9), st.integers(1, 3)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.integers(-3, 3).map(float))
)


def cosines(vectors: Vectors) -> NDArray[np.float64]:
    exact = vectors.astype(np.float64)
    length = np.linalg.norm(exact, axis=1, keepdims=True)
    exact /= np.where(length > 0, length, 1)
    return np.maximum(exact @ exact.T, 0)


def covered(alike: NDArray[np.float64], chosen: Any) -> float:
    return float(alike[:, list(chosen)].max(axis=1).mean())


def drawn(count: int, dimensions: int = 6, seed: int = 0) -> Vectors:
    return np.random.default_rng(seed).standard_normal((count, dimensions)).astype(np.float32)


@settings(max_examples=150)
@given(vectors=VECTORS, target=st.integers(1, 4))
def test_the_greedy_choice_reaches_its_share_of_the_best(vectors: Vectors, target: int) -> None:
    alike = cosines(vectors)
    chosen = facility_location(vectors, target, 0, sample=None)
    assert len(chosen) == len(set(chosen)) == min(target, len(vectors))
    best = max(covered(alike, some) for some in combinations(range(len(vectors)), len(chosen)))
    assert covered(alike, chosen) >= (1 - 1 / math.e) * best - 2 / SCALE


@settings(max_examples=150)
@given(vectors=VECTORS, target=st.integers(1, 9))
def test_lazy_evaluation_changes_nothing(vectors: Vectors, target: int) -> None:
    """Against the plain method in whole numbers, ties and all."""
    exact = vectors.astype(np.float64)
    length = np.linalg.norm(exact, axis=1, keepdims=True)
    whole = np.rint(exact / np.where(length > 0, length, 1) * SCALE).astype(np.int64)
    alike = np.maximum(whole @ whole.T, 0)
    best = np.zeros(len(whole), np.int64)
    expected: list[int] = []
    while len(expected) < min(target, len(whole)):
        gains = np.maximum(alike - best, 0).sum(axis=1)
        gains[expected] = -1
        expected.append(int(gains.argmax()))
        best = np.maximum(best, alike[expected[-1]])
    for batch in (1, 64):
        with mock.patch.object(facility, "_BATCH", batch):
            assert facility_location(vectors, target, 0, sample=None) == expected
    assert coverage(vectors, expected) == best.sum() / SCALE**2 / len(whole)


def test_the_stochastic_choice_is_good_on_small_cases() -> None:
    for seed in range(40):
        vectors = drawn(10, 3, seed)
        alike = cosines(vectors)
        best = max(covered(alike, some) for some in combinations(range(10), 3))
        assert covered(alike, facility_location(vectors, 3, seed)) >= 0.6 * best


def test_the_stochastic_choice_is_close_to_the_exact_one() -> None:
    vectors = drawn(600)
    exact = coverage(vectors, facility_location(vectors, 20, 0, sample=None))
    some = coverage(vectors, facility_location(vectors, 20, 0))
    by_chance = coverage(vectors, list(range(20)))
    assert by_chance + 0.03 < some <= exact + 0.01 and some > 0.95 * exact


def test_each_of_some_clusters_gets_one() -> None:
    centres = 20 * np.eye(5, 8, dtype=np.float32)
    vectors = np.repeat(centres, 40, axis=0) + drawn(200, 8)
    for sample in (None, 0.01):
        chosen = facility_location(vectors, 5, 0, sample=sample)
        assert {place // 40 for place in chosen} == set(range(5))


@pytest.mark.parametrize("sample", [None, 0.1])
def test_blocks_change_nothing(sample: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of whole numbers are exact: their order, and so blocks, threads and machines, do not matter."""
    vectors = drawn(200, 40)
    whole = facility_location(vectors, 15, 1, sample=sample), coverage(vectors, [5, 6, 7])
    monkeypatch.setattr(facility, "_BLOCK", 700)
    monkeypatch.setattr(facility, "_BATCH", 3)
    assert (facility_location(vectors, 15, 1, sample=sample), coverage(vectors, [5, 6, 7])) == whole


def test_products_are_exact_at_their_largest() -> None:
    one = np.ones((1, 5000), np.float32)
    assert coverage(one, [0]) == (round(SCALE / math.sqrt(5000)) ** 2 * 5000) / SCALE**2


@pytest.mark.parametrize("sample", [None, 0.1])
def test_the_length_of_a_vector_does_not_matter(sample: float | None) -> None:
    vectors = drawn(50)
    sizes = np.float32(10.0) ** np.random.default_rng(1).integers(-25, 25, (50, 1)).astype(np.float32)
    chosen = facility_location(vectors, 10, 0, sample=sample)
    assert facility_location(vectors * sizes, 10, 0, sample=sample) == chosen


def test_the_seed_decides_and_repeats() -> None:
    vectors = drawn(200)
    found = [tuple(facility_location(vectors, 10, seed)) for seed in (0, 1, 2, 0)]
    assert len(set(found)) == 3 and found[0] == found[3]


@pytest.mark.parametrize("sample", [None, 0.1])
def test_coverage_counted_on_a_sample(sample: float | None) -> None:
    vectors = drawn(800)
    whole = coverage(vectors, facility_location(vectors, 20, 0, sample=sample, cover=None))
    chosen = facility_location(vectors, 20, 0, sample=sample, cover=200)
    assert chosen == facility_location(vectors, 20, 0, sample=sample, cover=200)
    assert 0.93 * whole < coverage(vectors, chosen) and max(chosen) > 200


@pytest.mark.parametrize("sample", [None, 0.1])
def test_what_covers_nothing_is_chosen_last(sample: float | None) -> None:
    vectors = np.zeros((6, 2), np.float32)
    vectors[4] = [1, 0]
    assert facility_location(vectors[4:], 2, 0, sample=sample) == [0, 1]
    assert sorted(facility_location(vectors, 9, 0, sample=sample)) == list(range(6))
    assert facility_location(np.zeros((0, 2), np.float32), 3, 0, sample=sample) == []
    assert coverage(vectors, []) == 0.0 and coverage(vectors[4:5], [0]) == 1.0


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"target": 0}, "target is 0"),
        ({"sample": 0.0}, "sample is 0.0"),
        ({"sample": 1.0}, "sample is 1.0"),
        ({"cover": 0}, "cover is 0"),
        ({"vectors": np.zeros(3, np.float32)}, "vectors: give a matrix"),
        ({"vectors": np.array([["a"]])}, "vectors: give a matrix"),
        ({"vectors": np.array([[1.0], [np.nan], [np.inf]])}, "vectors: row 1 is not finite"),
    ],
)
def test_what_is_refused(told: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        facility_location(**({"vectors": drawn(3), "target": 1, "seed": 0} | told))
    assert "\n" not in str(caught.value)
