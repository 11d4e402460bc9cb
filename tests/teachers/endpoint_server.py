"""A real OpenAI-like server on loopback that does what a test says, and remembers what it was asked."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tutelage.records import Problem


@dataclass
class Say:
    """One scripted answer. `torn` sends half the body and hangs up, `reset` hangs up at once."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    torn: bool = False
    reset: bool = False
    seconds: float = 0.0


@dataclass
class Server:
    """`script(number of the request from 0, its body)` decides each answer."""

    script: Callable[[int, dict[str, Any]], Say]
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        number = len(self.bodies)
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        self.paths.append(request.path)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            say = self.script(number, body)
            await asyncio.sleep(say.seconds)
            raw = say.body if isinstance(say.body, bytes) else json.dumps(say.body).encode()
            assert request.transport is not None
            if say.reset:
                request.transport.abort()
            if say.torn:
                half = web.StreamResponse(status=say.status, headers={"Content-Length": str(len(raw))})
                await half.prepare(request)
                await half.write(raw[: len(raw) // 2])
                request.transport.close()
                return half
            return web.Response(status=say.status, headers=say.headers, body=raw)
        finally:
            self.at_once -= 1


@contextmanager
def serving(script: Callable[[int, dict[str, Any]], Say]) -> Iterator[Server]:
    """The server in a thread of its own, gone at the end."""
    server = Server(script)
    loop = asyncio.new_event_loop()
    ready = threading.Event()

    async def start() -> web.AppRunner:
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/{path:.*}", server.handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        return runner

    def live() -> None:
        asyncio.set_event_loop(loop)
        runner = loop.run_until_complete(start())
        ready.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=live, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


def completion(
    answer: str = "42", finish: str = "stop", usage: tuple[int, int] | None = (10, 20), **message: Any
) -> dict[str, Any]:
    """A chat completion as servers send it."""
    reply: dict[str, Any] = {
        "id": "x",
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": answer, **message},
                "finish_reason": finish,
            }
        ],
    }
    if usage:
        reply["usage"] = {
            "prompt_tokens": usage[0],
            "completion_tokens": usage[1],
            "total_tokens": sum(usage),
        }
    return reply


def echo(number: int, body: dict[str, Any]) -> Say:
    """Answers with the question asked."""
    return Say(completion(f"you asked {body['messages'][-1]['content']}", reasoning_content="hm"))


def problems(count: int) -> list[Problem]:
    """Problems p0, p1, ... with different questions."""
    return [
        Problem(id=f"p{number}", question=f"What is {number}?", gold=str(number)) for number in range(count)
    ]
