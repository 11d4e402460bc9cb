"""`tutelage serve --upstream`: the whole way from a client over the proxy to an upstream and back."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from served import CHAT, Server, body, serving, wait_until
from test_serve_upstream import V, says
from upstream_server import Fake, Mishap, upstream


@pytest.fixture(scope="module")
def fake() -> Iterator[Fake]:
    with upstream("vllm", says("ab|")) as found:
        yield found


@pytest.fixture(scope="module")
def proxy(fake: Fake, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("proxy") / "log"
    with serving(Path("m"), log, "--upstream", fake.url) as found:
        yield found


def test_a_reply_and_its_counts(proxy: Server) -> None:
    reply = proxy.ask(min_thinking_tokens=5, thinking_wait="Wait", thinking_token_budget=9).json
    message = reply["choices"][0]["message"]
    assert message["content"].strip() == "It is 42."
    # The prompt ends with a line break, so the first thought is a "b"; closes are refused up to five tokens.
    assert message["reasoning_content"] == "bWaitabWaitab"
    thinking = reply["thinking"]
    assert [thinking[name] for name in ("used", "sampled", "forced", "waits")] == [7, 5, 2, 2]
    assert (thinking["refused"], thinking["closed_by"]) == (2, "model")
    assert reply["usage"]["completion_tokens_details"]["reasoning_tokens"] == thinking["used"]


def test_a_stream_marks_what_was_forced_and_says_done(proxy: Server) -> None:
    fields = body(proxy, stream=True, thinking_token_budget=1, thinking_close_text="Final Answer:")
    events = proxy.post(CHAT, fields).events
    assert events[-1] == "[DONE]"
    choices = [one["choices"][0] for one in map(json.loads, events[:-1]) if one["choices"]]
    forced = "".join(one["delta"].get("content", "") for one in choices if one.get("forced"))
    assert forced == "Final Answer:"
    assert choices[-1]["finish_reason"] == "stop"


def test_what_cannot_be_done_and_what_the_upstream_says_come_back_as_errors(
    proxy: Server, fake: Fake
) -> None:
    refused = proxy.ask(thinking_token_budget=8, thinking_close="rank:3", thinking_grace_tokens=4)
    assert (refused.status, refused.error["param"]) == (400, "thinking_close")
    long = proxy.ask(messages=[{"role": "user", "content": "a" * 600}])
    assert (long.status, long.error["code"]) == (400, "context_length_exceeded")
    fake.mishaps = {len(fake.bodies): Mishap(429, {"Retry-After": "7"}, {"error": {"message": "full"}})}
    busy = proxy.ask()
    assert (busy.status, busy.headers["retry-after"]) == (429, "7")
    fake.mishaps = {len(fake.bodies): Mishap(after=2)}
    assert proxy.ask(thinking_token_budget=40).status == 502
    fake.mishaps = {}
    assert proxy.ask().status == 200


def test_a_client_that_hangs_up_stops_the_upstream(proxy: Server, fake: Fake) -> None:
    model, fake.model, fake.pause = fake.model, lambda ids: V.encode(" so"), 0.01
    fake.aborted.clear()
    try:
        with proxy.connect() as connection:
            connection.sendall(proxy.raw(CHAT, body(proxy, stream=True, max_tokens=400)))
            assert b"200" in connection.recv(100)
            wait_until(lambda: proxy.rows() == 1, 10, "the reply is running")
        wait_until(lambda: len(fake.aborted) == 1, 10, "the upstream is told")
        wait_until(lambda: proxy.rows() == 0, 10, "the reply is gone")
    finally:
        fake.model, fake.pause = model, 0.0


def test_a_proxy_loads_no_torch() -> None:
    code = "import sys, tutelage.serve.upstream; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
