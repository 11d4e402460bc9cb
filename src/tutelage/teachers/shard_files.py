"""The shards of a ledger: DIR/ledger.shards/*.sqlite beside DIR/ledger.sqlite, one worker each.

Promises
- A shard holds only requests that the ledger has not answered, each request is in one shard.
- Shards that a killed run left behind are merged into the ledger before anything else is bought, and removed
  only when the ledger has them on disk.
- A run with workers has the ledger to itself: other processes wait until it ends, and it waits for them. So
  no request is bought in two places, and a budget that was dealt out is not spent twice.
Does not: buy, or start workers. What processes on other machines see is up to the file system: the folder
must be one that all of them share, with working file locks.
"""

from __future__ import annotations

import fcntl
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path

import pyarrow.parquet as pq

from tutelage.errors import StorageError
from tutelage.ledger import Ledger
from tutelage.records import SCHEMAS, Problem, to_table
from tutelage.teachers.orders import Order

# How often a process that waits for another one looks again.
WAIT_SECONDS = 0.5
# Orders of one shard that are written together.
PILE = 1000
_BUSY = "another process is collecting with workers into this ledger"
_OTHERS = "another process is using this ledger"


def shard_folder(ledger_path: Path) -> Path:
    """Where the shards of a ledger are while there are any."""
    return ledger_path.with_suffix(".shards")


@dataclass(frozen=True, slots=True)
class Shard:
    """The files of one shard. Names are never used again: a worker that was taken for dead and wakes up later
    finds its files gone, and not those of another run."""

    stem: Path

    @property
    def ledger(self) -> Path:
        """What is to be bought, and what has been."""
        return self.stem.with_suffix(".sqlite")

    @property
    def problems(self) -> Path:
        """The problems that its requests are about."""
        return self.stem.with_suffix(".parquet")

    @property
    def counts(self) -> Path:
        """What its worker has done so far."""
        return self.stem.with_suffix(".json")


@contextmanager
def open_merged(ledger_path: Path, waiting: Callable[[str], None], patient: bool = True) -> Iterator[Ledger]:
    """The ledger, with everything in it that workers have left behind. While a run with workers goes on it
    waits and calls `waiting` with the reason; not patient: it gives the ledger as it is."""
    folder = shard_folder(ledger_path)
    while True:
        # First open, then look: a run with workers first locks, then looks who has the ledger open.
        with Ledger(ledger_path) as ledger:
            busy = False
            if folder.is_dir():
                with _lock(folder) as ours:
                    busy = not ours
                    if ours:
                        _merge_all(ledger, folder)
            if not busy or not patient:
                yield ledger
                return
        waiting(_BUSY)
        time.sleep(WAIT_SECONDS)


@contextmanager
def sole_use(ledger_path: Path, waiting: Callable[[str], None]) -> Iterator[Path]:
    """The folder for shards, while no other process buys through the ledger. Waits, and calls `waiting` with
    the reason. Shards that are left at the end stay for the next call."""
    folder = shard_folder(ledger_path)
    while True:
        with _guard(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder) as ours:
            if ours:
                _alone(ledger_path, folder, waiting)
                yield folder
                _remove_if_empty(folder)
                return
        waiting(_BUSY)
        time.sleep(WAIT_SECONDS)


def _alone(ledger_path: Path, folder: Path, waiting: Callable[[str], None]) -> None:
    while True:
        with Ledger(ledger_path) as ledger:
            if not ledger.others():
                _merge_shards(ledger, folder)
                return
        waiting(_OTHERS)
        time.sleep(WAIT_SECONDS)


@contextmanager
def _guard(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise StorageError(f"{path}: cannot use the folder ({why}); stored replies are safe") from error


@contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Whether this process has the folder; a lock ends with its process."""
    path = folder / "lock"
    with _guard(path):
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT)
        except FileNotFoundError:  # another process has just merged the shards and removed the folder
            yield False
            return
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The file that we have locked may have been removed while we opened it.
            ours = path.exists() and os.path.samestat(os.fstat(file), path.stat())
        except (BlockingIOError, FileNotFoundError):
            ours = False
        yield ours
    finally:
        os.close(file)


def _merge_all(ledger: Ledger, folder: Path) -> None:
    _merge_shards(ledger, folder)
    _remove_if_empty(folder)


def _remove_if_empty(folder: Path) -> None:
    """Only the lock is left: remove it while it is ours."""
    with _guard(folder):
        if [path.name for path in folder.iterdir()] == ["lock"]:
            (folder / "lock").unlink()
            folder.rmdir()


@dataclass(frozen=True, slots=True)
class Gain:
    """What the merged shards had bought: replies, and their cost (US dollars, None when any is unknown)."""

    bought: int = 0
    cost: Decimal | None = Decimal(0)

    def plus(self, other: Gain) -> Gain:
        """Both together."""
        known = self.cost is not None and other.cost is not None
        cost = (self.cost or Decimal(0)) + (other.cost or Decimal(0)) if known else None
        return Gain(self.bought + other.bought, cost)


def merge(ledger_path: Path, folder: Path) -> Gain:
    """Merge all shards of this run into the ledger, and remove them."""
    with Ledger(ledger_path) as ledger:
        return _merge_shards(ledger, folder)


def _merge_shards(ledger: Ledger, folder: Path) -> Gain:
    gain = Gain()
    for path in sorted(folder.glob("*.sqlite")):
        # Exclusively: waits for an owner that still lives on some machine, and gives back its claims.
        with Ledger(path, exclusive=True) as shard:
            totals = shard.totals()
        gain = gain.plus(Gain(totals.replies, None if totals.unpriced else totals.cost))
        ledger.absorb(path)
        with _guard(path):
            path.unlink()  # first the file that makes it a shard: a kill here leaves nothing to merge again
    with _guard(folder):
        for path in folder.iterdir():
            if path.name != "lock":
                path.unlink()
    return gain


@dataclass(slots=True)
class Dealt:
    """The shards, how many requests each of them got, and the most that one request can cost (None: not
    capped)."""

    shards: list[Shard]
    counts: list[int]
    reserve: Decimal | None = None


def deal(wanted: Iterator[Order], folder: Path, count: int) -> Dealt:
    """Write `count` shards: each order, problem by problem, goes to the one that its key chooses, its problem
    with it."""
    run = uuid.uuid4().hex[:8]
    shards = [Shard(folder / f"{run}-{number:03}") for number in range(count)]
    dealt = Dealt(shards, [0] * count)
    with ExitStack() as stack:
        piles = [_Pile(shard, stack) for shard in shards]
        for each in wanted:
            piles[int(each.debt.key[:8], 16) % count].add(each)
            if each.debt.reserve is not None:
                dealt.reserve = max(dealt.reserve or Decimal(0), each.debt.reserve)
        for number, pile in enumerate(piles):
            pile.write()
            dealt.counts[number] = pile.count
    return dealt


class _Pile:
    """One shard while it is dealt: orders are gathered and written together."""

    def __init__(self, shard: Shard, stack: ExitStack) -> None:
        self.count = 0
        self._orders: list[Order] = []
        self._last = ""
        self._ledger = stack.enter_context(Ledger(shard.ledger, exclusive=True))
        self._folder = shard.stem.parent
        with _guard(self._folder):
            self._problems = stack.enter_context(pq.ParquetWriter(shard.problems, SCHEMAS[Problem]))

    def add(self, order: Order) -> None:
        self._orders.append(order)
        if len(self._orders) >= PILE:
            self.write()

    def write(self) -> None:
        # Two problems with the same text make the same request; it is dealt once.
        unique = {each.debt.key: each for each in self._orders}
        known = self._ledger.states(list(unique))
        new = [each for key, each in unique.items() if key not in known]
        self._orders = []
        self._ledger.owe([replace(each.debt, reserve=None) for each in new])
        # Samples of one problem follow each other, and it is written once: it may be the last one's.
        problems = {each.problem.id: each.problem for each in new if each.problem.id != self._last}
        self._last = new[-1].problem.id if new else self._last
        self.count += len(new)
        if problems:
            with _guard(self._folder):
                self._problems.write_table(to_table(problems.values(), Problem))
