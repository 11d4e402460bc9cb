"""A source that says what a test wants, and the application over it on a socket of its own."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tutelage.serve.app import build_app
from tutelage.serve.gate import Rules
from tutelage.serve.run import listen, server
from tutelage.serve.source import Depth, Ended, Order, Refused, Said, Turn

Script = Callable[[Order], Sequence[Said | Ended | float | BaseException]]


def thoughts(order: Order) -> list[Said | Ended | float | BaseException]:
    """Two thoughts, one of them forced, and an answer, for every choice."""
    found: list[Said | Ended | float | BaseException] = []
    for index in range(order.n):
        if order.thinks:
            found.append(Said(index, "\nI think", "thinking", tokens=2))
            found.append(Said(index, " Wait", "thinking", forced=True, tokens=1))
        found.append(Said(index, f" seven {index}", "answer", tokens=2))
    for index in range(order.n):
        by = "budget" if order.thinks else "none"
        sampled, forced, waits = (2, 1, 1) if order.thinks else (0, 0, 0)
        found.append(Ended(index, "stop", by, 11, 7, sampled, forced, waits, refused=1))
    return found


@dataclass
class Scripted:
    """`script` decides what comes for each order: items in turn, seconds to wait, or an error to raise.
    `endless`: say that again and again."""

    script: Script = thoughts
    model: str = "scripted"
    context: int = 4096
    thinks: bool = True
    depth: Depth | None = None
    refuse: Refused | None = None
    endless: bool = False
    orders: list[Order] = field(default_factory=list)
    running: int = 0
    said: int = 0
    closed: bool = False

    async def open(self, order: Order) -> Any:
        self.orders.append(order)
        if self.refuse is not None:
            raise self.refuse
        self.running += 1
        return _Playing(self, self.script(order))

    async def tokenize(self, prompt: tuple[Turn, ...] | str) -> tuple[int, ...]:
        text = prompt if isinstance(prompt, str) else "".join(turn.content for turn in prompt)
        return tuple(text.encode())

    async def detokenize(self, ids: tuple[int, ...]) -> str:
        return bytes(ids).decode()

    def gauges(self) -> Mapping[str, float]:
        return {"rows": self.running}

    async def aclose(self) -> None:
        self.closed = True


class _Playing:
    def __init__(self, source: Scripted, items: Sequence[Any]) -> None:
        self.source, self.items, self.open = source, list(items), True
        self.at = 0

    def __aiter__(self) -> Any:
        return self

    async def __anext__(self) -> Said | Ended:
        while True:
            if self.at == len(self.items):
                if not self.source.endless:
                    raise StopAsyncIteration
                self.at = 0
            item = self.items[self.at]
            self.at += 1
            self.source.said += 1
            if isinstance(item, BaseException):
                raise item
            if not isinstance(item, float):
                return item
            await asyncio.sleep(item)

    async def aclose(self) -> None:
        if self.open:
            self.open = False
            self.source.running -= 1


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    raw: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.raw)

    @property
    def error(self) -> dict[str, Any]:
        return self.json["error"]

    @property
    def events(self) -> list[Any]:
        """The data of a stream's events; those that are JSON are parsed."""
        lines = [line[6:] for line in self.raw.decode().split("\n") if line.startswith("data: ")]
        return [line if line == "[DONE]" else json.loads(line) for line in lines]


@dataclass
class Site:
    """Where an application listens."""

    host: str
    port: int
    lines: list[str]
    stop: Callable[[], None]

    def ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=20)
        try:
            raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            sent = {"Content-Type": "application/json"} if raw is not None else {}
            connection.request(method, path, raw, {**sent, **(headers or {})})
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, found, answer.read())
        finally:
            connection.close()

    def post(self, path: str, **body: Any) -> Answer:
        return self.ask("POST", path, body)

    def chat(self, **body: Any) -> Answer:
        messages = [{"role": "user", "content": "3+4?"}]
        return self.post("/v1/chat/completions", **{"messages": messages, **body})

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = self.ask("GET", "/metrics").raw.decode().splitlines()
        return sum(
            float(line.rsplit(" ", 1)[1])
            for line in lines
            if line.partition("{")[0].partition(" ")[0] == f"tutelage_{name}"
        )


@contextmanager
def site(source: Any, *, rules: Rules | None = None, grace: int = 2, **options: Any) -> Iterator[Site]:
    """`source` (or what the coroutine function `source` makes on the server's loop) served on a free port, in
    a thread, until the block ends."""
    opened = listen("127.0.0.1", 0)
    ready, lines, running = threading.Event(), [], []

    async def serve() -> None:
        made = await source() if callable(source) else source
        app = build_app(made, rules or Rules(), **options)
        running.append(server(app, ready=ready.set, say=lines.append, grace=grace))
        await running[0].serve(sockets=[opened])

    thread = threading.Thread(target=lambda: asyncio.run(serve()))

    def stop() -> None:
        running[0].should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server did not stop"

    thread.start()
    try:
        assert ready.wait(20)
        yield Site("127.0.0.1", opened.getsockname()[1], lines, stop)
    finally:
        stop()
