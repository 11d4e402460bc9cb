"""A chat completions server that costs next to nothing: raw asyncio, a fixed wait, a reply of about 1 kB.

It counts requests by prompt: GET /asked gives how often each was asked, GET /answered how often the whole
reply was handed to the network. Run it by itself (it prints its address), or from Python with `serving`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar
from urllib.request import urlopen

THINKING = "Let me see. The question gives two numbers, so I add them and check the sum once more. " * 6
ANSWER = "The two numbers add up, so the answer is 42. " * 4
USAGE = {"prompt_tokens": 12, "completion_tokens": 180, "total_tokens": 192}


class Connection(asyncio.Protocol):
    """One kept-alive connection; requests come one after another."""

    asked: ClassVar[Counter[str]] = Counter()
    answered: ClassVar[Counter[str]] = Counter()
    seconds = 0.05
    reply = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.waiting = b""

    def data_received(self, data: bytes) -> None:
        self.waiting += data
        head, end, rest = self.waiting.partition(b"\r\n\r\n")
        if not end:
            return
        if head.startswith(b"GET"):
            self.waiting = rest
            counts = self.answered if b"/answered" in head else self.asked
            self.transport.write(http(json.dumps(counts).encode()))  # type: ignore[attr-defined]
            return
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        if len(rest) < length:
            return
        self.waiting = rest[length:]
        prompt = json.loads(rest[:length])["messages"][-1]["content"]
        self.asked[prompt] += 1
        asyncio.get_running_loop().call_later(self.seconds, self.answer, prompt)

    def answer(self, prompt: str) -> None:
        if not self.transport.is_closing():
            self.transport.write(self.reply)  # type: ignore[attr-defined]
            self.answered[prompt] += 1


def http(body: bytes) -> bytes:
    """A whole HTTP reply."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def chat_reply() -> bytes:
    """A chat completion as a server sends it, about 1 kB."""
    message = {"role": "assistant", "content": ANSWER, "reasoning_content": THINKING}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    reply = {"id": "chatcmpl-0", "object": "chat.completion", "created": 1, "model": "m"}
    return json.dumps({**reply, "choices": [choice], "usage": USAGE}).encode()


@contextmanager
def serving(seconds: float = 0.05) -> Iterator[str]:
    """The base URL of a server in a process of its own."""
    command = [sys.executable, __file__, "--seconds", str(seconds)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        yield server.stdout.readline().strip()
    finally:
        server.kill()
        server.communicate()


def counts(url: str, which: str = "asked") -> dict[str, int]:
    """How often each prompt was asked (or answered) so far."""
    with urlopen(f"{url}/{which}", timeout=30) as reply:
        found: dict[str, int] = json.load(reply)
    return found


async def _live(seconds: float) -> None:
    Connection.seconds = seconds
    Connection.reply = http(chat_reply())
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", 0, backlog=4096)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.05)
    asyncio.run(_live(parser.parse_args().seconds))
