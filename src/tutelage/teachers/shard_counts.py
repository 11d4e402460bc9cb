"""What the workers have done so far: each writes its counts beside its shard, the caller shows their sum.

Promises: the counts go on after a worker was replaced; what a killed worker did in its last half second is
missing in them.
Does not: decide anything. What was bought, and for how much, is in the ledgers.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from tutelage.teachers.watch import Watch

# How often a worker writes down its counts, and how often they are read.
COUNT_SECONDS = 0.5
_NUMBERS = (
    *("done", "sent", "bought", "prompt_tokens", "completion_tokens"),
    *("unpriced", "at_once", "limit"),
)


@dataclass(frozen=True, slots=True)
class Counts:
    """The counts of a Watch at one moment."""

    numbers: Counter[str] = field(default_factory=Counter)
    cost: Decimal = Decimal(0)
    errors: Counter[str] = field(default_factory=Counter)

    def plus(self, other: Counts) -> Counts:
        """Both together."""
        return Counts(self.numbers + other.numbers, self.cost + other.cost, self.errors + other.errors)

    def put(self, watch: Watch) -> None:
        """Make these the counts of `watch`."""
        for name in _NUMBERS:
            setattr(watch, name, self.numbers[name])
        watch.cost, watch.errors = self.cost, self.errors


def counts_of(watch: Watch) -> Counts:
    """The counts of `watch` now."""
    numbers = Counter({name: getattr(watch, name) for name in _NUMBERS})
    return Counts(numbers, watch.cost, Counter(watch.errors))


def read_counts(path: Path) -> Counts:
    """What a worker has written; zeros before it began."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return Counts()
    return Counts(Counter(found["numbers"]), Decimal(found["cost"]), Counter(found["errors"]))


def write_counts(path: Path, counts: Counts) -> None:
    """Write them, whole. They are for the eye only: a disk that refuses them will refuse the next reply as
    well, and that one is an error."""
    text = json.dumps({"numbers": counts.numbers, "cost": str(counts.cost), "errors": counts.errors})
    partial = path.with_suffix(".partial")
    with contextlib.suppress(OSError):
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)


def counting_watch(path: Path, total: int) -> Watch:
    """The watch of a worker: goes on from the counts at `path`, and writes its own there."""
    last = 0.0

    def write(done: int, total: int, note: str) -> None:
        nonlocal last
        if time.monotonic() - last >= COUNT_SECONDS:
            last = time.monotonic()
            write_counts(path, counts_of(watch))

    watch = Watch(total, write)
    before = read_counts(path)
    before.numbers["done"] = 0  # counted again from the shard
    before.put(watch)
    return watch


@contextmanager
def watching(paths: Sequence[Path], watch: Watch) -> Iterator[None]:
    """Add the counts of all workers to those of `watch`, again and again while the block runs."""
    stop = threading.Event()
    base = counts_of(watch)

    def show() -> None:
        found = base
        for path in paths:
            found = found.plus(read_counts(path))
        found.put(watch)
        watch.tick(0)

    def live() -> None:
        while not stop.wait(COUNT_SECONDS):
            show()

    thread = threading.Thread(target=live, name="shard counts", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        show()
