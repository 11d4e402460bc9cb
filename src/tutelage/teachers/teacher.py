"""What a teacher is: it says what it asks, reads what came back, and buys what is missing through the ledger.

Promises: `order` is a pure function of the teacher's settings, the problem and the sample; `read` never
raises.
Does not: keep anything between calls; all that lasts is in the ledger.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from tutelage.ledger import Ledger, Settled
from tutelage.records import Problem
from tutelage.teachers.orders import Bought, Order
from tutelage.teachers.replies import Parsed
from tutelage.teachers.watch import Watch


class Teacher(Protocol):
    """One source of traces. (A replay is none: it reads traces that were made elsewhere.)"""

    @property
    def maker(self) -> str:
        """Names the teacher in its traces."""

    def check(self) -> None:
        """Raises UsageError, naming the field, for settings that cannot work."""

    def order(self, problem: Problem, sample: int) -> Order:
        """What one completion is: request body, ledger key, and the most that it can cost."""

    def read(self, raw: bytes) -> Parsed:
        """A stored reply. What cannot be read has the state `failed`; nothing is raised."""

    def settled(self, found: Parsed) -> Settled:
        """The ledger's account of a reply."""

    def trace_settings(self, sample: int) -> dict[str, Any]:
        """What a trace records about how it was made."""

    def buy(self, wanted: Iterator[Order], ledger: Ledger, watch: Watch) -> Bought:
        """Buy `wanted`, each reply on disk before it is read, and count it in `watch`.

        Takes from `wanted` only what it is about to buy. Raises TutelageError when going on is useless; what
        came back before is in the ledger."""
