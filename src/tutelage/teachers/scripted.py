"""A teacher that is a function: its replies go through the ledger and have a price, like bought ones.

Promises: running again calls the function for nothing that is stored; settings are part of the key, so a
teacher with other settings is another teacher.
Does not: hash the function (a changed function needs changed settings, for example a version), or hold a
budget (nothing real is spent).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from tutelage.errors import UsageError
from tutelage.ledger import Ledger, Settled
from tutelage.records import Problem
from tutelage.teachers import money
from tutelage.teachers.orders import Bought, Order, chunks, order
from tutelage.teachers.replies import Parsed, parse_reply
from tutelage.teachers.watch import Watch

BASE_URL = "scripted:"
# Replies of a function can be made again, so many share a transaction: 8,000 in well under a second.
BATCH = 500


class ScriptedReply(Protocol):
    """What the function gives back. Counts are tokens."""

    @property
    def thinking(self) -> str: ...
    @property
    def answer(self) -> str: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def thinking_tokens(self) -> int: ...
    @property
    def answer_tokens(self) -> int: ...


@dataclass(frozen=True, slots=True)
class ScriptedTeacher:
    """`answer(problem, sample)` must be deterministic given `settings`: JSON-serialisable, all that it
    depends on besides the problem (an error rate or a seed, say). `name` becomes the maker of the traces."""

    name: str
    answer: Callable[[Problem, int], ScriptedReply]
    settings: Mapping[str, Any] = field(default_factory=dict)
    price: money.Price = money.UNKNOWN

    @property
    def maker(self) -> str:
        return self.name

    def check(self) -> None:
        """Raises UsageError for settings that JSON cannot say."""
        try:
            json.dumps(dict(self.settings), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise UsageError(f"settings: {self.name}: cannot be written as JSON ({error})") from error

    def order(self, problem: Problem, sample: int) -> Order:
        """One call of the function."""
        body = {
            "model": self.name,
            "settings": dict(self.settings),
            "problem": problem.id,
            "question": problem.question,
        }
        return order(problem, sample, BASE_URL, self.name, body)

    def read(self, raw: bytes) -> Parsed:
        """The stored reply. Text that looks like thinking tags stays text: the function told them apart."""
        found = parse_reply(raw, tags=())
        return replace(found, closed_by="model", thinking_forced=0, answer_forced=0)

    def settled(self, found: Parsed) -> Settled:
        """The ledger's account of a reply."""
        amount = money.cost(self.price, found.prompt_tokens, found.completion_tokens)
        return Settled(found.state, found.reason, found.prompt_tokens, found.completion_tokens, amount)

    def trace_settings(self, sample: int) -> dict[str, Any]:
        """The settings."""
        return dict(self.settings)

    def buy(self, wanted: Iterator[Order], ledger: Ledger, watch: Watch) -> Bought:
        """Answer `wanted` and store the replies, a batch per transaction."""
        held: list[tuple[Problem, int]] = []
        for chunk in chunks(wanted, BATCH):
            claims = ledger.owe([each.debt for each in chunk])
            mine = [each for each in chunk if claims[each.debt.key] == "yours"]
            raws = [_reply(self.answer(each.problem, each.sample)) for each in mine]
            found = [self.settled(self.read(raw)) for raw in raws]
            ledger.record((each.debt.key, raw, one) for each, raw, one in zip(mine, raws, found, strict=True))
            for one in found:
                watch.got(one)
            held += [(each.problem, each.sample) for each in chunk if claims[each.debt.key] == "held"]
            watch.tick(sum(claims[each.debt.key] != "held" for each in chunk))
        return Bought(tuple(held))


def _reply(said: ScriptedReply) -> bytes:
    usage = {
        "prompt_tokens": said.prompt_tokens,
        "completion_tokens": said.thinking_tokens + said.answer_tokens,
        "completion_tokens_details": {"reasoning_tokens": said.thinking_tokens},
    }
    message = {"role": "assistant", "content": said.answer, "reasoning_content": said.thinking}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return json.dumps({"choices": [choice], "usage": usage}).encode()
