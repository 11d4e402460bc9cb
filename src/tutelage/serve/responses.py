"""`/v1/responses`: OpenAI's newer shape for the same thing, for text.

Promises: thinking is an output item of its own, before the message; a stream tells every item from its start
to its end, numbered without gaps, and ends with the whole response; nothing is stored, and what would need
stored responses, tools or other formats is refused by name.
Does not: keep conversations (`previous_response_id`), or speak of several choices.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tutelage.serve.body import Body, bad, shown, table, text
from tutelage.serve.chat import read_turns
from tutelage.serve.fields import Thinking
from tutelage.serve.parameters import bounded, refuse_unsupported, sampling
from tutelage.serve.reply import Choice, Head, event, usage
from tutelage.serve.source import Order, Said, Turn

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "previous_response_id": (),
    "conversation": (),
    "background": (False,),
    "truncation": ("disabled",),
    "include": ([], ["reasoning.encrypted_content"]),
    "prompt": (),
    "top_logprobs": (0,),
}


def read_order(body: Body, thinking: Thinking) -> Order:
    """The order of a request for a response. Raises Refused(400)."""
    refuse_unsupported(body, _NEUTRAL)
    shape = table(table(body, "text"), "format", "text.format")
    if shape.get("type", "text") != "text":
        raise bad("text.format", f"{shown(shape.get('type'))} is not supported by this server; only text is")
    order = Order(prompt=_turns(body), **sampling(body))
    return bounded(order, thinking, body, ("max_output_tokens", "max_tokens"))


def _turns(body: Body) -> tuple[Turn, ...]:
    instructions = text(body, "instructions")
    before = (Turn("system", instructions),) if instructions else ()
    given = body.get("input")
    if isinstance(given, str):
        return (*before, Turn("user", given))
    if not isinstance(given, list):
        raise bad("input", f"must be text or a list of messages, not {shown(given)}")
    messages = []
    for number, item in enumerate(given):
        kind = item.get("type", "message") if isinstance(item, dict) else None
        if kind == "message":
            messages.append(item)
        elif kind != "reasoning":  # what was thought before does not enter the prompt
            raise bad(f"input[{number}]", f"only messages are supported, not {shown(kind)}")
    return (*before, *read_turns(messages, "input"))


@dataclass(slots=True)
class Response:
    """The shapes of a response (a `Kind`). It numbers its events, so it is good for one stream."""

    head: Head
    thinking: Thinking
    order: Order
    body: Body
    _number: int = 0
    _open: str | None = None  # the item that is being told: "reasoning" or "message"
    _index: int = -1
    _names: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, body: Body, model: str, thinking: Thinking, order: Order) -> Response:
        """The shapes that `body` asks for."""
        names = {"reasoning": f"rs_{secrets.token_hex(12)}", "message": f"msg_{secrets.token_hex(12)}"}
        head = Head.new("resp", model)
        return cls(replace(head, id=head.id.replace("-", "_")), thinking, order, body, _names=names)

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        choice = choices[0]
        counts = usage(choices, 1)
        cut = choice.end.finish_reason == "length"
        return {
            **self._fields("incomplete" if cut else "completed"),
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": [
                self._item(name, choice)
                for name in ("reasoning", "message")
                if name == "message" or (choice.thought and self._shows)
            ],
            "usage": {
                "input_tokens": counts["prompt_tokens"],
                "input_tokens_details": counts["prompt_tokens_details"],
                "output_tokens": counts["completion_tokens"],
                "output_tokens_details": counts["completion_tokens_details"],
                "total_tokens": counts["total_tokens"],
            },
            "thinking": choice.told(self.order.policy),
        }

    def opening(self, choices: Sequence[Choice]) -> bytes:
        started = {**self._fields("in_progress"), "incomplete_details": None, "output": [], "usage": None}
        return self._event("created", response=started) + self._event("in_progress", response=started)

    def piece(self, choice: Choice, said: Said) -> bytes:
        told = choice.text_of(said)
        if not told or (said.phase == "thinking" and not self._shows):
            return b""
        name = "reasoning" if said.phase == "thinking" else "message"
        begun = b"" if self._open == name else self._ended(choice) + self._begun(name)
        more: dict[str, Any] = {"delta": told, **({"forced": True} if said.forced else {})}
        if name == "message":
            more["logprobs"] = []
        return begun + self._part_event(f"{_PARTS[name]}.delta", **more)

    def last(self, choice: Choice) -> bytes:
        begun = b""
        if self._open != "message":  # a reply without an answer still has its message
            begun = self._ended(choice) + self._begun("message")
        return begun + self._ended(choice)

    def closing(self, choices: Sequence[Choice]) -> bytes:
        found = self.whole(choices)
        return self._event(found["status"], response=found)

    @property
    def _shows(self) -> bool:
        return self.thinking.show != "hide"

    def _fields(self, status: str) -> dict[str, Any]:
        body, order = self.body, self.order
        return {
            "id": self.head.id,
            "object": "response",
            "created_at": self.head.created,
            "status": status,
            "error": None,
            "model": self.head.model,
            "instructions": body.get("instructions"),
            "max_output_tokens": order.max_new_tokens,
            "metadata": body.get("metadata") or {},
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "reasoning": {"effort": table(body, "reasoning").get("effort"), "summary": None},
            "store": False,
            "temperature": order.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": "none",
            "tools": [],
            "top_p": order.top_p,
            "truncation": "disabled",
        }

    def _item(self, name: str, choice: Choice | None) -> dict[str, Any]:
        """An item of the output; without `choice`, as it stands when it begins."""
        status = "in_progress"
        if choice is not None:
            cut = choice.ended is not None and choice.end.finish_reason == "length" and name == "message"
            status = "incomplete" if cut else "completed"
        item: dict[str, Any] = {"id": self._names[name], "type": name, "status": status}
        content = [] if choice is None else [self._part(name, choice)]
        if name == "reasoning":
            return {**item, "summary": [], "content": content}
        return {**item, "role": "assistant", "content": content}

    def _part(self, name: str, choice: Choice | None) -> dict[str, Any]:
        if name == "reasoning":
            return {"type": "reasoning_text", "text": choice.thinking if choice else ""}
        words = choice.answer if choice else ""
        return {"type": "output_text", "text": words, "annotations": [], "logprobs": []}

    def _begun(self, name: str) -> bytes:
        self._open = name
        self._index += 1
        return self._event(
            "output_item.added", output_index=self._index, item=self._item(name, None)
        ) + self._part_event("content_part.added", part=self._part(name, None))

    def _ended(self, choice: Choice) -> bytes:
        name = self._open
        if name is None:
            return b""
        part = self._part(name, choice)
        more: dict[str, Any] = {"logprobs": []} if name == "message" else {}
        told = self._part_event(f"{_PARTS[name]}.done", text=part["text"], **more)
        told += self._part_event("content_part.done", part=part)
        return told + self._event("output_item.done", output_index=self._index, item=self._item(name, choice))

    def _part_event(self, kind: str, **fields: Any) -> bytes:
        assert self._open is not None
        where = {"item_id": self._names[self._open], "output_index": self._index, "content_index": 0}
        return self._event(kind, **where, **fields)

    def _event(self, kind: str, **fields: Any) -> bytes:
        name = f"response.{kind}"
        number, self._number = self._number, self._number + 1
        return event({"type": name, "sequence_number": number, **fields}, name)


_PARTS = {"reasoning": "reasoning_text", "message": "output_text"}
