"""A real server on loopback, like those of OpenAI or Anthropic, that does what a test says and remembers
what it was asked.

A `Say` is one answer. What it can say: any status, headers and body, at once or late; streamed, with pauses;
half a body and then a hang-up (`torn`), a reset (`reset_midway`) or silence (`stalls`); a reset at once.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from live_app import live
from tutelage.records import Problem


@dataclass
class Say:
    """One scripted answer. `body`: bytes as they are, all else as JSON; with `events` the answer is streamed:
    texts as they are, all else as the JSON of one event, `pause` seconds after each. `seconds`: the wait
    before the answer. `torn` sends half of it and hangs up, `reset_midway` breaks the connection there,
    `stalls` says nothing for so many seconds there; `reset` breaks it at once."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    torn: bool = False
    reset: bool = False
    seconds: float = 0.0
    events: Sequence[Any] | None = None
    pause: float = 0.0
    reset_midway: bool = False
    stalls: float = 0.0

    def pieces(self) -> list[bytes]:
        if self.events is not None:
            return [one.encode() if isinstance(one, str) else event(one) for one in self.events]
        raw = self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()
        return [raw[: len(raw) // 2], raw[len(raw) // 2 :]]


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
            return await self.answer(request, say)
        finally:
            self.at_once -= 1

    async def answer(self, request: web.Request, say: Say) -> web.StreamResponse:
        pieces = say.pieces()
        assert request.transport is not None
        if say.reset:
            request.transport.abort()
        breaks = say.torn or say.reset_midway or say.stalls
        if say.events is None and not breaks:
            return web.Response(status=say.status, headers=say.headers, body=b"".join(pieces))
        length = {} if say.events is not None else {"Content-Length": str(sum(map(len, pieces)))}
        kind = {"Content-Type": "text/event-stream"} if say.events is not None else {}
        response = web.StreamResponse(status=say.status, headers={**kind, **length, **say.headers})
        await response.prepare(request)
        for piece in pieces[: len(pieces) // 2] if breaks else pieces:
            await response.write(piece)
            await asyncio.sleep(say.pause)
        if say.stalls:
            await asyncio.sleep(say.stalls)
        if say.reset_midway:
            request.transport.abort()
        elif breaks:
            request.transport.close()
        return response


@contextmanager
def serving(script: Callable[[int, dict[str, Any]], Say]) -> Iterator[Server]:
    """The server in a thread of its own, gone at the end."""
    server = Server(script)
    app = web.Application(client_max_size=2**26)
    app.router.add_post("/{path:.*}", server.handle)
    with live(app) as url:
        server.url = f"{url}/v1"
        yield server


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


def event(data: Any, name: str = "") -> bytes:
    """One event of a stream."""
    return f"event: {name}\n".encode() * bool(name) + f"data: {json.dumps(data)}\n\n".encode()


def chunks(reply: dict[str, Any], size: int = 3) -> list[Any]:
    """A chat or text completion as the events of a stream, texts in pieces of `size` characters: a first
    event without text, the finish reason apart, the counts last."""
    [choice] = reply["choices"]
    deltas: list[dict[str, Any]] = []
    if "text" in choice:
        deltas += [{"text": part} for part in _parts(choice["text"], size)]
    else:
        deltas.append({"delta": {"role": "assistant", "content": ""}})
        for name, value in choice["message"].items():
            if name != "role" and value is not None:
                deltas += [{"delta": {name: part}} for part in _parts(value, size)]
    deltas.append({"delta": {}, "finish_reason": choice["finish_reason"]})
    found: list[Any] = [{"choices": [{"index": 0, "finish_reason": None, **delta}]} for delta in deltas]
    if reply.get("usage"):
        found.append({"choices": [], "usage": reply["usage"]})
    return [*found, "data: [DONE]\n\n"]


def _parts(value: Any, size: int) -> list[Any]:
    """A text or a list in pieces."""
    return [value[start : start + size] for start in range(0, len(value), size)]


def streamed(reply: dict[str, Any], size: int = 3, **how: Any) -> Say:
    """A completion, streamed."""
    return Say(events=chunks(reply, size), **how)


def message(
    answer: str = "42",
    thinking: str = "",
    stop: str = "end_turn",
    usage: dict[str, int] | None = None,
    blocks: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """A reply of a messages server. `blocks` come before the answer."""
    thoughts = [{"type": "thinking", "thinking": thinking, "signature": "Eo8"}] if thinking else []
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [*thoughts, *(blocks or []), {"type": "text", "text": answer}],
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": usage or {"input_tokens": 10, "output_tokens": 20},
    }


def message_events(reply: dict[str, Any], size: int = 3) -> list[str]:
    """A reply of a messages server as the events of a stream."""
    begun = {**reply, "content": [], "stop_reason": None, "usage": {**reply["usage"], "output_tokens": 1}}
    found: list[dict[str, Any]] = [{"type": "message_start", "message": begun}, {"type": "ping"}]
    for index, block in enumerate(reply["content"]):
        name = {"text": "text", "thinking": "thinking"}.get(block["type"])
        empty = {key: "" if key in (name, "signature") else value for key, value in block.items()}
        found.append({"type": "content_block_start", "index": index, "content_block": empty})
        for part in _parts(block[name], size) if name else []:
            delta = {"type": f"{name}_delta", name: part}
            found.append({"type": "content_block_delta", "index": index, "delta": delta})
        if "signature" in block:
            signed = {"type": "signature_delta", "signature": block["signature"]}
            found.append({"type": "content_block_delta", "index": index, "delta": signed})
        found.append({"type": "content_block_stop", "index": index})
    counts = {"output_tokens": reply["usage"]["output_tokens"]}
    delta = {"stop_reason": reply["stop_reason"], "stop_sequence": None}
    found += [{"type": "message_delta", "delta": delta, "usage": counts}, {"type": "message_stop"}]
    return [event(one, one["type"]).decode() for one in found]


def echo(number: int, body: dict[str, Any]) -> Say:
    """Answers with the question asked."""
    return Say(completion(f"you asked {body['messages'][-1]['content']}", reasoning_content="hm"))


def problems(count: int) -> list[Problem]:
    """Problems p0, p1, ... with different questions."""
    return [
        Problem(id=f"p{number}", question=f"What is {number}?", gold=str(number)) for number in range(count)
    ]
