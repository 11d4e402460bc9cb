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
from typing import Any

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
        return self._owe(turn.debts, cap, now)

    def _owe(self, debts: Sequence[Debt], cap: int | None, now: float) -> dict[str, Claim]:
        keys = [debt.key for debt in debts]
        known = {key: rest for key, *rest in self._rows("key, state, holder, raw IS NOT NULL", keys)}
        purses: dict[str, int] = {}
        claims: dict[str, Claim] = {}
        yours: list[tuple[str, str, int, str, int, str, float]] = []
        for debt in debts:
            if debt.key in claims:
                continue
            if (taken := self._taken(known.get(debt.key))) is not None:
                claims[debt.key] = taken
                continue
            reserve = to_pico(debt.reserve)
            if cap is not None and not self._fits(debt, reserve, cap, keys, purses):
                claims[debt.key] = "over"
                continue
            claims[debt.key] = "yours"
            row = (debt.key, debt.teacher, debt.sample, debt.request, reserve or 0, self._token, now)
            yours.append(row)
        self._db.executemany(
            "INSERT INTO replies (key, teacher, sample, request, state, reserved, holder, updated)"
            " VALUES (?, ?, ?, ?, 'owed', ?, ?, ?) ON CONFLICT (key) DO UPDATE SET"
            " state='owed', reason='', reserved=excluded.reserved, holder=excluded.holder,"
            " updated=excluded.updated, raw=NULL",
            yours,
        )
        return claims

    def _taken(self, row: Sequence[Any] | None) -> Claim | None:
        """Why a request with this row is not to be bought by us, None when it may be."""
        if row is None:
            return None
        state, holder, has_raw = row
        if has_raw and state != "failed":
            return "stored"
        if holder not in (None, self._token):
            if self._alive(holder):
                return "held"
            self._bury(holder)
        return None

    def _fits(
        self, debt: Debt, reserve: int | None, cap: int, keys: Sequence[str], purses: dict[str, int]
    ) -> bool:
        """Whether `reserve` fits under `cap`; `purses` holds what is committed, and gets it added."""
        if debt.teacher not in purses:
            purses[debt.teacher] = self._committed(debt.teacher, keys)
        if reserve is None or purses[debt.teacher] + reserve > cap:
            return False
        purses[debt.teacher] += reserve
        return True

    def _committed(self, teacher: str, asked: Sequence[str]) -> int:
        """Spent, lost, and reserved by all claims of the teacher, but not by our own for what is `asked`."""
        total = self._db.execute(
            "SELECT (SELECT coalesce(sum(spent + lost), 0) FROM accounts WHERE teacher=?1) +"
            " (SELECT coalesce(sum(reserved), 0) FROM replies WHERE teacher=?1 AND holder IS NOT NULL)",
            (teacher,),
        ).fetchone()[0]
        own = self._rows("reserved, teacher, holder", asked)
        return int(total) - sum(int(row[0]) for row in own if row[1:] == (teacher, self._token))

    def _lose(self, key: str) -> None:
        """Count the reserve of a claim as lost; the claim goes on without one."""
        row = self._db.execute(
            "SELECT teacher, reserved FROM replies WHERE key=? AND holder=?", (key, self._token)
        ).fetchone()
        if row is not None:
            self._account("lost", {row[0]: row[1]})
            self._db.execute("UPDATE replies SET reserved=0 WHERE key=?", (key,))

    def _settle(self, findings: Sequence[tuple[str, Settled]], now: float) -> None:
        columns = "key, teacher, state, cost, reserved, raw IS NOT NULL, holder"
        known = {row[0]: row[1:] for row in self._rows(columns, [key for key, _ in findings])}
        spent: Counter[str] = Counter()
        updates = []
        for key, found in findings:
            teacher, old_state, old_cost, reserved, has_raw, holder = known.get(key, (None,) * 6)
            if teacher is None or holder not in (None, self._token):
                continue  # taken over by another process, which settles it
            cost = to_pico(found.cost)
            paid = has_raw and found.state not in ("owed", "failed")
            # A reply of unknown cost counts with what was reserved for it, so that a budget still holds.
            if paid:
                spent[teacher] += cost if cost is not None else reserved
            if old_state not in ("owed", "failed"):
                spent[teacher] -= old_cost if old_cost is not None else reserved
            kept = reserved if paid else 0
            tokens = (found.prompt_tokens, found.completion_tokens)
            updates.append((found.state, found.reason, *tokens, cost, kept, now, key))
            known[key] = (teacher, found.state, cost, kept, has_raw, None)
        self._db.executemany(
            "UPDATE replies SET state=?, reason=?, prompt_tokens=?, completion_tokens=?, cost=?,"
            " reserved=?, holder=NULL, updated=? WHERE key=?",
            updates,
        )
        self._account("spent", spent)
