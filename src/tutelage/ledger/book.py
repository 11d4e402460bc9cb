"""The open ledger: claims, replies and settlements, alone or many in one transaction.

Promises: see the package.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from types import TracebackType

from tutelage.errors import StorageError
from tutelage.ledger.merging import absorb
from tutelage.ledger.reading import Reading
from tutelage.ledger.rows import Claim, Debt, Settled, to_pico


@dataclass(slots=True)
class Turn:
    """What one transaction writes, in this order: raw replies, amounts that may be lost (the reserves of
    these keys), findings, claims given back, new claims."""

    replies: list[tuple[str, bytes]] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    findings: list[tuple[str, Settled]] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    debts: list[Debt] = field(default_factory=list)


class Ledger(Reading):
    """An open ledger; use it as a context manager. Claims that were not used are given back on leaving.

    One Ledger belongs to one thread at a time. With `exclusive` no other process can use the file meanwhile
    (for a shard with one owner, also on a network file system: no shared memory is needed); opening waits for
    the file up to BUSY_SECONDS, and then all other holders are dead. Raises UsageError for a file that is not
    a ledger of this version, StorageError when the disk refuses."""

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

    def absorb(self, path: Path) -> int:
        """Copy all rows and amounts of the ledger at `path` into this one; gives the number of rows copied.

        A row that is answered here stays; one that is not is replaced by an answered one. One durable
        transaction; doing it again changes nothing. The other file is left as it is."""
        return absorb(self, path)

    # --- one at a time, or many of a kind ---

    def owe(self, debts: Sequence[Debt], budget: Decimal | None = None) -> dict[str, Claim]:
        """Claim requests before they are sent, in one transaction.

        `yours`: send it. `held`: a living process is buying it. `stored`: a reply is here. `over`: what the
        teacher has spent, what is reserved and this reserve together exceed `budget` (US dollars)."""
        return self.turn(Turn(debts=list(debts)), budget)

    def store(self, key: str, raw: bytes) -> None:
        """Keep a paid reply. When this returns the reply is on disk; only then may it be read.

        If another process has answered `key` meanwhile (ours was taken for dead), its reply stays."""
        self.turn(Turn(replies=[(key, raw)]))

    def settle(self, key: str, found: Settled) -> None:
        """Write down what reading the reply of `key` found, and end the claim."""
        self.turn(Turn(findings=[(key, found)]))

    def release(self, keys: Iterable[str]) -> None:
        """Give claims back whose requests were not sent."""
        self.turn(Turn(unused=list(keys)))

    def record(self, answers: Iterable[tuple[str, bytes, Settled]]) -> None:
        """Store and settle claimed replies that cost nothing to make again, in one transaction that does not
        wait for the disk."""
        told = list(answers)
        turn = Turn([(key, raw) for key, raw, _ in told], findings=[(key, found) for key, _, found in told])
        with self._write():
            self._turn(turn, None)

    # --- all together ---

    def turn(self, turn: Turn, budget: Decimal | None = None) -> dict[str, Claim]:
        """Write a turn in one transaction, which is on disk on return where it holds replies. Gives the
        claims (see `owe`)."""
        with self._write(durable=bool(turn.replies)):
            return self._turn(turn, to_pico(budget))

    def _turn(self, turn: Turn, cap: int | None) -> dict[str, Claim]:
        now = time.time()
        self._db.executemany(
            "UPDATE replies SET raw=?, updated=? WHERE key=? AND (holder=? OR raw IS NULL)",
            ((raw, now, key, self._token) for key, raw in turn.replies),
        )
        for key in turn.lost:
            self._lose(key)
        self._settle(turn.findings, now)
        self._db.executemany(
            "UPDATE replies SET holder=NULL, reserved=0 WHERE key=? AND holder=? AND raw IS NULL",
            ((key, self._token) for key in turn.unused),
        )
        return {debt.key: self._owe(debt, cap, now) for debt in turn.debts}

    def _owe(self, debt: Debt, cap: int | None, now: float) -> Claim:
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
        reserve = to_pico(debt.reserve)
        if cap is not None and (reserve is None or self._committed(debt) + reserve > cap):
            return "over"
        self._db.execute(
            "INSERT INTO replies (key, teacher, sample, request, state, reserved, holder, updated)"
            " VALUES (?, ?, ?, ?, 'owed', ?, ?, ?) ON CONFLICT (key) DO UPDATE SET"
            " state='owed', reason='', reserved=excluded.reserved, holder=excluded.holder,"
            " updated=excluded.updated, raw=NULL",
            (debt.key, debt.teacher, debt.sample, debt.request, reserve or 0, self._token, now),
        )
        return "yours"

    def _committed(self, debt: Debt) -> int:
        """Spent, lost, and reserved by all claims of the teacher but the one for this very request."""
        row = self._db.execute(
            "SELECT (SELECT coalesce(sum(spent + lost), 0) FROM accounts WHERE teacher=?1) +"
            " (SELECT coalesce(sum(reserved), 0) FROM replies"
            "  WHERE teacher=?1 AND holder IS NOT NULL AND key != ?2)",
            (debt.teacher, debt.key),
        ).fetchone()
        return int(row[0])

    def _lose(self, key: str) -> None:
        """Count the reserve of a claim as lost; the claim goes on without one."""
        row = self._db.execute(
            "SELECT teacher, reserved FROM replies WHERE key=? AND holder=?", (key, self._token)
        ).fetchone()
        if row is not None:
            self._account("lost", {row[0]: row[1]})
            self._db.execute("UPDATE replies SET reserved=0 WHERE key=?", (key,))

    def _settle(self, findings: Iterable[tuple[str, Settled]], now: float) -> None:
        spent: Counter[str] = Counter()
        for key, found in findings:
            row = self._db.execute(
                "SELECT teacher, state, cost, reserved, raw IS NOT NULL FROM replies"
                " WHERE key=? AND (holder=? OR holder IS NULL)",
                (key, self._token),
            ).fetchone()
            if row is None:
                continue  # taken over by another process, which settles it
            teacher, old_state, old_cost, reserved, has_raw = row
            cost = to_pico(found.cost)
            paid = has_raw and found.state not in ("owed", "failed")
            # A reply whose cost is unknown counts with what was reserved for it, so that a budget still
            # holds.
            if paid:
                spent[teacher] += cost if cost is not None else reserved
            if old_state not in ("owed", "failed"):
                spent[teacher] -= old_cost if old_cost is not None else reserved
            self._db.execute(
                "UPDATE replies SET state=?, reason=?, prompt_tokens=?, completion_tokens=?, cost=?,"
                " reserved=?, holder=NULL, updated=? WHERE key=?",
                (
                    found.state,
                    found.reason,
                    found.prompt_tokens,
                    found.completion_tokens,
                    cost,
                    reserved if paid else 0,
                    now,
                    key,
                ),
            )
        self._account("spent", spent)
