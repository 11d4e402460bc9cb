"""A scripted server for the tests of the page: `/` and `/v1/*` in the shapes that our server speaks.

Each reply is a list of steps: bytes to send as they stand, or a function that is called between two writes
(to wait, say). What was asked and which connections the page closed are kept.
"""

from __future__ import annotations

import functools
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tutelage.serve.app import PAGE, page_headers

Step = bytes | Callable[[], object]


def card(name: str, context: int = 2048, thinks: bool = True) -> dict[str, Any]:
    """A model in the list of models."""
    return {"id": name, "root": name.split("@")[0], "max_model_len": context, "thinks": thinks}


def event(data: object) -> bytes:
    return f"data: {json.dumps(data)}\n\n".encode()


def delta(*, thinking: str = "", answer: str = "", forced: bool = False) -> bytes:
    """A chunk with text, in ASCII."""
    said: dict[str, str] = {}
    if thinking:
        said |= {"reasoning_content": thinking, "reasoning": thinking}
    if answer:
        said["content"] = answer
    choice = {"index": 0, "delta": said, "finish_reason": None, "tokens": 1}
    return event(
        {"object": "chat.completion.chunk", "choices": [choice | ({"forced": True} if forced else {})]}
    )


def ended(*, finish_reason: str = "stop", completion_tokens: int = 90, **thinking: Any) -> list[bytes]:
    """What follows the last text: the chunk with the reason and the counts, the usage, the end."""
    counts = {
        "budget": 64,
        "min": 0,
        "used": 64,
        "sampled": 60,
        "forced": 4,
        "waits": 2,
        "refused": 2,
        "closed_by": "budget",
    } | thinking
    choice = {"index": 0, "delta": {}, "finish_reason": finish_reason, "thinking": counts}
    usage = {
        "prompt_tokens": 21,
        "completion_tokens": completion_tokens,
        "total_tokens": 21 + completion_tokens,
    }
    return [event({"choices": [choice]}), event({"choices": [], "usage": usage}), b"data: [DONE]\n\n"]


class PageServer(ThreadingHTTPServer):
    """`replies` are given in the order of the requests; `by_budget` before them to those of a budget."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.page = PAGE.read_text(encoding="utf-8")
        self.models: list[dict[str, Any]] = [card("lab")]
        self.key = ""
        self.replies: list[Iterable[Step]] = []
        self.by_budget: dict[int | None, Iterable[Step]] = {}
        self.refusals: list[tuple[int, dict[str, str], bytes]] = []
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.paths: list[str] = []
        self.left = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"

    def handle_error(self, request: object, client_address: object) -> None: ...


class _Handler(BaseHTTPRequestHandler):
    server: PageServer

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        if self.path == "/":
            headers = {"Content-Type": "text/html; charset=utf-8", **page_headers(self.server.page)}
            self._whole(200, headers, self.server.page.encode())
        elif self._admitted():
            self._json(200, {"object": "list", "data": self.server.models})

    def do_POST(self) -> None:
        self.server.paths.append(self.path)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._admitted():
            return
        self.server.asked.append(body)
        if self.server.refusals:
            self._whole(*self.server.refusals.pop(0))
            return
        steps = self.server.by_budget.get(body.get("thinking_token_budget")) or self.server.replies.pop(0)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.end_headers()
        try:
            for step in steps:
                if isinstance(step, bytes):
                    self.wfile.write(step)
                else:
                    step()
        except OSError:
            self.server.left.set()

    def _admitted(self) -> bool:
        given = self.headers.get("Authorization")
        self.server.keys.append(given)
        if self.server.key and given != f"Bearer {self.server.key}":
            self._json(401, {"error": {"message": "no such key", "code": "invalid_api_key"}})
            return False
        return True

    def _json(self, status: int, value: object) -> None:
        self._whole(status, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _whole(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


def endless(first: Iterable[Step], pause: float) -> Iterator[Step]:
    """`first`, then text without end, one piece every `pause` seconds, until the page goes away."""
    yield from first
    while True:
        yield delta(thinking="more and ")
        yield functools.partial(time.sleep, pause)
