"""HTTP out: one request with JSON, one whole reply (or its bytes as they come), or one kind of error.

Promises: `post` and `fetch` give back a complete reply (status, headers, bytes) or raise WireError, whatever
the other side does: refused or reset connections, torn or badly compressed bodies, silence, endless bodies;
`streaming` does so piece by piece, and hangs up when it is left. No text of an error holds a header, so no
key can leak from here. Redirects are never followed (they could carry the key away).
Does not: retry, parse bodies, read keys, or use a proxy for addresses on this machine.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal, Protocol
from urllib.parse import urlsplit

import aiohttp

from tutelage.errors import TutelageError, UsageError

MAX_REPLY_BYTES = 64 * 2**20
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete HTTP reply. Header names are lower-case; `raw` is the body, decompressed."""

    status: int
    headers: Mapping[str, str]
    raw: bytes


class WireError(TutelageError):
    """No complete reply came. `kind`: `connect` (nobody listens), `timeout`, `torn` (the connection or the
    body broke off) or `oversized`. The request may have been carried out, and charged, all the same."""

    def __init__(self, kind: Literal["connect", "timeout", "torn", "oversized"], message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Post(Protocol):
    """The seam for other HTTP clients. Raises WireError."""

    async def __call__(
        self, url: str, body: bytes, headers: Mapping[str, str], timeout: float, idle: float | None = None
    ) -> Reply:
        """`body` is JSON. `timeout` seconds in all, `idle` seconds without a byte (None: as in all)."""


def check_url(url: str) -> str:
    """`url` without trailing slashes.

    Raises UsageError unless it is plain http(s)://host/path: a user, password, query or fragment is refused
    because the address is written to the ledger and into error lines."""
    try:
        parts = urlsplit(url.strip())
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        whole = False
    if not whole:
        raise UsageError("base_url: not an address like https://host/v1")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise UsageError(
            f"base_url: {parts.scheme}://{parts.hostname}: no user, password or query in the "
            "address; name the environment variable that holds the key in key_env instead"
        )
    return url.strip().rstrip("/")


@dataclass(frozen=True, slots=True)
class Incoming:
    """A reply whose body is still coming. Header names are lower-case."""

    status: int
    headers: Mapping[str, str]
    _response: aiohttp.ClientResponse
    _broken: Callable[[BaseException], WireError]

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The body, decompressed, as it comes. Raises WireError."""
        try:
            async for piece in self._response.content.iter_any():
                yield piece
        except _FAILURES as error:
            raise self._broken(error) from None

    async def whole(self, max_bytes: int = MAX_REPLY_BYTES) -> Reply:
        """The whole of it, at most `max_bytes` after decompression. Raises WireError."""
        raw = bytearray()
        async for piece in self.pieces():
            raw += piece
            if len(raw) > max_bytes:
                raise WireError("oversized", f"the reply is longer than {max_bytes} bytes")
        return Reply(self.status, self.headers, bytes(raw))


# OSError holds TimeoutError and the connector's errors; ValueError is what aiohttp raises for bad chunks.
_FAILURES = (aiohttp.ClientError, OSError, ValueError)


def _broken(error: BaseException, url: str, timeout: float | None, idle: float | None) -> WireError:
    """In our own words: aiohttp's errors can carry the request with its headers."""
    if isinstance(error, aiohttp.SocketTimeoutError):
        return WireError("timeout", f"nothing came for {idle:g} s")
    if isinstance(error, TimeoutError):
        return WireError("timeout", f"no whole reply within {timeout:g} s")
    if isinstance(error, aiohttp.ClientConnectorError):
        parts = urlsplit(url)
        why = error.os_error.strerror or type(error.os_error).__name__
        return WireError("connect", f"cannot connect to {parts.scheme}://{parts.netloc} ({why})")
    return WireError("torn", f"the connection broke off ({type(error).__name__})")


@asynccontextmanager
async def streaming(
    session: aiohttp.ClientSession,
    url: str,
    body: bytes | None,
    headers: Mapping[str, str],
    timeout: float | None,
    *,
    idle: float | None = None,
) -> AsyncIterator[Incoming]:
    """POST `body` (JSON already; None: GET) and give the reply as soon as its headers are there.

    `timeout` is in seconds and covers the whole exchange (None: no limit); `idle` is the longest time without
    a byte, for replies that are streamed: one may take an hour, but not be silent for ten minutes. Leaving
    the block before the body's end closes the connection, by which servers know that nobody listens any
    more. Raises WireError."""

    def broken(error: BaseException) -> WireError:
        return _broken(error, url, timeout, idle)

    try:
        response = await session.request(
            "GET" if body is None else "POST",
            url,
            data=body,
            headers=headers if body is None else {**headers, "Content-Type": "application/json"},
            timeout=aiohttp.ClientTimeout(total=timeout, sock_read=idle),
            allow_redirects=False,
        )
    except _FAILURES as error:
        raise broken(error) from None
    try:
        found = {name.lower(): value for name, value in response.headers.items()}
        yield Incoming(response.status, found, response, broken)
    finally:
        # Does nothing to a connection whose reply was read to its end: that one went back to the pool.
        response.close()


async def post_json(
    session: aiohttp.ClientSession,
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    timeout: float,
    *,
    idle: float | None = None,
    max_bytes: int = MAX_REPLY_BYTES,
) -> Reply:
    """POST `body` (JSON already) and read the whole reply, at most `max_bytes` after decompression.

    `timeout` and `idle` as for `streaming`. Raises WireError."""
    async with streaming(session, url, body, headers, timeout, idle=idle) as incoming:
        return await incoming.whole(max_bytes)


async def fetch(
    session: aiohttp.ClientSession, url: str, headers: Mapping[str, str], timeout: float
) -> Reply:
    """GET the whole of `url`. Raises WireError."""
    async with streaming(session, url, None, headers, timeout) as incoming:
        return await incoming.whole()


@asynccontextmanager
async def open_session(url: str, connections: int) -> AsyncIterator[aiohttp.ClientSession]:
    """A pool of at most `connections` connections, made for the host of `url`.

    Proxies of the environment are used, except for addresses on this machine."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=connections),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=urlsplit(url).hostname not in LOOPBACK,
    ) as session:
        yield session


@asynccontextmanager
async def open_post(url: str, connections: int) -> AsyncIterator[Post]:
    """A `Post` over a session of its own, see `open_session`."""
    async with open_session(url, connections) as session:

        async def post(
            url: str, body: bytes, headers: Mapping[str, str], timeout: float, idle: float | None = None
        ) -> Reply:
            return await post_json(session, url, body, headers, timeout, idle=idle)

        yield post
