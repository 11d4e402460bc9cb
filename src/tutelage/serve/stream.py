"""A reply on its way to a client: as server-sent events, or whole, and given up when the client is gone.

Promises: a stream is never silent for longer than `heartbeat` seconds and a quarter; a client that reads
nothing for `stall` seconds is dropped; when the client goes away, or the
server shuts down, the replies are closed at once, so that their slots are free at the next step; an error
after the headers is one `data: {"error": ...}`, then the end.
Does not: buffer without bound (what is not read waits in the connection, what is not sent yet in the source,
which holds one reply at most).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from tutelage.errors import TutelageError
from tutelage.serve.metrics import Metrics
from tutelage.serve.reply import Choice, Kind, error_fields, event
from tutelage.serve.source import Ended, Refused, Replies, Said

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Result = TypeVar("Result")

log = logging.getLogger("tutelage.serve")
PING = b": ping\n\n"
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),  # nginx in between would hold the stream back
    (b"x-content-type-options", b"nosniff"),
]


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds. `heartbeat`: the longest silence of a stream; `stall`: how long a client may read nothing;
    `upload`: how long the next part of a body may take."""

    heartbeat: float = 15.0
    stall: float = 60.0
    upload: float = 30.0


PATIENCE = Patience()


def shutting_down() -> Refused:
    """What is told to those who are cancelled; nobody else cancels a request."""
    return Refused(503, "the server is shutting down", code="shutting_down", retry_after=5)


class Gone(Exception):
    """The client went away; nobody is left to answer."""


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """What `work` gives; it is cancelled and Gone raised when the client hangs up first, Refused when the
    server shuts down. The request's body must have been read."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_hung_up(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Gone
    except asyncio.CancelledError:
        raise shutting_down() from None
    finally:
        await _end(task, gone)


async def gather(replies: Replies, choices: Sequence[Choice], metrics: Metrics) -> None:
    """Read all of `replies` into `choices`, and close them."""
    try:
        async for item in replies:
            _take(item, choices, metrics)
    finally:
        await replies.aclose()


def _take(item: Said | Ended, choices: Sequence[Choice], metrics: Metrics) -> None:
    if isinstance(item, Said):
        choices[item.index].add(item)
    else:
        choices[item.index].ended = item
        metrics.ended(item)


class Stream:
    """An ASGI response that sends `replies` in the shapes of `kind`."""

    def __init__(
        self, replies: Replies, kind: Kind, choices: Sequence[Choice], metrics: Metrics, patience: Patience
    ) -> None:
        self._replies, self._kind, self._choices = replies, kind, choices
        self._metrics, self._patience = metrics, patience
        self._sent = self._sending = 0.0  # when the last write ended; since when one is under way, or 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        work = asyncio.create_task(self._write(send))
        gone = asyncio.create_task(_hung_up(receive))
        self._sent = loop.time()
        self._metrics.streams += 1
        tick = min(self._patience.heartbeat, self._patience.stall) / 4
        stalled = False
        try:
            while not (work.done() or gone.done() or stalled):
                await asyncio.wait({work, gone}, timeout=tick, return_when=asyncio.FIRST_COMPLETED)
                now = loop.time()
                if self._sending:
                    stalled = now - self._sending > self._patience.stall
                elif not work.done() and now - self._sent >= self._patience.heartbeat:
                    try:
                        await asyncio.wait_for(self._send(send, PING), self._patience.stall)
                    except TimeoutError:
                        stalled = True
            if work.done():
                work.result()
            else:
                self._metrics.count("cancelled_total", why="stalled" if stalled else "gone")
        except asyncio.CancelledError:  # an answer is wanted all the same, so this ends here
            await _end(work)
            with contextlib.suppress(TimeoutError, OSError):
                await asyncio.wait_for(self._finish(send, event(error_fields(shutting_down()))), 1.0)
        finally:
            self._metrics.streams -= 1
            await _end(work)
            await self._replies.aclose()
            if stalled:
                await _abort(scope, gone)
            await _end(gone)

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        kind, choices = self._kind, self._choices
        last = b""
        try:
            if opening := kind.opening(choices):
                await self._send(send, opening)
            async for item in self._replies:
                choice = choices[item.index]
                if isinstance(item, Said):
                    data = kind.piece(choice, item)
                    choice.add(item)
                else:
                    _take(item, choices, self._metrics)
                    data = kind.last(choice)
                if data:
                    await self._send(send, data)
            last = kind.closing(choices)
        except TutelageError as error:
            refused = error if isinstance(error, Refused) else Refused(500, str(error))
            last = event(error_fields(refused))
        except Exception:
            log.exception("a defect while streaming a reply")
            last = event(error_fields(Refused(500, "a defect in the server; its log says more")))
        await self._finish(send, last)

    async def _send(self, send: Send, data: bytes) -> None:
        clock = asyncio.get_running_loop().time
        self._sending = clock()
        await send({"type": "http.response.body", "body": data, "more_body": True})
        self._sending, self._sent = 0.0, clock()

    async def _finish(self, send: Send, data: bytes) -> None:
        self._sending = asyncio.get_running_loop().time()
        await send({"type": "http.response.body", "body": data, "more_body": False})
        self._sending = 0.0


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    # A failure of a task that is given up is nobody's any more.
    await asyncio.gather(*tasks, return_exceptions=True)


async def _abort(scope: Message, gone: asyncio.Task[None]) -> None:
    """Break the connection: closing would first wait until the client has read what lies there."""
    abort = scope.get("state", {}).get("abort")
    if abort is not None:
        abort()
        await asyncio.wait({gone}, timeout=1.0)
