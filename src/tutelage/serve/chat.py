"""`/v1/chat/completions`: a body becomes an order, and what is said becomes a reply or chunks.

Promises: a field that changes what a client gets is honoured or refused by name; `content` is never null;
what an assistant thought in earlier turns does not enter the prompt.
Does not: speak HTTP (see `app`, `stream`) or make text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tutelage.serve.body import Body, bad, flag, shown, table, whole
from tutelage.serve.fields import Thinking
from tutelage.serve.parameters import bounded, refuse_unsupported, sampling
from tutelage.serve.reply import DONE, Choice, Head, event, usage
from tutelage.serve.source import Order, Role, Said, Score, Turn

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}
_MOST_TURNS = 10_000
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
}
# Where the thinking stands in the content (`reasoning_format: "tags"`).
OPEN, CLOSE = "<think>\n", "\n</think>\n\n"


def read_order(body: Body, thinking: Thinking) -> Order:
    """The order of a chat request. Raises Refused(400)."""
    refuse_unsupported(body, _NEUTRAL)
    logprobs = None
    alternatives = whole(body, "top_logprobs", 0, 20)
    if flag(body, "logprobs"):
        logprobs = alternatives or 0
    elif alternatives:
        raise bad("top_logprobs", "needs logprobs: true")
    order = Order(prompt=read_turns(body.get("messages"), "messages"), logprobs=logprobs, **sampling(body))
    return bounded(order, thinking, body, ("max_completion_tokens", "max_tokens"))


def read_turns(messages: Any, field: str) -> tuple[Turn, ...]:
    """A list of messages as turns."""
    if not isinstance(messages, list) or not messages:
        raise bad(field, "must be a list of at least one message")
    if len(messages) > _MOST_TURNS:
        raise bad(field, f"holds {len(messages)} messages; at most {_MOST_TURNS} are allowed")
    return tuple(_turn(message, f"{field}[{number}]") for number, message in enumerate(messages))


def _turn(message: Any, where: str) -> Turn:
    if not isinstance(message, dict):
        raise bad(where, f"must be an object, not {shown(message)}")
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise bad(f"{where}.role", f"{shown(role)} is not served here; use one of {', '.join(_ROLES)}")
    for name in ("tool_calls", "function_call", "audio"):
        if message.get(name):
            raise bad(f"{where}.{name}", "is not supported by this server")
    content = message.get("content")
    if content is None and role == "assistant":
        content = message.get("refusal") or ""
    if isinstance(content, list):
        content = "".join(_part(part, f"{where}.content[{i}]") for i, part in enumerate(content))
    if not isinstance(content, str):
        raise bad(f"{where}.content", f"must be text or a list of text parts, not {shown(content)}")
    return Turn(_ROLES[role], content)


def _part(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else part
    if isinstance(kind, str) and kind in ("text", "input_text", "output_text", "refusal"):
        words = part.get("refusal" if kind == "refusal" else "text")
        if isinstance(words, str):
            return words
    raise bad(where, f"only text parts are supported, not {shown(kind)}")


@dataclass(frozen=True, slots=True)
class Chat:
    """The shapes of a chat reply (a `Kind`). `with_usage`: a stream ends with a chunk of usage."""

    head: Head
    thinking: Thinking
    order: Order
    with_usage: bool = False

    @classmethod
    def of(cls, body: Body, model: str, thinking: Thinking, order: Order) -> Chat:
        """The shapes that `body` asks for."""
        wanted = flag(table(body, "stream_options"), "include_usage", path="stream_options.include_usage")
        return cls(Head.new("chatcmpl", model), thinking, order, bool(wanted))

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        found = [
            {
                "index": choice.index,
                "message": self._message(choice),
                "finish_reason": choice.end.finish_reason,
                "logprobs": self._logprobs(choice.scores),
                "thinking": choice.told(self.order.policy),
            }
            for choice in choices
        ]
        return {
            **self.head.fields("chat.completion"),
            "choices": found,
            "usage": usage(choices, self.order.n),
            "thinking": found[0]["thinking"],
        }

    def opening(self, choices: Sequence[Choice]) -> bytes:
        delta = {"role": "assistant", "content": ""}
        return b"".join(self._chunk({"index": choice.index, "delta": delta}) for choice in choices)

    def piece(self, choice: Choice, said: Said) -> bytes:
        delta = self._delta(choice, said)
        if not delta and not (said.scores and said.phase == "answer"):
            return b""
        fields: dict[str, Any] = {"index": said.index, "delta": delta, "tokens": said.tokens}
        if said.forced:
            fields["forced"] = True
        if said.phase == "answer":
            fields["logprobs"] = self._logprobs(said.scores)
        return self._chunk(fields)

    def last(self, choice: Choice) -> bytes:
        told = choice.told(self.order.policy)
        # Cut off before any answer: the tag is not left open.
        unclosed = self.thinking.show == "tags" and choice.thought and not choice.answered
        delta = {"content": CLOSE} if unclosed else {}
        fields = {
            "index": choice.index,
            "delta": delta,
            "finish_reason": choice.end.finish_reason,
            "thinking": told,
        }
        return self._chunk(fields, {"thinking": told} if choice.index == 0 else {})

    def closing(self, choices: Sequence[Choice]) -> bytes:
        if not self.with_usage:
            return DONE
        head = self.head.fields("chat.completion.chunk")
        return event({**head, "choices": [], "usage": usage(choices, self.order.n)}) + DONE

    def _chunk(self, choice: Mapping[str, Any], extra: Mapping[str, Any] | None = None) -> bytes:
        fields = {"logprobs": None, "finish_reason": None, **choice}
        chunk = {**self.head.fields("chat.completion.chunk"), "choices": [fields], **(extra or {})}
        return event({**chunk, "usage": None} if self.with_usage else chunk)

    def _message(self, choice: Choice) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": choice.answer, "refusal": None}
        if self.thinking.show == "split":
            thought = choice.thinking or None
            message |= {"reasoning_content": thought, "reasoning": thought}
        elif self.thinking.show == "tags" and choice.thought:
            message["content"] = f"{OPEN}{choice.thinking}{CLOSE}{choice.answer}"
        return message

    def _delta(self, choice: Choice, said: Said) -> dict[str, str]:
        text, show = choice.text_of(said), self.thinking.show
        if not text:
            return {}
        if said.phase == "answer":
            first = show == "tags" and choice.thought and not choice.answered
            return {"content": f"{CLOSE}{text}" if first else text}
        if show == "hide":
            return {}
        if show == "tags":
            return {"content": text if choice.thought else f"{OPEN}{text}"}
        return {"reasoning_content": text, "reasoning": text}

    def _logprobs(self, scores: Sequence[Score]) -> dict[str, Any] | None:
        """OpenAI's shape; `bytes` are those of the token's text, null where it is part of a character."""
        if self.order.logprobs is None:
            return None

        def one(text: str, logprob: float) -> dict[str, Any]:
            known = None if "\N{REPLACEMENT CHARACTER}" in text else list(text.encode())
            return {"token": text, "logprob": logprob, "bytes": known}

        content = [
            {**one(score.text, score.logprob), "top_logprobs": [one(*other) for other in score.top]}
            for score in scores
        ]
        return {"content": content, "refusal": None}
