"""streams: a streamed reply reads like the same reply unstreamed, and half a stream is none."""

from __future__ import annotations

import gzip
import json
import time
from typing import Any

import pytest
from endpoint_server import chunks, completion, event, message, message_events
from hypothesis import given
from hypothesis import strategies as st

from tutelage.teachers.replies import Parsed, parse_reply
from tutelage.teachers.streams import BROKE_OFF, events, is_stream, pack, read_stream, unpack


def stream(pieces: list[Any]) -> bytes:
    return b"".join(one.encode() if isinstance(one, str) else event(one) for one in pieces)


def unstreamed(reply: dict[str, Any]) -> Parsed:
    return parse_reply(json.dumps(reply).encode())


# --- the standard ---


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"data: a\n\ndata: b\n\n", ["a", "b"]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", ["a", "b"]),
        (b"data: a\r\rdata: b\r\r", ["a", "b"]),
        (b"\xef\xbb\xbfdata: a\n\n", ["a"]),
        (b"data: a\ndata: b\n\n", ["a\nb"]),
        (b"data:a\n\ndata:  b\n\n", ["a", " b"]),
        (b": keep-alive\n\ndata: a\n: more\n\n:\n\n", ["a"]),
        (b"id: 1\nretry: 5\ndata: a\nunknown: x\n\n", ["a"]),
        (b"data: a", ["a"]),
        (b"data\n\n", [""]),
        (b"event: x\n\n", []),
        ("data: \u2028\x0b\x85\n\n".encode(), ["\u2028\x0b\x85"]),
        (b"data: \xff\n\n", ["\ufffd"]),
    ],
)
def test_events_are_found_as_the_standard_says(raw: bytes, expected: list[str]) -> None:
    assert [data for _, data in events(raw)] == expected


def test_an_event_has_the_name_given_with_it() -> None:
    assert list(events(b"event: x\ndata: 1\n\ndata: 2\n\n")) == [("x", "1"), ("", "2")]


@pytest.mark.parametrize(
    "raw", [b"data: x", b": hi\n\ndata: x", b"\n\r\n event: x", b"\xef\xbb\xbfdata:", b"id:"]
)
def test_a_stream_is_known_by_its_beginning(raw: bytes) -> None:
    assert is_stream(raw)


@given(st.recursive(st.none() | st.integers() | st.text(), st.lists), st.sampled_from(["", " ", "\n\t"]))
def test_no_json_is_taken_for_a_stream(value: Any, before: str) -> None:
    assert not is_stream((before + json.dumps(value)).encode())
    assert not is_stream((before + json.dumps(value, ensure_ascii=False)).encode("utf-8", "replace"))


# --- the three kinds of servers ---

REPLIES = [
    completion("forty-two", reasoning_content="because"),
    completion("forty-two", reasoning="because", usage=None),
    completion("<think>because</think>forty-two"),
    completion("cut", finish="length", reasoning="be"),
    completion("no", refusal="I cannot"),
    completion(
        "42", reasoning_details=[{"type": "reasoning.text", "text": part} for part in ("be", "cause")]
    ),
    {"choices": [{"index": 0, "text": "because</think>42", "finish_reason": "stop"}], "usage": None},
    message("forty-two", "because"),
    message("cut", stop="max_tokens"),
    message("42", blocks=[{"type": "redacted_thinking", "data": "Eo8"}]),
    message(
        "no", stop="refusal", usage={"input_tokens": 3, "output_tokens": 9, "cache_read_input_tokens": 4}
    ),
]


@pytest.mark.parametrize("reply", REPLIES)
@pytest.mark.parametrize("size", [1, 3, 100])
def test_a_stream_reads_like_the_reply_it_adds_up_to(reply: dict[str, Any], size: int) -> None:
    pieces = message_events(reply, size) if "content" in reply else chunks(reply, size)
    assert parse_reply(stream(pieces)) == unstreamed(reply)


@given(st.text(), st.text(), st.integers(1, 7))
def test_any_text_comes_through_a_stream(thinking: str, answer: str, size: int) -> None:
    reply = completion(answer, reasoning_content=thinking)
    assert parse_reply(stream(chunks(reply, size))) == unstreamed(reply)
    said = message(answer, thinking)
    assert parse_reply(stream(message_events(said, size))) == unstreamed(said)


def test_typed_blocks_of_a_chat_stream() -> None:
    """As Mistral streams them: lists while it thinks, then texts."""
    deltas = [
        [{"type": "thinking", "thinking": [{"type": "text", "text": part}]}] for part in ("be", "cause")
    ]
    pieces = [{"choices": [{"delta": {"content": one}}]} for one in [*deltas, "4", "2"]]
    found = parse_reply(stream([*pieces, {"choices": [{"delta": {}, "finish_reason": "stop"}]}]))
    assert (found.thinking, found.answer, found.state) == ("because", "42", "done")


def test_only_the_first_choice_counts() -> None:
    pieces = [{"choices": [{"index": i, "delta": {"content": c}}]} for i, c in ((0, "a"), (1, "x"), (0, "b"))]
    end = {"choices": [{"index": 0, "finish_reason": "stop", "delta": {}}]}
    assert parse_reply(stream([*pieces, end])).answer == "ab"


def test_a_whole_message_in_an_event_is_the_message() -> None:
    """As Perplexity sends it beside the delta, and some proxies instead of one."""
    body = completion("42")
    assert parse_reply(stream([body])).answer == "42"
    both = {"choices": [{**body["choices"][0], "delta": {"content": "42"}}]}
    assert parse_reply(stream([both])).answer == "42"


def test_running_counts_are_not_added_up() -> None:
    pieces = chunks(completion("42", usage=(10, 20)))
    for number, piece in enumerate(pieces[:-2]):
        piece["usage"] = {"prompt_tokens": 10, "completion_tokens": number, "total_tokens": 10 + number}
    found = parse_reply(stream(pieces))
    assert (found.prompt_tokens, found.completion_tokens) == (10, 20)


# --- what is no reply ---


@pytest.mark.parametrize("reply", [REPLIES[0], REPLIES[6], REPLIES[7]])
def test_half_a_stream_is_no_reply(reply: dict[str, Any]) -> None:
    pieces = message_events(reply) if "content" in reply else chunks(reply)
    whole = stream(pieces)
    end = whole.rindex(b'finish_reason": "stop') if b"[DONE]" in whole else whole.rindex(b"end_turn")
    for cut in range(1, end, 7):
        found = parse_reply(whole[:cut])
        assert found.state == "failed"
    assert parse_reply(whole[: end - 40]).reason == BROKE_OFF


def test_a_stream_that_lost_only_its_counts_is_a_reply() -> None:
    whole = chunks(completion("42"))
    found = parse_reply(stream(whole[:-2]))
    assert (found.answer, found.state, found.completion_tokens) == ("42", "done", None)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"data: [DONE]\n\n", "the stream holds no reply"),
        (b": processing\n\n", BROKE_OFF),
        (b'data: {"choices": [{"delta": {"content": "a"}}]}\n\ndata: {"choi', BROKE_OFF),
        (b"data: {oops}\n\ndata: {}\n\n", "a piece of the stream is not JSON"),
        (b"data: " + b"[" * 100_000 + b"\n\n", BROKE_OFF),
        (b'data: {"error": {"message": "overloaded", "code": 502}}\n\n', "the server reports: overloaded"),
        (b'event: error\ndata: {"message": "no room"}\n\n', "the server reports: no room"),
        (
            b'event: error\ndata: {"type": "error", "error": {"type": "overloaded", "message": "Over"}}\n\n',
            "the server reports: Over",
        ),
        (
            b'data: {"choices": [{"delta": {"content": ""}, "finish_reason": "error"}],'
            b' "error": {"code": "server_error", "message": "gone"}}\n\n',
            "the server reports: gone",
        ),
        (b"data: 1\n\ndata: null\n\ndata: []\n\ndata: [DONE]\n\n", "the stream holds no reply"),
    ],
)
def test_a_stream_without_a_reply_has_a_reason(raw: bytes, reason: str) -> None:
    found = parse_reply(raw)
    assert (found.state, found.reason) == ("failed", reason)


@given(st.lists(st.sampled_from(REPLIES), min_size=1, max_size=3), st.data())
def test_any_mixed_up_stream_is_read_without_an_exception(replies: list[dict[str, Any]], data: Any) -> None:
    pieces = [p for one in replies for p in (message_events(one) if "content" in one else chunks(one))]
    raw = bytearray(stream(data.draw(st.permutations(pieces))))
    for place in data.draw(st.lists(st.integers(0, len(raw) - 1), max_size=5)):
        raw[place] = data.draw(st.integers(0, 255))
    parse_reply(bytes(raw))


names = st.sampled_from(["choices", "index", "delta", "content", "text", "usage", "type", "message"])
names |= st.sampled_from(["content_block", "stop_reason", "error", "finish_reason", "reasoning_details"])
names |= st.sampled_from(["message_start", "content_block_start", "content_block_delta", "thinking"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4),
    max_leaves=15,
)


@given(st.lists(values, max_size=5))
def test_any_events_are_read_without_an_exception(pieces: list[Any]) -> None:
    found = read_stream(stream([event(one).decode() for one in pieces]))
    assert isinstance(found, str | dict)


@pytest.mark.slow
def test_a_long_stream_is_read_in_linear_time() -> None:
    reply = completion("y" * 10_000, reasoning_content="x" * 20_000)
    raw = stream(chunks(reply, 1))
    begun = time.process_time()
    assert parse_reply(raw) == unstreamed(reply)
    assert time.process_time() - begun < 5


# --- as the ledger keeps it ---


@given(st.binary() | st.binary().map(gzip.compress) | st.binary().map(lambda raw: b"data: " + raw))
def test_unpacking_gives_back_what_came(raw: bytes) -> None:
    assert unpack(pack(raw)) == raw


def test_a_stream_takes_little_more_room_than_the_reply_it_adds_up_to() -> None:
    reply = completion("y" * 300, reasoning_content="x" * 3000)
    raw = stream(chunks(reply, 4))
    assert len(raw) > 20 * len(json.dumps(reply)) > 20 * len(pack(raw)) / 2
    assert parse_reply(pack(raw)) == parse_reply(raw) == unstreamed(reply)
    plain = json.dumps(reply).encode()
    assert pack(plain) == plain, "other replies can be read in the ledger as they are"


@pytest.mark.parametrize(
    "raw",
    [gzip.compress(b"{}")[:-4], b"\x1f\x8b", b"\x1f\x8bnot gzip", gzip.compress(b" " * 2**27)],
    ids=["torn", "mark alone", "not gzip", "bomb"],
)
def test_what_is_packed_wrongly_is_no_reply(raw: bytes) -> None:
    assert parse_reply(raw).state == "failed"
    assert parse_reply(pack(raw)).state == "failed"


def test_what_a_server_packed_itself_is_not_unpacked() -> None:
    """Else a key inside it would be read, though nobody could see it to hide it."""
    assert parse_reply(pack(gzip.compress(json.dumps(completion("42")).encode()))).state == "failed"
