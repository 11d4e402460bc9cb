"""purchase: a real server limits, fails, tears and lies; what is paid for is kept, failures say why."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from endpoint_server import Say, Server, completion, echo, problems, serving

from tutelage.errors import BudgetError, PartialError, StorageError, UsageError
from tutelage.ledger import Ledger, Turn
from tutelage.teachers.collect import CollectResult, collect
from tutelage.teachers.endpoint import EndpointTeacher
from tutelage.teachers.money import price

SECRET = "sk-do-not-show-me"


def buy(
    server: Server, path: Path, count: int = 4, samples: int = 1, progress: Any = None, **settings: Any
) -> CollectResult:
    teacher = EndpointTeacher(server.url, "m", **{"backoff_s": 0.01, "timeout_s": 5.0, **settings})
    return listed(collect(problems(count), teacher, samples=samples, ledger_path=path, progress=progress))


def listed(result: CollectResult) -> CollectResult:
    """The result with its traces as a list; raises the error that ended the buying."""
    if result.error:
        raise result.error
    return replace(result, traces=list(result.traces))


def first_then_echo(*says: Say) -> Any:
    """The scripted answers for the first requests, then echoes."""
    return lambda number, body: says[number] if number < len(says) else echo(number, body)


def by_question(question: str, say: Say) -> Any:
    """This answer to that question, echoes to all others."""
    return lambda number, body: say if body["messages"][-1]["content"] == question else echo(number, body)


def rows(path: Path) -> dict[str, int]:
    with Ledger(path) as ledger:
        return dict(ledger.totals().states)


def test_traces_hold_what_the_server_said(tmp_path: Path) -> None:
    with serving(echo) as server:
        result = buy(
            server, tmp_path / "l", samples=2, price=price(1, 10), sampling={"temperature": 0.5}, seed=7
        )
    assert [(t.problem_id, t.sample) for t in result.traces] == [
        (f"p{p}", s) for p in range(4) for s in (0, 1)
    ]
    trace = result.traces[3]
    assert (trace.thinking, trace.answer) == ("hm", "you asked What is 1?")
    assert (trace.maker, trace.prompt_tokens, trace.cost) == ("m", 10, Decimal("0.00021"))
    assert (trace.thinking_sampled, trace.answer_sampled, trace.closed_by) == (None, None, "unknown")
    assert trace.settings["temperature"] == 0.5
    assert trace.settings["seed"] == 8
    assert trace.settings["base_url"] == server.url
    assert (result.bought, result.reused, result.failed, result.cost) == (8, 0, [], Decimal("0.00168"))
    assert (result.prompt_tokens, result.completion_tokens) == (80, 160)
    assert set(server.paths) == {"/v1/chat/completions"}


def test_running_again_asks_nothing_and_gives_the_same_traces(tmp_path: Path) -> None:
    with serving(echo) as server:
        first = buy(server, tmp_path / "l")
        second = buy(server, tmp_path / "l", concurrency=1)
        assert len(server.bodies) == 4
    assert (second.bought, second.reused, second.traces) == (0, 4, first.traces)


def test_two_problems_with_the_same_text_are_asked_once(tmp_path: Path) -> None:
    same = [problems(1)[0], problems(1)[0].__class__(id="twin", question="What is 0?")]
    with serving(echo) as server:
        teacher = EndpointTeacher(server.url, "m")
        result = listed(collect(same, teacher, samples=1, ledger_path=tmp_path / "l"))
        assert len(server.bodies) == 1
    assert [trace.problem_id for trace in result.traces] == ["p0", "twin"]
    assert result.traces[0].id != result.traces[1].id
    assert result.bought == 1


def test_the_given_concurrency_is_never_passed(tmp_path: Path) -> None:
    with serving(lambda n, b: Say(completion(), seconds=0.02)) as server:
        buy(server, tmp_path / "l", count=20, concurrency=3)
        assert server.most_at_once == 3


# --- failures that pass ---


@pytest.mark.parametrize(
    "say",
    [
        Say({"error": {"message": "boom"}}, status=500),
        Say(b"<html>bad gateway</html>", status=502),
        Say(completion(), torn=True),
        Say(completion(), reset=True),
        Say(b'{"choices": [{"mess'),
        Say({"error": {"message": "overloaded", "code": 503}}),
        Say({"choices": []}),
        Say({}, status=408),
    ],
)
def test_what_can_pass_is_tried_again(tmp_path: Path, say: Say) -> None:
    with serving(first_then_echo(say, say)) as server:
        result = buy(server, tmp_path / "l", count=2, concurrency=1)
        assert len(server.bodies) == 4
    assert (result.bought, result.failed, rows(tmp_path / "l")) == (2, [], {"done": 2})


def test_a_timeout_is_tried_again(tmp_path: Path) -> None:
    with serving(first_then_echo(Say(completion(), seconds=2))) as server:
        assert buy(server, tmp_path / "l", count=1, timeout_s=0.2).bought == 1
        assert len(server.bodies) == 2


def test_rate_limits_are_waited_out_and_use_up_no_retry(tmp_path: Path) -> None:
    limit = Say({"error": {"message": "slow down"}}, status=429, headers={"Retry-After": "0.2"})
    notes: list[str] = []
    with serving(first_then_echo(*[limit] * 3)) as server:
        start = time.perf_counter()
        result = buy(
            server,
            tmp_path / "l",
            3,
            retries=0,
            concurrency=1,
            progress=lambda d, t, note: notes.append(note),
        )
        assert time.perf_counter() - start >= 0.6
        assert len(server.bodies) == 6
    assert (result.bought, result.failed) == (3, [])
    assert any("rate limited" in note for note in notes)


def test_a_rate_limit_stops_all_workers(tmp_path: Path) -> None:
    limit = Say({}, status=429, headers={"Retry-After": "0.5"})
    with serving(first_then_echo(limit, *[Say(completion(), seconds=0.1)] * 3)) as server:
        start = time.perf_counter()
        buy(server, tmp_path / "l", 20, concurrency=4)
        # The three already on their way come back during the pause; nothing new was sent in it.
        assert time.perf_counter() - start >= 0.5
        assert len(server.bodies) == 21


def test_a_wait_that_is_longer_than_the_deadline_ends_the_run(tmp_path: Path) -> None:
    limit = Say({}, status=429, headers={"Retry-After": "86400"})
    with serving(first_then_echo(Say(completion()), limit)) as server:
        with pytest.raises(PartialError, match=r"asks to wait [89]\d{4} s, longer than .* 1 new repl"):
            buy(server, tmp_path / "l", 200, concurrency=1)
        assert len(server.bodies) == 2


@pytest.mark.parametrize("headers", [{"Retry-After": "0"}, {}])
def test_a_rate_limit_that_never_ends_is_bounded_by_the_deadline(
    tmp_path: Path, headers: dict[str, str]
) -> None:
    with serving(lambda n, b: Say({}, status=429, headers=headers)) as server:
        start = time.perf_counter()
        result = buy(server, tmp_path / "l", 2, deadline_s=0.5, retries=0)
        assert time.perf_counter() - start < 2
        assert len(server.bodies) < 40
    assert [problem for problem, _ in result.failed] == ["p0", "p1"]
    assert all("429" in reason or "rate limited" in reason for _, reason in result.failed)


def test_concurrency_is_learned_from_refusals(tmp_path: Path) -> None:
    """A server that takes eight at once and refuses the others: all is bought, no retry is used up."""
    now = {"at once": 0}

    def script(number: int, body: dict[str, Any]) -> Say:
        busy = server.at_once > 8
        now["at once"] = max(now["at once"], server.at_once)
        return Say({}, status=429) if busy else Say(completion(), seconds=0.01)

    with serving(script) as server:
        result = buy(server, tmp_path / "l", 200, retries=0, concurrency=64)
        assert len(server.bodies) == result.sent
    assert (result.bought, result.failed) == (200, [])
    assert 200 < result.sent < 500  # 240 to 330 seen; at a fixed 64 at once it takes some 1,000


@pytest.mark.parametrize("status", [503, 529])
def test_an_overloaded_server_is_asked_less(tmp_path: Path, status: int) -> None:
    notes: list[str] = []
    says = [Say({}, status=status)] * 32
    with serving(first_then_echo(*says)) as server:
        buy(server, tmp_path / "l", 100, progress=lambda d, t, note: notes.append(note))
        late = [int(note.split(" at once")[0].split()[-1]) for note in notes[-1:] if " at once" in note]
    assert f"{status} x32" in notes[-1]
    assert all(count <= 64 for count in late)


def test_retry_after_of_a_server_error_is_kept(tmp_path: Path) -> None:
    say = Say({}, status=503, headers={"Retry-After": "0.3"})
    with serving(first_then_echo(say)) as server:
        start = time.perf_counter()
        assert buy(server, tmp_path / "l", 1).bought == 1
        assert time.perf_counter() - start >= 0.3


def test_a_ceiling_of_requests_per_second_is_kept(tmp_path: Path) -> None:
    times: list[float] = []

    def script(number: int, body: dict[str, Any]) -> Say:
        times.append(time.monotonic())
        return Say(completion())

    with serving(script) as server:
        buy(server, tmp_path / "l", 30, requests_per_s=40.0)
    # Two at once at most (40 x 0.05 s), then one each 25 ms; 5 ms for the way to the server.
    assert all(later - first >= 0.2 - 0.005 for first, later in zip(times, times[10:], strict=False))


def test_a_ceiling_of_tokens_per_minute_is_kept(tmp_path: Path) -> None:
    with serving(lambda n, b: Say(completion(usage=(100, 900)))) as server:
        start = time.perf_counter()
        # Two seconds' worth (4,000 tokens) at once, the other 1,000 after half a second (2,000 a second).
        buy(server, tmp_path / "l", 5, concurrency=1, tokens_per_min=120_000)
        assert time.perf_counter() - start >= 0.4


@pytest.mark.parametrize("kind", ["text/html", "text/plain", "application/octet-stream"])
def test_a_wrong_content_type_does_not_lose_a_reply(tmp_path: Path, kind: str) -> None:
    with serving(lambda n, b: Say(completion(), headers={"Content-Type": kind})) as server:
        assert buy(server, tmp_path / "l", 1).sent == 1


def test_a_page_with_status_200_is_tried_again_then_failed(tmp_path: Path) -> None:
    page = Say(b"<html><body>Please log in</body></html>", headers={"Content-Type": "text/html"})
    with serving(by_question("What is 1?", page)) as server:
        result = buy(server, tmp_path / "l", 3, retries=1)
        assert len(server.bodies) == 4
    assert [problem for problem, _ in result.failed] == ["p1"]
    assert "web page" in result.failed[0][1]


def test_a_reply_of_ten_megabytes_and_lone_surrogates_comes_through(tmp_path: Path) -> None:
    answer = "x" * 10_000_000 + "\ud800 <|im_end|> </b>"
    with serving(lambda n, b: Say(completion(answer))) as server:
        trace = buy(server, tmp_path / "l", 1).traces[0]
    assert trace.answer == answer.replace("\ud800", "\ufffd")


# --- thinking that is not shown ---


def silent(usage: dict[str, Any] | None = None) -> Any:
    body = completion("42")
    body["usage"] = {**body["usage"], **(usage or {})}
    return lambda number, asked: Say(body)


def test_a_reasoning_teacher_without_thinking_is_stopped(tmp_path: Path) -> None:
    with serving(silent()) as server:
        with pytest.raises(PartialError, match=r"m is declared as reasoning, .* first 4 replies .*<think>"):
            buy(server, tmp_path / "l", 100, reasoning=True, reasoning_within=4, concurrency=2)
        assert len(server.bodies) <= 6
        assert rows(tmp_path / "l")["done"] >= 4
        # The same without the declaration goes on.
        assert buy(server, tmp_path / "l", 100).reused >= 4


def test_thinking_that_is_billed_and_hidden_is_said_so(tmp_path: Path) -> None:
    hidden = silent({"completion_tokens_details": {"reasoning_tokens": 17}})
    with serving(hidden) as server, pytest.raises(PartialError, match="bills 17 thinking tokens and hides"):
        buy(server, tmp_path / "l", 100, reasoning=True, reasoning_within=2, concurrency=1)


def test_one_thought_among_the_first_is_enough(tmp_path: Path) -> None:
    script = first_then_echo(Say(completion("42")), Say(completion("42")))
    with serving(script) as server:
        assert buy(server, tmp_path / "l", 30, reasoning=True, reasoning_within=4, concurrency=1).bought == 30


# --- failures that stay ---


def test_one_bad_row_is_listed_and_asked_again_by_the_next_run(tmp_path: Path) -> None:
    def script(number: int, body: dict[str, Any]) -> Say:
        bad = body["messages"][0]["content"] == "What is 1?" and script.bad  # type: ignore[attr-defined]
        return Say({"error": {"message": "too\nlong"}}, status=400) if bad else echo(number, body)

    script.bad = True  # type: ignore[attr-defined]
    with serving(script) as server:
        result = buy(server, tmp_path / "l")
        assert result.failed == [("p1", "HTTP 400: too long")]
        assert [trace.problem_id for trace in result.traces] == ["p0", "p2", "p3"]
        assert len(server.bodies) == 4
        script.bad = False  # type: ignore[attr-defined]
        result = buy(server, tmp_path / "l")
        assert (len(result.traces), result.bought, result.failed) == (4, 1, [])
        assert len(server.bodies) == 5


def test_retries_end_with_the_last_reason(tmp_path: Path) -> None:
    def script(number: int, body: dict[str, Any]) -> Say:
        return Say(b"{oops") if body["messages"][0]["content"] == "What is 0?" else echo(number, body)

    with serving(script) as server:
        result = buy(server, tmp_path / "l", 2, retries=2)
        assert len(server.bodies) == 4
    assert result.failed == [("p0", "the reply is not JSON, or broke off")]
    assert rows(tmp_path / "l") == {"done": 1, "failed": 1}


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (401, {"error": {"message": f"Incorrect API key: {SECRET}"}}, "the server refuses the key"),
        (403, b"", "the server refuses access"),
        (404, {"error": {"message": "no model m"}}, "no such model"),
        (402, {"error": {"message": "Insufficient Balance"}}, "no money left"),
        (429, {"error": {"code": "insufficient_quota", "message": "quota"}}, "no money left"),
        (307, b"", "redirects"),
    ],
)
def test_what_cannot_get_better_stops_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, body: Any, message: str
) -> None:
    monkeypatch.setenv("TEACHER_KEY", SECRET)
    with serving(lambda n, b: Say(body, status=status, headers={"Location": "/x"})) as server:
        with pytest.raises(UsageError) as caught:
            buy(server, tmp_path / "l", 50, concurrency=2, key_env="TEACHER_KEY")
        assert len(server.bodies) <= 2
        assert server.headers[0]["Authorization"] == f"Bearer {SECRET}"
    text = str(caught.value)
    assert message in text
    assert server.url in text
    assert "\n" not in text
    everything = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert SECRET.encode() not in everything + text.encode()


def test_a_server_that_echoes_the_key_does_not_get_it_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEACHER_KEY", SECRET)
    with serving(lambda n, b: Say(completion(f"your key is {SECRET}"))) as server:
        result = buy(server, tmp_path / "l", 1, key_env="TEACHER_KEY")
    assert result.traces[0].answer == "your key is ***"
    assert SECRET.encode() not in (tmp_path / "l").read_bytes()


def test_stopping_midway_says_what_is_saved_and_keeps_it(tmp_path: Path) -> None:
    script = first_then_echo(*[Say(completion())] * 3, Say({}, status=401))
    with serving(script) as server:
        with pytest.raises(PartialError, match="3 new replies are saved"):
            buy(server, tmp_path / "l", 10, concurrency=1)
        result = buy(server, tmp_path / "l", 10)
        assert (result.bought, result.reused) == (7, 3)


def test_requests_in_flight_are_waited_for_when_stopping(tmp_path: Path) -> None:
    script = first_then_echo(Say(completion(), seconds=0.4), Say({}, status=401))
    with serving(script) as server:
        with pytest.raises(PartialError, match="refuses the key"):
            buy(server, tmp_path / "l", 10, concurrency=2)
        assert len(server.bodies) == 2
    assert rows(tmp_path / "l")["done"] == 1


def test_a_server_that_is_not_there_is_said_so_at_once(tmp_path: Path) -> None:
    with serving(echo) as server:
        pass
    with pytest.raises(UsageError, match=r"cannot connect to http://127\.0\.0\.1"):
        buy(server, tmp_path / "l", 100, retries=1, concurrency=1)


def test_when_every_request_is_refused_the_rest_is_not_sent(tmp_path: Path) -> None:
    with serving(lambda n, b: Say({"detail": [{"msg": "unknown field foo"}]}, status=422)) as server:
        with pytest.raises(UsageError, match=r"no reply at all; last: HTTP 422.*unknown field foo"):
            buy(server, tmp_path / "l", 200, concurrency=1)
        assert len(server.bodies) == 20


# --- replies of every kind ---


def test_a_truncated_reply_is_kept_and_never_bought_again(tmp_path: Path) -> None:
    with serving(lambda n, b: Say(completion("<think>and so on", finish="length"))) as server:
        result = buy(server, tmp_path / "l", 2)
        assert buy(server, tmp_path / "l", 2).bought == 0
        assert len(server.bodies) == 2
    trace = result.traces[0]
    assert (trace.thinking, trace.answer) == ("and so on", "")
    assert (trace.finish_reason, trace.closed_by) == ("length", "none")
    assert rows(tmp_path / "l") == {"truncated": 2}


def test_refused_and_empty_replies_are_kept_too(tmp_path: Path) -> None:
    says = (Say(completion("no", refusal="no")), Say(completion("")))
    with serving(first_then_echo(*says)) as server:
        assert len(buy(server, tmp_path / "l", 3, concurrency=1).traces) == 3
        assert buy(server, tmp_path / "l", 3).bought == 0
    assert rows(tmp_path / "l") == {"done": 1, "refused": 1, "empty": 1}


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_a_renamed_thinking_field_is_read(tmp_path: Path, name: str) -> None:
    with serving(lambda n, b: Say(completion("42", **{name: "hm"}))) as server:
        assert buy(server, tmp_path / "l", 1).traces[0].thinking == "hm"


def test_text_completions(tmp_path: Path) -> None:
    def script(number: int, body: dict[str, Any]) -> Say:
        return Say({"choices": [{"text": f"{body['prompt']}</think>42", "finish_reason": "stop"}]})

    with serving(script) as server:
        trace = buy(server, tmp_path / "l", 1, api="completions", prompt="<think>{question}").traces[0]
        assert server.paths == ["/v1/completions"]
    assert (trace.thinking, trace.answer) == ("What is 0?", "42")


def test_a_reply_that_was_stored_but_not_read_is_not_bought_again(tmp_path: Path) -> None:
    """As after a kill between the two commits."""
    with serving(echo) as server:
        teacher = EndpointTeacher(server.url, "m", price=price(1, 1))
        orders = [teacher.order(each, 0) for each in problems(2)]
        with Ledger(tmp_path / "l") as ledger:
            ledger.owe([each.debt for each in orders])
            ledger.store(orders[0].debt.key, json.dumps(completion("42")).encode())
            ledger.store(orders[1].debt.key, b'{"torn')
        result = listed(collect(problems(2), teacher, samples=1, ledger_path=tmp_path / "l"))
        assert len(server.bodies) == 1
    assert [trace.answer for trace in result.traces] == ["42", "you asked What is 1?"]
    assert rows(tmp_path / "l") == {"done": 2}
    assert result.cost == Decimal("0.00006")


# --- money ---

# 42 bytes of slack aside, a request of these tests can cost at most about 0.0104 dollars.
MONEY: dict[str, Any] = {"price": price(0, 100), "max_tokens": 100}


def test_the_budget_is_never_exceeded_and_what_was_bought_is_kept(tmp_path: Path) -> None:
    with serving(lambda n, b: Say(completion(usage=(5, 100)), seconds=0.01)) as server:
        with pytest.raises(BudgetError, match=r"budget: \$0\.05 for m is used up \(spent \$0\.05, .* saved"):
            buy(server, tmp_path / "l", 20, concurrency=8, budget=Decimal("0.05"), **MONEY)
        assert len(server.bodies) == 5
        assert server.most_at_once <= 5
        with Ledger(tmp_path / "l") as ledger:
            assert ledger.totals().cost == Decimal("0.05")
        with pytest.raises(BudgetError):
            buy(server, tmp_path / "l", 20, budget=Decimal("0.05"), **MONEY)
        assert len(server.bodies) == 5
        result = buy(server, tmp_path / "l", 20, budget=Decimal("0.20"), **MONEY)
    assert (result.bought, result.reused, result.cost) == (15, 5, Decimal("0.2"))


def test_reservations_that_come_free_are_used(tmp_path: Path) -> None:
    """Each may cost a cent and costs a tenth of it, so a cap of two cents is enough for all twelve."""
    with serving(lambda n, b: Say(completion(usage=(5, 10)), seconds=0.01)) as server:
        result = buy(server, tmp_path / "l", 12, concurrency=8, budget=Decimal("0.021"), **MONEY)
        assert server.most_at_once == 2
    assert (result.bought, result.cost) == (12, Decimal("0.012"))


def test_replies_without_usage_cannot_break_the_budget(tmp_path: Path) -> None:
    with serving(lambda n, b: Say(completion(usage=None))) as server:
        with pytest.raises(BudgetError):
            buy(server, tmp_path / "l", 20, budget=Decimal("0.05"), **MONEY)
        assert len(server.bodies) == 5


@pytest.mark.parametrize(
    "say", [Say(completion(usage=(5, 100)), torn=True), Say(b"{oops"), Say(completion(), reset=True)]
)
def test_what_may_have_been_charged_counts_against_the_budget(tmp_path: Path, say: Say) -> None:
    """A server that charges and then tears its replies: five cents are five requests, and no more."""
    with serving(lambda n, b: say) as server:
        with pytest.raises(BudgetError, match=r"reserved for requests whose reply never came, .* raise it"):
            buy(server, tmp_path / "l", 20, retries=100, budget=Decimal("0.05"), **MONEY)
        assert len(server.bodies) == 5
        with Ledger(tmp_path / "l") as ledger:
            assert ledger.spent(f"{server.url} m") == ledger.lost(f"{server.url} m") == Decimal("0.05")


def test_a_timeout_counts_against_the_budget(tmp_path: Path) -> None:
    with serving(first_then_echo(Say(completion(), seconds=1))) as server:
        settings = {**MONEY, "price": price(0, 100), "timeout_s": 0.1}
        with pytest.raises(BudgetError):
            buy(server, tmp_path / "l", 1, budget=Decimal("0.015"), **settings)
        result = buy(server, tmp_path / "l", 1, budget=Decimal("0.02"), **settings)
    assert result.bought == 1


def test_what_was_refused_or_never_sent_costs_nothing(tmp_path: Path) -> None:
    says = [Say({}, status=500), Say({}, status=429), Say({}, status=503), Say({}, status=400)]
    with serving(first_then_echo(*says)) as server:
        result = buy(server, tmp_path / "l", 2, concurrency=1, budget=Decimal("0.011"), **MONEY)
        assert (result.bought, len(result.failed)) == (1, 1)
    with pytest.raises(UsageError, match="cannot connect"):
        buy(server, tmp_path / "m", 3, retries=2, budget=Decimal("0.011"), **MONEY)
    with Ledger(tmp_path / "m") as ledger:
        assert ledger.spent(f"{server.url} m") == 0


def test_a_second_try_waits_for_money_that_comes_free(tmp_path: Path) -> None:
    """The torn one needs a second cent while the other, slower one still holds its cent."""
    torn, slow = Say(completion(), torn=True), Say(completion(usage=(5, 10)), seconds=0.3)
    script = first_then_echo(torn, slow, Say(completion(usage=(5, 10))))
    with serving(script) as server:
        result = buy(server, tmp_path / "l", 2, concurrency=2, budget=Decimal("0.0215"), **MONEY)
        assert len(server.bodies) == 3
    assert result.bought == 2


# --- surroundings ---


def test_it_works_inside_a_running_loop(tmp_path: Path) -> None:
    async def notebook(server: Server) -> CollectResult:
        return buy(server, tmp_path / "l", 2)

    with serving(echo) as server:
        assert asyncio.run(notebook(server)).bought == 2


def test_a_disk_that_refuses_ends_the_run_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Ledger.turn

    def full(self: Ledger, turn: Turn, budget: Decimal | None = None) -> Any:
        if turn.replies:
            self._db.execute(f"PRAGMA max_page_count={self._db.execute('PRAGMA page_count').fetchone()[0]}")
            turn.replies = [(key, raw * 100) for key, raw in turn.replies]
        return write(self, turn, budget)

    monkeypatch.setattr(Ledger, "turn", full)
    with serving(echo) as server, pytest.raises(StorageError, match="database or disk is full") as caught:
        buy(server, tmp_path / "l", 20, concurrency=2)
    assert "\n" not in str(caught.value)


def test_progress_counts_every_order_once(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    with serving(first_then_echo(Say({}, status=400))) as server:
        for _ in range(2):
            seen.append((0, 0))
            buy(server, tmp_path / "l", 3, concurrency=1, progress=lambda d, t, note: seen.append((d, t)))
    assert seen == sorted(seen[: seen.index((3, 3)) + 1]) + sorted(seen[seen.index((3, 3)) + 1 :])
    assert seen.count((3, 3)) == 2
