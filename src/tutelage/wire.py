"""HTTP out: one POST of JSON, one whole reply or one kind of error.

Promises: `post` gives back a complete reply (status, headers, bytes) or raises WireError, whatever the other
side does: refused or reset connections, torn or badly compressed bodies, silence, endless bodies. No text of
an error holds a header, so no key can leak from here. Redirects are never followed (they could carry the key
away).
Does not: retry, parse bodies, read keys, or use a proxy for addresses on this machine.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
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

    `timeout` is in seconds and covers the whole exchange; `idle` is the longest time without a byte, for
    replies that are streamed: one may take an hour, but not be silent for ten minutes. Raises WireError."""
    raw = bytearray()
    try:
        async with session.post(
            url,
            data=body,
            headers={**headers, "Content-Type": "application/json"},
            timeout=aiohttp.ClientTimeout(total=timeout, sock_read=idle),
            allow_redirects=False,
        ) as response:
            async for chunk in response.content.iter_any():
                raw += chunk
                if len(raw) > max_bytes:
                    raise WireError("oversized", f"the reply is longer than {max_bytes} bytes")
            found = {name.lower(): value for name, value in response.headers.items()}
            return Reply(response.status, found, bytes(raw))
    # `from None` and our own words: aiohttp's errors can carry the request with its headers.
    except aiohttp.SocketTimeoutError:
        raise WireError("timeout", f"nothing came for {idle:g} s") from None
    except TimeoutError:
        raise WireError("timeout", f"no whole reply within {timeout:g} s") from None
    except (aiohttp.ClientConnectorError, aiohttp.ClientConnectorDNSError) as error:
        parts = urlsplit(url)
        why = error.os_error.strerror or type(error.os_error).__name__
        raise WireError("connect", f"cannot connect to {parts.scheme}://{parts.netloc} ({why})") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise WireError("torn", f"the connection broke off ({type(error).__name__})") from None


@asynccontextmanager
async def open_post(url: str, connections: int) -> AsyncIterator[Post]:
    """A `Post` over one pool of at most `connections` connections, made for the host of `url`.

    Proxies of the environment are used, except for addresses on this machine."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=connections),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=urlsplit(url).hostname not in LOOPBACK,
    ) as session:

        async def post(
            url: str, body: bytes, headers: Mapping[str, str], timeout: float, idle: float | None = None
        ) -> Reply:
            return await post_json(session, url, body, headers, timeout, idle=idle)

        yield post
