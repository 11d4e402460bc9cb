"""Buys orders from an endpoint: many at a time, each reply stored before it is read, failures tried again.

Promises
- A reply is on disk before it is read or counted (see `desk`).
- How many requests are in flight is learned (see `limits`). A rate limit (429) makes all of them wait as long
  as the server asks and uses up no retry; server errors, timeouts, broken connections and broken replies do,
  then the order is `failed` with its reason and the others go on.
- Nothing goes on that cannot work: a refused key, an unknown model, an empty account, a server that is not
  there, a reasoning teacher whose thinking is not shown. Requests in flight are still waited for, because
  they are being paid for.
- With a budget each request's most possible cost is reserved first; nothing is bought beyond the cap. A
request
  whose outcome is unknown (a timeout, a torn or unreadable reply, a process that was killed) may have been
  charged, so it counts with all that was reserved for it; one that was refused or never reached the server
  (429, 5xx, no connection) counts nothing.
Does not: stream what comes to anybody, or know what a server charges for replies that broke off.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tutelage.errors import BudgetError, PartialError, TutelageError, UsageError
from tutelage.ledger import Ledger, Settled
from tutelage.teachers import limits, rate
from tutelage.teachers.desk import AHEAD, Desk
from tutelage.teachers.gate import Gate, Slot
from tutelage.teachers.keys import hide_key
from tutelage.teachers.orders import Bought, Order
from tutelage.teachers.replies import Parsed, error_text, load_json, one_line
from tutelage.teachers.streams import pack
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
# So many times a server that has never answered is tried again when nobody listens: about three seconds. A
# mistyped address should not cost more; a server that went away later gets all retries.
FIRST_CONNECTS = 2
BUDGETED_AHEAD = 4
OVERLOADED = frozenset({"503", "529", "timeout"})
MAY_HAVE_BEEN_CHARGED = frozenset({"timeout", "torn", "oversized", "unreadable"})
_QUOTA_CODES = ("insufficient_quota", "billing_hard_limit_reached")


@dataclass(frozen=True, slots=True)
class _Miss:
    """A request that brought no usable reply. `kind` is how the watch counts it (an HTTP status, or
    `timeout`, `torn`, `connect`, `oversized`, `unreadable`); `asked` the seconds that the server asks to
    wait; `stop` why no other request can work either."""

    kind: str
    reason: str
    asked: float | None = None
    stop: str = ""

    @property
    def passes(self) -> bool:
        """Trying again makes sense."""
        return not self.kind.isdigit() or int(self.kind) >= 500 or self.kind in ("408", "409", "425")

    @property
    def lost(self) -> bool:
        return self.kind in MAY_HAVE_BEEN_CHARGED


@dataclass(slots=True)
class _Run:
    """What the workers of one round share. Only touched from the event loop."""

    teacher: EndpointTeacher
    key: str
    url: str
    headers: Mapping[str, str]
    post: Post
    watch: Watch
    desk: Desk
    gate: Gate
    replies: int = 0
    thought: bool = False
    failed: int = 0
    stop: str = ""

    def hide(self, text: str) -> str:
        """`text` without the key, should the server send it back."""
        return text.replace(self.key, "***") if self.key else text

    def give_up(self, why: str) -> None:
        """Take no further orders; what is in flight comes in before `ending` says why."""
        self.stop = self.stop or why
        self.gate.stop()
        self.desk.stop()

    def got(self, found: Parsed) -> None:
        """A usable reply is stored."""
        self.replies += 1
        self.thought = self.thought or bool(found.thinking.strip())
        within = self.teacher.reasoning_within
        if self.teacher.reasoning and not self.thought and self.replies >= within:
            self.give_up(_no_thinking(self.teacher, found, self.replies))

    def ending(self) -> TutelageError:
        """The error for `stop`, once nothing is in flight any more."""
        saved = f"; {self.watch.bought} new replies are saved" if self.watch.bought else ""
        kind = PartialError if self.watch.bought else UsageError
        return kind(f"{self.teacher.url}: {self.stop}{saved}")


def _no_thinking(teacher: EndpointTeacher, found: Parsed, replies: int) -> str:
    billed = found.thinking_tokens
    hidden = f" The server bills {billed} thinking tokens and hides their text." if billed else ""
    return (
        f"{teacher.maker} is declared as reasoning, but its first {replies} replies hold no thinking "
        f"(looked into reasoning_content, reasoning, thinking, reasoning_details, typed blocks and tags "
        f"{' '.join(opener for opener, _ in teacher.tags) or '(none)'}).{hidden} Turn thinking on at "
        "the server, name its tags, or set reasoning to false"
    )


def buy(teacher: EndpointTeacher, key: str, wanted: Iterator[Order], ledger: Ledger, watch: Watch) -> Bought:
    """Buy `wanted` with the API key `key`.

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
    pace = limits.Pace(
        teacher.concurrency,
        limits.request_bucket(teacher.requests_per_s) if teacher.requests_per_s else None,
        limits.token_bucket(teacher.tokens_per_min) if teacher.tokens_per_min else None,
        teacher.backoff_s,
    )
    async with open_post(teacher.url, teacher.concurrency) as post:
        gate = Gate(pace, watch)
        # What is claimed at a kill counts as charged: under a budget little is claimed before it is sent.
        ahead = min(AHEAD if teacher.budget is None else BUDGETED_AHEAD, teacher.concurrency)
        desk = Desk(teacher, ledger, wanted, watch, teacher.budget, ahead, gate.no_more)
        run = _Run(teacher, key, teacher.url, teacher.headers(key), post, watch, desk, gate)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(teacher.concurrency):
                    group.create_task(_work(run))
        except* TutelageError as group_error:
            raise _first(group_error) from None
        finally:
            watch.at_once = 0
            desk.close()  # replies that came in the turn of the loop that was interrupted are written, too
    if run.stop:
        raise run.ending()
    if desk.too_dear:
        raise _broke(teacher, ledger, desk.too_dear)
    return Bought(tuple(desk.held))


def _broke(teacher: EndpointTeacher, ledger: Ledger, order: Order) -> BudgetError:
    name = order.debt.teacher
    spent, lost = ledger.spent(name), ledger.lost(name)
    unknown = f", of it ${lost:f} reserved for requests whose reply never came" if lost else ""
    return BudgetError(
        f"budget: ${teacher.budget} for {teacher.maker} is used up (spent ${spent:f}{unknown}, the next "
        f"request may cost ${order.debt.reserve:f}); all replies are saved, raise it to go on"
    )


def _first(group: BaseExceptionGroup[TutelageError]) -> TutelageError:
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner


async def _work(run: _Run) -> None:
    # First a place, then an order: what waits for a place is claimed by nobody, and its time does not run.
    # But no place is kept while waiting for an order: a request that is sent again may need it.
    while (slot := await run.gate.enter()) is not None:
        try:
            order = run.desk.take()
        except TutelageError:
            run.gate.leave()
            raise
        if order is not None:
            await _answer(run, order, slot)
            continue
        run.gate.leave()
        if not await run.desk.wait():
            return


async def _answer(run: _Run, order: Order, slot: Slot | None) -> None:
    """Send one claimed order until it is answered, hopeless, or out of time."""
    teacher, loop = run.teacher, asyncio.get_running_loop()
    end = loop.time() + teacher.deadline_s
    tries, kinds = 0, set()
    miss = _Miss("late", "no time left")
    while slot is not None:
        try:
            found = await _attempt(run, order, slot, end)
        finally:
            run.gate.leave()
        if found is None:
            return
        miss = found
        run.watch.errors[miss.kind] += 1
        if miss.stop:
            run.give_up(f"{miss.stop} ({miss.reason})")
            break
        pause = _pause(run, miss, slot, tries)
        if miss.kind != "429":
            kinds.add(miss.kind)
            tries += 1
            if tries > teacher.retries or not miss.passes:
                break
            if miss.kind == "connect" and not run.replies and tries > FIRST_CONNECTS:
                break
        if loop.time() + pause > end:
            break
        if pause:
            await run.gate.sleep(pause)
        if miss.lost and teacher.budget is not None and not await run.desk.again(order):
            return
        slot = await run.gate.enter(end, first=True)
        if slot is None and run.stop:
            run.desk.give_back(order)
            return
    else:
        miss = _Miss(
            miss.kind, f"no place at the server for deadline_s ({teacher.deadline_s:g} s); {miss.reason}"
        )
    run.desk.fail(order, Settled("failed", miss.reason), lost=miss.lost and slot is not None)
    run.failed += 1
    if not run.replies and not run.stop and (kinds == {"connect"} or run.failed >= HOPELESS):
        run.give_up(f"no reply at all; last: {miss.reason}")


def _pause(run: _Run, miss: _Miss, slot: Slot, tries: int) -> float:
    """Seconds that this order waits by itself; what all wait is the gate's business."""
    now = asyncio.get_running_loop().time()
    limited = miss.kind == "429"
    if limited or miss.kind in OVERLOADED:
        pause = run.gate.pace.refused(now, slot.started, miss.asked, wait=limited)
        run.gate.wake()
        if (miss.asked or 0.0) > run.teacher.deadline_s:
            run.give_up(
                f"the server asks to wait {pause:.0f} s, longer than deadline_s "
                f"({run.teacher.deadline_s:g} s); come back then ({miss.reason})"
            )
        if limited:
            run.watch.tick(0, f"rate limited, waiting {pause:.0f} s")
            return 0.0
    if miss.asked is not None:
        return miss.asked
    return rate.backoff(tries + 1, run.teacher.backoff_s, run.gate.pace.jitter)


async def _attempt(run: _Run, order: Order, slot: Slot, end: float) -> _Miss | None:
    """Send one request; None when its reply is stored and read."""
    now = asyncio.get_running_loop().time()
    slot.started = now
    if now >= end:
        return _Miss("late", "no time left")
    try:
        reply = await _send(run, order, end - now)
    except WireError as error:
        return _Miss(error.kind, str(error))
    asked = rate.retry_after(reply.headers)
    if reply.status != 200:
        return _Miss(str(reply.status), _status_text(run, reply), asked, _useless(reply))
    found = await run.desk.keep(order, pack(reply.raw))
    if found.state == "failed":
        return _Miss("unreadable", run.hide(found.reason), asked)
    pace = run.gate.pace
    pace.success()
    if pace.tokens:
        counted = found.prompt_tokens is not None and found.completion_tokens is not None
        tokens = (found.prompt_tokens or 0) + (found.completion_tokens or 0) if counted else None
        pace.count(asyncio.get_running_loop().time(), slot.taken, tokens)
    run.got(found)
    return None


async def _send(run: _Run, order: Order, left: float) -> Reply:
    run.watch.sent += 1
    timeout, idle = run.teacher.limits(max(0.001, left))
    reply = await run.post(run.url, order.debt.request.encode(), run.headers, timeout, idle)
    return Reply(reply.status, reply.headers, hide_key(reply.raw, run.key))


def _status_text(run: _Run, reply: Reply) -> str:
    body = load_json(reply.raw)
    text = error_text(body) if body is not None else one_line(reply.raw[:800].decode("utf-8", "replace"))
    return run.hide(f"HTTP {reply.status}: {text or 'no text'}")


def _useless(reply: Reply) -> str:
    """Why no request to this server can succeed as things are, "" when one can."""
    if reply.status == 429:
        return STOP_STATUS[402] if any(code.encode() in reply.raw for code in _QUOTA_CODES) else ""
    if 300 <= reply.status < 400:
        return "the server redirects; give base_url as it is after the redirect"
    return STOP_STATUS.get(reply.status, "")
