"""Reads replies of chat, text and messages servers, streamed or not: thinking, answer, counts, how it ended.

Promises: never raises, whatever the bytes are (a reason instead); thinking is found in a separate field under
any of its names, in typed content blocks and in inline tags, whole or cut off; what a server wrote into a
field of its own, control tokens included, comes through as text; linear time.
Does not: look at what the server called the content type (a reply that was paid for and can be read is read),
judge, retry, or drop a truncated reply.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tutelage.ledger import State
from tutelage.records import ClosedBy, clean_text
from tutelage.teachers.streams import is_stream, read_stream, unpack
from tutelage.teachers.tags import TAGS, Tags, split_tags
from tutelage.teachers.usage import NOT_TOLD, Usage, read_usage

# `reasoning_content`: DeepSeek, LM Studio, older vLLM; `reasoning`: vLLM since January 2026, OpenRouter;
# `thinking`: Ollama; `reasoning_details`: OpenRouter's typed list. The first that holds text counts.
THINKING_FIELDS = ("reasoning_content", "reasoning", "thinking", "reasoning_details")
_THINKING_BLOCKS = frozenset(
    {"thinking", "reasoning", "reasoning.text", "reasoning.summary", "redacted_thinking"}
)
_TRUNCATED = frozenset(
    {"length", "max_tokens", "max_output_tokens", "model_length", "model_context_window_exceeded"}
)
_REFUSED = frozenset({"content_filter", "refusal"})
# Anthropic's names of an ordinary end; `tool_use` and `pause_turn` stay as they are.
_STOPPED = frozenset({"end_turn", "stop_sequence"})
_DEEPEST = 8


@dataclass(frozen=True, slots=True)
class Parsed:
    """One reply, read. `state` and `reason` are the ledger's; `failed`: this is not a usable reply.

    `usage` is what the server tells; completion tokens count thinking and answer together. What only a model
    of our own can tell: `closed_by`, the forced tokens of thinking and answer (which `usage` leaves out), and
    the forced spans of the thinking (None: not told)."""

    thinking: str = ""
    answer: str = ""
    finish_reason: str = "unknown"
    usage: Usage = NOT_TOLD
    state: State = "failed"
    reason: str = ""
    closed_by: ClosedBy | None = None
    thinking_forced: int | None = None
    answer_forced: int | None = None
    forced_spans: tuple[tuple[int, int], ...] = ()

    @property
    def prompt_tokens(self) -> int | None:
        return self.usage.prompt

    @property
    def completion_tokens(self) -> int | None:
        return self.usage.completion

    @property
    def answer_tokens(self) -> int | None:
        """Completion tokens that are not thinking; None when the split is not told."""
        thinking, whole = self.thinking_tokens, self.completion_tokens
        if whole is None or thinking is None or thinking > whole:
            return None
        return whole - thinking

    @property
    def thinking_tokens(self) -> int | None:
        """Thinking tokens as told; 0 where there is neither a thinking text nor a count of a hidden one."""
        if self.usage.reasoning is None and not self.thinking and self.completion_tokens is not None:
            return 0
        return self.usage.reasoning


def parse_reply(raw: bytes, tags: Tags = TAGS, *, opened: bool = False) -> Parsed:
    """The first choice of a reply (the body as received, or as `streams.pack` packed it).

    `opened`: the prompt ends inside the thinking, so that a truncated text without any tag is thinking. Never
    raises: what is not such a reply has the state `failed` and a one-line reason."""
    raw = unpack(raw)
    body = read_stream(raw) if is_stream(raw) else load_json(raw)
    if isinstance(body, str) and is_stream(raw):
        return Parsed(reason=body)
    if body is None:
        if raw[:100].lstrip().startswith(b"<"):
            return Parsed(reason="the reply is a web page, not JSON: is base_url the address of an API?")
        return Parsed(reason="the reply is not JSON, or broke off")
    if not isinstance(body, dict):
        return Parsed(reason="the reply is not a JSON object")
    if body.get("error"):
        return Parsed(reason=f"the server reports: {error_text(body)}")
    found = _message_reply(body, tags) if _is_message(body) else _choice_reply(body, tags, opened)
    if isinstance(found, str):
        return Parsed(reason=found)
    return replace(found, usage=read_usage(body.get("usage")))


def _is_message(body: Mapping[str, Any]) -> bool:
    return "choices" not in body and (body.get("type") == "message" or "stop_reason" in body)


def _message_reply(body: Mapping[str, Any], tags: Tags) -> Parsed | str:
    """The reply of a messages server."""
    if not isinstance(body.get("content"), str | list):
        return "the reply has no content"
    finish = _finish(body.get("stop_reason"))
    thinking, answer = read_message(body, tags, is_truncated(finish))
    found = Parsed(clean_text(thinking), clean_text(answer), "stop" if finish in _STOPPED else finish)
    return _with_state(found, "")


def _choice_reply(body: Mapping[str, Any], tags: Tags, opened: bool) -> Parsed | str:
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        return "the reply has no choices"
    if choice.get("error"):
        return f"the server reports: {error_text(choice)}"
    finish = _finish(choice.get("finish_reason"))
    truncated = is_truncated(finish)
    message = choice.get("message")
    if isinstance(message, dict):
        thinking, answer = read_message(message, tags, truncated)
        refusal = _text(message.get("refusal"))
    elif isinstance(choice.get("text"), str):
        thinking, answer = split_tags(choice["text"], tags, truncated)
        refusal = ""
    else:
        return "the reply has neither a message nor a text"
    if opened and truncated and not thinking.strip():
        thinking, answer = answer.strip(), ""
    return _with_state(Parsed(clean_text(thinking), clean_text(answer), finish), refusal)


def _finish(told: Any) -> str:
    return clean_text(told) if isinstance(told, str) and told else "unknown"


def is_truncated(finish_reason: str) -> bool:
    """Whether this finish reason, of any server, says that a token limit cut the reply off."""
    return finish_reason in _TRUNCATED


def _with_state(found: Parsed, refusal: str) -> Parsed:
    if found.finish_reason == "error":
        return replace(found, state="failed", reason="the server ended the reply with an error")
    if refusal.strip() or found.finish_reason in _REFUSED:
        why = one_line(refusal) or found.finish_reason.replace("_", " ")
        return replace(found, answer=found.answer or clean_text(refusal), state="refused", reason=why)
    if is_truncated(found.finish_reason):
        return replace(found, finish_reason="length", state="truncated", reason="the token limit cut it off")
    if not found.thinking.strip() and not found.answer.strip():
        return replace(found, state="empty", reason="neither thinking nor answer")
    return replace(found, state="done")


def read_message(message: Mapping[str, Any], tags: Tags = TAGS, truncated: bool = False) -> tuple[str, str]:
    """(thinking, answer) of an assistant message, from fields, typed blocks or inline tags.

    Where thinking comes in a field of its own the content is left as it is, except that a tagged copy of that
    same thinking at its start is taken off. Never raises."""
    thinking = next((text for name in THINKING_FIELDS if (text := _text(message.get(name))).strip()), "")
    content = message.get("content")
    if isinstance(content, list):
        thinking = thinking or _text([part for part in content if _is_thinking(part)])
        content = [part for part in content if not _is_thinking(part)]
    content = _text(content)
    inline, rest = split_tags(content, tags, truncated)
    if not thinking.strip():
        return inline, rest
    return (thinking, rest) if inline.strip() == thinking.strip() else (thinking, content)


def _is_thinking(part: Any) -> bool:
    return isinstance(part, dict) and isinstance(part.get("type"), str) and part["type"] in _THINKING_BLOCKS


def _text(value: Any, depth: int = 0) -> str:
    """The text in a string, a block, or a list of either; "" for all else (encrypted blocks, numbers). Where
    a block holds its whole text and a summary, the whole."""
    if isinstance(value, str):
        return value
    if depth > _DEEPEST:
        return ""
    if isinstance(value, list):
        return "".join(_text(part, depth + 1) for part in value)
    if isinstance(value, dict):
        for name in ("text", "thinking", "reasoning", "content", "summary", "refusal"):
            if value.get(name):
                return _text(value[name], depth + 1)
    return ""


def load_json(raw: bytes) -> Any:
    """The JSON value, None when it is none (or `null`, or nested too deeply, or holds a number too long)."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None


def error_text(body: Any) -> str:
    """What an error reply says, on one line: the usual fields of OpenAI-like servers, else its type."""
    for name in ("error", "message", "detail"):
        value = body.get(name) if isinstance(body, dict) else None
        if isinstance(value, dict):
            value = value.get("message") or value.get("type") or value.get("code")
        if value:
            try:
                return one_line(value if isinstance(value, str) else json.dumps(value))
            except RecursionError:
                return "an error that is nested too deeply to show"
    return "an error without a message"


def one_line(text: str, longest: int = 200) -> str:
    """`text` on one printable line, cut to `longest` characters."""
    flat = " ".join(clean_text(text[: longest * 8]).split())
    flat = "".join(c if c.isprintable() else "?" for c in flat)
    return flat if len(flat) <= longest else flat[: longest - 1] + "…"
