"""A teacher behind a server of OpenAI's or Anthropic's kind: what is asked of it, and how its replies read.

Promises: one completion per request body; the same settings make the same body and so the same ledger key;
the API key is read from a named environment variable and is in no body, setting, or error.
Does not: send (see `purchase`), judge, or count tokens itself: counts are the server's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal

from tutelage.errors import UsageError
from tutelage.ledger import Ledger, Settled
from tutelage.records import Problem, clean_text
from tutelage.teachers import money, purchase
from tutelage.teachers.keys import SHORTEST, read_key
from tutelage.teachers.orders import Bought, Order, order
from tutelage.teachers.replies import Parsed, parse_reply
from tutelage.teachers.tags import TAGS
from tutelage.teachers.usage import bill
from tutelage.teachers.watch import Watch
from tutelage.wire import check_url

# One completion per body, and nobody else's fields: a second completion would be paid for and lost.
RESERVED = frozenset({"model", "messages", "prompt", "n", "best_of", "stream"})
# The path of each kind of server, behind base_url.
PATHS = {"chat": "chat/completions", "completions": "completions", "messages": "messages"}
MESSAGES_VERSION = "2023-06-01"


@dataclass(frozen=True, slots=True)
class EndpointTeacher:
    """Settings of a teacher behind a server.

    `base_url` ends before /chat/completions (https://host/v1). `key_env` is the NAME of the environment
    variable that holds the key ("" where the server wants none). `api`: chat and text completions are
    OpenAI's, messages are Anthropic's and need `max_tokens`. `stream`: the reply comes in pieces as it is
    written, so that no proxy gives up on a long thinking; it is part of the request, and so of the key. A
    teacher with `reasoning` is expected to show its thinking within its first `reasoning_within` replies.

    `prompt` is the user message, or with api="completions" the whole text, with {question} in it. `sampling`
    and `extra` go into the body as they are (`temperature`, `top_p`; fields of one server). `max_tokens` is
    sent as `max_tokens_field`; `seed` as seed + sample index. `price` is per million tokens; `budget` in US
    dollars is a hard cap on what this teacher spends in one ledger and needs a price and `max_tokens`.

    `concurrency` requests at a time at most; `requests_per_s` and `tokens_per_min` are ceilings of one's own.
    `timeout_s` seconds for one exchange (of a stream: without a byte), `deadline_s` for one request with all
    its waits, `retries` after failures (rate limits do not count), the first after `backoff_s`. `tags` are
    the inline thinking tags. `name` is the maker of the traces (default: the model).
    """

    base_url: str
    model: str
    key_env: str = ""
    api: Literal["chat", "completions", "messages"] = "chat"
    stream: bool = False
    reasoning: bool = False
    reasoning_within: int = 10
    system: str = ""
    prompt: str = "{question}"
    sampling: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    max_tokens: int | None = None
    max_tokens_field: str = "max_tokens"
    seed: int | None = None
    price: money.Price = money.UNKNOWN
    budget: Decimal | None = None
    concurrency: int = 64
    requests_per_s: float | None = None
    tokens_per_min: int | None = None
    timeout_s: float = 600.0
    deadline_s: float = 3600.0
    retries: int = 5
    backoff_s: float = 1.0
    tags: tuple[tuple[str, str], ...] = TAGS
    name: str = ""

    @property
    def maker(self) -> str:
        return self.name or self.model

    @property
    def url(self) -> str:
        """The address requests go to."""
        return f"{check_url(self.base_url)}/{PATHS[self.api]}"

    def check(self) -> None:
        """Raises UsageError, naming the field, for settings that cannot work."""
        check_url(self.base_url)
        mine = RESERVED | {self.max_tokens_field} | ({"seed"} if self.seed is not None else set())
        for group in ("sampling", "extra"):
            if taken := sorted(mine & getattr(self, group).keys()):
                raise UsageError(
                    f"{group}.{taken[0]}: this field is set by the teacher itself, or not supported"
                )
            for name, value in getattr(self, group).items():
                try:
                    json.dumps(value, allow_nan=False)
                except (TypeError, ValueError) as error:
                    raise UsageError(f"{group}.{name}: cannot be sent as JSON ({error})") from error
        if twice := sorted(self.sampling.keys() & self.extra.keys()):
            raise UsageError(f"extra.{twice[0]}: also given in sampling")
        if "{question}" not in self.prompt:
            raise UsageError("prompt: has no {question} in it")
        if self.api == "completions" and self.system:
            raise UsageError("system: text completions have no system message; write it into prompt")
        if self.api == "messages":
            self._check_messages()
        self._check_key()
        above = ("concurrency", "timeout_s", "deadline_s", "max_tokens", "reasoning_within")
        for name in (*above, "requests_per_s", "tokens_per_min"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"{name}: {value} is not above 0")
        for name in ("retries", "backoff_s"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name}: {getattr(self, name)} is below 0")
        if self.budget is not None and money.upper_bound(self.price, "", self.max_tokens) is None:
            raise UsageError(
                "budget: a cap needs a price (prompt and completion) and max_tokens, the limit of one reply"
            )

    def _check_messages(self) -> None:
        if self.max_tokens is None:
            raise UsageError(
                "max_tokens: messages servers want one; give the longest reply you would pay for"
            )
        if self.max_tokens_field != "max_tokens":
            raise UsageError(
                f"max_tokens_field: messages servers know max_tokens, not {self.max_tokens_field}"
            )
        if self.seed is not None:
            raise UsageError("seed: messages servers have none; leave it out, samples differ without it")
        if "system" in self.sampling.keys() | self.extra.keys():
            raise UsageError("extra.system: give it as system, a field of its own")

    def _check_key(self) -> None:
        """The body is written into the ledger and the traces."""
        key = os.environ.get(self.key_env, "").strip() if self.key_env else ""
        if len(key) < SHORTEST:
            return
        for name in ("base_url", "model", "system", "prompt", "sampling", "extra", "name"):
            value = getattr(self, name)
            if key in (value if isinstance(value, str) else str(dict(value))):
                raise UsageError(f"{name}: holds the API key, which would be written to the ledger")

    def order(self, problem: Problem, sample: int) -> Order:
        """One completion of `problem`. All APIs of one server are one teacher; their bodies differ."""
        reserve = None if self.budget is None else self._reserve
        body = request_body(self, problem, sample)
        return order(problem, sample, check_url(self.base_url), self.model, body, reserve)

    def _reserve(self, request: str) -> Decimal | None:
        return money.upper_bound(self.price, request, self.max_tokens)

    def headers(self, key: str) -> dict[str, str]:
        """The headers of a request; `key` is in no other place."""
        if self.api == "messages":
            return {"anthropic-version": MESSAGES_VERSION, **({"x-api-key": key} if key else {})}
        return {"Authorization": f"Bearer {key}"} if key else {}

    def limits(self, left: float) -> tuple[float, float | None]:
        """(seconds in all, seconds without a byte) for one exchange when `left` seconds are left of the
        deadline. A stream may take all of them, as long as it goes on."""
        return (left, self.timeout_s) if self.stream else (min(self.timeout_s, left), None)

    def read(self, raw: bytes) -> Parsed:
        """A stored reply."""
        return parse_reply(raw, self.tags, opened=self.reasoning)

    def settled(self, found: Parsed) -> Settled:
        """The ledger's account of a reply."""
        amount = bill(self.price, found.usage)
        return Settled(found.state, found.reason, found.prompt_tokens, found.completion_tokens, amount)

    def trace_settings(self, sample: int) -> dict[str, Any]:
        """All of the body but the problem."""
        body = request_body(self, Problem(id="", question="{question}"), sample)
        return {"base_url": check_url(self.base_url), **body}

    def buy(self, wanted: Iterator[Order], ledger: Ledger, watch: Watch) -> Bought:
        """See `purchase.buy`. Raises UsageError when the key is missing."""
        return purchase.buy(self, read_key(self.key_env), wanted, ledger, watch)


def request_body(teacher: EndpointTeacher, problem: Problem, sample: int) -> dict[str, Any]:
    """The final request body. Only the seed depends on `sample`."""
    text, system = (
        clean_text(teacher.prompt.replace("{question}", problem.question)),
        clean_text(teacher.system),
    )
    body: dict[str, Any] = {"model": teacher.model}
    if teacher.api == "completions":
        body["prompt"] = text
    else:
        body["messages"] = [{"role": "user", "content": text}]
    if system and teacher.api == "chat":
        body["messages"].insert(0, {"role": "system", "content": system})
    elif system:
        body["system"] = system
    if teacher.max_tokens is not None:
        body[teacher.max_tokens_field] = teacher.max_tokens
    if teacher.seed is not None:
        body["seed"] = teacher.seed + sample
    if teacher.stream:
        body["stream"] = True
        if teacher.api != "messages":  # those count in any case; the others only when asked to
            body["stream_options"] = {"include_usage": True}
    return {**body, **teacher.sampling, **teacher.extra}
