"""The traces of a call, read from the ledger one at a time.

Promises: the order is problem x sample, the same ledger gives equal traces, and one reply at a time is in
memory, however many there are. A stored reply that this version cannot read any more is a trace without text
whose finish reason is `error`.
Does not: buy, or drop: truncated, refused and empty replies are traces too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tutelage.ledger import Ledger, Row
from tutelage.records import ClosedBy, Problem, Trace, stable_hash
from tutelage.teachers.orders import Order
from tutelage.teachers.teacher import Teacher

KEY_BYTES = 16


@dataclass(slots=True)
class Orders:
    """Every problem times every sample, made as they are asked for.

    Keys that were made once are kept (16 bytes each, 1.6 MB per 100,000): making an order again costs some 20
    microseconds, its key alone is enough to find the reply."""

    teacher: Teacher
    problems: Sequence[Problem]
    samples: int
    _keys: bytearray = field(default_factory=bytearray)

    def __len__(self) -> int:
        return len(self.problems) * self.samples

    def problem(self, index: int) -> tuple[Problem, int]:
        """Problem and sample of order number `index`."""
        return self.problems[index // self.samples], index % self.samples

    def order(self, index: int) -> Order:
        """Order number `index`."""
        made = self.teacher.order(*self.problem(index))
        if index * KEY_BYTES == len(self._keys):
            self._keys += bytes.fromhex(made.debt.key)
        return made

    def key(self, index: int) -> str:
        """The ledger's key of order number `index`."""
        start = index * KEY_BYTES
        if start < len(self._keys):
            return self._keys[start : start + KEY_BYTES].hex()
        return self.order(index).debt.key


@dataclass(slots=True)
class StoredTraces:
    """The traces of the orders that `present` marks (one byte per order); iterate it as often as you like."""

    orders: Orders
    ledger_path: Path
    present: bytearray
    _settings: dict[int, dict[str, Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.present.count(1)

    def __iter__(self) -> Iterator[Trace]:
        if not len(self):
            return
        with Ledger(self.ledger_path) as ledger:
            for index, here in enumerate(self.present):
                if here and (row := ledger.get(self.orders.key(index))) is not None:
                    yield self._trace(index, row)

    def _trace(self, index: int, row: Row) -> Trace:
        teacher = self.orders.teacher
        problem, sample = self.orders.problem(index)
        found = teacher.read(row.raw or b"")
        if sample not in self._settings:
            self._settings[sample] = teacher.trace_settings(sample)
        # A server may close the thinking by a budget of its own and does not say so.
        cut: ClosedBy = "none" if found.finish_reason == "length" and not found.answer else "unknown"
        return Trace(
            id=stable_hash(problem.id, row.key, sample),
            problem_id=problem.id,
            sample=sample,
            maker=teacher.maker,
            answer=found.answer,
            thinking=found.thinking,
            request_key=row.key,
            settings=self._settings[sample],
            prompt_tokens=found.prompt_tokens,
            thinking_sampled=found.thinking_tokens,
            thinking_forced=found.thinking_forced,
            answer_sampled=found.answer_tokens,
            answer_forced=found.answer_forced,
            forced_spans=found.forced_spans,
            finish_reason="error" if found.state == "failed" else found.finish_reason,
            closed_by=found.closed_by or cut,
            cost=row.cost,
        )
