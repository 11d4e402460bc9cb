"""The gate before a server: a request starts when its `Pace` lets it, in the order of asking.

Promises: nothing starts while the server's own wait or a ceiling says no; whoever could not start within its
time is told at once; after `stop` nothing starts any more.
Does not: know what a request is.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from tutelage.teachers.limits import Pace
from tutelage.teachers.watch import Watch


@dataclass(slots=True)
class Slot:
    """One place inside. `started` is the loop's time, `taken` the tokens that were taken for it."""

    started: float
    taken: float


@dataclass(slots=True)
class Gate:
    """Used from one event loop."""

    pace: Pace
    watch: Watch
    stopped: bool = False
    last: bool = False
    _waiting: deque[tuple[asyncio.Future[Slot | None], float]] = field(default_factory=deque)
    _timer: asyncio.TimerHandle | None = None
    _stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def enter(self, end: float = float("inf"), *, first: bool = False) -> Slot | None:
        """Wait for a place; None after `stop`, or when there is none before `end` (the loop's time). `first`:
        before all others who wait, for a request that is sent again."""
        if self.stopped or (self.last and not first):
            return None
        loop = asyncio.get_running_loop()
        now = loop.time()
        if not self._waiting and self.pace.wait(now) == 0:
            return self._start(now)
        future: asyncio.Future[Slot | None] = loop.create_future()
        if first:
            self._waiting.appendleft((future, end))
        else:
            self._waiting.append((future, end))
        self.wake()
        return await future

    def leave(self) -> None:
        """Give the place back."""
        self.pace.end()
        self.wake()

    def stop(self) -> None:
        """Let nobody in any more."""
        self.stopped = True
        self._stop.set()
        while self._waiting:
            _tell(self._waiting.popleft()[0], None)

    def no_more(self) -> None:
        """Only requests that are sent again come from now on; nobody else needs to wait."""
        if self.last:
            return
        self.last = True
        waiting, self._waiting = self._waiting, deque()
        for future, end in waiting:
            if end == float("inf"):
                _tell(future, None)
            else:
                self._waiting.append((future, end))
        self.wake()

    async def sleep(self, seconds: float) -> None:
        """Wait outside, not longer than until `stop`."""
        try:
            await asyncio.wait_for(self._stop.wait(), seconds)
        except TimeoutError:
            return

    def wake(self) -> None:
        """Let in who may; called when something has changed."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        seconds: float | None = 0.0
        while self._waiting and (seconds := self.pace.wait(now)) == 0:
            future, _ = self._waiting.popleft()
            if not future.done():
                future.set_result(self._start(now))
        self._show()
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if not self._waiting or not seconds:
            return
        late = [future for future, end in self._waiting if end <= now + seconds]
        if late:
            self._waiting = deque(each for each in self._waiting if each[1] > now + seconds)
            for future in late:
                _tell(future, None)
        self._timer = loop.call_later(seconds, self.wake)

    def _start(self, now: float) -> Slot:
        slot = Slot(now, self.pace.start(now))
        self._show()
        return slot

    def _show(self) -> None:
        self.watch.at_once, self.watch.limit = self.pace.at_once, self.pace.limit


def _tell(future: asyncio.Future[Slot | None], answer: Slot | None) -> None:
    if not future.done():
        future.set_result(answer)
