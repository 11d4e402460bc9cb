"""Talking to the upstream server: JSON there and back, streams as they come, and its errors in our words.

Promises: whatever goes wrong there becomes one `Refused` with the status that our client is to get: a busy
upstream stays 429 or 503 with its Retry-After, a key that it does not take is ours to repair (502), silence
is 504; no error text holds the key. A stream that breaks off before its end is an error, never a reply.
Does not: retry (the client knows best), or know what the answers mean (see `upstream_kinds`).
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any

import aiohttp

from tutelage.serve.source import Refused
from tutelage.teachers.streams import events
from tutelage.wire import Incoming, Reply, WireError, check_url, fetch, streaming

_TIMEOUT = 60.0
_LONGEST_MESSAGE = 300
_LONGEST_EVENT = 16 * 2**20


class Http:
    """One upstream. `root` is its address without "/v1"."""

    def __init__(self, session: aiohttp.ClientSession, url: str, key: str | None, idle: float) -> None:
        """`idle`: seconds without a byte after which a stream counts as dead. Raises UsageError for an
        address that is none."""
        self.root = check_url(url).removesuffix("/v1")
        self._session = session
        self._idle = idle
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    async def get(self, path: str) -> Any:
        """The JSON at `path`; None where there is nothing (404). Raises Refused."""
        try:
            reply = await fetch(self._session, self.root + path, self._headers, _TIMEOUT)
        except WireError as error:
            raise self._lost(error) from None
        if reply.status == 404:
            return None
        if reply.status != 200:
            raise self._refusal(reply)
        return _json(reply.raw)

    async def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON object that comes back. Raises Refused."""
        async with self._sent(path, body, _TIMEOUT, None) as incoming:
            try:
                reply = await incoming.whole()
            except WireError as error:
                raise self._lost(error) from None
        found = _json(reply.raw)
        if not isinstance(found, dict):
            raise Refused(502, f"the upstream server's {path} did not answer with a JSON object")
        return found

    @asynccontextmanager
    async def stream(
        self, path: str, body: Mapping[str, Any]
    ) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """The JSON objects of a streamed reply as they come; leaving the block hangs up, which makes the
        upstream stop. Raises Refused, before the first object where the request itself was refused."""
        async with (
            self._sent(path, body, None, self._idle) as incoming,
            aclosing(self._objects(incoming)) as found,
        ):
            yield found

    @asynccontextmanager
    async def _sent(
        self, path: str, body: Mapping[str, Any], timeout: float | None, idle: float | None
    ) -> AsyncIterator[Incoming]:
        raw = json.dumps(body).encode()
        waiting = streaming(self._session, self.root + path, raw, self._headers, timeout, idle=idle)
        try:
            incoming = await waiting.__aenter__()
        except WireError as error:
            raise self._lost(error) from None
        try:
            if incoming.status != 200:
                try:
                    reply = await incoming.whole()
                except WireError as error:
                    raise self._lost(error) from None
                raise self._refusal(reply)
            yield incoming
        finally:
            await waiting.__aexit__(None, None, None)

    async def _objects(self, incoming: Incoming) -> AsyncGenerator[dict[str, Any], None]:
        try:
            done = False
            async with aclosing(incoming.pieces()) as pieces:
                async for block in blocks(pieces):
                    for name, data in events(block):
                        # Read on to the end: a connection left before it cannot be used again.
                        done = done or data.strip() == "[DONE]"
                        if done:
                            continue
                        found = _json(data.encode())
                        if not isinstance(found, dict):
                            raise Refused(
                                502, "the upstream server streamed something that is no JSON object"
                            )
                        if name == "error" or found.get("error"):
                            raise Refused(502, f"the upstream server failed: {_message(found)}")
                        yield found
        except WireError as error:
            raise self._lost(error) from None

    def _lost(self, error: WireError) -> Refused:
        status = {"timeout": 504, "connect": 503}.get(error.kind, 502)
        return Refused(status, f"the upstream server at {self.root}: {error}", code="upstream_unreachable")

    def _refusal(self, reply: Reply) -> Refused:
        """What an error status of the upstream means for our client."""
        said = _message(_json(reply.raw, None))
        match reply.status:
            case 429 | 503:
                wait = reply.headers.get("retry-after", "")
                seconds = int(wait) if wait.isdecimal() and len(wait) < 8 else 1
                return Refused(
                    reply.status,
                    f"the upstream server is busy: {said}",
                    code="upstream_busy",
                    retry_after=seconds,
                )
            case 401 | 403:
                return Refused(
                    502,
                    "the upstream server does not take our key; name the variable that holds it with "
                    "--upstream-key-env",
                    code="upstream_key",
                )
            case 400 | 413 | 422:
                return Refused(400, f"the upstream server refuses the request: {said}")
            case 404:
                return Refused(502, f"the upstream server does not know this address or model: {said}")
            case status:
                return Refused(502, f"the upstream server answered with status {status}: {said}")


async def blocks(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """A stream of events cut after its blank lines, however it arrives; what follows the last one as well."""
    held = b""
    async for piece in pieces:
        # A line end that is torn apart waits for its second half.
        text = held + piece
        torn = b"\r" if text.endswith(b"\r") else b""
        parts = text.removesuffix(torn).replace(b"\r\n", b"\n").split(b"\n\n")
        held = parts.pop() + torn
        for part in parts:
            if part.strip():
                yield part
        if len(held) > _LONGEST_EVENT:
            raise Refused(502, f"the upstream server streamed an event of more than {_LONGEST_EVENT} bytes")
    if held.strip():
        yield held


def _json(raw: bytes, otherwise: Any = ...) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        if otherwise is not ...:
            return otherwise
        raise Refused(502, "the upstream server answered with something that is not JSON") from None


def _message(found: Any) -> str:
    """The error text of the shapes that servers use, on one line."""
    for name in ("error", "message", "detail"):
        if isinstance(found, dict) and found.get(name):
            found = found[name]
    text = found if isinstance(found, str) else json.dumps(found) if found else "it does not say why"
    return " ".join(text.split())[:_LONGEST_MESSAGE]
