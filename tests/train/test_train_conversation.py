"""Chat templates that keep, delete, change or double the thinking, written for the purpose and published."""

from __future__ import annotations

import pytest
import traps
from hypothesis import given
from hypothesis import strategies as st

from tinymodel import byte_tokenizer
from tutelage.errors import UsageError
from tutelage.students.template import Template
from tutelage.train.conversation import Conversation, converse, refuse_conversation


def tried(chat: str | None, template: Template | None = None) -> Conversation:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = chat
    return converse(tokenizer, template or Template())


@pytest.mark.parametrize(
    ("chat", "content", "field"),
    [
        (traps.PLAIN, "kept", "deleted"),
        (traps.QWEN3_LIKE, "kept", "kept"),
        (traps.DELETES, "deleted", "deleted"),
        (traps.STRIPS, "changed", "deleted"),
        (traps.DOUBLES, "doubled", "deleted"),
        (traps.REFUSES, "refused", "refused"),
    ],
)
def test_what_a_template_does_is_seen(chat: str, content: str, field: str) -> None:
    found = tried(chat)
    assert found.last == {"content": content, "reasoning_content": field}
    assert found.faithful == ("kept" in (content, field))


def test_leaving_out_earlier_thinking_is_meant() -> None:
    found = tried(traps.QWEN3_LIKE)
    assert found.faithful and set(found.earlier.values()) == {"deleted"}


@pytest.mark.parametrize(
    ("name", "faithful", "content", "field", "earlier"),
    [
        ("deepseek_r1_distill", False, "deleted", "deleted", "deleted"),
        ("deepseekv3", False, "deleted", "deleted", "deleted"),
        ("qwen3", True, "kept", "kept", "deleted"),
        ("qwen3_8", True, "doubled", "kept", "doubled"),
        ("qwen2_5", True, "kept", "deleted", "kept"),
        ("phi3", True, "kept", "deleted", "kept"),
        ("gptoss", True, "kept", "without its markers", "kept"),
        ("glm4moe", True, "kept", "kept", "deleted"),
    ],
)
def test_published_templates(name: str, faithful: bool, content: str, field: str, earlier: str) -> None:
    found = tried(traps.published(name))
    assert found.faithful == faithful
    assert (found.last["content"], found.last["reasoning_content"]) == (content, field)
    assert found.earlier["content"] == earlier


def test_the_refusal_names_the_model_and_what_happened() -> None:
    with pytest.raises(UsageError) as caught:
        refuse_conversation(tried(traps.published("deepseek_r1_distill")), "models/r1")
    message = str(caught.value)
    assert message.startswith("models/r1: ") and "content: the template deletes it" in message
    assert "chat_template: any" in message and "\n" not in message


def test_a_template_that_opens_the_thinking_itself_is_noticed() -> None:
    assert tried(traps.published("deepseek_r1_distill")).marker_given
    assert not tried(traps.PLAIN).marker_given
    assert tried(None).marker_given is None and tried(None).faithful


@given(st.sampled_from(["<think>", "[T]", "<|im_start|>think"]), st.sampled_from(["</think>", "[/T]"]))
def test_a_template_that_passes_content_through_keeps_any_markers(opening: str, closing: str) -> None:
    found = tried(traps.PLAIN, Template(think_open=opening, think_close=closing))
    assert found.last["content"] == "kept"
