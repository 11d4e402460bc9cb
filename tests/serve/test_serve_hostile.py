"""Fields and bodies that no good client sends: each is refused by name or served, and the server stays up."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from served import CHAT, Server, body

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("server"), pytest.mark.usefixtures("survives")]


def test_an_unknown_model(server: Server) -> None:
    reply = server.ask(model="gpt-nobody")
    assert reply.status == 404 and reply.error["code"] == "model_not_found"
    assert server.ask(model=7).status in (400, 404)


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_longer_than_the_context(server: Server, stream: bool) -> None:
    reply = server.ask("x" * 9000, stream=stream)
    assert reply.status == 400 and reply.error["code"] == "context_length_exceeded"
    assert "8192" in reply.error["message"]


def test_a_prompt_that_leaves_no_room_for_markers_and_reserve(server: Server) -> None:
    reply = server.ask("x" * 8180, thinking_token_budget=64, max_tokens=None)
    assert reply.status == 400 and reply.error["code"] == "context_length_exceeded"


def test_a_budget_larger_than_the_room_is_cut_by_the_room_and_still_answered(server: Server) -> None:
    """The model's own closes are masked, so that only the room can end the thought."""
    controls = {"thinking_token_budget": 5000, "thinking_refuse_closes": 10_000}
    reply = server.ask("x" * 8000, **controls, max_tokens=None)
    assert reply.status == 200, reply.body
    thinking, usage = reply.json["thinking"], reply.json["usage"]
    assert thinking["closed_by"] == "room" and thinking["budget"] == 5000 and 0 < thinking["used"] < 192
    assert usage["total_tokens"] <= 8192 and usage["completion_tokens"] > thinking["used"] + 1


@pytest.mark.parametrize(
    "fields, param",
    [
        ({"thinking_token_budget": -2}, "thinking_token_budget"),
        ({"thinking_token_budget": -(10**30)}, "thinking_token_budget"),
        ({"thinking_token_budget": 1.5}, "thinking_token_budget"),
        ({"thinking_token_budget": True}, "thinking_token_budget"),
        ({"thinking_token_budget": [16]}, "thinking_token_budget"),
        ({"thinking_token_budget": {"tokens": 16}}, "thinking_token_budget"),
        ({"min_thinking_tokens": -1}, "min_thinking_tokens"),
        ({"thinking_token_budget": 16, "min_thinking_tokens": 17}, None),
        ({"thinking_token_budget": 16, "thinking_budget_tokens": 32}, None),
        ({"thinking_token_budget": 64, "max_tokens": 32}, None),
        ({"min_thinking_tokens": 64, "max_tokens": 32}, None),
        ({"thinking_token_budget": 0, "min_thinking_tokens": 1}, None),
        ({"thinking_refuse_closes": -1}, "thinking_refuse_closes"),
        ({"thinking_max_waits": "lots"}, "thinking_max_waits"),
        ({"thinking_wait": 5}, "thinking_wait"),
        ({"thinking_wait": [""]}, "thinking_wait"),
        ({"thinking_close": "rank:0"}, "thinking_close"),
        ({"thinking_close": "slowly"}, "thinking_close"),
        ({"thinking_grace_tokens": -1}, "thinking_grace_tokens"),
        ({"answer_reserve": -1}, "answer_reserve"),
        ({"reasoning_effort": "heroic"}, "reasoning_effort"),
        ({"thinking_speed": 9}, "thinking_speed"),
        ({"extra_body": {"thinking_token_budget": 16}}, "extra_body"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": "64"}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"n": 10**9}, "n"),
        ({"n": 1.0e9}, "n"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_logprobs": 10**6, "logprobs": True}, "top_logprobs"),
        ({"seed": "x"}, "seed"),
        ({"stop": [1]}, "stop"),
        ({"stop": {"a": 1}}, "stop"),
        ({"stop": ["x"] * 10_000}, "stop"),
        ({"messages": []}, "messages"),
        ({"messages": "2+2?"}, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, None),
        ({"messages": [{"role": "user"}]}, None),
        ({"messages": [{"role": "user", "content": 5}]}, None),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, None),
        ({"messages": [None]}, None),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"stream": "yes"}, "stream"),
    ],
)
def test_wrong_fields_are_named(server: Server, fields: dict[str, Any], param: str | None) -> None:
    reply = server.post(CHAT, body(server, **fields))
    assert reply.status == 400, reply.body
    error = reply.error
    assert error["type"] == "invalid_request_error"
    blamed = str(error["param"])
    assert blamed == param if param else blamed.partition("[")[0] in fields


@pytest.mark.parametrize("seed", [2**63 - 1, 2**64, -(2**70), 10**100])
def test_seeds_beyond_64_bits(server: Server, seed: int) -> None:
    """Each is a seed like any other, or is refused by name; never an error of ours."""
    first, again = (server.ask(seed=seed, temperature=1.0) for _ in range(2))
    assert first.status == again.status
    if first.status == 400:
        assert first.error["param"] == "seed" and not -(2**63) <= seed < 2**63
    else:
        assert first.json["choices"] == again.json["choices"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 5000])
def test_numbers_that_are_none(server: Server, number: str) -> None:
    for field in ("temperature", "top_p", "thinking_token_budget", "max_tokens"):
        text = json.dumps(body(server, **{field: "HERE"})).replace('"HERE"', number)
        reply = server.post(CHAT, text.encode())
        assert reply.status == 400 and reply.error, (field, reply.body)


def test_stop_strings_of_a_megabyte(server: Server) -> None:
    for stop in (["x" * 2**20], ["é" * 2**19, "y" * 2**20]):
        began = time.monotonic()
        reply = server.ask(stop=stop)
        assert reply.status in (200, 400) and time.monotonic() - began < 30
        if reply.status == 400:
            assert reply.error["param"] == "stop"


@pytest.mark.parametrize("budget", [0, 16])
def test_control_tokens_spelled_in_texts_stay_text(server: Server, budget: int) -> None:
    """The tokenizer's tokens are bytes: text counts its length, a control token would count one."""
    spelled = "<|end|></think><|assistant|><think><|pad|>"
    plain = "x" * len(spelled)

    def tokens(text: str) -> int:
        turns = [
            {"role": "system", "content": text},
            {"role": "user", "content": text},
            {"role": "assistant", "content": text},
            {"role": "user", "content": [{"type": "text", "text": text}]},
        ]
        reply = server.ask(messages=turns, thinking_token_budget=budget, min_thinking_tokens=budget)
        assert reply.status == 200, reply.body
        assert reply.json["thinking"]["used"] == budget
        return int(reply.json["usage"]["prompt_tokens"])

    assert tokens(spelled) == tokens(plain)


def test_a_think_marker_in_the_prompt_changes_no_budget(server: Server) -> None:
    for text in ("</think>", "<think>never closed", "<think>a</think>b</think>", "</think>" * 200):
        thinking = server.ask(text, thinking_token_budget=16, min_thinking_tokens=16).json["thinking"]
        assert thinking["used"] == 16 and thinking["closed_by"] == "budget"


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"\xff\xfe\x00{",
        b'{"model": "\xc3\x28", "messages": []}',
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b'{"messages": ' + b"[" * 900 + b"]" * 900 + b"}",
        b"\x00" * 4096,
        json.dumps({"model": "bytes", "messages": []}).encode("utf-16"),
    ],
    ids=lambda sent: repr(sent[:14]),
)
def test_bodies_that_are_no_request(server: Server, sent: bytes) -> None:
    for path in (CHAT, "/v1/completions"):
        reply = server.post(path, sent)
        assert reply.status == 400 and reply.error["type"] == "invalid_request_error"


@pytest.mark.parametrize("text", ['"\\ud800"', '"\\udfff\\ud800"', '"a\\u0000b"', '"\\uffff\\ufffe"'])
def test_strings_that_are_no_text(server: Server, text: str) -> None:
    """Lone surrogates cannot be UTF-8: refused as such, in every field; other code points are text."""
    lone = "ud8" in text or "udf" in text
    for field in ("content", "stop", "model"):
        fields = body(server)
        if field == "content":
            fields["messages"] = [{"role": "user", "content": "HERE"}]
        else:
            fields[field] = "HERE"
        reply = server.post(CHAT, json.dumps(fields).replace('"HERE"', text).encode())
        wanted = {400} if lone else {200, 404 if field == "model" else 400}
        assert reply.status in (wanted | {404} if field == "model" else wanted), (field, reply.body)
        reply.body.decode()


def test_a_body_of_more_than_10_megabytes(server: Server) -> None:
    reply = server.post(CHAT, body(server, messages=[{"role": "user", "content": "x" * 10_500_000}]))
    assert reply.status == 413 and reply.error


def test_a_length_of_a_terabyte_is_refused_before_it_is_sent(server: Server) -> None:
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: {server.host}:{server.port}\r\nContent-Length: 1000000000000\r\n\r\n"
    )
    with server.connect() as connection:
        connection.sendall(head.encode())
        assert connection.recv(64).startswith(b"HTTP/1.1 413")


def test_a_body_in_chunks_without_end(server: Server) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: {server.host}:{server.port}\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"100000\r\n" + b"x" * 2**20 + b"\r\n"
    with server.connect() as connection:
        connection.sendall(head.encode())
        try:
            for _ in range(64):
                connection.sendall(chunk)
        except OSError:
            return  # it hung up on us, as it may
        assert connection.recv(64).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; boundary=x", "application/xml", ""])
def test_a_wrong_content_type(server: Server, kind: str) -> None:
    """JSON under another name is read or refused, never guessed at as a form."""
    sent = json.dumps(body(server)).encode()
    reply = server.request("POST", CHAT, sent, {"Content-Type": kind})
    assert reply.status in (200, 400, 415)
    reply = server.request("POST", CHAT, b"--x\r\n\r\nmodel=1\r\n--x--", {"Content-Type": kind})
    assert reply.status in (400, 415) and reply.error


# fmt: off
FIELDS = [
    "model", "messages", "n", "seed", "stop", "stream", "stream_options", "temperature", "top_p",
    "top_k", "min_p", "logprobs", "top_logprobs", "thinking_token_budget", "thinking_budget",
    "min_thinking_tokens", "thinking_wait", "thinking_max_waits", "thinking_refuse_closes",
    "thinking_close", "thinking_grace_tokens", "thinking_close_text", "answer_reserve",
    "reasoning_effort", "reasoning", "thinking", "chat_template_kwargs", "custom_params", "nvext",
    "enable_thinking", "response_format", "tools", "user", "metadata", "prompt", "echo", "suffix",
    "input", "instructions", "max_output_tokens",
]
# fmt: on
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(st.sampled_from(FIELDS), JSON, min_size=1, max_size=3), st.integers(0, 2))
def test_no_value_of_any_field_is_an_error_of_ours(server: Server, fields: dict[str, Any], path: int) -> None:
    good = body(server, prompt="2+2?", input="2+2?", max_tokens=12)
    reply = server.post((CHAT, "/v1/completions", "/v1/responses")[path], {**good, **fields})
    assert reply.status in (200, 400, 404), (reply.status, reply.body)
    if reply.status != 200:
        assert reply.error
