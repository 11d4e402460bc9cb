"""The words of the ledger: keys, states, claims, and the rows that go in and come out.

Promises: a key depends on the teacher (base URL, model), the request body and the sample index only; amounts
are decimals outside and whole millionths of a millionth of a dollar in the file, so sums are exact.
Does not: open a file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any, Literal

State = Literal["owed", "done", "truncated", "refused", "empty", "failed"]
Claim = Literal["yours", "held", "stored", "over"]
STATES: tuple[State, ...] = ("owed", "done", "truncated", "refused", "empty", "failed")
PICO = Decimal("1e-12")


def request_key(base_url: str, model: str, body: Mapping[str, Any], sample: int) -> str:
    """128 bits of SHA-256 (32 hex digits) over the canonical JSON of teacher, body and sample index.

    The order of keys in `body` does not matter. Raises TypeError or ValueError for what JSON cannot say."""
    text = json.dumps([base_url, model, body, sample], sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Debt:
    """A request that may be bought. `reserve` is the most it can cost in US dollars (None: not capped)."""

    key: str
    teacher: str
    sample: int
    request: str
    reserve: Decimal | None = None


@dataclass(frozen=True, slots=True)
class Settled:
    """What reading a reply found. `cost` is in US dollars, None when the price or the usage is unknown."""

    state: State
    reason: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost: Decimal | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One request as the ledger knows it. `answered`: a raw reply is here, in `raw` where it was asked
    for."""

    key: str
    teacher: str
    sample: int
    request: str
    state: State
    reason: str
    prompt_tokens: int | None
    completion_tokens: int | None
    cost: Decimal | None
    answered: bool
    raw: bytes | None = None

    @property
    def paid(self) -> bool:
        """A reply is here and is not to be bought again."""
        return self.answered and self.state != "failed"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A row without its texts."""

    state: State
    answered: bool
    reason: str
    prompt_tokens: int | None
    completion_tokens: int | None
    cost: Decimal | None

    @property
    def paid(self) -> bool:
        """A reply is here and is not to be bought again."""
        return self.answered and self.state != "failed"


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over stored replies. `cost` leaves out the `unpriced` replies, whose price is not known."""

    replies: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: Decimal = Decimal(0)
    unpriced: int = 0
    states: Mapping[str, int] = field(default_factory=dict)


def to_pico(amount: Decimal | None) -> int | None:
    """The amount as the file holds it."""
    return None if amount is None else int(amount.quantize(PICO, ROUND_HALF_EVEN).scaleb(12))


def from_pico(amount: int | None) -> Decimal | None:
    """The amount in US dollars."""
    return None if amount is None else (Decimal(amount) * PICO).normalize()
