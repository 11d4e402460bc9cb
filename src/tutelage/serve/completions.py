"""`/v1/completions`: raw prompts, as text or ids, one or many, and their continuations.

Promises: without a thinking field (or a suffix of the model's name) the whole reply is text and no marker is
written or looked for; with one, `text` is the answer and the thinking stands in `reasoning_content`; choices
of several prompts are numbered prompt by prompt.
Does not: apply the chat template, or score the prompt (`echo` is refused).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tutelage.serve.body import Body, bad, flag, shown, table, whole
from tutelage.serve.fields import Thinking
from tutelage.serve.parameters import bounded, refuse_unsupported, sampling
from tutelage.serve.reply import DONE, Choice, Head, event, usage
from tutelage.serve.source import Order, Said, Score

# As OpenAI's, where neither a limit nor thinking is asked for.
_DEFAULT_TOKENS = 16
_MOST_PROMPTS = 512
_NEUTRAL: dict[str, tuple[Any, ...]] = {"suffix": ("",), "echo": (False,), "prompt_logprobs": ()}


def read_orders(body: Body, thinking: Thinking) -> list[Order]:
    """One order for each prompt. Raises Refused(400)."""
    if body.get("echo") and body.get("logprobs") is not None:
        raise bad("echo", "scoring a prompt (echo with logprobs) is not supported; only generation is")
    refuse_unsupported(body, _NEUTRAL)
    order = Order(
        prompt="", thinks=thinking.stated, logprobs=whole(body, "logprobs", 0, 20), **sampling(body)
    )
    order = bounded(order, thinking, body, ("max_completion_tokens", "max_tokens"))
    if order.max_new_tokens is None and not order.thinks:
        order = replace(order, max_new_tokens=_DEFAULT_TOKENS)
    return [replace(order, prompt=prompt) for prompt in _prompts(body.get("prompt"))]


def _prompts(given: Any) -> list[str | tuple[int, ...]]:
    if isinstance(given, str):
        return [given]
    if not isinstance(given, list) or not given:
        raise bad("prompt", f"must be a text, a list of ids, or a list of either, not {shown(given)}")
    if isinstance(given[0], int):
        return [_ids(given, "prompt")]
    if len(given) > _MOST_PROMPTS:
        raise bad("prompt", f"holds {len(given)} prompts; at most {_MOST_PROMPTS} are allowed")
    return [one if isinstance(one, str) else _ids(one, f"prompt[{i}]") for i, one in enumerate(given)]


def _ids(given: Any, where: str) -> tuple[int, ...]:
    if not isinstance(given, list) or not given:
        raise bad(where, f"must be a text or a list of ids, not {shown(given)}")
    for one in given:
        if isinstance(one, bool) or not isinstance(one, int) or not 0 <= one < 2**31:
            raise bad(where, f"{shown(one)} is not a token id")
    return tuple(given)


@dataclass(frozen=True, slots=True)
class Text:
    """The shapes of a completion (a `Kind`)."""

    head: Head
    thinking: Thinking
    order: Order
    with_usage: bool = False

    @classmethod
    def of(cls, body: Body, model: str, thinking: Thinking, order: Order) -> Text:
        """The shapes that `body` asks for."""
        wanted = flag(table(body, "stream_options"), "include_usage", path="stream_options.include_usage")
        return cls(Head.new("cmpl", model), thinking, order, bool(wanted))

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        found = [
            {
                "index": choice.index,
                "text": choice.answer,
                **({"reasoning_content": choice.thinking or None} if self._shows else {}),
                "finish_reason": choice.end.finish_reason,
                "logprobs": self._logprobs(choice.scores),
                **self._told(choice),
            }
            for choice in choices
        ]
        head = self.head.fields("text_completion")
        return {**head, "choices": found, "usage": usage(choices, self.order.n)}

    def opening(self, choices: Sequence[Choice]) -> bytes:
        return b""

    def piece(self, choice: Choice, said: Said) -> bytes:
        text = choice.text_of(said)
        if said.phase == "thinking":
            if not (text and self._shows):
                return b""
            fields: dict[str, Any] = {"text": "", "reasoning_content": text}
        elif text or said.scores:
            fields = {"text": text, "logprobs": self._logprobs(said.scores)}
        else:
            return b""
        return self._chunk({"index": said.index, **fields, **({"forced": True} if said.forced else {})})

    def last(self, choice: Choice) -> bytes:
        reason = choice.end.finish_reason
        return self._chunk({"index": choice.index, "text": "", "finish_reason": reason, **self._told(choice)})

    def closing(self, choices: Sequence[Choice]) -> bytes:
        if not self.with_usage:
            return DONE
        head = self.head.fields("text_completion")
        return event({**head, "choices": [], "usage": usage(choices, self.order.n)}) + DONE

    @property
    def _shows(self) -> bool:
        return self.order.thinks and self.thinking.show != "hide"

    def _told(self, choice: Choice) -> dict[str, Any]:
        if not self.order.thinks and choice.end.core_steps is None:
            return {}
        return {"thinking": choice.told(self.order.policy)}

    def _chunk(self, choice: Mapping[str, Any]) -> bytes:
        fields = {"logprobs": None, "finish_reason": None, **choice}
        chunk = {**self.head.fields("text_completion"), "choices": [fields]}
        return event({**chunk, "usage": None} if self.with_usage else chunk)

    def _logprobs(self, scores: Sequence[Score]) -> dict[str, Any] | None:
        if self.order.logprobs is None:
            return None
        offsets, at = [], 0
        for score in scores:
            offsets.append(at)
            at += len(score.text)
        return {
            "tokens": [score.text for score in scores],
            "token_logprobs": [score.logprob for score in scores],
            "top_logprobs": [dict(score.top) for score in scores],
            "text_offset": offsets,
        }
