"""Rejection sampling and the funnel."""

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.curate.drops import Drop, funnel
from tutelage.curate.rejection import Prefer, reject
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
    assert [(d.record_id, d.rule) for d in drops] == [
        ("b0", "incorrect"),
        ("b2", "surplus"),
        ("a0", "undecided"),
        ("c0", "incorrect"),
    ]
    assert drops[0] == Drop("b0", "b", "traces", "incorrect", "because incorrect")
    assert drops[1].reason == "the problem has 1 already" and drops[1].score is None


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
        ({"keep": "right"}, "keep is 'right'; use all or correct"),
        ({"keep": "all", "prefer": "best"}, "prefer is 'best'; use first or longest or shortest or limo"),
        ({"keep": "all", "per_problem": 0}, "per_problem is 0"),
        ({"keep": "correct"}, "'a0' has no verdict"),
        ({"keep": "all", "verdicts": [verdict("a0", "correct")] * 2}, "'a0' has two verdicts"),
    ],
)
def test_what_is_refused(settings: dict[str, Any], message: str) -> None:
    verdicts = settings.pop("verdicts", [])
    with pytest.raises(UsageError, match=message):
        reject([trace("a", 0)], verdicts, **settings)


def thought(sample: int, thinking: str, tokens: int | None = None, problem: str = "a") -> Trace:
    return Trace(f"{problem}{sample}", problem, sample, "m", "a", thinking=thinking, thinking_sampled=tokens)


@pytest.mark.parametrize(
    ("prefer", "taken", "reasons"),
    [
        ("longest", ["a1", "a3"], ["2 at least as long were taken (this one: 1 words of thinking)"] * 2),
        (
            "shortest",
            ["a0", "a2"],
            [
                "2 at least as short were taken (this one: 3 words of thinking)",
                "2 at least as short were taken (this one: 2 words of thinking)",
            ],
        ),
    ],
)
def test_the_longest_or_shortest_are_preferred(prefer: Prefer, taken: list[str], reasons: list[str]) -> None:
    texts = ["one", "one two three", "two", "one two"]
    traces = [thought(n, text) for n, text in enumerate(texts)]
    kept, drops = reject(traces[::-1], [], keep="all", per_problem=2, prefer=prefer)
    assert [t.id for t in kept] == taken
    assert [(d.rule, d.reason) for d in drops] == [("surplus", reason) for reason in reasons]
    assert [d.score for d in drops] == [float(len(texts[int(d.record_id[1])].split())) for d in drops]


def test_tokens_count_where_all_that_pass_tell_them() -> None:
    told = [thought(0, "a b c", tokens=1), thought(1, "a", tokens=2000)]
    kept, (drop,) = reject(told, [], keep="all", prefer="longest")
    assert [t.id for t in kept] == ["a1"]
    assert drop.reason == "1 at least as long was taken (this one: 1 tokens of thinking)"
    # One that does not tell them: words for all. One that does not pass is not asked.
    silent = thought(2, "a b")
    assert [t.id for t in reject([*told, silent], [], keep="all", prefer="longest")[0]] == ["a0"]
    verdicts = [verdict("a0", "correct"), verdict("a1", "correct"), verdict("a2", "incorrect")]
    right = reject([*told, silent], verdicts, keep="correct", prefer="longest")[0]
    assert [t.id for t in right] == ["a1"]


def test_the_shortest_correct_one() -> None:
    traces = [thought(0, "a"), thought(1, "a b c"), thought(2, "a b"), thought(3, "b a")]
    verdicts = [verdict(f"a{n}", "correct" if n else "incorrect") for n in range(4)]
    kept, drops = reject(traces, verdicts, keep="correct", prefer="shortest")
    assert [t.id for t in kept] == ["a2"]  # a3 is as short, and later
    assert [d.rule for d in drops] == ["incorrect", "surplus", "surplus"]


def test_the_best_by_limo_is_compared_within_its_problem() -> None:
    plain, careful = "x " * 30, "perhaps so check " * 10
    traces = [thought(0, plain), thought(1, careful), thought(0, careful, problem="b")]
    kept, (drop,) = reject(traces, [], keep="all", prefer="limo")
    assert [t.id for t in kept] == ["a1", "b0"]
    assert (drop.record_id, drop.score) == ("a0", 0.15)  # as long, behind on the other three
    assert drop.reason == "1 at least as high in LIMO's score was taken (this one: 0.15)"


STATUSES = st.sampled_from(["correct", "incorrect", "undecided"])


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 3)), max_size=12),
    st.integers(1, 3),
    st.sampled_from(["longest", "shortest", "limo"]),
    st.randoms(use_true_random=False),
)
def test_a_preference_takes_as_many_and_none_that_is_worse(
    rows: list[Any], per_problem: int, prefer: Prefer, random: Any
) -> None:
    traces = [
        Trace(f"t{i}", problem, i, "m", "", thinking="word " * size) for i, (problem, size) in enumerate(rows)
    ]
    kept, drops = reject(traces, [], keep="all", per_problem=per_problem, prefer=prefer)
    first, _ = reject(traces, [], keep="all", per_problem=per_problem)
    assert Counter(t.problem_id for t in kept) == Counter(t.problem_id for t in first)
    sign = -1 if prefer == "shortest" else 1
    place = {t.id: (sign * len(t.thinking), -t.sample) for t in traces}
    for drop in drops:
        assert all(place[t.id] > place[drop.record_id] for t in kept if t.problem_id == drop.problem_id)
    random.shuffle(traces)
    again = reject(traces, [], keep="all", per_problem=per_problem, prefer=prefer)
    assert {t.id for t in again[0]} == {t.id for t in kept}


@given(st.lists(st.tuples(st.sampled_from("abc"), STATUSES), max_size=20), st.integers(1, 3), st.randoms())
def test_every_trace_is_kept_or_dropped_whatever_the_order(
    rows: list[Any], per_problem: int, random: Any
) -> None:
    traces = [Trace(f"t{i}", problem, i, "m", "") for i, (problem, _) in enumerate(rows)]
    verdicts = [Verdict(f"t{i}", problem, status, "r", "m") for i, (problem, status) in enumerate(rows)]
    kept, drops = reject(traces, verdicts, keep="correct", per_problem=per_problem)
    assert sorted([t.id for t in kept] + [d.record_id for d in drops]) == sorted(t.id for t in traces)
    right = {f"t{i}" for i, (_, status) in enumerate(rows) if status == "correct"}
    for problem in "abc":
        mine = [t.id for t in kept if t.problem_id == problem]
        assert mine == [t.id for t in traces if t.problem_id == problem and t.id in right][:per_problem]
    random.shuffle(traces)
    assert {t.id for t in reject(traces, verdicts, keep="correct", per_problem=per_problem)[0]} == {
        t.id for t in kept
    }


def test_the_funnel_counts_and_is_json() -> None:
    drops = [Drop(str(i), "p", "traces", "incorrect" if i else "undecided", "r") for i in range(3)]
    clean = [Drop("p", "p", "decontamination", "exact", "r", 1.0, "t", "x")]
    rows = funnel([("clean", 5, clean), ("right", 2, drops), ("last", 2, [])])
    assert rows == [
        {"stage": "clean", "kept": 5, "dropped": 1, "reasons": {"exact": 1}},
        {"stage": "right", "kept": 2, "dropped": 3, "reasons": {"incorrect": 2, "undecided": 1}},
        {"stage": "last", "kept": 2, "dropped": 0, "reasons": {}},
    ]
    assert list(rows[1]["reasons"]) == ["incorrect", "undecided"] and json.loads(json.dumps(rows)) == rows
