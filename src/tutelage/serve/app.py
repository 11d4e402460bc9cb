"""The server's routes: the API over a source, and the page.

Promises: the page may load nothing and talk to nobody but this server; an unknown path or method is an error
object like all others.
Does not: listen on a socket (see `run`).
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from tutelage.serve.api import Api, refusal
from tutelage.serve.efforts import Efforts
from tutelage.serve.gate import RULES, App, Gate, Rules
from tutelage.serve.source import Refused, Source
from tutelage.serve.stream import PATIENCE, Patience

PAGE = Path(__file__).with_name("page.html")


def build_app(
    source: Source,
    rules: Rules = RULES,
    *,
    efforts: Efforts | None = None,
    patience: Patience = PATIENCE,
    per_client: int | None = None,
) -> App:
    """The ASGI application over `source`, which it closes when it is shut down."""
    api = Api(source, efforts=efforts, patience=patience, per_client=per_client)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await source.aclose()

    posts = {
        "/v1/chat/completions": api.chat,
        "/v1/completions": api.completions,
        "/v1/responses": api.responses,
        "/tokenize": api.tokenize,
        "/detokenize": api.detokenize,
    }
    gets = {
        "/v1/models": api.models,
        "/v1/models/{name:path}": api.model,
        "/health": api.health,
        "/metrics": api.numbers,
        "/": _page,
    }
    routes = [
        *(Route(path, api.handled(handler), methods=["POST"]) for path, handler in posts.items()),
        *(Route(path, api.handled(handler), methods=["GET"]) for path, handler in gets.items()),
    ]
    inner = Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: _no_route})
    return Gate(inner, rules)


async def _no_route(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    what = "is not a path of this server" if status == 404 else f"does not answer {request.method}"
    return refusal(Refused(status, f"{request.url.path[:200]} {what}"))


async def _page(request: Request) -> Response:
    if not PAGE.is_file():
        raise Refused(404, "this installation has no page")
    html = PAGE.read_text(encoding="utf-8")
    return HTMLResponse(html, headers=page_headers(html))


def page_headers(html: str) -> dict[str, str]:
    """What the page may do: run its own script and style, named by their hashes, and ask this server."""

    def hashes(tag: str) -> str:
        bodies: list[Any] = re.findall(rf"<{tag}(?:\s[^>]*)?>(.*?)</{tag}>", html, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(body.encode()).digest()).decode() for body in bodies)
        return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"

    policy = (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"  # no text is made markup, even by mistake
    )
    return {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
