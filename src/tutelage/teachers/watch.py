"""What buying has done so far: counts that the buyers keep and the progress line shows.

Promises: an unknown cost stays unknown, it never counts as 0; a projection is a cost per reply so far times
the replies still missing; progress is told at most ten times a second, and always at the end.
Does not: keep anything per request.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from threading import Lock

from tutelage.ledger import Settled

Progress = Callable[[int, int, str], None]
TELL_SECONDS = 0.1
# The rate shown is that of the last seconds.
RATE_SECONDS = 10.0


@dataclass(slots=True)
class Watch:
    """`done` of `total` orders are finished: bought now, found in the ledger, or failed. `sent` counts HTTP
    requests with their retries, `bought` new replies. `errors` counts what went wrong by kind (`429`,
    `timeout`, ...), also where a retry put it right. `unpriced` are new replies without a known
    cost. `at_once` requests are in flight, `limit` is how many may be."""

    total: int
    progress: Progress | None = None
    done: int = 0
    sent: int = 0
    bought: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: Decimal = Decimal(0)
    unpriced: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    at_once: int = 0
    limit: int = 0
    _told: float = 0.0
    _lock: Lock = field(default_factory=Lock)
    _marks: deque[tuple[float, int, int]] = field(default_factory=deque)

    @property
    def spent(self) -> Decimal | None:
        """US dollars of the replies bought now, None when that of any is unknown."""
        return None if self.unpriced else self.cost

    @property
    def projected(self) -> Decimal | None:
        """US dollars that all orders not in the ledger before will have cost, None when unknown."""
        spent = self.spent
        if spent is None or not self.bought:
            return None
        return spent + spent / self.bought * (self.total - self.done)

    def got(self, found: Settled) -> None:
        """A new reply is in the ledger."""
        self.bought += 1
        self.prompt_tokens += found.prompt_tokens or 0
        self.completion_tokens += found.completion_tokens or 0
        if found.cost is None:
            self.unpriced += 1
        else:
            self.cost += found.cost

    def tick(self, count: int, note: str = "") -> None:
        """`count` more orders are finished. A `note` of its own is told at once."""
        with self._lock:
            self.done += count
            now = time.monotonic()
            if note or self.done >= self.total or now - self._told >= TELL_SECONDS:
                self._told = now
                if self.progress:
                    self.progress(self.done, self.total, note or self.note(now))

    def note(self, now: float | None = None) -> str:
        """One short line for people: rate, how many at once, tokens, money, errors."""
        now = time.monotonic() if now is None else now
        parts = self._speed(now)
        if self.limit:
            parts.append(f"{self.at_once} at once")
        if self.bought:
            parts.append(self._money())
        if self.errors:
            parts.append(", ".join(f"{kind} x{count}" for kind, count in self.errors.most_common(4)))
        return " · ".join(parts)

    def _speed(self, now: float) -> list[str]:
        self._marks.append((now, self.bought, self.completion_tokens))
        while now - self._marks[0][0] > RATE_SECONDS and len(self._marks) > 2:
            self._marks.popleft()
        then, bought, tokens = self._marks[0]
        if now - then < TELL_SECONDS / 2 or self.bought == bought:
            return []
        parts = [f"{_short((self.bought - bought) / (now - then))} replies/s"]
        if self.completion_tokens > tokens:
            parts.append(f"{_short((self.completion_tokens - tokens) / (now - then))} tokens/s")
        return parts

    def _money(self) -> str:
        spent, projected = self.spent, self.projected
        if spent is None:
            return "cost unknown"
        whole = f" of about ${_dollars(projected)}" if projected is not None and projected != spent else ""
        return f"${_dollars(spent)}{whole}"


def _short(number: float) -> str:
    """`0.4`, `210`, `41k`, `1.2M`."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if number >= size:
            share = number / size
            return f"{share:.0f}{letter}" if share >= 10 else f"{share:.1f}{letter}"
    return f"{number:.0f}" if number >= 10 else f"{number:.1f}"


def _dollars(amount: Decimal) -> str:
    """Cents; two digits that are not 0 where there are no ten cents."""
    return f"{amount:.{2 if not amount or amount >= Decimal('0.1') else 1 - amount.adjusted()}f}"
