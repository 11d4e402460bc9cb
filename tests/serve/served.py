"""A real `tutelage serve` in a process of its own, and the plain HTTP that tests ask it with.

Not a client library: one connection per request, nothing retried, raw sockets for what no library sends."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHAT = "/v1/chat/completions"
_METRIC = re.compile(r"^(?:tutelage_)?(\w+)(?:\{[^}]*\})? (\S+)$", re.M)


@dataclass(frozen=True)
class Reply:
    """A whole HTTP reply."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error object, after a look at its shape."""
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}, error
        assert error["message"] and "Traceback" not in error["message"]
        return error

    @property
    def events(self) -> list[str]:
        """The `data:` lines of a stream of events."""
        lines = self.body.decode().split("\n")
        return [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]


@dataclass(frozen=True)
class Server:
    """One that runs: where it is and how to ask it."""

    host: str
    port: int
    model: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        timeout: float = 60.0,
    ) -> Reply:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def post(self, path: str, fields: Any, timeout: float = 60.0) -> Reply:
        body = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
        return self.request("POST", path, body, {"Content-Type": "application/json"}, timeout)

    def ask(self, question: str = "2+2?", timeout: float = 60.0, **fields: Any) -> Reply:
        """One chat completion, greedy and short unless `fields` say otherwise."""
        messages = [{"role": "user", "content": question}]
        return self.post(CHAT, body(self, **{"messages": messages, **fields}), timeout)

    def metrics(self) -> dict[str, float]:
        """All figures of /metrics, by name without the common prefix; those with labels are added up."""
        found: dict[str, float] = {}
        for name, value in _METRIC.findall(self.request("GET", "/metrics").body.decode()):
            found[name] = found.get(name, 0.0) + float(value)
        return found

    def rows(self) -> float:
        """How many replies the engine is writing now."""
        return self.metrics()["rows"]

    def connect(self, timeout: float = 10.0) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout)

    def raw(self, path: str, fields: Any) -> bytes:
        """The bytes of a POST request, for sending by hand."""
        body = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\nContent-Type: application/json\r\n"
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    def serves(self) -> None:
        """The proof that a server has survived: it runs, is in health, and answers a question well."""
        assert self.process.poll() is None, self.log.read_text()[-2000:]
        assert self.request("GET", "/health").status == 200
        reply = self.ask(thinking_token_budget=8, max_tokens=24)
        assert reply.status == 200, reply.body
        assert reply.json["thinking"]["used"] <= 8


def body(server: Server, **fields: Any) -> dict[str, Any]:
    """The fields of a chat completion, greedy and short unless `fields` say otherwise."""
    messages = [{"role": "user", "content": "2+2?"}]
    return {"model": server.model, "messages": messages, "temperature": 0, "max_tokens": 64, **fields}


def wait_until(true: Callable[[], bool], seconds: float, what: str) -> float:
    """Seconds until `true()`; AssertionError with `what` when it takes longer than `seconds`."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < seconds, f"not within {seconds} s: {what}"
        time.sleep(0.02)
    return time.monotonic() - began


@contextmanager
def serving(folder: Path, log: Path, *options: str, env: dict[str, str] | None = None) -> Iterator[Server]:
    """`tutelage serve FOLDER` on a free port of the loopback until the block ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tutelage", "serve", str(folder), "--port", str(port), *options]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **(env or {})})
    server = Server("127.0.0.1", port, folder.name, process, log)
    try:
        wait_until(lambda: _healthy(server), 120, "the server is ready")
        yield server
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


def _healthy(server: Server) -> bool:
    assert server.process.poll() is None, f"the server stopped:\n{server.log.read_text()[-3000:]}"
    try:
        return server.request("GET", "/health", timeout=5).status == 200
    except OSError:
        return False
