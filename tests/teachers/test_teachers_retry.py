"""Chosen traces are bought again, once, and the new ones name those that they supersede."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from endpoint_server import Say, completion, problems, serving

from tutelage.curate.rejection import reject
from tutelage.errors import UsageError
from tutelage.ledger import Ledger, State
from tutelage.records import Trace
from tutelage.teachers.collect import CollectResult, collect
from tutelage.teachers.endpoint import EndpointTeacher
from tutelage.teachers.replay import ReplayTeacher
from tutelage.teachers.retry import Filter, choose, parse_filter, retry, with_new, with_retries


def cut_below_200(number: int, body: dict[str, Any]) -> Say:
    """Questions 1 and 3 need a limit of 200."""
    cut = body["messages"][-1]["content"] in ("What is 1?", "What is 3?") and body["max_tokens"] < 200
    return Say(completion("cut", "length") if cut else completion("whole"))


def gather(ledger: Path) -> Callable[..., CollectResult]:
    return partial(collect, samples=1, ledger_path=ledger)


def chosen(traces: Sequence[Trace], text: str, ledger: Path) -> Any:
    with Ledger(ledger) as opened:
        return choose(traces, parse_filter(text), opened.states)


def test_only_the_chosen_attempts_are_bought_and_once(tmp_path: Path) -> None:
    ledger, asked = tmp_path / "l.sqlite", problems(5)
    with serving(cut_below_200) as server:
        short = EndpointTeacher(server.url, "m", max_tokens=100, seed=7)
        old = list(collect(asked, short, samples=2, ledger_path=ledger).traces)
        assert len(server.bodies) == 10
        attempts = chosen(old, "finish_reason=length", ledger)
        assert [(each.problem_id, each.sample) for each in attempts] == [
            ("p1", 0), ("p1", 1), ("p3", 0), ("p3", 1)
        ]  # fmt: skip
        long = replace(short, max_tokens=200)
        done = retry(attempts, asked, long, gather(ledger))
        new = list(done.traces)
        assert len(server.bodies) == 14 and {body["max_tokens"] for body in server.bodies[10:]} == {200}
        assert sorted(body["seed"] for body in server.bodies[10:]) == [7, 7, 8, 8]
        assert [trace.supersedes for trace in new] == [each.trace_id for each in attempts]
        assert [(trace.problem_id, trace.sample) for trace in new] == [
            (each.problem_id, each.sample) for each in attempts
        ]
        assert all(trace.answer == "whole" and trace.settings["max_tokens"] == 200 for trace in new)
        assert [trace.settings["seed"] for trace in new] == [7, 8, 7, 8]
        # The same traces as if the longer limit had been asked for from the start.
        whole = {trace.id for trace in collect(asked, long, samples=2, ledger_path=ledger, buy=False).traces}
        assert {trace.id for trace in new} == whole

        # After a kill before the traces were written, the same retry finds them in the ledger.
        again = retry(attempts, asked, long, gather(ledger))
        assert list(again.traces) == new and again.found.sent == 0
        # Once written, there is nothing left to choose.
        both = list(with_new(old, new))
        assert len(both) == 14 and chosen(both, "finish_reason=length", ledger) == []
        assert list(with_new(both, new)) == both
        assert len(server.bodies) == 14


def test_a_request_with_the_same_settings_is_not_sent(tmp_path: Path) -> None:
    ledger, asked = tmp_path / "l.sqlite", problems(4)
    with serving(cut_below_200) as server:
        teacher = EndpointTeacher(server.url, "m", max_tokens=100)
        old = list(collect(asked, teacher, samples=1, ledger_path=ledger).traces)
        done = retry(chosen(old, "state=truncated", ledger), asked, teacher, gather(ledger))
        assert (done.chosen, done.same, len(done.found.traces), len(server.bodies)) == (2, 2, 0, 4)
        assert list(done.traces) == []


def test_problems_that_are_not_given_are_counted_and_left_out(tmp_path: Path) -> None:
    ledger, asked = tmp_path / "l.sqlite", problems(4)
    with serving(cut_below_200) as server:
        teacher = EndpointTeacher(server.url, "m", max_tokens=100)
        old = list(collect(asked, teacher, samples=1, ledger_path=ledger).traces)
        attempts = chosen(old, "finish_reason=length", ledger)
        done = retry(attempts, asked[:2], replace(teacher, max_tokens=200), gather(ledger))
        assert (done.chosen, done.unknown, [trace.problem_id for trace in done.traces]) == (2, 1, ["p1"])


def test_collecting_anew_keeps_what_was_bought_again() -> None:
    base = [Trace(f"t{n}", f"p{n}", 0, "m", "") for n in range(3)]
    first = Trace("u1", "p1", 0, "m", "", supersedes="t1")
    second = Trace("v1", "p1", 0, "m", "", supersedes="u1")
    other = Trace("u9", "p9", 0, "m", "", supersedes="t9")
    found = list(with_retries(base, [*base, first, second, other]))
    assert found == [*base, first, second]
    # What is superseded is not learned from.
    kept, drops = reject(found, [], keep="all", per_problem=5)
    assert [trace.id for trace in kept] == ["t0", "v1", "t2"]
    assert {drop.rule for drop in drops} == {"superseded"}


def test_another_process_that_is_buying_the_same_is_waited_for(tmp_path: Path) -> None:
    ledger, asked = tmp_path / "l.sqlite", problems(2)
    with serving(cut_below_200) as server:
        short = EndpointTeacher(server.url, "m", max_tokens=100)
        old = list(collect(asked, short, samples=1, ledger_path=ledger).traces)
        long = replace(short, max_tokens=200)
        attempts = chosen(old, "finish_reason=length", ledger)
        with Ledger(ledger) as other:  # holds the claim until progress says that it is waited for
            order = long.order(asked[1], 0)
            assert other.owe([order.debt]) == {order.debt.key: "yours"}

            def heard(done: int, total: int, note: str) -> None:
                if "another process" in note:
                    other.release([order.debt.key])

            done = retry(attempts, asked, long, partial(gather(ledger), progress=heard))
        assert [trace.answer for trace in done.traces] == ["whole"] and len(server.bodies) == 3


def no_states(keys: Sequence[str]) -> Mapping[str, tuple[State, bool]]:
    return {}


def test_filters_are_fields_that_must_all_hold() -> None:
    traces = [
        Trace("a", "p", 0, "one", "", finish_reason="length"),
        Trace("b", "p", 1, "two", "", finish_reason="length"),
        Trace("c", "q", 0, "one", "", finish_reason="stop"),
    ]
    assert parse_filter(" finish_reason = length ") == Filter((("finish_reason", "length"),))
    for text, ids in {
        "finish_reason=length": ["a", "b"],
        "finish_reason=length, maker=two": ["b"],
        "problem_id=q": ["c"],
        "id=a": ["a"],
        "state=truncated": [],
    }.items():
        assert [each.trace_id for each in choose(traces, parse_filter(text), no_states)] == ids


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("length", "write it as field=value"),
        ("", "write it as field=value"),
        ("finish_reason=", "write it as field=value"),
        ("answer=4", "no field 'answer' to choose by; there is: state, finish_reason"),
        ("state=failed", "no state 'failed'; states are done, truncated, refused, empty"),
        ("state=done,state=empty", "a trace has one state"),
    ],
)
def test_a_filter_that_cannot_be_meant_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_filter(text)


def test_recorded_traces_cannot_be_asked_for_again(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="recorded traces cannot be asked for again"):
        retry([], [], ReplayTeacher("r", tmp_path / "r.jsonl"), gather(tmp_path / "l.sqlite"))
