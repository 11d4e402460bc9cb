"""Who may talk to the server: the key, the names it may be called by, the pages that may use it.

Promises: keys are compared in constant time; bound to this machine alone, a request by any other host name is
refused (a web page cannot reach the server by pointing its own name here); a browser's request from another
site is refused unless that site was allowed; `/health` and the page are open.
Does not: keep sessions, or encrypt (put a TLS proxy in front for that).
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tutelage.serve.reply import error_fields
from tutelage.serve.source import Refused
from tutelage.serve.stream import Message, Receive, Send
from tutelage.wire import LOOPBACK

App = Callable[[Message, Receive, Send], Awaitable[None]]
_OPEN = ("/health", "/", "/favicon.ico")


@dataclass(frozen=True, slots=True)
class Rules:
    """`api_key` None: everybody may ask. `bound`: the host that the server listens on. `origins`: web sites
    that may use it beside those of this machine and its own page; "*": all."""

    api_key: str | None = None
    bound: str = "127.0.0.1"
    origins: tuple[str, ...] = ()


RULES = Rules()


class Gate:
    """`app` behind the rules, with the headers that browsers ask for."""

    def __init__(self, app: App, rules: Rules) -> None:
        self._app, self._rules = app, rules

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        origin = headers.get(b"origin")
        allowed = origin is not None and self._allowed(origin, headers.get(b"host", ""))
        extra = _cors(origin, headers) if allowed and origin else []

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *extra]}
            await send(message)

        try:
            self._check(scope, headers, refused_origin=origin is not None and not allowed)
        except Refused as error:
            await _refuse(error, answer)
            return
        if scope["method"] == "OPTIONS":
            await answer({"type": "http.response.start", "status": 204, "headers": []})
            await answer({"type": "http.response.body", "body": b""})
            return
        await self._app(scope, receive, answer)

    def _check(self, scope: Message, headers: dict[bytes, str], refused_origin: bool) -> None:
        host = headers.get(b"host", "")
        if self._rules.bound in LOOPBACK and _hostname(host) not in LOOPBACK:
            raise Refused(
                403, f"Host {host[:100]!r} is not a name of this machine alone, which is all that is served"
            )
        if refused_origin:
            raise Refused(
                403, "requests from this web site are not allowed; start the server with --allow-origin"
            )
        key = self._rules.api_key
        if key is None or scope["method"] == "OPTIONS" or scope["path"] in _OPEN:
            return
        given = headers.get(b"authorization", "")
        scheme, _, token = given.partition(" ")
        same = hmac.compare_digest(token.strip().encode("utf-8", "replace"), key.encode("utf-8", "replace"))
        if scheme.lower() != "bearer" or not same:
            raise Refused(401, "a valid key is needed: Authorization: Bearer KEY", code="invalid_api_key")

    def _allowed(self, origin: str, host: str) -> bool:
        try:
            parts = urlsplit(origin)
            name = parts.hostname
        except ValueError:
            return False
        if "*" in self._rules.origins or origin in self._rules.origins:
            return True
        return parts.scheme in ("http", "https") and (name in LOOPBACK or parts.netloc == host)


def _hostname(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _cors(origin: str, headers: dict[bytes, str]) -> list[tuple[bytes, bytes]]:
    found = [
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
        (b"access-control-max-age", b"600"),
        (b"vary", b"Origin"),
    ]
    asked = headers.get(b"access-control-request-headers")
    if asked:
        found.append((b"access-control-allow-headers", asked.encode("latin-1")))
    return found


async def _refuse(error: Refused, send: Send) -> None:
    raw = json.dumps(error_fields(error)).encode()
    headers: list[tuple[bytes, Any]] = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(raw)).encode()),
    ]
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": raw})
