"""Streams: the events of a streamed reply (server-sent events) put together to one reply.

Promises: never raises; linear time; a stream that broke off before its end is no reply, whatever came before;
chunks of chat completions, text completions and messages servers are read; comments (keep-alives), CRLF, a
byte order mark and data over several lines are as the standard says (WHATWG HTML, "Server-sent events"),
except that the last event needs no blank line behind it: many servers leave it out.
Does not: receive anything (see `wire`), or find thinking (see `replies`).

A stream says the same few hundred bytes around each token: a reply of 8,500 tokens is 2.5 MB as it comes, and
35 kB unstreamed. So the ledger keeps it packed (gzip: 48 kB in 4 ms), byte for byte what came.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tutelage.wire import MAX_REPLY_BYTES

_BEGINNING = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:data|event|id|retry)?:")
_LINE_END = re.compile(r"\r\n|\n|\r")
_PACKED = b"\x1f\x8b"
BROKE_OFF = "the stream broke off before its end"


def is_stream(raw: bytes) -> bool:
    """Whether these bytes begin like events; a JSON value never does."""
    return _BEGINNING.match(raw) is not None


def pack(raw: bytes) -> bytes:
    """The body of a reply as the ledger keeps it; `unpack` gives back the same bytes."""
    if is_stream(raw) or raw.startswith(_PACKED):  # what a server packed itself is packed once more
        return gzip.compress(raw, 1, mtime=0)
    return raw


def unpack(raw: bytes) -> bytes:
    """The body of a reply as it came. What is packed but broken, or longer than any reply, stays as it is."""
    if not raw.startswith(_PACKED):
        return raw
    whole = zlib.decompressobj(zlib.MAX_WBITS | 16)
    try:
        found = whole.decompress(raw, MAX_REPLY_BYTES + 1)
    except zlib.error:
        return raw
    return found if whole.eof else raw


def events(raw: bytes) -> Iterator[tuple[str, str]]:
    """(event name, data) of each event that has data. Bytes that are not UTF-8 become U+FFFD."""
    name, data = "", list[str]()
    for line in _LINE_END.split(raw.decode("utf-8", "replace").removeprefix("\ufeff").lstrip()):
        if not line:
            if data:
                yield name, "\n".join(data)
            name, data = "", []
            continue
        label, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if label == "data":
            data.append(value)
        elif label == "event":
            name = value
    if data:
        yield name, "\n".join(data)


def read_stream(raw: bytes) -> dict[str, Any] | str:
    """The reply as a server sends it unstreamed, {"error": ...} where the stream reports one, or in words
    why there is no reply."""
    gathered = _Gathered()
    broken = False
    for name, data in events(raw):
        if data.strip() == "[DONE]":
            gathered.ended = True
            continue
        if broken:  # and the stream went on, so it was not the end that was cut off
            return "a piece of the stream is not JSON"
        try:
            chunk = json.loads(data)
        except (ValueError, RecursionError):
            broken = True
            continue
        if not isinstance(chunk, dict):
            continue
        if name == "error" or chunk.get("error"):
            if not gathered.ended:
                return {"error": chunk.get("error") or chunk}
            continue
        gathered.add(chunk)
    return gathered.reply() if gathered.ended else BROKE_OFF


@dataclass(slots=True)
class _Gathered:
    """What the chunks so far say. Of several choices only the first is kept: one is ever asked for."""

    ended: bool = False
    usage: dict[str, Any] = field(default_factory=dict)
    finish: Any = None
    message: dict[str, list[Any]] = field(default_factory=dict)
    whole: Mapping[str, Any] | None = None
    text: list[str] = field(default_factory=list)
    choices: bool = False
    blocks: dict[int, tuple[dict[str, Any], list[str]]] = field(default_factory=dict)
    messages: bool = False

    def add(self, chunk: Mapping[str, Any]) -> None:
        # Some servers repeat the running counts in each chunk: the last ones are whole.
        if isinstance(chunk.get("usage"), dict):
            self.usage |= chunk["usage"]
        choices = chunk.get("choices")
        if isinstance(choices, list):
            for choice in choices:
                if isinstance(choice, dict) and choice.get("index", 0) in (0, None):
                    self._choice(choice)
        elif isinstance(kind := chunk.get("type"), str):
            self._event(kind, chunk)

    def _choice(self, choice: Mapping[str, Any]) -> None:
        self.choices = True
        delta = choice.get("delta")
        if isinstance(delta, dict):
            for name, value in delta.items():
                if isinstance(value, str | list | dict):
                    self.message.setdefault(name, []).append(value)
        elif isinstance(choice.get("message"), dict):
            self.whole = choice["message"]
        if isinstance(choice.get("text"), str):
            self.text.append(choice["text"])
        if choice.get("finish_reason"):
            self.finish = choice["finish_reason"]
            self.ended = True

    def _event(self, kind: str, chunk: Mapping[str, Any]) -> None:
        """One event of a messages server."""
        index = chunk.get("index")
        place = index if isinstance(index, int) else 0
        if kind == "message_start":
            self.messages = True
            begun = chunk.get("message")
            if isinstance(begun, dict) and isinstance(begun.get("usage"), dict):
                self.usage |= begun["usage"]
        elif kind == "content_block_start" and isinstance(chunk.get("content_block"), dict):
            self.blocks[place] = (chunk["content_block"], [])
        elif kind == "content_block_delta" and isinstance(delta := chunk.get("delta"), dict):
            _, parts = self.blocks.setdefault(place, ({"type": "text"}, []))
            parts += [delta[name] for name in ("text", "thinking") if isinstance(delta.get(name), str)]
        elif kind == "message_delta" and isinstance(delta := chunk.get("delta"), dict):
            if delta.get("stop_reason"):
                self.finish = delta["stop_reason"]
                self.ended = True
        elif kind == "message_stop":
            self.ended = True

    def reply(self) -> dict[str, Any] | str:
        if self.messages:
            content = [_block(begun, parts) for begun, parts in self.blocks.values()]
            return {"type": "message", "content": content, "stop_reason": self.finish, "usage": self.usage}
        if not self.choices:
            return "the stream holds no reply"
        choice: dict[str, Any] = {"finish_reason": self.finish}
        if self.text:
            choice["text"] = "".join(self.text)
        else:
            choice["message"] = self.whole or {name: _joined(parts) for name, parts in self.message.items()}
        return {"choices": [choice], "usage": self.usage}


def _block(begun: Mapping[str, Any], parts: list[str]) -> dict[str, Any]:
    name = "thinking" if begun.get("type") == "thinking" else "text"
    first = begun.get(name)
    return {**begun, name: (first if isinstance(first, str) else "") + "".join(parts)}


def _joined(parts: list[Any]) -> Any:
    if all(isinstance(part, str) for part in parts):
        return "".join(parts)
    return [one for part in parts for one in (part if isinstance(part, list) else [part])]
