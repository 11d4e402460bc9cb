"""Collect traces: every problem times every sample, each paid for once.

Promises: traces come in the order problem x sample, the same replies make equal traces; what the ledger holds
is never asked again; an order that failed is listed with its reason and asked again by the next call.
Does not: judge or drop: truncated, refused and empty replies are traces too.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from tutelage.errors import UsageError
from tutelage.ledger import Ledger, Row, Settled
from tutelage.records import ClosedBy, Problem, Trace, by_id, stable_hash
from tutelage.teachers import endpoint, purchase, replay, scripted
from tutelage.teachers.endpoint import EndpointTeacher
from tutelage.teachers.orders import Bought, Order, Progress
from tutelage.teachers.replay import ReplayTeacher
from tutelage.teachers.replies import Parsed
from tutelage.teachers.scripted import ScriptedTeacher

Teacher = EndpointTeacher | ScriptedTeacher | ReplayTeacher
# How often a process looks whether another one, which is buying the same request, has got its reply.
HELD_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class CollectResult:
    """`bought` replies are new, `reused` ones were in the ledger (or, for a replay, recorded). `failed` holds
    (problem id, reason) once per missing sample. `cost` (US dollars) and the token counts are those of all
    replies behind `traces`, None when unknown for any of them; `spent` is the part of `cost` bought now."""

    traces: list[Trace]
    bought: int
    reused: int
    failed: list[tuple[str, str]]
    cost: Decimal | None
    spent: Decimal | None
    prompt_tokens: int | None
    completion_tokens: int | None


def collect(
    problems: Sequence[Problem],
    teacher: Teacher,
    *,
    samples: int,
    ledger_path: Path,
    progress: Progress | None = None,
    buy: bool = True,
) -> CollectResult:
    """`samples` traces of each problem from `teacher`, through the ledger at `ledger_path`.

    With buy=False only what is stored is given; the rest is listed as failed ("not bought"). A replay reads
    its recording and leaves the ledger alone. Raises UsageError (settings, ids, a ledger that is none),
    StorageError, BudgetError, PartialError; all replies received before are stored, and the same call goes on
    from there."""
    by_id(problems)
    if samples < 1:
        raise UsageError(f"samples: {samples} is not at least 1")
    if isinstance(teacher, ReplayTeacher):
        return _replayed(problems, teacher, samples, progress)
    wanted = _orders(teacher, problems, samples)
    # Two problems with the same text make the same request; it is bought once.
    unique = {each.debt.key: each for each in wanted}
    with Ledger(ledger_path) as ledger:
        bought = _fill(ledger, teacher, unique, progress) if buy else frozenset()
        rows = {row.key: row for row in ledger.get_many(list(unique))}
    return _result(teacher, wanted, rows, bought)


def _orders(
    teacher: EndpointTeacher | ScriptedTeacher, problems: Sequence[Problem], samples: int
) -> list[Order]:
    if isinstance(teacher, EndpointTeacher):
        return endpoint.orders(teacher, problems, samples)
    return scripted.orders(teacher, problems, samples)


def _read(teacher: EndpointTeacher | ScriptedTeacher, raw: bytes) -> Parsed:
    return endpoint.read(teacher, raw) if isinstance(teacher, EndpointTeacher) else scripted.read(raw)


def _settled(teacher: EndpointTeacher | ScriptedTeacher, found: Parsed) -> Settled:
    if isinstance(teacher, EndpointTeacher):
        return endpoint.settled(teacher, found)
    return scripted.settled(teacher, found)


def _buy(
    teacher: EndpointTeacher | ScriptedTeacher, wanted: Sequence[Order], ledger: Ledger, tick: Any
) -> Bought:
    if isinstance(teacher, EndpointTeacher):
        return purchase.buy(teacher, wanted, ledger, tick)
    return scripted.buy(teacher, wanted, ledger, tick)


def _fill(
    ledger: Ledger,
    teacher: EndpointTeacher | ScriptedTeacher,
    unique: Mapping[str, Order],
    progress: Progress | None,
) -> frozenset[str]:
    """Buy what is missing; gives the keys with a new reply."""
    states = ledger.states(list(unique))
    # Replies that were stored but not read before a kill.
    for row in ledger.get_many([key for key, (state, here) in states.items() if state == "owed" and here]):
        found = _settled(teacher, _read(teacher, row.raw or b""))
        ledger.settle(row.key, found)
        states[row.key] = (found.state, True)
    todo = [
        each
        for key, each in unique.items()
        if key not in states or states[key][0] == "failed" or not states[key][1]
    ]
    done, total = len(unique) - len(todo), len(unique)

    def tick(count: int, note: str) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, total, note)

    tick(0, "")
    bought: set[str] = set()
    while todo:
        round_ = _buy(teacher, todo, ledger, tick)
        bought |= round_.keys
        todo = list(round_.held)
        if todo:
            tick(0, f"another process is buying {len(todo)} of these")
            time.sleep(HELD_SECONDS)
    return frozenset(bought)


def _result(
    teacher: EndpointTeacher | ScriptedTeacher,
    wanted: Sequence[Order],
    rows: Mapping[str, Row],
    bought: frozenset[str],
) -> CollectResult:
    traces: list[Trace] = []
    failed: list[tuple[str, str]] = []
    used: dict[str, Row] = {}
    for each in wanted:
        row = rows.get(each.debt.key)
        if row is None or row.raw is None or not row.paid:
            failed.append((each.problem.id, (row.reason if row else "") or "not bought"))
            continue
        found = _read(teacher, row.raw)
        if found.state == "failed":  # other tags or another version read it, or it was never settled
            failed.append((each.problem.id, found.reason))
            continue
        used[row.key] = row
        traces.append(_trace(teacher, each, row, found))
    return CollectResult(
        traces=traces,
        bought=len(bought & used.keys()),
        reused=len(used.keys() - bought),
        failed=failed,
        cost=_sum(row.cost for row in used.values()),
        spent=_sum(row.cost for key, row in used.items() if key in bought),
        prompt_tokens=_count(row.prompt_tokens for row in used.values()),
        completion_tokens=_count(row.completion_tokens for row in used.values()),
    )


def _trace(teacher: EndpointTeacher | ScriptedTeacher, each: Order, row: Row, found: Parsed) -> Trace:
    own = isinstance(teacher, ScriptedTeacher)
    # A server may close the thinking by a budget of its own and does not say so.
    closed: ClosedBy = "model" if own else "unknown"
    if found.finish_reason == "length" and not found.answer:
        closed = "none"
    return Trace(
        id=stable_hash(each.problem.id, row.key, each.sample),
        problem_id=each.problem.id,
        sample=each.sample,
        maker=teacher.name if isinstance(teacher, ScriptedTeacher) else teacher.maker,
        answer=found.answer,
        thinking=found.thinking,
        request_key=row.key,
        settings=dict(teacher.settings)
        if isinstance(teacher, ScriptedTeacher)
        else endpoint.trace_settings(teacher, each.sample),
        prompt_tokens=found.prompt_tokens,
        thinking_sampled=found.thinking_tokens,
        thinking_forced=0 if own else None,
        answer_sampled=found.answer_tokens,
        answer_forced=0 if own else None,
        finish_reason=found.finish_reason,
        closed_by=closed,
        cost=row.cost,
    )


def _replayed(
    problems: Sequence[Problem], teacher: ReplayTeacher, samples: int, progress: Progress | None
) -> CollectResult:
    traces, failed = replay.replay(problems, teacher, samples)
    if progress:
        progress(len(traces), len(traces), "")
    return CollectResult(
        traces=traces,
        bought=0,
        reused=len(traces),
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
