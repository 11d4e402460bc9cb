"""collect: what a call gives back, whatever happened to its orders."""

from __future__ import annotations

import threading
import tracemalloc
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from endpoint_server import Say, completion, echo, problems, serving

from tutelage.errors import BudgetError, UsageError
from tutelage.ledger import Ledger
from tutelage.records import Problem, Trace, iter_records, write_records
from tutelage.teachers.collect import collect
from tutelage.teachers.endpoint import EndpointTeacher
from tutelage.teachers.money import price
from tutelage.teachers.replay import ReplayTeacher
from tutelage.teachers.scripted import ScriptedTeacher


class Said:
    thinking, answer = "hm " * 300, "42"
    prompt_tokens, thinking_tokens, answer_tokens = 7, 300, 1


def by_question(says: dict[str, Say]) -> Any:
    return lambda number, body: says.get(body["messages"][-1]["content"]) or echo(number, body)


def test_every_state_is_counted_and_every_reply_is_a_trace(tmp_path: Path) -> None:
    says = {
        "What is 1?": Say(completion("cut", finish="length")),
        "What is 2?": Say(completion("no", refusal="no")),
        "What is 3?": Say(completion("")),
        "What is 4?": Say({"error": "bad field"}, status=422),
    }
    with serving(by_question(says)) as server:
        teacher = EndpointTeacher(server.url, "m", backoff_s=0.01)
        found = collect(problems(6), teacher, samples=1, ledger_path=tmp_path / "l")
    assert found.states == {"done": 2, "truncated": 1, "refused": 1, "empty": 1, "failed": 1}
    assert len(found.traces) == 5
    assert [trace.problem_id for trace in found.traces] == ["p0", "p1", "p2", "p3", "p5"]
    assert found.failed == [("p4", "HTTP 422: bad field")]
    assert found.failures == {"HTTP 422: bad field": 1}
    assert (found.sent, found.bought, found.reused, found.error) == (6, 5, 0, None)


def test_traces_can_be_read_again_and_again(tmp_path: Path) -> None:
    with serving(echo) as server:
        found = collect(problems(3), EndpointTeacher(server.url, "m"), samples=2, ledger_path=tmp_path / "l")
    assert list(found.traces) == list(found.traces)
    first = iter(found.traces)
    next(first)
    assert len(list(found.traces)) == 6  # while another reading is under way
    assert len(list(first)) == 5


def test_retries_are_counted_as_requests_sent(tmp_path: Path) -> None:
    script = lambda number, body: Say({}, status=500) if number < 2 else echo(number, body)  # noqa: E731
    with serving(script) as server:
        teacher = EndpointTeacher(server.url, "m", backoff_s=0.01, concurrency=1)
        found = collect(problems(2), teacher, samples=1, ledger_path=tmp_path / "l")
    assert (found.sent, found.bought) == (4, 2)


def test_a_call_that_ends_early_gives_what_there_is_and_says_why(tmp_path: Path) -> None:
    with serving(lambda n, b: Say(completion(usage=(5, 100)))) as server:
        teacher = EndpointTeacher(
            server.url, "m", price=price(0, 100), max_tokens=100, budget=Decimal("0.03"), concurrency=1
        )
        found = collect(problems(5), teacher, samples=1, ledger_path=tmp_path / "l")
    assert isinstance(found.error, BudgetError)
    assert (len(found.traces), found.bought, found.spent) == (3, 3, Decimal("0.03"))
    assert found.states == {"owed": 2, "done": 3}
    assert found.failures == {"not bought": 2}


def test_a_refused_key_is_raised_only_where_nothing_is_stored(tmp_path: Path) -> None:
    with serving(lambda n, b: Say({}, status=401)) as server:
        teacher = EndpointTeacher(server.url, "m")
        with pytest.raises(UsageError, match="refuses the key"):
            collect(problems(2), teacher, samples=1, ledger_path=tmp_path / "l")
    with serving(echo) as server:
        teacher = EndpointTeacher(server.url, "m")
        collect(problems(2), teacher, samples=1, ledger_path=tmp_path / "m")
        server.script = lambda n, b: Say({}, status=401)
        found = collect(problems(4), teacher, samples=1, ledger_path=tmp_path / "m")
    assert isinstance(found.error, UsageError)
    assert len(found.traces) == 2


def test_settings_that_cannot_work_are_raised_also_when_all_is_stored(tmp_path: Path) -> None:
    with serving(echo) as server:
        collect(problems(1), EndpointTeacher(server.url, "m"), samples=1, ledger_path=tmp_path / "l")
        with pytest.raises(UsageError, match="concurrency"):
            collect(
                problems(1),
                EndpointTeacher(server.url, "m", concurrency=0),
                samples=1,
                ledger_path=tmp_path / "l",
            )


def test_a_key_that_is_not_set_is_not_missed_when_all_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_KEY", "sk-0123456789")
    with serving(echo) as server:
        teacher = EndpointTeacher(server.url, "m", key_env="SOME_KEY")
        collect(problems(2), teacher, samples=1, ledger_path=tmp_path / "l")
        monkeypatch.delenv("SOME_KEY")
        assert len(collect(problems(2), teacher, samples=1, ledger_path=tmp_path / "l").traces) == 2
        with pytest.raises(UsageError, match="SOME_KEY is not set"):
            collect(problems(2), teacher, samples=1, ledger_path=tmp_path / "new")


def test_a_reply_that_cannot_be_read_any_more_is_still_a_trace(tmp_path: Path) -> None:
    with serving(echo) as server:
        teacher = EndpointTeacher(server.url, "m")
        collect(problems(1), teacher, samples=1, ledger_path=tmp_path / "l")
        with Ledger(tmp_path / "l") as ledger:
            ledger._db.execute("UPDATE replies SET raw=?", (b"{of an older kind",))
        [trace] = collect(problems(1), teacher, samples=1, ledger_path=tmp_path / "l").traces
    assert (trace.answer, trace.finish_reason) == ("", "error")


def test_a_replay_counts_what_is_recorded_and_what_is_not(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text('{"question": "What is 0?", "thinking": "none", "answer": "0"}\n')
    found = collect(problems(2), ReplayTeacher("rec", file), samples=1, ledger_path=tmp_path / "l")
    assert (found.states, found.sent, found.reused) == ({"done": 1, "owed": 1}, 0, 1)
    assert not (tmp_path / "l").exists()


def test_twins_far_apart_are_asked_once(tmp_path: Path) -> None:
    many = [*problems(300), Problem(id="twin", question="What is 0?")]
    with serving(echo) as server:
        found = collect(many, EndpointTeacher(server.url, "m"), samples=1, ledger_path=tmp_path / "l")
        assert len(server.bodies) == 300
    assert (found.bought, found.reused, len(found.traces)) == (300, 1, 301)


def test_twins_in_flight_at_the_same_time_are_asked_once(tmp_path: Path) -> None:
    gate = threading.Event()
    twins = [Problem(id=f"t{number}", question="the same") for number in range(150)]

    def script(number: int, body: dict[str, Any]) -> Say:
        gate.wait(0.2)
        return echo(number, body)

    with serving(script) as server:
        found = collect(twins, EndpointTeacher(server.url, "m"), samples=2, ledger_path=tmp_path / "l")
        assert len(server.bodies) == 2
    assert (found.bought, len(found.traces), found.prompt_tokens) == (2, 300, 20)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_replies(tmp_path: Path) -> None:
    """Peak memory of 6,000 orders over that of 3,000: some bytes per order."""

    def peak(count: int) -> int:
        teacher = ScriptedTeacher("s", lambda problem, sample: Said())
        many = problems(count)
        tracemalloc.start()
        found = collect(many, teacher, samples=1, ledger_path=tmp_path / f"l{count}")
        write_records(tmp_path / f"t{count}", found.traces, Trace)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(100)  # imports
    grown = peak(6000) - peak(3000)
    assert grown < 3000 * 500, grown  # a reply is 1.2 kB, as a record, a row and JSON three times that
    assert sum(1 for _ in iter_records(tmp_path / "t6000", Trace)) == 6000
