"""Buys orders from an endpoint: many at a time, each reply stored before it is read, failures tried again.

Promises
- A reply is on disk before it is read; replies that arrive in the same instant share the wait for the disk.
- A fixed number of requests is in flight. A rate limit (429) makes all of them wait as long as the server
  asks and uses up no retry; server errors, timeouts, broken connections and broken replies do, then the order
  is `failed` with its reason and the others go on.
- Nothing goes on that cannot work: a refused key, an unknown model, an empty account, a server that is not
  there. Requests in flight are still waited for, because they are being paid for.
- With a budget each request's most possible cost is reserved first; nothing is bought beyond the cap.
Does not: learn the right concurrency, stream, or know what a server charges for replies that broke off.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tutelage.errors import BudgetError, PartialError, TutelageError, UsageError
from tutelage.ledger import BEAT_SECONDS, Claim, Ledger, Settled, Turn
from tutelage.records import Problem
from tutelage.teachers import rate
from tutelage.teachers.batch import Batch
from tutelage.teachers.orders import Bought, Order
from tutelage.teachers.replies import error_text, load_json, one_line
from tutelage.teachers.watch import Watch
from tutelage.wire import Post, Reply, WireError, open_post

if TYPE_CHECKING:
    from tutelage.teachers.endpoint import EndpointTeacher

STOP_STATUS = {
    401: "the server refuses the key",
    402: "the account has no money left",
    403: "the server refuses access",
    404: "no such model or address (does base_url end like https://host/v1?)",
}
# So many failed orders in a row from the start, and not one reply: the rest would fail too.
HOPELESS = 20
_QUOTA_CODES = ("insufficient_quota", "billing_hard_limit_reached")


@dataclass(slots=True)
class _Run:
    """What the workers of one round share. Only touched from the event loop."""

    teacher: EndpointTeacher
    key: str
    ledger: Ledger
    post: Post
    watch: Watch
    todo: Iterator[Order]
    # Only spreads retries in time; nothing that is stored depends on it.
    jitter: random.Random = field(default_factory=random.Random)
    bought: set[str] = field(default_factory=set)
    held: list[tuple[Problem, int]] = field(default_factory=list)
    failed: int = 0
    active: int = 0
    not_before: float = 0.0
    stop: str = ""
    broke: bool = False
    moved: asyncio.Condition = field(default_factory=asyncio.Condition)
    claims: Batch[Order, tuple[Claim, bool]] = field(init=False)
    stores: Batch[tuple[str, bytes], None] = field(init=False)
    settles: Batch[tuple[str, Settled], None] = field(init=False)

    def __post_init__(self) -> None:
        self.claims = Batch(self._claim)
        self.stores = Batch(self._store)
        self.settles = Batch(self._settle)

    def _store(self, replies: Sequence[tuple[str, bytes]]) -> list[None]:
        self.ledger.turn(Turn(replies=list(replies)))
        return [None] * len(replies)

    def _settle(self, findings: Sequence[tuple[str, Settled]]) -> list[None]:
        self.ledger.turn(Turn(findings=list(findings)))
        return [None] * len(findings)

    def _claim(self, orders: Sequence[Order]) -> list[tuple[Claim, bool]]:
        """The claim of each order, and whether nothing of ours is in flight after these."""
        claims = self.ledger.owe([order.debt for order in orders], self.teacher.budget)
        answer = [claims[order.debt.key] for order in orders]
        # Counted here and not by the tasks, which wake up later: an order that a budget does not allow must
        # wait for those that hold a reservation.
        self.active += answer.count("yours")
        return [(claim, not self.active) for claim in answer]

    async def give_back(self) -> None:
        """One order is no longer in flight."""
        self.active -= 1
        async with self.moved:
            self.moved.notify_all()

    def hide(self, text: str) -> str:
        """`text` without the key, should the server send it back."""
        return text.replace(self.key, "***") if self.key else text

    def give_up(self, why: str) -> None:
        """Take no further orders; what is in flight comes in before `ending` says why."""
        self.stop = self.stop or why

    def ending(self) -> TutelageError:
        """The error for `stop`, once nothing is in flight any more."""
        if self.broke:
            return BudgetError(self.stop)
        kind = PartialError if self.bought else UsageError
        saved = f"; {len(self.bought)} new replies are saved" if self.bought else ""
        return kind(f"{self.teacher.url}: {self.stop}{saved}")


def buy(teacher: EndpointTeacher, key: str, wanted: Iterator[Order], ledger: Ledger, watch: Watch) -> Bought:
    """Buy `wanted` (no key twice) with the API key `key`.

    Raises UsageError or PartialError when going on is useless, BudgetError when the cap is reached; what came
    back before is in the ledger. KeyboardInterrupt drops the requests in flight, no stored reply."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(_buy(teacher, key, wanted, ledger, watch))
    # Called from inside a running loop (a notebook): that loop must not be blocked by a second one.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, _buy(teacher, key, wanted, ledger, watch)).result()


async def _buy(
    teacher: EndpointTeacher, key: str, wanted: Iterator[Order], ledger: Ledger, watch: Watch
) -> Bought:
    async with open_post(teacher.url, teacher.concurrency) as post:
        run = _Run(teacher, key, ledger, post, watch, wanted)
        beats = asyncio.create_task(_beat(ledger))
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(teacher.concurrency):
                    group.create_task(_work(run))
        except* TutelageError as group_error:
            raise _first(group_error) from None
        finally:
            beats.cancel()
            run.stores.flush()  # replies that came in the turn of the loop that was interrupted
    if run.stop:
        raise run.ending()
    return Bought(tuple(run.held))


def _first(group: BaseExceptionGroup[TutelageError]) -> TutelageError:
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner


async def _beat(ledger: Ledger) -> None:
    # Should the disk refuse here, the next reply's store says so.
    while True:
        await asyncio.sleep(BEAT_SECONDS)
        ledger.beat()


async def _work(run: _Run) -> None:
    for order in run.todo:
        if run.stop:
            return
        if not await _claim(run, order):
            continue
        try:
            await _answer(run, order)
        finally:
            await run.give_back()


async def _claim(run: _Run, order: Order) -> bool:
    """Whether `order` is ours to send now. Waits for reservations to come free where a budget is tight."""
    while not run.stop:
        claim, idle = await run.claims.put(order)
        if claim == "held":
            run.held.append((order.problem, order.sample))
        if claim == "stored":
            run.watch.tick(1)
        if claim != "over":
            return claim == "yours"
        if not idle:
            async with run.moved:
                if run.active:
                    await run.moved.wait()
            continue
        spent = run.ledger.spent(order.debt.teacher)
        run.broke = True
        run.give_up(
            f"budget: ${run.teacher.budget} for {run.teacher.maker} is used up (spent ${spent:f}, the next "
            f"request may cost ${order.debt.reserve:f}); all replies are saved, raise it to go on"
        )
    return False


async def _answer(run: _Run, order: Order) -> None:
    """Send one claimed order until it is answered, hopeless, or out of time."""
    key = order.debt.key
    tries, limits, reason, kind = 0, 0, "no time left", ""
    kinds: set[str] = set()
    end = time.monotonic() + run.teacher.deadline_s
    while tries <= run.teacher.retries and time.monotonic() < end:
        pause = run.not_before - time.monotonic()
        if pause > 0:
            if time.monotonic() + pause > end:
                reason = f"rate limited for longer than deadline_s ({run.teacher.deadline_s:g} s)"
                break
            await asyncio.sleep(pause)
            continue
        if run.stop:
            run.ledger.release([key])
            return
        try:
            reply = await _send(run, order, end)
        except WireError as error:
            reason, wait, kind = str(error), None, error.kind
        else:
            if reply.status == 200:
                await run.stores.put((key, reply.raw))
                found = run.teacher.read(reply.raw)
                if found.state != "failed":
                    account = run.teacher.settled(found)
                    await run.settles.put((key, account))
                    run.watch.got(account)
                    run.bought.add(key)
                    run.watch.tick(1)
                    return
                reason = run.hide(found.reason)
            else:
                reason = _status_text(run, reply)
            wait, kind = rate.retry_after(reply.headers), str(reply.status)
            if _useless(reply):
                await run.settles.put((key, Settled("failed", reason)))
                run.give_up(f"{_why(reply)} ({reason})")
                return
            if reply.status == 429:
                limits += 1
                pause = wait or rate.backoff(limits, run.teacher.backoff_s, run.jitter)
                # A little apart, so that not all come back in the same instant.
                run.not_before = max(
                    run.not_before, time.monotonic() + pause + run.jitter.uniform(0, 0.05 * pause)
                )
                run.watch.tick(0, f"rate limited, waiting {pause:.0f} s")
                continue
            if reply.status < 500 and reply.status not in (200, 408, 409, 425):
                break
        kinds.add(kind)
        tries += 1
        if tries <= run.teacher.retries:
            pause = rate.backoff(tries, run.teacher.backoff_s, run.jitter) if wait is None else wait
            if time.monotonic() + pause > end:
                break
            await asyncio.sleep(pause)
    await run.settles.put((key, Settled("failed", reason)))
    run.failed += 1
    run.watch.tick(1, f"failed: {reason}")
    if not run.bought and (kinds == {"connect"} or run.failed >= HOPELESS):
        run.give_up(f"no reply at all; last: {reason}")


async def _send(run: _Run, order: Order, end: float) -> Reply:
    headers = run.teacher.headers(run.key)
    run.watch.sent += 1
    seconds = max(0.001, min(run.teacher.timeout_s, end - time.monotonic()))
    reply = await run.post(run.teacher.url, order.debt.request.encode(), headers, seconds)
    if run.key and run.key.encode() in reply.raw:
        return Reply(reply.status, reply.headers, reply.raw.replace(run.key.encode(), b"***"))
    return reply


def _status_text(run: _Run, reply: Reply) -> str:
    body = load_json(reply.raw)
    text = error_text(body) if body is not None else one_line(reply.raw[:800].decode("utf-8", "replace"))
    return run.hide(f"HTTP {reply.status}: {text or 'no text'}")


def _useless(reply: Reply) -> bool:
    """No request to this server can succeed as things are."""
    if reply.status == 429:
        return any(code.encode() in reply.raw for code in _QUOTA_CODES)
    return reply.status in STOP_STATUS or 300 <= reply.status < 400


def _why(reply: Reply) -> str:
    if reply.status == 429:
        return STOP_STATUS[402]
    return STOP_STATUS.get(reply.status, "the server redirects; give base_url as it is after the redirect")
