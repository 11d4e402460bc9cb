"""What a reply holds, whatever its shape: its head, its choices as they grow, its usage.

Promises: usage is counted, never estimated, and adds up over choices; `thinking` tells what was asked and
what was done.
Does not: know the shapes of one endpoint (see `chat`, `completions`, `responses`).
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import tutelage
from tutelage.serve.loops import told_loops
from tutelage.serve.source import Ended, Refused, Said, Score
from tutelage.think.policy import ThinkingPolicy

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Head:
    """What all chunks of a reply share. `model` is the name that the client asked for."""

    id: str
    created: int
    model: str

    @classmethod
    def new(cls, prefix: str, model: str) -> Head:
        """A head with a fresh random id."""
        return cls(f"{prefix}-{secrets.token_hex(12)}", int(time.time()), model)

    def fields(self, kind: str) -> dict[str, Any]:
        """The first fields of a reply or a chunk."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": f"tutelage-{tutelage.__version__}",
        }


@dataclass(slots=True)
class Choice:
    """One choice while it grows. `thought` and `answered`: whether some text of that phase has come. White
    space at the start of either belongs to the markers."""

    index: int
    ended: Ended | None = None
    _thinking: list[str] = field(default_factory=list)
    _answer: list[str] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)

    def text_of(self, said: Said) -> str:
        """What of `said`, the next piece, is shown."""
        if said.phase == "thinking":
            return said.text if self._thinking else said.text.lstrip()
        return said.text if self._answer or not self._thinking else said.text.lstrip()

    def add(self, said: Said) -> None:
        """The next piece. The scores of thinking are not kept: no shape has a place for them."""
        text = self.text_of(said)
        if text:
            (self._thinking if said.phase == "thinking" else self._answer).append(text)
        if said.phase == "answer":
            self.scores += said.scores

    @property
    def end(self) -> Ended:
        """How the choice ended; only once it has."""
        assert self.ended is not None
        return self.ended

    @property
    def thought(self) -> bool:
        return bool(self._thinking)

    @property
    def answered(self) -> bool:
        return bool(self._answer)

    @property
    def thinking(self) -> str:
        """The thinking as text, without white space at its ends."""
        return "".join(self._thinking).rstrip()

    @property
    def answer(self) -> str:
        """The answer as text."""
        return "".join(self._answer)

    def told(self, policy: ThinkingPolicy) -> dict[str, Any]:
        """The `thinking` object: what was asked, what was done."""
        end = self.end
        return {
            "budget": policy.max_tokens,
            "min": policy.min_tokens,
            "used": end.sampled + end.forced,
            "sampled": end.sampled,
            "forced": end.forced,
            "waits": end.waits,
            "refused": end.refused,
            "closed_by": end.closed_by,
            **({"reprefilled": end.reprefilled} if end.reprefilled else {}),
            **told_loops(policy, end.core_steps),
        }


class Kind(Protocol):
    """The shapes of one endpoint. The parts of a stream are bytes ready to be sent, b"" for nothing to
    say."""

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """The reply as one document."""
        ...

    def opening(self, choices: Sequence[Choice]) -> bytes:
        """What a stream begins with."""
        ...

    def piece(self, choice: Choice, said: Said) -> bytes:
        """A piece of `choice`, which does not hold it yet."""
        ...

    def last(self, choice: Choice) -> bytes:
        """The end of a choice."""
        ...

    def closing(self, choices: Sequence[Choice]) -> bytes:
        """What a stream ends with, after the last choice has ended."""
        ...


def event(document: Mapping[str, Any], name: str | None = None) -> bytes:
    """A server-sent event. JSON in ASCII: no text of a model can end the line."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(document, separators=(',', ':'))}\n\n".encode()


def usage(choices: Sequence[Choice], n: int) -> dict[str, Any]:
    """OpenAI's usage over all choices; every `n` of them share one prompt."""
    ends = [choice.end for choice in choices]
    prompt = sum(end.prompt_tokens for end in ends if end.index % n == 0)
    completion = sum(end.completion_tokens for end in ends)
    passes = [end.core_steps for end in ends if end.core_steps is not None]
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {
            "cached_tokens": sum(end.cached_tokens for end in ends if end.index % n == 0)
        },
        "completion_tokens_details": {
            "reasoning_tokens": sum(end.sampled + end.forced for end in ends),
            **({"core_steps": sum(passes)} if passes else {}),
        },
    }


_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


def error_fields(error: Refused) -> dict[str, Any]:
    """OpenAI's error object."""
    kind = _TYPES.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error")
    return {
        "error": {"message": str(error), "type": kind, "param": error.param, "code": error.code},
    }
