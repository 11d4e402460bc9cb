"""The file of the ledger: opening it, transactions, and the errors of disks in one line.

Promises: a file of somebody else is refused and left as it is; a transaction is whole or not at all, and
`durable` ones survive a power cut; a full or read-only disk is a StorageError, a file that is no ledger a
UsageError.
Does not: know what the rows mean.
"""

from __future__ import annotations

import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tutelage.errors import StorageError, UsageError

APPLICATION_ID = 0x7475746C  # "tutl"
VERSION = 2
BUSY_SECONDS = 60.0
# How often opening is tried again while another has the file's lock.
LOCK_SECONDS = 0.05

# `accounts` holds what counts against budgets, per teacher and per ledger that it was bought through: `spent`
# for stored replies, `lost` for requests whose reply never came and that may have been charged all the same.
SCHEMA = """
CREATE TABLE replies (
  key TEXT PRIMARY KEY, teacher TEXT NOT NULL, sample INTEGER NOT NULL, request TEXT NOT NULL,
  state TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '', prompt_tokens INTEGER, completion_tokens INTEGER,
  cost INTEGER, reserved INTEGER NOT NULL DEFAULT 0, holder TEXT, updated REAL NOT NULL, raw BLOB);
CREATE INDEX held ON replies (teacher) WHERE holder IS NOT NULL;
CREATE TABLE holders (
  token TEXT PRIMARY KEY, space TEXT NOT NULL, pid INTEGER NOT NULL, started TEXT NOT NULL,
  beat REAL NOT NULL);
"""
ACCOUNTS = """
CREATE TABLE accounts (
  teacher TEXT NOT NULL, source TEXT NOT NULL, spent INTEGER NOT NULL DEFAULT 0,
  lost INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (teacher, source));
CREATE TABLE identity (source TEXT NOT NULL);
"""


class LedgerFile:
    """An open file. `exclusive`: no other process may use it meanwhile (see `Ledger`)."""

    def __init__(self, path: Path, exclusive: bool = False) -> None:
        self.path = path
        self.exclusive = exclusive
        self.source = ""
        with self._guard():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(
                path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            try:
                self._patiently()
            except BaseException:
                self._db.close()
                raise

    def _patiently(self) -> None:
        """Prepare the file, again while another has its lock.

        SQLite itself does not wait where two might wait for each other, as when both have read the file and
        both want to switch it to WAL (sqlite.org/c3ref/busy_handler.html).
        """
        end = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                return self._prepare()
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > end:
                    raise
            time.sleep(LOCK_SECONDS)

    def _prepare(self) -> None:
        if self.exclusive:
            # WAL without the shared memory that does not work over a network; before the file is first read.
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._db.execute("BEGIN EXCLUSIVE")
            self._db.execute("COMMIT")
        # Look before touching: a file of someone else must not even be switched to WAL.
        if self._foreign():
            raise UsageError(f"{self.path}: a database, but not a ledger; give another path")
        self._db.execute("PRAGMA journal_mode=WAL")
        with self._transaction():
            if not self._pragma("application_id"):
                self._script(SCHEMA + ACCOUNTS)
                self._db.execute("INSERT INTO identity VALUES (?)", (uuid.uuid4().hex,))
                self._db.execute(f"PRAGMA application_id={APPLICATION_ID}")
                self._db.execute(f"PRAGMA user_version={VERSION}")
            if self._pragma("user_version") == 1:
                self._upgrade()
            version = self._pragma("user_version")
            if version != VERSION:
                raise UsageError(f"{self.path}: a ledger of version {version}, this program reads {VERSION}")
            self.source = str(self._db.execute("SELECT source FROM identity").fetchone()[0])
            self._opened()

    def _upgrade(self) -> None:
        """Version 1 had one amount per teacher and no identity."""
        self._script(ACCOUNTS)
        source = uuid.uuid4().hex
        self._db.execute("INSERT INTO identity VALUES (?)", (source,))
        self._db.execute(
            "INSERT INTO accounts (teacher, source, spent) SELECT teacher, ?, amount FROM spent", (source,)
        )
        self._db.execute("DROP TABLE spent")
        self._db.execute(f"PRAGMA user_version={VERSION}")

    def _opened(self) -> None:
        """What is to be done in the transaction that opens the file."""

    def _beat_due(self, now: float) -> None:
        """Called once in each transaction."""

    def _script(self, text: str) -> None:
        # executescript would commit the transaction that this is a part of.
        for statement in text.split(";"):
            self._db.execute(statement)

    def _pragma(self, name: str) -> int:
        return int(self._db.execute(f"PRAGMA {name}").fetchone()[0])

    def _foreign(self) -> bool:
        # In this order: a process that makes the ledger right now commits tables and id at once.
        if not self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            return False
        return self._pragma("application_id") != APPLICATION_ID

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
        with self._guard(), self._transaction(durable):
            yield

    @contextmanager
    def _transaction(self, durable: bool = False) -> Iterator[None]:
        self._db.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._beat_due(time.time())
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
