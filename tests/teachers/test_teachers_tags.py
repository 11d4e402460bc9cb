"""tags: what was written between tags is read back, whole or cut off."""

from __future__ import annotations

import json
import time

import pytest
from endpoint_server import completion
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tutelage.records import clean_text
from tutelage.teachers.replies import parse_reply
from tutelage.teachers.tags import TAGS, split_tags

MARKS = [mark for pair in TAGS for mark in pair]
# Any text, and texts made of tags, halves of tags and control tokens.
HOSTILE = st.lists(
    st.sampled_from([*MARKS, "<", "</think", "think>", "<|im_end|>", "<|endoftext|>", " ", "\n", "a"])
    | st.text()
).map("".join)


@given(HOSTILE, HOSTILE, st.sampled_from(TAGS), st.booleans())
@example("<think", "<", TAGS[0], True)
@example("", "", TAGS[0], False)
def test_reading_gives_back_what_was_written(
    thinking: str, answer: str, tag: tuple[str, str], truncated: bool
) -> None:
    """For every thinking and answer without white space at their ends, where the thinking holds no copy of
    its own closer and does not begin with its own opener, and the answer holds no tag."""
    opener, closer = tag
    thinking, answer = thinking.strip(), answer.strip()
    assume(closer not in thinking and not thinking.startswith(opener))
    assume(not any(mark in answer for mark in MARKS))
    assert split_tags(opener + thinking + closer + answer, truncated=truncated) == (thinking, answer)


@given(HOSTILE, HOSTILE, st.sampled_from(["", " ", "\n", "\n\n"]))
def test_reading_a_reply_gives_back_what_was_written(thinking: str, answer: str, space: str) -> None:
    """The same through a server's JSON, with white space where templates put it."""
    thinking, answer = thinking.strip(), answer.strip()
    assume("</think>" not in thinking and not thinking.startswith("<think>"))
    assume(not any(mark in answer for mark in MARKS))
    text = f"<think>{space}{thinking}{space}</think>{space}{answer}"
    found = parse_reply(json.dumps(completion(text)).encode())
    assert (found.thinking, found.answer) == (clean_text(thinking), clean_text(answer))


@given(HOSTILE, HOSTILE)
def test_a_field_of_its_own_comes_through_as_it_is(thinking: str, answer: str) -> None:
    """For any thinking that is not blank: tags and control tokens in it, and in the answer, are text."""
    assume(thinking.strip())
    _, tagged = split_tags(answer)
    assume(tagged == answer)
    found = parse_reply(json.dumps(completion(answer, reasoning_content=thinking)).encode())
    assert (found.thinking, found.answer) == (clean_text(thinking), clean_text(answer))


@pytest.mark.parametrize(
    "token", ["<|im_end|>", "</s>", "<|eot_id|>", "</think>", "<think>", "<|endoftext|>"]
)
def test_control_tokens_in_a_field_of_its_own_are_text(token: str) -> None:
    found = parse_reply(json.dumps(completion(f"a {token} b", reasoning=f"c {token} d")).encode())
    assert (found.thinking, found.answer) == (f"c {token} d", f"a {token} b")


@pytest.mark.parametrize(
    ("text", "truncated", "expected"),
    [
        ("plain", False, ("", "plain")),
        (" plain\n", False, ("", " plain\n")),
        ("<think>a</think>b", False, ("a", "b")),
        ("a</think>b", False, ("a", "b")),
        ("</think>b", False, ("", "b")),
        ("<think>a", False, ("a", "")),
        ("\n<think>\na", True, ("a", "")),
        ("<think></think>b", False, ("", "b")),
        ("<think><think>a</think>b", False, ("a", "b")),
        ("<think>a</think>b<think>c</think>d", False, ("a\n\nc", "bd")),
        ("a</think>b<think>c</think>d", False, ("a\n\nc", "bd")),
        ("<think>a</think>b<think>c", True, ("a\n\nc", "b")),
        ("Sure. <think>a</think>b", False, ("a", "Sure. b")),
        ("The tag <think> opens.", False, ("", "The tag <think> opens.")),
        ("Sure. <think>cut", True, ("cut", "Sure.")),
        ("<think>a</think>The tag <think> opens.", False, ("a", "The tag <think> opens.")),
        ("<think>a</think>Then </think> closes.", False, ("a", "Then </think> closes.")),
        ("<think>a<thinking>b</thinking>c</think>d", False, ("a<thinking>b</thinking>c", "d")),
    ],
)
def test_inline_tags_whole_and_cut_off(text: str, truncated: bool, expected: tuple[str, str]) -> None:
    assert split_tags(text, truncated=truncated) == expected


def test_tags_can_be_configured() -> None:
    assert split_tags("[T]a[/T]<think>b", [("[T]", "[/T]")]) == ("a", "<think>b")
    assert split_tags("<think>a</think>b", ()) == ("", "<think>a</think>b")
    assert split_tags("<think>a</think>b", [("", "")]) == ("", "<think>a</think>b")
    # Of two tags where one begins like the other, the whole one is meant.
    assert split_tags("<t>>a</t>>b", [("<t>", "</t>"), ("<t>>", "</t>>")]) == ("a", "b")


@given(st.lists(st.sampled_from(["<think>", "</think>", "<thinking>", "</thinking>", "a", " ", "\n"])))
def test_no_text_is_lost_or_made_up(parts: list[str]) -> None:
    text = "".join(parts)
    thinking, answer = split_tags(text)
    assert (thinking + answer).count("a") == text.count("a")


@pytest.mark.parametrize(
    "piece", ["<think>", "</think>", "<think></think>", "x<think>", "<think>a</thinking>"]
)
@pytest.mark.parametrize("truncated", [False, True])
def test_megabytes_of_tags_are_read_in_linear_time(piece: str, truncated: bool) -> None:
    text = "x" + piece * (2_000_000 // len(piece))
    start = time.process_time()
    split_tags(text, truncated=truncated)
    assert time.process_time() - start < 2


def test_a_truncated_text_without_tags_is_thinking_where_the_prompt_opened_it() -> None:
    """A template wrote the opener, the limit cut the closer off: nothing in the text tells."""
    raw = json.dumps(completion(" so far", finish="length")).encode()
    found = parse_reply(raw, opened=True)
    assert (found.thinking, found.answer, found.state) == ("so far", "", "truncated")
    assert parse_reply(raw).answer == " so far"
    both = json.dumps(completion("so far", finish="length", reasoning="because")).encode()
    assert parse_reply(both, opened=True).answer == "so far"
    whole = json.dumps(completion("42")).encode()
    assert parse_reply(whole, opened=True).answer == "42"
