"""A real local HTTP server in a thread of its own, for tests whose client runs in another process or loop."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web


@contextmanager
def live(app: web.Application, **runner: Any) -> Iterator[str]:
    """The address of `app`, which is gone at the end. `runner`: further settings of aiohttp's AppRunner."""
    loop = asyncio.new_event_loop()
    ready = threading.Event()
    urls: list[str] = []

    async def start() -> web.AppRunner:
        running = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, **runner)
        await running.setup()
        await web.TCPSite(running, "127.0.0.1", 0).start()
        urls.append(f"http://127.0.0.1:{running.addresses[0][1]}")
        return running

    def work() -> None:
        asyncio.set_event_loop(loop)
        running = loop.run_until_complete(start())
        ready.set()
        loop.run_forever()
        loop.run_until_complete(running.cleanup())
        loop.close()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield urls[0]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
