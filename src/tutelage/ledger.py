"""The ledger: what was asked of a teacher, what came back, what it cost. One SQLite file, a row per request.

Promises
- A row's key is the hash of the teacher (base URL, model), the final request body and the sample index only.
- A raw reply is on disk (synchronous=FULL: it survives a power cut; 0.4 ms) before anything reads it. Claims
  and token counts, which can be worked out again, are committed without waiting for the disk (0.1 ms).
- Two processes on one ledger never buy the same request twice: a request is claimed before it is sent, and a
  claim ends with its process, also after `kill -9`.
- What is spent and what is reserved are kept per teacher in the same transactions: a budget is a hard cap.
Does not: send requests, parse replies, know prices. It never deletes a reply that was paid for.

States: `owed` (not answered; with a raw reply: answered, not read yet); `done`, `truncated`, `refused` and
`empty` (replies that were paid for and are never bought again); `failed` (no usable reply, the next run asks
again).
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from tutelage.errors import StorageError, UsageError
from tutelage.processes import process_space, process_start

State = Literal["owed", "done", "truncated", "refused", "empty", "failed"]
Claim = Literal["yours", "held", "stored", "over"]
STATES: tuple[State, ...] = ("owed", "done", "truncated", "refused", "empty", "failed")

APPLICATION_ID = 0x7475746C  # "tutl"
VERSION = 1
BUSY_SECONDS = 60.0
BEAT_SECONDS = 10.0
# A holder that this machine cannot look up (another host or container) counts as dead after this silence.
LEASE_SECONDS = 120.0
PICO = Decimal("1e-12")  # money is kept as whole millionths of a millionth of a dollar

_SCHEMA = """
CREATE TABLE replies (
  key TEXT PRIMARY KEY, teacher TEXT NOT NULL, sample INTEGER NOT NULL, request TEXT NOT NULL,
  state TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '', prompt_tokens INTEGER, completion_tokens INTEGER,
  cost INTEGER, reserved INTEGER NOT NULL DEFAULT 0, holder TEXT, updated REAL NOT NULL, raw BLOB);
CREATE INDEX held ON replies (teacher) WHERE holder IS NOT NULL;
CREATE TABLE holders (
  token TEXT PRIMARY KEY, space TEXT NOT NULL, pid INTEGER NOT NULL, started TEXT NOT NULL,
  beat REAL NOT NULL);
CREATE TABLE spent (teacher TEXT PRIMARY KEY, amount INTEGER NOT NULL);
"""
_COLUMNS = "key, teacher, sample, request, state, reason, prompt_tokens, completion_tokens, cost, raw"


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
    """One request as the ledger knows it. `raw` is None while nothing has come back."""

    key: str
    teacher: str
    sample: int
    request: str
    state: State
    reason: str
    prompt_tokens: int | None
    completion_tokens: int | None
    cost: Decimal | None
    raw: bytes | None

    @property
    def paid(self) -> bool:
        """A reply is here and is not to be bought again."""
        return self.raw is not None and self.state != "failed"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A row without its texts. `answered`: a raw reply is here."""

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


def _to_pico(amount: Decimal | None) -> int | None:
    return None if amount is None else int(amount.quantize(PICO, ROUND_HALF_EVEN).scaleb(12))


def _from_pico(amount: int | None) -> Decimal | None:
    return None if amount is None else (Decimal(amount) * PICO).normalize()


class Ledger:
    """An open ledger; use it as a context manager. Claims that were not used are given back on leaving.

    One Ledger belongs to one thread at a time. Raises UsageError for a file that is not a ledger of this
    version, StorageError when the disk refuses."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._token = uuid.uuid4().hex
        self._space = process_space()
        self._beat = 0.0
        with self._guard():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(
                path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            try:
                self._prepare()
            except BaseException:
                self._db.close()
                raise

    def _prepare(self) -> None:
        # Look before touching: a file of someone else must not even be switched to WAL.
        if self._foreign():
            raise UsageError(f"{self.path}: a database, but not a ledger; give another path")
        self._db.execute("PRAGMA journal_mode=WAL")
        with self._write():
            if not self._pragma("application_id"):
                for statement in _SCHEMA.split(";"):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA application_id={APPLICATION_ID}")
                self._db.execute(f"PRAGMA user_version={VERSION}")
            version = self._pragma("user_version")
            if version != VERSION:
                raise UsageError(f"{self.path}: a ledger of version {version}, this program reads {VERSION}")
            self._db.execute(
                "INSERT INTO holders VALUES (?, ?, ?, ?, ?)",
                (self._token, self._space, os.getpid(), process_start(os.getpid()) or "", time.time()),
            )
            for (token,) in self._db.execute("SELECT token FROM holders").fetchall():
                if not self._alive(token):
                    self._bury(token)

    def _pragma(self, name: str) -> int:
        return int(self._db.execute(f"PRAGMA {name}").fetchone()[0])

    def _foreign(self) -> bool:
        # In this order: a process that makes the ledger right now commits tables and id at once.
        if not self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            return False
        return self._pragma("application_id") != APPLICATION_ID

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._write():
                self._bury(self._token)
        except StorageError:
            # The claims end with this process anyway; the error that brought us here matters more.
            if error is None:
                raise
        finally:
            self._db.close()

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise StorageError(
                f"{self.path}: cannot use the ledger ({error}); stored replies are safe"
            ) from error
        except sqlite3.DatabaseError as error:
            raise UsageError(f"{self.path}: not a readable ledger ({error})") from error
        except OSError as error:
            raise StorageError(f"{self.path}: cannot make the ledger ({error.strerror or error})") from error

    @contextmanager
    def _write(self, durable: bool = False) -> Iterator[None]:
        """One transaction, whole or not at all; `durable` waits until the disk has it."""
        with self._guard():
            self._db.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                now = time.time()
                if now - self._beat > BEAT_SECONDS:
                    self._db.execute("UPDATE holders SET beat=? WHERE token=?", (now, self._token))
                    self._beat = now
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    # --- who holds a claim ---

    def beat(self) -> None:
        """Say that this process lives; call it every few seconds while waiting for replies."""
        if time.time() - self._beat > BEAT_SECONDS:
            with self._write():
                pass

    def _alive(self, token: str) -> bool:
        if token == self._token:
            return True
        row = self._db.execute(
            "SELECT space, pid, started, beat FROM holders WHERE token=?", (token,)
        ).fetchone()
        if row is None:
            return False
        space, pid, started, beat = row
        if space != self._space:
            return bool(time.time() - beat < LEASE_SECONDS)
        found = process_start(pid)
        return found is not None and found == started

    def _bury(self, token: str) -> None:
        """Give back every claim of a holder that is gone."""
        self._db.execute(
            "UPDATE replies SET holder=NULL, reserved=0 WHERE holder=? AND raw IS NULL", (token,)
        )
        self._db.execute("UPDATE replies SET holder=NULL WHERE holder=?", (token,))
        self._db.execute("DELETE FROM holders WHERE token=?", (token,))

    # --- reading ---

    def get(self, key: str) -> Row | None:
        """The row of `key`, or None."""
        return next(self.get_many([key]), None)

    def get_many(self, keys: Sequence[str]) -> Iterator[Row]:
        """The rows of those `keys` that exist, in no particular order."""
        for row in self._select(_COLUMNS, keys):
            *told, cost, raw = row
            yield Row(*told, cost=_from_pico(cost), raw=raw)  # type: ignore[misc]

    def states(self, keys: Sequence[str]) -> dict[str, tuple[State, bool]]:
        """State of those `keys` that exist, and whether a raw reply is here; cheaper than the rows."""
        rows = self._select("key, state, raw IS NOT NULL", keys)
        return {key: (state, bool(here)) for key, state, here in rows}

    def outcomes(self, keys: Sequence[str]) -> dict[str, Outcome]:
        """What is known of those `keys` that exist, all but the texts."""
        rows = self._select(
            "key, state, raw IS NOT NULL, reason, prompt_tokens, completion_tokens, cost", keys
        )
        return {row[0]: Outcome(row[1], bool(row[2]), row[3], row[4], row[5], _from_pico(row[6])) for row in rows}

    def _select(self, columns: str, keys: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        for start in range(0, len(keys), 500):
            part = keys[start : start + 500]
            sql = f"SELECT {columns} FROM replies WHERE key IN ({','.join('?' * len(part))})"
            with self._guard():
                rows = self._db.execute(sql, part).fetchall()
            yield from rows

    def spent(self, teacher: str) -> Decimal:
        """US dollars that count against the budget of `teacher`: known costs, and for replies without a known
        cost what was reserved for them."""
        with self._guard():
            row = self._db.execute("SELECT amount FROM spent WHERE teacher=?", (teacher,)).fetchone()
        return (_from_pico(row[0]) if row else None) or Decimal(0)

    def totals(self, teacher: str | None = None) -> Totals:
        """Sums over all stored replies, or over those of one teacher."""
        where, args = ("", ()) if teacher is None else (" WHERE teacher=?", (teacher,))
        paid = f"(SELECT *, raw IS NOT NULL AND state != 'failed' AS paid FROM replies{where})"
        with self._guard():
            rows = self._db.execute(
                "SELECT state, count(*), sum(paid), sum(paid * coalesce(prompt_tokens, 0)),"
                " sum(paid * coalesce(completion_tokens, 0)), sum(coalesce(cost, 0)),"
                f" sum(paid AND cost IS NULL) FROM {paid} GROUP BY state",
                args,
            ).fetchall()
        counts = {row[0]: row[1] for row in rows}
        return Totals(
            replies=sum(row[2] for row in rows),
            prompt_tokens=sum(row[3] for row in rows),
            completion_tokens=sum(row[4] for row in rows),
            cost=_from_pico(sum(row[5] for row in rows)) or Decimal(0),
            unpriced=sum(row[6] for row in rows),
            states={state: counts[state] for state in STATES if state in counts},
        )

    # --- writing ---

    def owe(self, debts: Sequence[Debt], budget: Decimal | None = None) -> dict[str, Claim]:
        """Claim requests before they are sent, in one transaction.

        `yours`: send it. `held`: a living process is buying it. `stored`: a reply is here. `over`: what the
        teacher has spent, what is reserved and this reserve together exceed `budget` (US dollars)."""
        cap = _to_pico(budget)
        answer: dict[str, Claim] = {}
        with self._write():
            for debt in debts:
                answer[debt.key] = self._owe(debt, cap)
        return answer

    def _owe(self, debt: Debt, cap: int | None) -> Claim:
        row = self._db.execute(
            "SELECT state, holder, raw IS NOT NULL FROM replies WHERE key=?", (debt.key,)
        ).fetchone()
        if row is not None:
            state, holder, has_raw = row
            if has_raw and state != "failed":
                return "stored"
            if holder not in (None, self._token):
                if self._alive(holder):
                    return "held"
                self._bury(holder)
        reserve = _to_pico(debt.reserve)
        if cap is not None and (reserve is None or self._committed(debt) + reserve > cap):
            return "over"
        self._db.execute(
            "INSERT INTO replies (key, teacher, sample, request, state, reserved, holder, updated)"
            " VALUES (?, ?, ?, ?, 'owed', ?, ?, ?) ON CONFLICT (key) DO UPDATE SET"
            " state='owed', reason='', reserved=excluded.reserved, holder=excluded.holder,"
            " updated=excluded.updated, raw=NULL",
            (debt.key, debt.teacher, debt.sample, debt.request, reserve or 0, self._token, time.time()),
        )
        return "yours"

    def _committed(self, debt: Debt) -> int:
        """Spent plus reserved by all claims of the teacher but the one for this very request."""
        row = self._db.execute(
            "SELECT (SELECT coalesce(sum(amount), 0) FROM spent WHERE teacher=?1) +"
            " (SELECT coalesce(sum(reserved), 0) FROM replies"
            "  WHERE teacher=?1 AND holder IS NOT NULL AND key != ?2)",
            (debt.teacher, debt.key),
        ).fetchone()
        return int(row[0])

    def store(self, key: str, raw: bytes) -> None:
        """Keep a paid reply. When this returns the reply is on disk; only then may it be read.

        If another process has answered `key` meanwhile (ours was taken for dead), its reply stays."""
        self.store_many([(key, raw)])

    def store_many(self, replies: Iterable[tuple[str, bytes]]) -> None:
        """Keep paid replies that came together, in one transaction that is on disk when this returns."""
        with self._write(durable=True):
            for key, raw in replies:
                self._store(key, raw)

    def _store(self, key: str, raw: bytes) -> None:
        self._db.execute(
            "UPDATE replies SET raw=?, updated=? WHERE key=? AND (holder=? OR raw IS NULL)",
            (raw, time.time(), key, self._token),
        )

    def settle(self, key: str, found: Settled) -> None:
        """Write down what reading the reply of `key` found, and end the claim."""
        self.settle_many([(key, found)])

    def settle_many(self, findings: Iterable[tuple[str, Settled]]) -> None:
        """`settle` for many, in one transaction."""
        with self._write():
            for key, found in findings:
                self._settle(key, found)

    def record(self, answers: Iterable[tuple[str, bytes, Settled]]) -> None:
        """Store and settle claimed replies that cost nothing to make again, in one transaction."""
        with self._write():
            for key, raw, found in answers:
                self._store(key, raw)
                self._settle(key, found)

    def _settle(self, key: str, found: Settled) -> None:
        row = self._db.execute(
            "SELECT teacher, state, cost, reserved, raw IS NOT NULL FROM replies"
            " WHERE key=? AND (holder=? OR holder IS NULL)",
            (key, self._token),
        ).fetchone()
        if row is None:
            return  # taken over by another process, which settles it
        teacher, old_state, old_cost, reserved, has_raw = row
        cost = _to_pico(found.cost)
        paid = has_raw and found.state not in ("owed", "failed")
        # A reply whose cost is unknown counts with what was reserved for it, so that a budget still holds.
        now = (cost if cost is not None else reserved) if paid else 0
        before = 0 if old_state in ("owed", "failed") else (old_cost if old_cost is not None else reserved)
        self._db.execute(
            "UPDATE replies SET state=?, reason=?, prompt_tokens=?, completion_tokens=?, cost=?, reserved=?,"
            " holder=NULL, updated=? WHERE key=?",
            (
                found.state,
                found.reason,
                found.prompt_tokens,
                found.completion_tokens,
                cost,
                reserved if paid else 0,
                time.time(),
                key,
            ),
        )
        if now != before:
            self._db.execute(
                "INSERT INTO spent VALUES (?, ?)"
                " ON CONFLICT (teacher) DO UPDATE SET amount = amount + excluded.amount",
                (teacher, now - before),
            )

    def release(self, keys: Iterable[str]) -> None:
        """Give claims back unused."""
        with self._write():
            for key in keys:
                self._db.execute(
                    "UPDATE replies SET holder=NULL, reserved=0 WHERE key=? AND holder=? AND raw IS NULL",
                    (key, self._token),
                )
