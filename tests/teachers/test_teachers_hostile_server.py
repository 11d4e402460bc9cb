"""A server that does everything wrong, to one question: what becomes of it, how often it is asked again, and
that the others are answered all the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from endpoint_server import (
    Say,
    Server,
    chunks,
    completion,
    event,
    message,
    message_events,
    problems,
    serving,
    streamed,
)

from tutelage import wire
from tutelage.ledger import Ledger
from tutelage.teachers.collect import CollectResult, collect
from tutelage.teachers.endpoint import EndpointTeacher

BAD = "What is 1?"
PAGE = b"<!DOCTYPE html><html><body>Please log in</body></html>"
OVERLOADED = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}


def good(body: dict[str, Any], path: str) -> Say:
    """An answer as it should be, streamed where a stream was asked for."""
    question = body["messages"][-1]["content"]
    if path.endswith("/messages"):
        reply = message(f"fine: {question}", "hm")
        return Say(events=message_events(reply)) if body.get("stream") else Say(reply)
    reply = completion(f"fine: {question}", reasoning_content="hm")
    return streamed(reply) if body.get("stream") else Say(reply)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One for all tests: to start and end one takes 0.1 s."""
    with serving(lambda number, body: Say()) as running:
        yield running


def run(server: Server, path: Path, bad: Say, times: int = 99, **settings: Any) -> tuple[CollectResult, int]:
    """Four problems, one of them badly answered the first `times` times; (what came of it, how often the bad
    one was asked)."""
    asked = 0

    def script(number: int, body: dict[str, Any]) -> Say:
        nonlocal asked
        if body["messages"][-1]["content"] == BAD:
            asked += 1
            if asked <= times:
                return bad
        return good(body, server.paths[number])

    server.script = script
    usual = {"backoff_s": 0.01, "timeout_s": 20.0, "retries": 1, "concurrency": 2}
    teacher = EndpointTeacher(server.url, "m", **(usual | settings))
    result = collect(problems(4), teacher, samples=1, ledger_path=path / "l.sqlite")
    assert result.error is None
    for trace in result.traces:
        if trace.problem_id != "p1":
            assert (trace.answer[:6], trace.thinking, trace.finish_reason) == ("fine: ", "hm", "stop")
    return result, asked


LIMIT = {"error": {"message": "slow down"}}
# What a server can do wrong once, and do right when it is asked again.
PASSES: dict[str, Say] = {
    "429 with Retry-After": Say(LIMIT, status=429, headers={"Retry-After": "0.1"}),
    "429 with a date": Say(LIMIT, status=429, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
    "429 without Retry-After": Say(LIMIT, status=429),
    "429 as a page": Say(PAGE, status=429, headers={"Content-Type": "text/html"}),
    "500": Say({"error": {"message": "boom"}}, status=500),
    "500 without a body": Say(b"", status=500),
    "502 as a page": Say(PAGE, status=502, headers={"Content-Type": "text/html"}),
    "503 with Retry-After": Say(LIMIT, status=503, headers={"Retry-After": "0"}),
    "529": Say(OVERLOADED, status=529),
    "slow": Say(completion(), seconds=3.0),
    "silent in the middle": Say(completion(), stalls=3.0),
    "reset at once": Say(completion(), reset=True),
    "reset in the middle of a body": Say(completion("x" * 5000), reset_midway=True),
    "hangs up in the middle of a body": Say(completion("x" * 5000), torn=True),
    "truncated JSON": Say(json.dumps(completion()).encode()[:-9]),
    "no body": Say(b""),
    "wrong content type: a page": Say(PAGE, headers={"Content-Type": "text/html"}),
    "a page that is called JSON": Say(PAGE, headers={"Content-Type": "application/json"}),
    "badly compressed": Say(b"not gzip", headers={"Content-Encoding": "gzip"}),
    "200 with an error body": Say({"error": {"message": "overloaded", "code": 503}}),
    "200 with an error in the choice": Say({"choices": [{"error": {"message": "gone"}}]}),
    "200 with a detail": Say({"detail": "no"}),
    "no choices": Say({"choices": []}),
    "stream reset in the middle": Say(events=chunks(completion("x" * 300)), reset_midway=True),
    "stream torn in the middle": Say(events=chunks(completion("x" * 300)), torn=True),
    "stream silent in the middle": Say(events=chunks(completion("x" * 300)), stalls=3.0),
    "stream that ends early": Say(events=chunks(completion("x" * 300))[:20]),
    "stream with a torn event": Say(events=[event(c).decode()[:-9] for c in chunks(completion())[:1]]),
    "stream with an error": Say(events=[*chunks(completion())[:2], {"error": {"message": "gone"}}]),
    "stream of nothing": Say(events=[": hello\n\n", "data: [DONE]\n\n"]),
    "500 as a stream": Say(events=[event({"error": {"message": "boom"}}).decode()], status=500),
}


def patience(wrong: str) -> float:
    """Seconds to wait: few where waiting is what is tested, else so many that a busy machine is no matter."""
    return 0.5 if "slow" in wrong or "silent" in wrong else 20.0


def patiently(names: Iterable[str]) -> list[Any]:
    """The cases, those marked slow that are about waiting."""
    return [pytest.param(name, marks=[pytest.mark.slow] * (patience(name) < 1)) for name in names]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("wrong", patiently(PASSES))
def test_what_passes_is_asked_once_more(server: Server, tmp_path: Path, wrong: str, stream: bool) -> None:
    retries = 0 if wrong.startswith("429") else 1  # a rate limit uses up no retry
    result, asked = run(
        server, tmp_path, PASSES[wrong], 1, stream=stream, retries=retries, timeout_s=patience(wrong)
    )
    assert asked == 2
    assert (result.states, result.failed, result.sent, result.bought) == ({"done": 4}, [], 5, 4)


REASONS: dict[str, str] = {
    "500": "HTTP 500: boom",
    "500 without a body": "HTTP 500: no text",
    "502 as a page": "HTTP 502: <!DOCTYPE html>",
    "529": "HTTP 529: Overloaded",
    "slow": "no whole reply within 0.5 s|nothing came for 0.5 s",
    "reset in the middle of a body": "the connection broke off",
    "hangs up in the middle of a body": "the connection broke off",
    "truncated JSON": "the reply is not JSON, or broke off",
    "no body": "the reply is not JSON, or broke off",
    "wrong content type: a page": "the reply is a web page, not JSON",
    "200 with an error body": "the server reports: overloaded",
    "no choices": "the reply has no choices",
    "stream torn in the middle": "the connection broke off",
    "stream that ends early": "the stream broke off before its end",
    "stream silent in the middle": "no whole reply within 0.5 s|nothing came for 0.5 s",
    "stream with an error": "the server reports: gone",
    "stream of nothing": "the stream holds no reply",
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("wrong", patiently(REASONS))
def test_what_stays_is_failed_with_its_reason(
    server: Server, tmp_path: Path, wrong: str, stream: bool
) -> None:
    result, asked = run(server, tmp_path, PASSES[wrong], stream=stream, timeout_s=patience(wrong))
    assert asked == 2
    assert (result.states, result.bought) == ({"done": 3, "failed": 1}, 3)
    ((problem, reason),) = result.failed
    assert problem == "p1"
    assert any(one in reason for one in REASONS[wrong].split("|"))
    assert "\n" not in reason
    with Ledger(tmp_path / "l.sqlite") as ledger:
        assert ledger.totals().states == {"done": 3, "failed": 1}


# What is answered, in its way: paid for, kept, and never asked again.
ANSWERS: dict[str, tuple[Callable[[bool], Say], str, str, str]] = {
    "empty content": (lambda s: answer(completion(""), s), "empty", "", ""),
    "null content": (lambda s: answer(completion(None), s), "empty", "", ""),  # type: ignore[arg-type]
    "renamed thinking": (lambda s: answer(completion("42", reasoning="because"), s), "done", "because", "42"),
    "tagged thinking": (lambda s: answer(completion("<think>because</think>42"), s), "done", "because", "42"),
    "truncated": (lambda s: answer(completion("", "length", thinking="so"), s), "truncated", "so", ""),
    "refused": (lambda s: answer(completion("", refusal="no"), s), "refused", "", "no"),
    "a stream nobody asked for": (lambda s: Say(events=chunks(completion())), "done", "", "42"),
    "no stream though asked for": (lambda s: Say(completion()), "done", "", "42"),
    "JSON that is called a page": (
        lambda s: Say(completion(), headers={"Content-Type": "text/html"}),
        "done",
        "",
        "42",
    ),
    "a stream that is called JSON": (
        lambda s: Say(events=chunks(completion()), headers={"Content-Type": "application/json"}),
        "done",
        "",
        "42",
    ),
    "JSON behind blank lines": (
        lambda s: Say(b"\n" * 99 + json.dumps(completion()).encode()),
        "done",
        "",
        "42",
    ),
    "a message instead of a completion": (lambda s: Say(message("42", "because")), "done", "because", "42"),
    "a stream in CRLF with comments": (
        lambda s: Say(
            events=[
                ": processing\r\n\r\n" + event(one).decode().replace("\n", "\r\n")
                for one in chunks(completion())[:-1]
            ]
        ),
        "done",
        "",
        "42",
    ),
    "a stream without [DONE] and counts": (lambda s: Say(events=chunks(completion())[:-2]), "done", "", "42"),
}


def answer(reply: dict[str, Any], stream: bool) -> Say:
    return streamed(reply) if stream else Say(reply)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("way", ANSWERS)
def test_what_is_an_answer_is_kept_and_never_asked_again(
    server: Server, tmp_path: Path, way: str, stream: bool
) -> None:
    say, state, thinking, text = ANSWERS[way]
    result, asked = run(server, tmp_path, say(stream), stream=stream)
    assert asked == 1
    expected = {"done": 4} if state == "done" else {"done": 3, state: 1}
    assert (result.states, result.failed, len(result.traces)) == (expected, [], 4)
    (trace,) = [trace for trace in result.traces if trace.problem_id == "p1"]
    assert (trace.thinking, trace.answer) == (thinking, text)


def test_a_reply_without_end_is_failed(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "post_json", partial(wire.post_json, max_bytes=4000))
    result, _ = run(server, tmp_path, Say(completion("x" * 5000)))
    assert result.failed == [("p1", "the reply is longer than 4000 bytes")]
    (tmp_path / "s").mkdir()
    result, _ = run(server, tmp_path / "s", streamed(completion("x" * 5000)), stream=True)
    assert result.failed == [("p1", "the reply is longer than 4000 bytes")]


@pytest.mark.slow
def test_a_stream_may_take_longer_than_a_time_limit_as_long_as_it_goes_on(
    server: Server, tmp_path: Path
) -> None:
    slow = streamed(completion("x" * 12), pause=0.3)
    result, asked = run(server, tmp_path, slow, stream=True, timeout_s=1.5)
    assert (asked, result.states) == (1, {"done": 4})
    (tmp_path / "whole").mkdir()
    result, asked = run(server, tmp_path / "whole", slow, stream=False, timeout_s=1.5)
    assert result.failed == [("p1", "no whole reply within 1.5 s")]


# --- messages servers ---

MESSAGES: dict[str, Any] = {"api": "messages", "max_tokens": 100}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    "bad",
    [
        Say(OVERLOADED, status=529),
        Say({"type": "error", "error": {"type": "api_error", "message": "x"}}, status=500),
        Say(events=message_events(message())[:5]),
        Say(events=[*message_events(message())[:5], event(OVERLOADED, "error").decode()]),
        Say(OVERLOADED),
    ],
)
def test_messages_servers_fail_in_their_own_way(
    server: Server, tmp_path: Path, bad: Say, stream: bool
) -> None:
    result, asked = run(server, tmp_path, bad, 1, stream=stream, **MESSAGES)
    assert (asked, result.states) == (2, {"done": 4})


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("stop", "state"),
    [("max_tokens", "truncated"), ("model_context_window_exceeded", "truncated"), ("refusal", "refused")],
)
def test_messages_servers_end_in_their_own_way(
    server: Server, tmp_path: Path, stop: str, state: str, stream: bool
) -> None:
    reply = message("so far", "hm", stop=stop)
    bad = Say(events=message_events(reply)) if stream else Say(reply)
    result, asked = run(server, tmp_path, bad, stream=stream, **MESSAGES)
    assert (asked, result.states) == (1, {"done": 3, state: 1})
