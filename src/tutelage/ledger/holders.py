"""Who holds a claim: each open ledger is a holder, and its claims end with its process.

Promises: the claims of a dead process are given back, also after `kill -9`; what a dead or leaving holder had
reserved for requests that it may have sent counts as lost money, because nobody knows whether it was charged.
Does not: look into other machines: a holder there counts as dead after LEASE_SECONDS of silence.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

from tutelage.ledger.file import LedgerFile
from tutelage.processes import process_space, process_start

BEAT_SECONDS = 10.0
LEASE_SECONDS = 120.0


class Holders(LedgerFile):
    """An open ledger that may claim."""

    def __init__(self, path: Path, exclusive: bool = False) -> None:
        self._token = uuid.uuid4().hex
        self._space = process_space()
        self._beat = 0.0
        super().__init__(path, exclusive)

    def _opened(self) -> None:
        started = process_start(os.getpid()) or ""
        row = (self._token, self._space, os.getpid(), started, time.time())
        self._db.execute("INSERT INTO holders VALUES (?, ?, ?, ?, ?)", row)
        for (token,) in self._db.execute("SELECT token FROM holders").fetchall():
            # Nobody else can have an exclusive file open, whatever its silence or its machine.
            if token != self._token and (self.exclusive or not self._alive(token)):
                self._bury(token)

    def beat(self) -> None:
        """Say that this process lives; call it every few seconds while waiting for replies."""
        if time.time() - self._beat > BEAT_SECONDS:
            with self._write():
                pass

    def others(self) -> int:
        """How many other living processes have this ledger open."""
        with self._guard():
            rows = self._db.execute("SELECT token, space, pid FROM holders").fetchall()
        own = (self._space, os.getpid())
        return sum((space, pid) != own and self._alive(token) for token, space, pid in rows)

    def _beat_due(self, now: float) -> None:
        if now - self._beat > BEAT_SECONDS:
            self._db.execute("UPDATE holders SET beat=? WHERE token=?", (now, self._token))
            self._beat = now

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
        lost = self._db.execute(
            "SELECT teacher, sum(reserved) FROM replies WHERE holder=? AND raw IS NULL GROUP BY teacher",
            (token,),
        ).fetchall()
        self._account("lost", dict(lost))
        self._db.execute(
            "UPDATE replies SET holder=NULL, reserved=0 WHERE holder=? AND raw IS NULL", (token,)
        )
        self._db.execute("UPDATE replies SET holder=NULL WHERE holder=?", (token,))
        self._db.execute("DELETE FROM holders WHERE token=?", (token,))

    def _account(self, column: str, amounts: Mapping[str, int]) -> None:
        """Add to what counts against the budgets of these teachers."""
        for teacher, amount in amounts.items():
            if amount:
                self._db.execute(
                    f"INSERT INTO accounts (teacher, source, {column}) VALUES (?, ?, ?)"
                    f" ON CONFLICT (teacher, source) DO UPDATE SET {column} = {column} + excluded.{column}",
                    (teacher, self.source, amount),
                )
