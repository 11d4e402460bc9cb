"""Collect with many workers: each buys its own shard of the requests, on this machine or on a Ray cluster.

Promises
- The same traces as `collect` gives, through the same ledger, which stays the one truth.
- A worker that dies is replaced, on any machine: the new one finds in the shard what was bought and buys only
  the rest. A kill of everything loses and repeats no more than the requests in flight: the next call, with
  workers or without, merges what is there before it buys.
- All workers together keep the teacher's budget, concurrency and ceilings: each gets its part. What a part of
  the budget left over is dealt again, until all is bought or no request can be paid any more.
- The API key is in no shard and in nothing that Ray stores: each worker reads it from its own environment.
Does not: run a local model (serve it, and ask it as an endpoint), or learn one concurrency for all workers.

A running cluster must have been started (`ray start`) with the key's variable set, on every machine, and all
machines must see the ledger's folder under the same path. A cluster that is started here has both.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from decimal import ROUND_FLOOR, Decimal
from itertools import chain
from pathlib import Path
from typing import Any

from tutelage.engines import Engine, spread
from tutelage.errors import BudgetError, StorageError, TutelageError, UsageError
from tutelage.ledger import PICO, Ledger
from tutelage.records import Problem, by_id, read_records
from tutelage.teachers.collect import CHUNK, CollectResult, Source, collect, read_states
from tutelage.teachers.endpoint import EndpointTeacher
from tutelage.teachers.orders import Order, chunks
from tutelage.teachers.replay import ReplayTeacher
from tutelage.teachers.scripted import ScriptedTeacher
from tutelage.teachers.shard_counts import counting_watch, counts_of, read_counts, watching, write_counts
from tutelage.teachers.shard_files import Dealt, Gain, Shard, deal, merge, sole_use
from tutelage.teachers.stored import Orders
from tutelage.teachers.watch import Progress, Watch

Shared = EndpointTeacher | ScriptedTeacher


def collect_sharded(
    problems: Sequence[Problem],
    teacher: Source,
    *,
    samples: int,
    ledger_path: Path,
    workers: int,
    engine: Engine = "ray",
    progress: Progress | None = None,
) -> CollectResult:
    """`collect` with `workers` worker processes of `engine` ("local": in this process, as `collect` does).

    `sent` of the result leaves out what a killed worker sent in its last half second. Raises what `collect`
    raises; UsageError for a teacher that cannot be shared out, and when there is no Ray."""
    if workers < 1:
        raise UsageError(f"workers: {workers} is not at least 1")
    most = min(workers, teacher.concurrency if isinstance(teacher, EndpointTeacher) else workers)
    # With one worker nothing is shared out, and a replay buys nothing.
    if engine == "local" or most == 1 or isinstance(teacher, ReplayTeacher):
        return collect(problems, teacher, samples=samples, ledger_path=ledger_path, progress=progress)
    if not isinstance(teacher, EndpointTeacher | ScriptedTeacher):
        raise UsageError("engine: ray shares out endpoint and scripted teachers; use local for this one")
    by_id(problems)
    if samples < 1:
        raise UsageError(f"samples: {samples} is not at least 1")
    teacher.check()
    ledger_path = ledger_path.absolute()  # workers stand in folders of their own
    run = _Run(teacher, Orders(teacher, problems, samples), ledger_path, engine, progress)
    with sole_use(ledger_path, run.say) as folder:
        _rounds(run, folder, most)
    stored = collect(problems, teacher, samples=samples, ledger_path=ledger_path, buy=False)
    if isinstance(run.error, UsageError) and not len(stored.traces):
        raise run.error
    return replace(
        stored,
        sent=run.sent,
        bought=run.gain.bought,
        reused=len(stored.traces) - run.gain.bought,
        spent=run.gain.cost,
        error=run.error,
    )


@dataclass(slots=True)
class _Run:
    """What the rounds of one call share."""

    teacher: Shared
    orders: Orders
    ledger_path: Path
    engine: Engine
    progress: Progress | None
    gain: Gain = field(default_factory=Gain)
    sent: int = 0
    error: TutelageError | None = None

    def say(self, why: str) -> None:
        """Tell the user what this call waits for."""
        if self.progress:
            self.progress(0, len(self.orders), why)


def _rounds(run: _Run, folder: Path, most: int) -> None:
    """Deal what is missing, have it bought, merge it; again while a budget leaves something to deal."""
    count, first = most, True
    while True:
        watch = Watch(len(run.orders), run.progress, sent=run.sent, bought=run.gain.bought)
        with Ledger(run.ledger_path) as ledger:
            wanted = _missing(ledger, run.orders, watch, failed=first)
            start = next(wanted, None)
            if start is None:
                return
            left = _left(run.teacher, ledger, start)
            if left is not None and start.debt.reserve:
                count = max(1, min(count, int(left / start.debt.reserve)))
            dealt = deal(chain([start], wanted), folder, count)
        errors = _bought(run, dealt, left, watch)
        run.sent += sum(read_counts(shard.counts).numbers["sent"] for shard in dealt.shards)
        run.gain = run.gain.plus(merge(run.ledger_path, folder))
        hard = [error for error in errors if not isinstance(error, BudgetError)]
        for error in hard:
            if isinstance(error, StorageError):
                raise error
        if hard or not errors or count == 1:
            run.error = next(iter(hard or errors), None)
            return
        # Less money than before, so fewer parts: at the end one, which is all that is left.
        count, first = count // 2, False


def _left(teacher: Shared, ledger: Ledger, order: Order) -> Decimal | None:
    """US dollars that may still be spent; None without a budget."""
    if not isinstance(teacher, EndpointTeacher) or teacher.budget is None:
        return None
    return max(Decimal(0), teacher.budget - ledger.spent(order.debt.teacher))


def _bought(run: _Run, dealt: Dealt, left: Decimal | None, watch: Watch) -> list[TutelageError]:
    """Have all shards bought; gives why workers ended early."""
    total, count = sum(dealt.counts), len(dealt.shards)
    work = [
        _Work(shard, _part(run.teacher, number, dealt.counts[number], count, total, left), run.orders.samples)
        for number, shard in enumerate(dealt.shards)
        if dealt.counts[number]
    ]
    engine: Engine = run.engine if count > 1 else "local"
    try:
        with watching([shard.counts for shard in dealt.shards], watch):
            found = list(spread(_buying, work, engine=engine, workers=count))
    except TutelageError as error:
        return [error]
    return [error for error in found if error is not None]


def _part(teacher: Shared, number: int, orders: int, count: int, total: int, left: Decimal | None) -> Shared:
    """The teacher as worker `number` of `count` may use it: parts that add up to no more than the whole."""
    if not isinstance(teacher, EndpointTeacher):
        return teacher
    changes: dict[str, Any] = {
        "concurrency": teacher.concurrency // count + (number < teacher.concurrency % count)
    }
    if teacher.requests_per_s is not None:
        changes["requests_per_s"] = teacher.requests_per_s / count
    if teacher.tokens_per_min is not None:
        changes["tokens_per_min"] = max(1, teacher.tokens_per_min // count)
    if left is not None:
        changes["budget"] = (left * orders / total).quantize(PICO, ROUND_FLOOR)
    return replace(teacher, **changes)


def _missing(
    ledger: Ledger, orders: Orders, watch: Watch, *, failed: bool = True, shard: bool = False
) -> Iterator[Order]:
    """The orders without a usable reply; without `failed` those that nobody has tried. In a `shard` only
    those that it has."""
    for numbers in chunks(range(len(orders)), CHUNK):
        made = {each.debt.key: each for each in map(orders.order, numbers)}
        states = read_states(ledger, orders.teacher, list(made))
        open_ = {key for key, (state, here) in states.items() if state == "failed" or not here}
        if not failed:
            open_ -= {key for key, (state, _) in states.items() if state == "failed"}
        if not shard:
            open_ |= made.keys() - states.keys()
        watch.tick(len(numbers if not shard else states) - len(open_))
        yield from (each for key, each in made.items() if key in open_)


# --- in the worker ---


@dataclass(frozen=True, slots=True)
class _Work:
    """What a worker is sent: where its shard is, and whom to ask."""

    shard: Shard
    teacher: Shared
    samples: int


@contextmanager
def _buying() -> Iterator[Callable[[_Work], TutelageError | None]]:
    yield _buy


def _buy(work: _Work) -> TutelageError | None:
    """Buy what the shard still owes; gives why it ended early, so that the others go on."""
    try:
        _buy_shard(work)
    except UsageError as error:
        # The driver has the same settings: what does not work here only is this machine's environment.
        return UsageError(f"{error} (worker on {socket.gethostname()})")
    except TutelageError as error:
        return error
    return None


def _buy_shard(work: _Work) -> None:
    shard = work.shard
    if not shard.ledger.is_file():
        raise UsageError(f"{shard.ledger}: no such file; all machines must see this folder, at this path")
    # First the shard, then the problems: while another worker has it, it is not ours.
    with Ledger(shard.ledger, exclusive=True) as ledger:
        orders = Orders(work.teacher, read_records(shard.problems, Problem), work.samples)
        watch = counting_watch(shard.counts, sum(ledger.totals().states.values()))
        wanted = _missing(ledger, orders, watch, shard=True)
        start = next(wanted, None)
        try:
            if start is not None:
                work.teacher.buy(chain([start], wanted), ledger, watch)
        finally:
            write_counts(shard.counts, counts_of(watch))
