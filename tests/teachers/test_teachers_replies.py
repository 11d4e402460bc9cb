"""replies: thinking is found wherever servers put it, and nothing that a server sends raises."""

from __future__ import annotations

import json
from typing import Any

import pytest
from endpoint_server import completion, message
from hypothesis import example, given
from hypothesis import strategies as st

from tutelage.teachers.replies import error_text, one_line, parse_reply, read_message


def parse(body: Any) -> Any:
    return parse_reply(json.dumps(body).encode())


# --- where thinking comes from ---


@pytest.mark.parametrize(
    "message",
    [
        {"reasoning_content": "because"},
        {"reasoning": "because"},
        {"thinking": "because"},
        {"reasoning_details": [{"type": "reasoning.text", "text": "be"}, {"type": "x", "text": "cause"}]},
        {"reasoning_details": [{"type": "reasoning.summary", "summary": "because"}]},
        {"reasoning_content": "", "reasoning": "because"},
        {"reasoning_content": None, "reasoning": "because", "reasoning_details": [{"text": "because"}]},
        {"content": "<think>because</think>42"},
        {"content": "<thinking>\nbecause\n</thinking>\n\n42\n"},
        {"content": "<|begin_of_thought|>because<|end_of_thought|>42"},
        {"content": "because</think>42"},
        {"content": [{"type": "thinking", "thinking": "because"}, {"type": "text", "text": "42"}]},
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "because"}]}, "42"]},
        {"content": [{"type": "reasoning", "text": "because"}, {"type": "output_text", "text": "42"}]},
        {"content": "<think>because</think>42", "reasoning": "because"},
        {"content": [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "because"}]}, "42"]},
        {
            "content": [
                {
                    "type": "reasoning",
                    "content": [{"type": "reasoning_text", "text": "because"}],
                    "summary": [{"type": "summary_text", "text": "in short"}],
                },
                {"type": "text", "text": "42"},
            ]
        },
        {"content": [{"type": "redacted_thinking", "data": "Eo8"}, "<think>because</think>42"]},
        {"reasoning_details": [{"type": "reasoning.encrypted", "data": "g"}, {"summary": "because"}]},
        {"reasoning": {"content": "because"}},
    ],
)
def test_thinking_is_read_under_every_name(message: dict[str, Any]) -> None:
    found = parse(completion(**{"answer": "42", **message} if "content" not in message else message))
    assert (found.thinking, found.answer, found.state) == ("because", "42", "done")


def test_text_completions_are_read_too() -> None:
    found = parse({"choices": [{"text": "<think>because</think>42", "finish_reason": "stop"}]})
    assert (found.thinking, found.answer) == ("because", "42")


def test_encrypted_thinking_is_no_text() -> None:
    details = [{"type": "reasoning.encrypted", "data": "gAAAA"}]
    found = parse(completion("42", reasoning_details=details))
    assert (found.thinking, found.answer) == ("", "42")


def test_tags_in_the_answer_stay_where_thinking_has_its_own_field() -> None:
    text = "Write <think>this</think> in HTML."
    assert read_message({"content": text, "reasoning": "the user asks about tags"})[1] == text


# --- messages servers ---


def test_a_message_is_read() -> None:
    usage = {"input_tokens": 3, "output_tokens": 9, "cache_read_input_tokens": 4}
    found = parse(message("42", "because", usage=usage))
    assert (found.thinking, found.answer, found.finish_reason, found.state) == (
        "because",
        "42",
        "stop",
        "done",
    )
    assert (found.prompt_tokens, found.completion_tokens) == (7, 9)


def test_redacted_thinking_is_no_text() -> None:
    found = parse(message("42", blocks=[{"type": "redacted_thinking", "data": "Eo8"}]))
    assert (found.thinking, found.answer, found.state) == ("", "42", "done")


@pytest.mark.parametrize(
    ("stop", "finish", "state"),
    [
        ("end_turn", "stop", "done"),
        ("stop_sequence", "stop", "done"),
        ("max_tokens", "length", "truncated"),
        ("model_context_window_exceeded", "length", "truncated"),
        ("refusal", "refusal", "refused"),
        ("tool_use", "tool_use", "done"),
        ("pause_turn", "pause_turn", "done"),
        (None, "unknown", "done"),
    ],
)
def test_a_message_ends_as_it_says(stop: Any, finish: str, state: str) -> None:
    found = parse(message("42", stop=stop))
    assert (found.finish_reason, found.state) == (finish, state)


def test_a_message_without_text() -> None:
    assert parse({**message(), "content": []}).state == "empty"
    assert parse({**message(stop="refusal"), "content": []}).reason == "refusal"
    assert parse({**message(), "content": None}).reason == "the reply has no content"
    found = parse({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}})
    assert (found.state, found.reason) == ("failed", "the server reports: Overloaded")


# --- how it ended, what it counts ---


@pytest.mark.parametrize("finish", ["length", "max_tokens", "MAX_TOKENS".lower()])
def test_a_truncated_reply_is_kept_as_such(finish: str) -> None:
    found = parse(completion("<think>so far", finish=finish))
    assert (found.thinking, found.answer, found.finish_reason) == ("so far", "", "length")
    assert found.state == "truncated"


def test_refusals_and_filters() -> None:
    found = parse(completion(None, refusal="I cannot\nhelp"))  # type: ignore[arg-type]
    assert (found.state, found.reason, found.answer) == ("refused", "I cannot help", "I cannot\nhelp")
    assert parse(completion("", finish="content_filter")).state == "refused"


def test_a_reply_without_text_is_empty() -> None:
    assert parse(completion("  ")).state == "empty"
    assert parse(completion("", reasoning="only thinking")).state == "done"


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ({"prompt_tokens": 5, "completion_tokens": 9}, (5, 9, None)),
        (
            {
                "prompt_tokens": 5,
                "completion_tokens": 9,
                "completion_tokens_details": {"reasoning_tokens": 7},
            },
            (5, 9, 7),
        ),
        ({"prompt_tokens": 5, "completion_tokens": 9, "reasoning_tokens": 7, "total_tokens": 14}, (5, 9, 7)),
        ({"prompt_tokens": 5, "completion_tokens": 2, "reasoning_tokens": 7, "total_tokens": 14}, (5, 9, 7)),
        (
            {"prompt_tokens": True, "completion_tokens": -1, "completion_tokens_details": []},
            (None, None, None),
        ),
        ({"prompt_tokens": 10**30, "completion_tokens": "9"}, (None, None, None)),
        (None, (None, None, None)),
    ],
)
def test_tokens_are_counted_as_told(usage: Any, counts: tuple[int | None, ...]) -> None:
    found = parse({**completion("42", reasoning="because"), "usage": usage})
    assert (found.prompt_tokens, found.completion_tokens, found.usage.reasoning) == counts


def test_thinking_and_answer_tokens_are_split_only_where_the_split_is_known() -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 9, "reasoning_tokens": 7}
    found = parse({**completion("42", reasoning="because"), "usage": usage})
    assert (found.thinking_tokens, found.answer_tokens) == (7, 2)
    found = parse(completion("42", reasoning="because", usage=(5, 9)))
    assert (found.thinking_tokens, found.answer_tokens) == (None, None)
    found = parse(completion("42", usage=(5, 9)))
    assert (found.thinking_tokens, found.answer_tokens) == (0, 9)


# --- what is no reply ---


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "not JSON"),
        (b"<html>502</html>", "a web page, not JSON"),
        (b"\n<!DOCTYPE html><p>Log in", "a web page, not JSON: is base_url the address of an API?"),
        (b'{"choices": [', "not JSON"),
        (b"\xff\xfe\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"1" * 10_000, "not JSON"),
        (b"null", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"{}", "no choices"),
        (b'{"choices": []}', "no choices"),
        (b'{"choices": [{}]}', "neither a message nor a text"),
        (b'{"error": {"message": "overloaded"}}', "overloaded"),
        (b'{"choices": [{"error": {"code": 502}}]}', "502"),
        (b'{"choices": [{"message": {"content": "half"}, "finish_reason": "error"}]}', "ended the reply"),
    ],
)
def test_what_is_no_reply_has_a_reason(raw: bytes, reason: str) -> None:
    found = parse_reply(raw)
    assert found.state == "failed"
    assert reason in found.reason
    assert found.reason.isprintable()


def test_lone_surrogates_become_readable_text() -> None:
    raw = rb'{"choices": [{"message": {"content": "\ud800 42"}, "finish_reason": "st\udfffop"}]}'
    found = parse_reply(raw)
    assert found.answer.encode()
    assert found.finish_reason.encode()


names = st.sampled_from(
    [
        *("choices", "message", "content", "reasoning_content", "reasoning", "thinking", "reasoning_details"),
        *(
            "usage",
            "prompt_tokens",
            "completion_tokens",
            "completion_tokens_details",
            "reasoning_tokens",
            "type",
        ),
        *("text", "finish_reason", "error", "refusal", "total_tokens", "summary", "detail"),
    ]
)
leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["<think>", "thinking", "length", "content_filter", "x</think>y"])
)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4),
    max_leaves=20,
)
replies = st.fixed_dictionaries(
    {},
    optional={
        "choices": values
        | st.lists(
            st.fixed_dictionaries(
                {},
                optional={"message": st.dictionaries(names, values), "finish_reason": values, "text": values},
            ),
            max_size=2,
        ),
        "usage": values,
        "error": values,
    },
)


@given(replies | values)
@example({"choices": [{"message": {"content": [{"type": ["thinking"]}]}}]})
def test_any_json_is_read_without_an_exception(body: Any) -> None:
    found = parse(body)
    assert found.state != "owed"
    assert all(isinstance(text, str) for text in (found.thinking, found.answer, found.finish_reason))
    assert "\n" not in found.reason
    error_text(body)


@given(st.binary())
def test_any_bytes_are_read_without_an_exception(raw: bytes) -> None:
    parse_reply(raw)


@given(st.text())
def test_one_line_is_one_printable_line(text: str) -> None:
    assert one_line(text, 20).isprintable()
    assert len(one_line(text, 20)) <= 20
