"""Promises of measure/compare.py."""

from __future__ import annotations

import json

import pytest

from tutelage.errors import UsageError
from tutelage.measure.compare import compare, with_holm

A = {f"q{i}": [1.0 if i < 60 else 0.0] for i in range(100)}
B = {f"q{i}": [1.0 if i < 40 else 0.0] for i in range(100)}


def test_scores_are_paired_by_problem_id_whatever_their_order() -> None:
    entry = compare("teacher", "human-terse", A, dict(reversed(B.items())), seed=3)
    assert entry == compare("teacher", "human-terse", A, B, seed=3)
    assert entry["difference"] == pytest.approx(0.2)
    assert entry["ci95"][0] > 0
    assert (entry["n"], entry["seed"], entry["test"]) == (100, 3, "mcnemar")
    assert entry["p"] == pytest.approx(2 / 2**20)
    assert json.loads(json.dumps(entry)) == entry


def test_different_item_sets_are_refused_with_how_many() -> None:
    fewer = {key: value for key, value in B.items() if key not in {"q1", "q2"}} | {"other": [1.0]}
    with pytest.raises(UsageError, match=r"2 problems were answered only by 'a' and 1 only by 'b'"):
        compare("a", "b", A, fewer, seed=0)
    with pytest.raises(UsageError):
        compare("a", "b", {}, {}, seed=0)


def test_holm_is_put_beside_p() -> None:
    entries = with_holm([{"a": "x", "p": 0.04}, {"a": "y", "p": 0.01}])
    assert [entry["p_holm"] for entry in entries] == pytest.approx([0.04, 0.02])
    assert with_holm([]) == []
