"""Rejection sampling and the funnel."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.curate import Drop, TraceDrop, funnel, reject
from tutelage.errors import UsageError
from tutelage.records import Status, Trace, Verdict


def trace(problem: str, sample: int, supersedes: str | None = None) -> Trace:
    return Trace(f"{problem}{sample}", problem, sample, "m", "a", supersedes=supersedes)


def verdict(trace_id: str, status: Status) -> Verdict:
    return Verdict(trace_id, trace_id[0], status, f"because {status}", "number")


def test_the_first_correct_sample_of_each_problem() -> None:
    traces = [trace("b", 2), trace("b", 0), trace("a", 1), trace("a", 0), trace("b", 1), trace("c", 0)]
    statuses: dict[str, Status] = {
        "b0": "incorrect",
        "b1": "correct",
        "b2": "correct",
        "a0": "undecided",
        "a1": "correct",
        "c0": "incorrect",
    }
    kept, drops = reject(traces, [verdict(*item) for item in statuses.items()], keep="correct")
    assert [t.id for t in kept] == ["b1", "a1"]
    assert [(d.trace_id, d.rule) for d in drops] == [
        ("b0", "incorrect"),
        ("b2", "surplus"),
        ("a0", "undecided"),
        ("c0", "incorrect"),
    ]
    assert drops[0].reason == "because incorrect" and drops[0].problem_id == "b"


def test_keep_all_takes_the_first_samples_right_or_wrong() -> None:
    traces = [trace("a", 1), trace("a", 0), trace("a", 2)]
    kept, drops = reject(traces, [], keep="all", per_problem=2)
    assert [t.id for t in kept] == ["a0", "a1"] and [d.rule for d in drops] == ["surplus"]


def test_a_superseded_trace_never_stays() -> None:
    kept, (drop,) = reject([trace("a", 0), trace("a", 1, supersedes="a0")], [], keep="all")
    assert [t.id for t in kept] == ["a1"] and (drop.rule, drop.reason) == ("superseded", "superseded by a1")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep": "right"}, "keep is 'right'"),
        ({"keep": "all", "per_problem": 0}, "per_problem is 0"),
        ({"keep": "correct"}, "'a0' has no verdict"),
        ({"keep": "all", "verdicts": [verdict("a0", "correct")] * 2}, "'a0' has two verdicts"),
    ],
)
def test_what_is_refused(settings: dict[str, Any], message: str) -> None:
    verdicts = settings.pop("verdicts", [])
    with pytest.raises(UsageError, match=message):
        reject([trace("a", 0)], verdicts, **settings)


STATUSES = st.sampled_from(["correct", "incorrect", "undecided"])


@given(st.lists(st.tuples(st.sampled_from("abc"), STATUSES), max_size=20), st.integers(1, 3), st.randoms())
def test_every_trace_is_kept_or_dropped_whatever_the_order(
    rows: list[Any], per_problem: int, random: Any
) -> None:
    traces = [Trace(f"t{i}", problem, i, "m", "") for i, (problem, _) in enumerate(rows)]
    verdicts = [Verdict(f"t{i}", problem, status, "r", "m") for i, (problem, status) in enumerate(rows)]
    kept, drops = reject(traces, verdicts, keep="correct", per_problem=per_problem)
    assert sorted([t.id for t in kept] + [d.trace_id for d in drops]) == sorted(t.id for t in traces)
    right = {f"t{i}" for i, (_, status) in enumerate(rows) if status == "correct"}
    for problem in "abc":
        mine = [t.id for t in kept if t.problem_id == problem]
        assert mine == [t.id for t in traces if t.problem_id == problem and t.id in right][:per_problem]
    random.shuffle(traces)
    assert {t.id for t in reject(traces, verdicts, keep="correct", per_problem=per_problem)[0]} == {
        t.id for t in kept
    }


def test_the_funnel_counts_and_is_json() -> None:
    drops = [TraceDrop(str(i), "p", "incorrect" if i else "undecided", "r") for i in range(3)]
    rows = funnel([("clean", 5, [Drop("p", "exact", 1.0, "t", "x")]), ("right", 2, drops), ("last", 2, [])])
    assert rows == [
        {"stage": "clean", "kept": 5, "dropped": 1, "reasons": {"exact": 1}},
        {"stage": "right", "kept": 2, "dropped": 3, "reasons": {"incorrect": 2, "undecided": 1}},
        {"stage": "last", "kept": 2, "dropped": 0, "reasons": {}},
    ]
    assert list(rows[1]["reasons"]) == ["incorrect", "undecided"] and json.loads(json.dumps(rows)) == rows
