"""Collect traces: every problem times every sample, each paid for once.

Promises: traces come in the order problem x sample, the same replies make equal traces; what the ledger holds
is never asked again; an order that failed is listed with its reason and asked again by the next call. Memory
grows by some bytes per order and not by their texts.
Does not: judge or drop: truncated, refused and empty replies are traces too.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from itertools import chain
from pathlib import Path

from tutelage.errors import StorageError, TutelageError, UsageError
from tutelage.ledger import STATES, Ledger, Outcome, State
from tutelage.records import Problem, Trace, by_id
from tutelage.teachers import replay
from tutelage.teachers.orders import Order, chunks
from tutelage.teachers.replay import ReplayTeacher
from tutelage.teachers.shard_files import open_merged
from tutelage.teachers.stored import Orders, StoredTraces
from tutelage.teachers.teacher import Teacher
from tutelage.teachers.watch import Progress, Watch

Source = Teacher | ReplayTeacher
# How often a process looks whether another one, which is buying the same request, has got its reply.
HELD_SECONDS = 0.5
# Orders that are looked up in the ledger together.
CHUNK = 100


@dataclass(frozen=True, slots=True)
class CollectResult:
    """`traces` can be iterated again and again. `states` counts all orders of this call as they are now;
    `sent` counts HTTP requests with their retries, `bought` new replies, `reused` traces whose reply was in
    the ledger (or, for a replay, recorded). `failed` holds (problem id, reason) once per missing sample,
    `failures` counts the reasons. `cost` (US dollars) and the token counts are those of all replies behind
    `traces`, each reply once, None when unknown for any of them; `spent` is the part of `cost` bought now.

    `error` says why buying ended early (a budget used up, a refused key). Everything stored is in `traces`
    all the same: write it down, then raise the error."""

    traces: StoredTraces | list[Trace]
    states: Mapping[State, int]
    sent: int
    bought: int
    reused: int
    failures: Mapping[str, int]
    failed: Sequence[tuple[str, str]]
    cost: Decimal | None
    spent: Decimal | None
    prompt_tokens: int | None
    completion_tokens: int | None
    error: TutelageError | None = None


def collect(
    problems: Sequence[Problem],
    teacher: Source,
    *,
    samples: int,
    ledger_path: Path,
    progress: Progress | None = None,
    buy: bool = True,
) -> CollectResult:
    """`samples` traces of each problem from `teacher`, through the ledger at `ledger_path`.

    With buy=False only what is stored is given; the rest is listed as failed ("not bought"). A replay reads
    its recording and leaves the ledger alone. Raises UsageError (settings, ids, a ledger that is none; or
    what made the first request useless, while nothing is stored) and StorageError; what else ends the buying
    is the result's `error`. All replies received before are stored, and the same call goes on from there."""
    by_id(problems)
    if samples < 1:
        raise UsageError(f"samples: {samples} is not at least 1")
    if isinstance(teacher, ReplayTeacher):
        return _replayed(problems, teacher, samples, progress)
    teacher.check()
    orders = Orders(teacher, problems, samples)
    watch = Watch(len(orders), progress)
    error: TutelageError | None = None
    with open_merged(ledger_path, partial(watch.tick, 0), patient=buy) as ledger:
        try:
            if buy:
                _fill(ledger, orders, watch)
        except StorageError:
            raise
        except TutelageError as early:
            error = early
        result = _result(ledger, orders, watch, error)
    if isinstance(error, UsageError) and not len(result.traces):
        raise error
    return result


def _fill(ledger: Ledger, orders: Orders, watch: Watch) -> None:
    """Buy what is missing."""
    teacher = orders.teacher
    watch.tick(0)
    todo = _missing(ledger, orders, watch)
    while (first := next(todo, None)) is not None:
        held = teacher.buy(chain([first], todo), ledger, watch).held
        if not held:
            return
        watch.tick(0, f"another process is buying {len(held)} of these")
        time.sleep(HELD_SECONDS)
        todo = (teacher.order(*each) for each in held)


def _missing(ledger: Ledger, orders: Orders, watch: Watch) -> Iterator[Order]:
    """The orders without a usable reply, made as they are taken."""
    teacher = orders.teacher
    for numbers in chunks(range(len(orders)), CHUNK):
        made = [orders.order(number) for number in numbers]
        # Two problems with the same text make the same request; it is bought once.
        unique = {each.debt.key: each for each in made}
        states = read_states(ledger, teacher, list(unique))
        todo = [each for key, each in unique.items() if not _paid(states.get(key))]
        watch.tick(len(made) - len(todo))
        yield from todo


def read_states(ledger: Ledger, teacher: Teacher, keys: Sequence[str]) -> dict[str, tuple[State, bool]]:
    """`Ledger.states` of `keys`, after replies that were stored and not read before a kill are read."""
    states = ledger.states(keys)
    for key in [key for key, (state, here) in states.items() if state == "owed" and here]:
        row = ledger.get(key)
        found = teacher.settled(teacher.read((row.raw if row else None) or b""))
        ledger.settle(key, found)
        states[key] = (found.state, True)
    return states


def _paid(state: tuple[State, bool] | None) -> bool:
    return state is not None and state[1] and state[0] != "failed"


@dataclass(slots=True)
class _Sums:
    """What the orders of a call add up to."""

    states: Counter[State] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    failed: list[tuple[str, str]] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    cost: Decimal | None = Decimal(0)
    prompt_tokens: int | None = 0
    completion_tokens: int | None = 0

    def paid(self, found: Outcome) -> None:
        """Add a reply that is here."""
        self.cost = None if self.cost is None or found.cost is None else self.cost + found.cost
        self.prompt_tokens = _plus(self.prompt_tokens, found.prompt_tokens)
        self.completion_tokens = _plus(self.completion_tokens, found.completion_tokens)

    def missing(self, problem: Problem, reason: str) -> None:
        """Add an order without a usable reply."""
        self.failures[reason] += 1
        self.failed.append((problem.id, reason))


def _plus(sum_: int | None, more: int | None) -> int | None:
    return None if sum_ is None or more is None else sum_ + more


def _result(ledger: Ledger, orders: Orders, watch: Watch, error: TutelageError | None) -> CollectResult:
    sums, present = _Sums(), bytearray(len(orders))
    for numbers in chunks(range(len(orders)), CHUNK):
        keys = [orders.key(number) for number in numbers]
        found = ledger.outcomes(list(dict.fromkeys(keys)))
        for number, key in zip(numbers, keys, strict=True):
            outcome = found.get(key)
            sums.states["owed" if outcome is None else outcome.state] += 1
            if outcome is None or not outcome.paid:
                sums.missing(orders.problem(number)[0], (outcome.reason if outcome else "") or "not bought")
                continue
            present[number] = 1
            if key not in sums.seen:
                sums.seen.add(key)
                sums.paid(outcome)
    traces = StoredTraces(orders, ledger.path, present)
    return CollectResult(
        traces=traces,
        states={state: sums.states[state] for state in STATES if sums.states[state]},
        sent=watch.sent,
        bought=watch.bought,
        reused=len(traces) - watch.bought,
        failures=dict(sums.failures.most_common()),
        failed=sums.failed,
        cost=sums.cost,
        spent=watch.spent,
        prompt_tokens=sums.prompt_tokens,
        completion_tokens=sums.completion_tokens,
        error=error,
    )


def _replayed(
    problems: Sequence[Problem], teacher: ReplayTeacher, samples: int, progress: Progress | None
) -> CollectResult:
    traces, failed = replay.replay(problems, teacher, samples)
    if progress:
        progress(len(traces), len(traces), "")
    return CollectResult(
        traces=traces,
        states={"done": len(traces), **({"owed": len(failed)} if failed else {})},
        sent=0,
        bought=0,
        reused=len(traces),
        failures=dict(Counter(reason for _, reason in failed).most_common()),
        failed=failed,
        cost=_sum(trace.cost for trace in traces),
        spent=Decimal(0),
        prompt_tokens=_count(trace.prompt_tokens for trace in traces),
        completion_tokens=_count(_completion(trace) for trace in traces),
    )


def _completion(trace: Trace) -> int | None:
    if trace.thinking_tokens is None or trace.answer_sampled is None:
        return None
    return trace.thinking_tokens + trace.answer_sampled + (trace.answer_forced or 0)


def _sum(amounts: Iterable[Decimal | None]) -> Decimal | None:
    found = list(amounts)
    known = [amount for amount in found if amount is not None]
    return sum(known, Decimal(0)) if len(known) == len(found) else None


def _count(counts: Iterable[int | None]) -> int | None:
    found = list(counts)
    known = [count for count in found if count is not None]
    return sum(known) if len(known) == len(found) else None
