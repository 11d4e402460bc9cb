"""Reads replies of chat completions and text completions servers: thinking, answer, counts, how it ended.

Promises: never raises, whatever the bytes are (a reason instead); thinking is found in a separate field under
any of its names, in typed content blocks and in inline tags, whole or cut off; linear time.
Does not: judge, retry, or drop a truncated reply.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tutelage.ledger import State
from tutelage.records import clean_text

Tags = Sequence[tuple[str, str]]
TAGS: tuple[tuple[str, str], ...] = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
)
# `reasoning_content`: DeepSeek, LM Studio, older vLLM; `reasoning`: vLLM since January 2026, OpenRouter;
# `thinking`: Ollama; `reasoning_details`: OpenRouter's typed list. The first that holds text counts.
THINKING_FIELDS = ("reasoning_content", "reasoning", "thinking", "reasoning_details")
_THINKING_BLOCKS = frozenset(
    {"thinking", "reasoning", "reasoning.text", "reasoning.summary", "redacted_thinking"}
)
_TRUNCATED = frozenset({"length", "max_tokens", "max_output_tokens", "model_length"})
_MOST_TOKENS = 2**53
_DEEPEST = 8


@dataclass(frozen=True, slots=True)
class Parsed:
    """One reply, read. `state` and `reason` are the ledger's; `failed`: this is not a usable reply.

    `completion_tokens` counts thinking and answer together, `reasoning_tokens` the thinking alone (None: not
    told)."""

    thinking: str = ""
    answer: str = ""
    finish_reason: str = "unknown"
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    reasoning_tokens: int | None = None
    state: State = "failed"
    reason: str = ""

    @property
    def answer_tokens(self) -> int | None:
        """Completion tokens that are not thinking; None when the split is not told."""
        thinking = self.thinking_tokens
        if self.completion_tokens is None or thinking is None or thinking > self.completion_tokens:
            return None
        return self.completion_tokens - thinking

    @property
    def thinking_tokens(self) -> int | None:
        """Thinking tokens as told; 0 where there is neither a thinking text nor a count of a hidden one."""
        if self.reasoning_tokens is None and not self.thinking and self.completion_tokens is not None:
            return 0
        return self.reasoning_tokens


def parse_reply(raw: bytes, tags: Tags = TAGS) -> Parsed:
    """The first choice of a /chat/completions or /completions reply (the body as received).

    Never raises: what is not such a reply has the state `failed` and a one-line reason."""
    body = load_json(raw)
    if body is None:
        return Parsed(reason="the reply is not JSON, or broke off")
    if not isinstance(body, dict):
        return Parsed(reason="the reply is not a JSON object")
    if body.get("error"):
        return Parsed(reason=f"the server reports: {error_text(body)}")
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        return Parsed(reason="the reply has no choices")
    if choice.get("error"):
        return Parsed(reason=f"the server reports: {error_text(choice)}")
    finish = choice.get("finish_reason")
    finish = clean_text(finish) if isinstance(finish, str) and finish else "unknown"
    message = choice.get("message")
    if isinstance(message, dict):
        thinking, answer = read_message(message, tags, finish)
        refusal = _text(message.get("refusal"))
    elif isinstance(choice.get("text"), str):
        thinking, answer = split_tags(choice["text"], tags, finish)
        refusal = ""
    else:
        return Parsed(reason="the reply has neither a message nor a text")
    found = Parsed(clean_text(thinking), clean_text(answer), finish, state="done")
    return _with_state(_with_usage(found, body.get("usage")), refusal)


def _with_state(found: Parsed, refusal: str) -> Parsed:
    if found.finish_reason == "error":
        return replace(found, state="failed", reason="the server ended the reply with an error")
    if refusal.strip() or found.finish_reason == "content_filter":
        why = one_line(refusal) or "content filter"
        return replace(found, answer=found.answer or clean_text(refusal), state="refused", reason=why)
    if found.finish_reason in _TRUNCATED:
        return replace(found, finish_reason="length", state="truncated", reason="the token limit cut it off")
    if not found.thinking.strip() and not found.answer.strip():
        return replace(found, state="empty", reason="neither thinking nor answer")
    return found


def _with_usage(found: Parsed, usage: Any) -> Parsed:
    if not isinstance(usage, dict):
        return found
    details = usage.get("completion_tokens_details")
    prompt, completion = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    reasoning = _count(details.get("reasoning_tokens")) if isinstance(details, dict) else None
    if reasoning is None:
        reasoning = _count(usage.get("reasoning_tokens"))
    # Some servers leave the thinking out of completion_tokens; their total gives it away.
    total = _count(usage.get("total_tokens"))
    if (
        reasoning
        and prompt is not None
        and completion is not None
        and total == prompt + completion + reasoning
    ):
        completion += reasoning
    return replace(found, prompt_tokens=prompt, completion_tokens=completion, reasoning_tokens=reasoning)


def _count(value: Any) -> int | None:
    good = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_TOKENS
    return value if good else None


def read_message(
    message: Mapping[str, Any], tags: Tags = TAGS, finish_reason: str = "stop"
) -> tuple[str, str]:
    """(thinking, answer) of an assistant message, from fields, typed blocks or inline tags.

    Where thinking comes in a field of its own the content is left as it is, except that a tagged copy of that
    same thinking at its start is taken off. Never raises."""
    thinking = next((text for name in THINKING_FIELDS if (text := _text(message.get(name))).strip()), "")
    content = message.get("content")
    if isinstance(content, list):
        thinking = thinking or _text([part for part in content if _is_thinking(part)])
        content = [part for part in content if not _is_thinking(part)]
    content = _text(content)
    inline, rest = split_tags(content, tags, finish_reason)
    if not thinking.strip():
        return inline, rest
    return (thinking, rest) if inline.strip() == thinking.strip() else (thinking, content)


def _is_thinking(part: Any) -> bool:
    return isinstance(part, dict) and isinstance(part.get("type"), str) and part["type"] in _THINKING_BLOCKS


def _text(value: Any, depth: int = 0) -> str:
    """The text in a string, a block, or a list of either; "" for all else (encrypted blocks, numbers)."""
    if isinstance(value, str):
        return value
    if depth > _DEEPEST:
        return ""
    if isinstance(value, list):
        return "".join(_text(part, depth + 1) for part in value)
    if isinstance(value, dict):
        for name in ("text", "thinking", "reasoning", "summary", "content", "refusal"):
            if value.get(name):
                return _text(value[name], depth + 1)
    return ""


def split_tags(text: str, tags: Tags = TAGS, finish_reason: str = "stop") -> tuple[str, str]:
    """(thinking, answer) of a text with inline thinking tags; ("", text) when it has none.

    - a block anywhere is thinking; several are joined by a blank line;
    - no opener before the first closer (a template wrote it): all before the closer is thinking;
    - no closer: the rest is thinking where the text begins with the opener or was cut off by the token limit,
      else the opener is only mentioned and stays in the answer.
    Both parts come without surrounding white space when tags were found."""
    closer_of = {opener: closer for opener, closer in tags if opener and closer}
    if not closer_of:
        return "", text
    marks = re.compile("|".join(re.escape(mark) for pair in closer_of.items() for mark in pair))
    last = {closer: text.rfind(closer) for closer in closer_of.values()}
    thinking: list[str] = []
    answer: list[str] = []
    here, nothing_yet = 0, True
    while mark := marks.search(text, here):
        word, before = mark.group(), text[here : mark.start()]
        here = mark.end()
        nothing_yet = nothing_yet and not before.strip()
        closer = closer_of.get(word)
        if closer is None and not thinking and not answer:  # a template wrote the opener
            thinking.append(before)
            nothing_yet = True
        elif closer is not None and last[closer] >= here:
            end = text.find(closer, here)
            answer.append(before)
            thinking.append(text[here:end].strip().removeprefix(word))
            here = end + len(closer)
        elif closer is not None and (finish_reason in _TRUNCATED or nothing_yet):
            answer.append(before)
            thinking.append(text[here:])
            here = len(text)
        else:  # only mentioned
            answer.append(before + word)
            nothing_yet = False
    if not thinking:
        return "", text
    answer.append(text[here:])
    parts = [part.strip() for part in thinking]
    return "\n\n".join(part for part in parts if part), "".join(answer).strip()


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
            value = value.get("message") or value.get("code")
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
