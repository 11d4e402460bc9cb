"""The ledger: what was asked of a teacher, what came back, what it cost. One SQLite file, a row per request.

Promises
- A row's key is the hash of the teacher (base URL, model), the final request body and the sample index only.
- A raw reply is on disk (synchronous=FULL: it survives a power cut; 0.4 ms) before anything reads it. Claims
  and token counts, which can be worked out again, are committed without waiting for the disk (0.1 ms).
- Two processes on one ledger never buy the same request twice: a request is claimed before it is sent, and a
  claim ends with its process, also after `kill -9`.
- What is spent, what is reserved and what may be lost are kept per teacher in the same transactions: a budget
  is a hard cap.
- Ledgers can be merged (`absorb`): again and again, after a kill in the middle too, without losing a reply or
  counting an amount twice.
Does not: send requests, parse replies, know prices. It never deletes a reply that was paid for.

States: `owed` (not answered; with a raw reply: answered, not read yet); `done`, `truncated`, `refused` and
`empty` (replies that were paid for and are never bought again); `failed` (no usable reply, the next run asks
again).
"""

from tutelage.ledger.book import Ledger, Turn
from tutelage.ledger.file import BUSY_SECONDS, VERSION
from tutelage.ledger.holders import BEAT_SECONDS, LEASE_SECONDS
from tutelage.ledger.rows import (
    PICO,
    STATES,
    Claim,
    Debt,
    Outcome,
    Row,
    Settled,
    State,
    Totals,
    request_key,
)

__all__ = [
    "BEAT_SECONDS",
    "BUSY_SECONDS",
    "LEASE_SECONDS",
    "PICO",
    "STATES",
    "VERSION",
    "Claim",
    "Debt",
    "Ledger",
    "Outcome",
    "Row",
    "Settled",
    "State",
    "Totals",
    "Turn",
    "request_key",
]
