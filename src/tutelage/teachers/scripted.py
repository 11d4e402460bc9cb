"""A teacher that is a function: its replies go through the ledger and have a price, like bought ones.

Promises: running again calls the function for nothing that is stored; settings are part of the key, so a
teacher with other settings is another teacher.
Does not: hash the function (a changed function needs changed settings, for example a version), or hold a
budget (nothing real is spent).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tutelage.ledger import Ledger, Settled
from tutelage.records import Problem
from tutelage.teachers import money
from tutelage.teachers.orders import Bought, Order, chunks, order
from tutelage.teachers.replies import Parsed, parse_reply

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


def orders(teacher: ScriptedTeacher, problems: Sequence[Problem], samples: int) -> list[Order]:
    """All orders, problem by problem, sample by sample."""
    found = []
    for problem in problems:
        body = {
            "model": teacher.name,
            "settings": dict(teacher.settings),
            "problem": problem.id,
            "question": problem.question,
        }
        found += [order(problem, sample, BASE_URL, teacher.name, body) for sample in range(samples)]
    return found


def read(raw: bytes) -> Parsed:
    """The stored reply. Text that looks like thinking tags stays text: the function told them apart."""
    return parse_reply(raw, tags=())


def settled(teacher: ScriptedTeacher, found: Parsed) -> Settled:
    """The ledger's account of a reply."""
    amount = money.cost(teacher.price, found.prompt_tokens, found.completion_tokens)
    return Settled(found.state, found.reason, found.prompt_tokens, found.completion_tokens, amount)


def buy(
    teacher: ScriptedTeacher, wanted: Sequence[Order], ledger: Ledger, tick: Callable[[int, str], None]
) -> Bought:
    """Answer `wanted` and store the replies, a batch per transaction. `tick(number of replies, note)`."""
    keys: set[str] = set()
    held: list[Order] = []
    for chunk in chunks(wanted, BATCH):
        claims = ledger.owe([each.debt for each in chunk])
        answers = []
        for each in chunk:
            claim = claims[each.debt.key]
            if claim == "held":
                held.append(each)
            elif claim == "yours":
                raw = _reply(teacher.answer(each.problem, each.sample))
                answers.append((each.debt.key, raw, settled(teacher, read(raw))))
        ledger.record(answers)
        keys.update(key for key, _, _ in answers)
        tick(len(chunk) - sum(claims[each.debt.key] == "held" for each in chunk), "")
    return Bought(frozenset(keys), tuple(held))


def _reply(said: ScriptedReply) -> bytes:
    usage = {
        "prompt_tokens": said.prompt_tokens,
        "completion_tokens": said.thinking_tokens + said.answer_tokens,
        "completion_tokens_details": {"reasoning_tokens": said.thinking_tokens},
    }
    message = {"role": "assistant", "content": said.answer, "reasoning_content": said.thinking}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return json.dumps({"choices": [choice], "usage": usage}).encode()
