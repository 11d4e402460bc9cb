"""The endpoints: one method each, from a request to an answer.

Promises: every refusal is OpenAI's error object with a status that fits; bodies over the limit are 413 and
are not parsed; whatever a handler raises, the server stays up.
Does not: know where replies come from, or who may ask (see `gate`).
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from tutelage.errors import TutelageError
from tutelage.serve import chat, completions, responses
from tutelage.serve.body import Body, bad, flag, parse, shown, text
from tutelage.serve.efforts import Efforts, read_efforts
from tutelage.serve.fields import Thinking, split_model, thinking
from tutelage.serve.loops import CONTROLS
from tutelage.serve.metrics import Metrics
from tutelage.serve.reply import Choice, Kind, error_fields
from tutelage.serve.several import open_all
from tutelage.serve.source import Order, Refused, Source
from tutelage.serve.stream import PATIENCE, Gone, Patience, Stream, gather, unless_gone

log = logging.getLogger("tutelage.serve")
MAX_BODY = 10 * 2**20
# A client that is refused in the middle of its body often does not read the refusal: so much is read first.
_DRAIN = 2 * MAX_BODY
Handler = Callable[[Request], Coroutine[Any, Any, Any]]


class Api:
    """All endpoints over one source. `efforts`: what each effort word is, None: as `read_efforts` has it.
    `per_client`: most requests for replies of one address at a time, None: any number."""

    def __init__(
        self,
        source: Source,
        *,
        efforts: Efforts | None = None,
        patience: Patience = PATIENCE,
        per_client: int | None = None,
    ) -> None:
        self.source = source
        self.metrics = Metrics()
        self._efforts = efforts or read_efforts([], source.context, thinks=source.thinks, depth=source.depth)
        self._patience = patience
        self._per_client = per_client
        self._clients: Counter[str] = Counter()

    async def chat(self, request: Request) -> Any:
        """POST /v1/chat/completions"""
        body, said, name = await self._read(request)
        order = chat.read_order(body, said)
        return await self._reply(request, body, [order], chat.Chat.of(body, name, said, order))

    async def completions(self, request: Request) -> Any:
        """POST /v1/completions"""
        body, said, name = await self._read(request)
        orders = completions.read_orders(body, said)
        return await self._reply(request, body, orders, completions.Text.of(body, name, said, orders[0]))

    async def responses(self, request: Request) -> Any:
        """POST /v1/responses"""
        body, said, name = await self._read(request)
        order = responses.read_order(body, said)
        return await self._reply(request, body, [order], responses.Response.of(body, name, said, order))

    async def models(self, request: Request) -> Response:
        """GET /v1/models"""
        return JSONResponse({"object": "list", "data": [self._card(name) for name in self._names()]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/{name}"""
        name = request.path_params["name"]
        self._said({}, name)
        return JSONResponse(self._card(name))

    async def health(self, request: Request) -> Response:
        """GET /health"""
        return JSONResponse({"status": "ok", "model": self.source.model})

    async def numbers(self, request: Request) -> Response:
        """GET /metrics"""
        return PlainTextResponse(
            self.metrics.text(self.source.gauges()), media_type="text/plain; version=0.0.4; charset=utf-8"
        )

    async def tokenize(self, request: Request) -> Response:
        """POST /tokenize, of a text or of messages, in vLLM's shape"""
        body = await self._body(request)
        if "messages" in body:
            ids = await self.source.tokenize(chat.read_turns(body["messages"], "messages"))
        elif isinstance(words := body.get("prompt"), str):
            ids = await self.source.tokenize(words)
        else:
            raise bad("prompt", "must be text (or give messages)")
        return JSONResponse({"tokens": ids, "count": len(ids), "max_model_len": self.source.context})

    async def detokenize(self, request: Request) -> Response:
        """POST /detokenize"""
        body = await self._body(request)
        ids = body.get("tokens")
        if not isinstance(ids, list) or not all(type(one) is int and one >= 0 for one in ids):
            raise bad("tokens", f"must be a list of token ids, not {shown(ids)}")
        return JSONResponse({"prompt": await self.source.detokenize(tuple(ids))})

    def handled(self, handler: Handler) -> Handler:
        """`handler` with its errors turned into answers."""

        async def inner(request: Request) -> Any:
            try:
                answer = await handler(request)
            except (Gone, ClientDisconnect):
                self.metrics.count("cancelled_total", why="gone")
                answer = Response(status_code=499)  # nobody reads it
            except TutelageError as error:
                answer = refusal(error if isinstance(error, Refused) else Refused(400, str(error)))
            except Exception:
                log.exception("a defect while answering %s", request.url.path)
                answer = refusal(Refused(500, "a defect in the server; its log says more"))
            status = str(getattr(answer, "status_code", 200))
            self.metrics.count("requests_total", route=handler.__name__, status=status)
            return answer

        return inner

    async def _read(self, request: Request) -> tuple[Body, Thinking, str]:
        body = await self._body(request)
        name = text(body, "model")
        said = self._said(body, name)
        if said.stated and not self.source.thinks and said.policy.max_tokens != 0:
            path = next(path for control, path in said.blame.items() if control not in CONTROLS)
            raise bad(path, f"cannot be enforced: {self.source.model} has no thinking to control")
        return body, said, name or self.source.model

    def _said(self, body: Body, name: str | None) -> Thinking:
        return thinking(body, split_model(name, self.source.model), self._efforts, self.source.depth)

    async def _body(self, request: Request) -> dict[str, Any]:
        kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        if kind != "application/json" and not kind.endswith("+json"):
            raise Refused(415, f"Content-Type {kind[:60]!r} is not read here; send application/json")
        length = int(request.headers.get("content-length", 0))  # h11 has checked it
        too_large = Refused(413, f"the body is larger than {MAX_BODY} bytes")
        if length > _DRAIN or (length > MAX_BODY and "expect" in request.headers):
            raise too_large
        raw = bytearray()
        read = 0
        parts = request.stream()
        try:
            while read <= _DRAIN:
                async with asyncio.timeout(self._patience.upload):
                    part = await anext(parts, None)
                if part is None:
                    break
                read += len(part)
                if read <= MAX_BODY:
                    raw += part
                else:
                    raw.clear()
        except TimeoutError:
            raise Refused(408, f"no more of the body came for {self._patience.upload:g} s") from None
        if read > MAX_BODY:
            raise too_large
        return parse(bytes(raw))

    async def _reply(self, request: Request, body: Body, orders: Sequence[Order], kind: Kind) -> Any:
        streamed = flag(body, "stream")
        leave = self._enter(request)
        try:
            replies = await unless_gone(request.receive, open_all(self.source, orders))
            choices = [Choice(number) for number in range(len(orders) * orders[0].n)]
            if streamed:
                return _Leaving(Stream(replies, kind, choices, self.metrics, self._patience), leave)
            await unless_gone(request.receive, gather(replies, choices, self.metrics))
        except BaseException:
            leave()
            raise
        leave()
        return JSONResponse(kind.whole(choices))

    def _enter(self, request: Request) -> Callable[[], None]:
        """Count a request of this client; the result uncounts it. Raises Refused(429)."""
        client = request.client.host if request.client else ""
        if self._per_client is not None and self._clients[client] >= self._per_client:
            raise Refused(
                429,
                f"{self._per_client} requests of this address are under way, the most that are allowed",
                code="rate_limit_exceeded",
                retry_after=1,
            )
        self._clients[client] += 1

        def leave() -> None:
            self._clients[client] -= 1
            if self._clients[client] <= 0:
                del self._clients[client]

        return leave

    def _names(self) -> list[str]:
        loops = self._efforts.unit == "loops"
        words = self._efforts.words if loops or self.source.thinks else {}
        control = "steps" if loops else "think"
        return [self.source.model, *(f"{self.source.model}@{control}={word}" for word in words)]

    def _card(self, name: str) -> dict[str, Any]:
        depth = self.source.depth
        return {
            "id": name,
            "object": "model",
            "created": 0,
            "owned_by": "tutelage",
            "root": self.source.model,
            "max_model_len": self.source.context,
            "thinks": self.source.thinks,
            "loops": depth and {"mean": depth.mean, "max": depth.most},
        }


class _Leaving:
    """An answer after which the client is uncounted."""

    status_code = 200

    def __init__(self, answer: Stream, leave: Callable[[], None]) -> None:
        self._answer, self._leave = answer, leave

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await self._answer(scope, receive, send)
        finally:
            self._leave()


def refusal(error: Refused) -> Response:
    """An error as an answer."""
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    return Response(
        json.dumps(error_fields(error)), error.status, headers=headers, media_type="application/json"
    )
