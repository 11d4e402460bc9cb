"""The ledger's side of a purchase, in a thread of its own: it hands out claimed orders and keeps what came
back.

Promises
- All that waits is written in one transaction, and the next one collects what comes meanwhile; nothing waits
  for company. (At 256 requests at once some dozen replies share the 0.4 ms that the disk takes.)
- A reply is on disk before it is read or counted.
- An order that a budget does not allow waits for those that hold a reservation, and only then gives up.
- Some orders are claimed ahead, so that a request that ends makes room at once for the next.
Does not: send anything.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any

from tutelage.ledger import BEAT_SECONDS, Ledger, Settled, Turn
from tutelage.records import Problem
from tutelage.teachers.orders import Order
from tutelage.teachers.replies import Parsed
from tutelage.teachers.watch import Watch

if TYPE_CHECKING:
    from tutelage.teachers.teacher import Teacher

# Orders that are claimed and not yet sent, at most.
AHEAD = 64


@dataclass(frozen=True, slots=True)
class _Reply:
    order: Order
    raw: bytes
    answer: asyncio.Future[Parsed]


@dataclass(frozen=True, slots=True)
class _Failure:
    order: Order
    found: Settled
    lost: bool


@dataclass(frozen=True, slots=True)
class _Again:
    """A request whose outcome is unknown is to be sent once more: its reserve is lost, it needs another."""

    order: Order
    answer: asyncio.Future[bool]


@dataclass(frozen=True, slots=True)
class _Unused:
    order: Order


class Desk:
    """`ledger` and `wanted` belong to the thread until `close`. Everything else is called from the loop;
    `last` is called there once there is no further order."""

    def __init__(
        self,
        teacher: Teacher,
        ledger: Ledger,
        wanted: Iterator[Order],
        watch: Watch,
        budget: Decimal | None = None,
        ahead: int = AHEAD,
        last: Callable[[], None] = lambda: None,
    ) -> None:
        self.held: list[tuple[Problem, int]] = []
        self.too_dear: Order | None = None
        self.error: BaseException | None = None
        self._teacher, self._ledger, self._wanted, self._watch = teacher, ledger, wanted, watch
        self._budget, self._ahead, self._last = budget, ahead, last
        self._loop = asyncio.get_running_loop()
        self._inbox: SimpleQueue[Any] = SimpleQueue()
        # Of the loop:
        self._ready: deque[Order] = deque()
        self._waiting: deque[asyncio.Future[bool]] = deque()
        self._taken: set[str] = set()  # keys that were handed out and are not answered, failed or given back
        self._over = self._stopped = False
        # Of the thread:
        self._flying: set[str] = set()
        self._blocked: list[Order | _Again] = []
        self._findings: list[tuple[str, Settled]] = []
        self._all_taken = False
        self._closing = False
        self._thread = Thread(target=self._live, name="ledger", daemon=True)
        self._thread.start()

    # --- in the loop ---

    def take(self) -> Order | None:
        """An order that is ours to send, None when there is none now. Raises what the ledger raises."""
        if self.error:
            raise self.error
        if self._stopped or not self._ready:
            return None
        order = self._ready.popleft()
        self._taken.add(order.debt.key)
        self._tell_last()
        if len(self._ready) * 2 <= self._ahead:
            self._wake()
        return order

    async def wait(self) -> bool:
        """Wait until there may be an order to take; False: there will be none."""
        if self.error:
            raise self.error
        if self._ready and not self._stopped:
            return True
        if self._over or self._stopped:
            return False
        future: asyncio.Future[bool] = self._loop.create_future()
        self._waiting.append(future)
        self._wake()
        return await future

    def _wake(self) -> None:
        if self._inbox.empty():
            self._inbox.put(None)

    async def keep(self, order: Order, raw: bytes) -> Parsed:
        """Store a reply; what it says, once it is on disk. A reply that cannot be read (`failed`) leaves its
        order as it is."""
        found: Parsed = await self._ask(_Reply(order, raw, self._loop.create_future()))
        if found.state != "failed":
            self._taken.discard(order.debt.key)
        return found

    async def again(self, order: Order) -> bool:
        """Whether a request that may have been charged may be sent once more within the budget."""
        yes: bool = await self._ask(_Again(order, self._loop.create_future()))
        return yes

    async def _ask(self, question: _Reply | _Again) -> Any:
        if self.error:
            raise self.error
        self._inbox.put(question)
        return await question.answer

    def fail(self, order: Order, found: Settled, *, lost: bool) -> None:
        """An order failed for good; `lost`: its last request may have been charged all the same."""
        self._taken.discard(order.debt.key)
        self._inbox.put(_Failure(order, found, lost))

    def give_back(self, order: Order) -> None:
        """An order is not sent after all."""
        self._taken.discard(order.debt.key)
        self._inbox.put(_Unused(order))

    def stop(self) -> None:
        """Hand out no more orders."""
        self._stopped = True
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(False)

    def close(self) -> None:
        """Write all that waits, give unsent orders back, end the thread. Raises what the ledger raises."""
        self._inbox.put(self)
        self._thread.join()
        if self.error:
            raise self.error

    def _deliver(
        self, orders: list[Order], answers: list[tuple[asyncio.Future[Any], Any]], over: bool
    ) -> None:
        for future, answer in answers:
            if not future.done():
                future.set_result(answer)
        self._over = over
        self._ready += orders
        for _ in range(min(len(self._waiting), len(self._waiting) if over else len(self._ready))):
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(bool(self._ready))
        self._tell_last()

    def _tell_last(self) -> None:
        if self._over and not self._ready:
            self._last()

    def _break(self, error: BaseException, answers: list[asyncio.Future[Any]]) -> None:
        self.error = error
        for future in (*answers, *self._waiting):
            if not future.done():
                future.set_exception(error)
        self._waiting.clear()

    # --- in the thread ---

    def _live(self) -> None:
        batch: list[Any] = []
        try:
            while not self._closing:
                batch = self._take()
                self._round(batch)
            # The loop waits in `close`: what it has not handed out by now was never sent.
            unused = self._flying - self._taken
            self._ledger.turn(Turn(findings=self._findings, unused=list(unused)))
        except BaseException as error:  # noqa: BLE001 - raised again in every task that waits
            self.error = error
            batch += self._drain()
            asked = [one.answer for one in (*batch, *self._blocked) if isinstance(one, _Reply | _Again)]
            self._loop.call_soon_threadsafe(self._break, error, asked)

    def _take(self) -> list[Any]:
        batch = self._drain()
        while not batch and not self._findings:
            try:
                batch = [self._inbox.get(timeout=BEAT_SECONDS)]
            except Empty:
                self._ledger.beat()
        return batch + self._drain()

    def _drain(self) -> list[Any]:
        found = []
        try:
            while True:
                found.append(self._inbox.get_nowait())
        except Empty:
            return found

    def _round(self, batch: list[Any]) -> None:
        """One transaction, and what follows from it."""
        self._closing = any(one is self for one in batch)
        replies = [one for one in batch if isinstance(one, _Reply)]
        failures = [one for one in batch if isinstance(one, _Failure)]
        unused = [one.order.debt.key for one in batch if isinstance(one, _Unused)]
        again = [one for one in batch if isinstance(one, _Again)]
        findings = self._findings + [(one.order.debt.key, one.found) for one in failures]
        self._flying.difference_update(unused, (key for key, _ in findings))
        self._flying.difference_update(one.order.debt.key for one in again)
        self._blocked += again
        wanted = self._blocked or ([] if self._closing else self._more())
        debts = [_order(one).debt for one in wanted]
        turn = Turn(
            replies=[(one.order.debt.key, one.raw) for one in replies],
            lost=[one.order.debt.key for one in again] + [one.order.debt.key for one in failures if one.lost],
            findings=findings,
            unused=unused,
            debts=debts,
        )
        claims = self._ledger.turn(turn, self._budget)
        self._findings = []
        answers: list[tuple[asyncio.Future[Any], Any]] = []
        orders = self._sort(wanted, claims, answers)
        for reply in replies:
            answers.append((reply.answer, self._read(reply)))
        if self._blocked and not self._flying:
            self.too_dear = _order(self._blocked[0])
            answers += [(one.answer, False) for one in self._blocked if isinstance(one, _Again)]
            self._blocked = []
        over = self.too_dear is not None or (self._all_taken and not self._blocked)
        self._loop.call_soon_threadsafe(self._deliver, orders, answers, over)
        if not over and not self._blocked and len(orders) < len(self._waiting):
            self._inbox.put(None)  # some orders were another process's; whoever waits gets others
        if failures:
            self._watch.tick(len(failures))

    def _more(self) -> list[Order | _Again]:
        """Further orders, so many that some are ahead."""
        found: list[Order | _Again] = []
        missing = self._ahead + len(self._waiting) - len(self._ready)
        keys = set()
        while len(found) < missing and not self._all_taken and self.too_dear is None:
            order = next(self._wanted, None)
            if order is None:
                self._all_taken = True
            elif order.debt.key in self._flying or order.debt.key in keys:
                self._watch.tick(1)  # another problem with the same text: bought already
            else:
                keys.add(order.debt.key)
                found.append(order)
        return found

    def _sort(
        self,
        wanted: list[Order | _Again],
        claims: dict[str, Any],
        answers: list[tuple[asyncio.Future[Any], Any]],
    ) -> list[Order]:
        """The orders that are ours now; others are held, stored, or blocked by the budget."""
        ours: list[Order] = []
        self._blocked = []
        for one in wanted:
            order = _order(one)
            claim = claims[order.debt.key]
            if claim == "over":
                self._blocked.append(one)
                continue
            if claim == "yours":
                self._flying.add(order.debt.key)
            if isinstance(one, _Again):
                answers.append((one.answer, claim == "yours"))
            elif claim == "yours":
                ours.append(order)
            elif claim == "held":
                self.held.append((order.problem, order.sample))
            else:
                self._watch.tick(1)
        return ours

    def _read(self, reply: _Reply) -> Parsed:
        found = self._teacher.read(reply.raw)
        if found.state != "failed":
            account = self._teacher.settled(found)
            self._findings.append((reply.order.debt.key, account))
            self._watch.got(account)
            self._watch.tick(1)
        return found


def _order(one: Order | _Again) -> Order:
    return one if isinstance(one, Order) else one.order
