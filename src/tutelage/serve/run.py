"""Listen on a socket until told to stop.

Promises: says in one line when it is ready, with the address, and in one line what it does when it is told to
stop: replies under way may finish for `grace` seconds, the rest is cancelled with a word to the client; a
second signal stops at once. A connection that does not get its headers through in time is closed.
Does not: encrypt, restart, or run several processes.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from tutelage.errors import UsageError
from tutelage.serve.gate import App

HEADER_SECONDS = 20.0
Say = Callable[[str], None]


class _Connection(H11Protocol):
    """A connection that can be broken off by the application (`scope["state"]["abort"]`), and that has
    HEADER_SECONDS for the head of each request."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, "abort": transport.abort}
        self._watch(waiting=True)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch(self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0]))

    def connection_lost(self, exc: Exception | None) -> None:
        self._watch(waiting=False)
        super().connection_lost(exc)

    def _watch(self, waiting: bool) -> None:
        if waiting and self._deadline is None:
            self._deadline = self.loop.call_later(HEADER_SECONDS, self.transport.abort)
        elif not waiting and self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class _Server(uvicorn.Server):
    """uvicorn that says in our words what it does, and takes a signal as a wish, not as a failure."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None], say: Say) -> None:
        super().__init__(config)
        self._ready, self._say = ready, say

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        running = len(self.server_state.tasks)
        wait = self.config.timeout_graceful_shutdown
        more = f"{running} requests under way have {wait} s to finish" if running else "nothing is under way"
        self._say(f"stopping: {more}")
        await super().shutdown(sockets)
        if self.server_state.tasks:  # cancelled just now: they still have a word to say to their clients
            await asyncio.wait(self.server_state.tasks, timeout=2.0)
        self._say("stopped")


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Port 0: any free one. Raises UsageError where that cannot be."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        opened = socket.socket(family, kind, proto)
    except OSError as error:
        raise UsageError(f"--host {host}: {error.strerror or error}") from None
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(2048)
        opened.setblocking(False)
    except OSError as error:
        opened.close()
        raise UsageError(f"--port {port}: cannot listen on {host} ({error.strerror or error})") from None
    return opened


def url_of(opened: socket.socket) -> str:
    """The address of a listening socket."""
    host, port = opened.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _ours(record: logging.LogRecord) -> bool:
    """Defects alone: what uvicorn says about starting and stopping is said here in other words."""
    return record.levelno >= logging.ERROR and "graceful shutdown" not in record.getMessage()


async def run(
    app: App, opened: socket.socket, *, ready: Callable[[], None], say: Say, grace: int = 10
) -> None:
    """Serve `app` on `opened` until SIGINT or SIGTERM. `ready` is called when it answers, `say` with what a
    person should know."""
    await server(app, ready=ready, say=say, grace=grace).serve(sockets=[opened])


def server(app: Any, *, ready: Callable[[], None], say: Say, grace: int) -> _Server:
    """The server that `run` runs."""
    logging.getLogger("uvicorn.error").addFilter(_ours)
    config = uvicorn.Config(
        app,
        http=_Connection,
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=grace,
        h11_max_incomplete_event_size=64 * 1024,
    )
    return _Server(config, ready, say)
