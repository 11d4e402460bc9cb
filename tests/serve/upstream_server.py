"""A real server on loopback that continues token ids as vLLM, SGLang or llama.cpp do, each with its own ways.

It tokenises (longest match over bytes, a few words and the control tokens), streams token by token, stops at
strings and at ids, masks, counts, and hides control tokens or holds text back where the real one does. The
model is a function of all ids so far to the next ids, best first. `mishaps` make a request fail.
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

THINK, CLOSE, END, USER, ASSISTANT = "<think>", "</think>", "<|im_end|>", "<|user|>", "<|assistant|>"
CONTROL = (THINK, CLOSE, END, USER, ASSISTANT)
WORDS = (" so", " and", "Wait", "Hmm", ".\n", "\n\n", " 42", "?<", "Final Answer:")
Model = Callable[[Sequence[int]], Sequence[int]]


class Vocabulary:
    """Bytes, WORDS and, with `markers`, one token for each control text (else the markers are spelled)."""

    def __init__(self, markers: bool = True) -> None:
        control = CONTROL if markers else (END, USER, ASSISTANT)
        self.bytes = [bytes([i]) for i in range(256)] + [text.encode() for text in (*WORDS, *control)]
        self.control = {len(self.bytes) - len(control) + i: text for i, text in enumerate(control)}
        self._longest = sorted(range(256, len(self.bytes)), key=lambda i: -len(self.bytes[i]))

    def encode(self, text: str, control: bool = True) -> list[int]:
        raw, ids = text.encode(), []
        while raw:
            words = (i for i in self._longest if (control or i not in self.control))
            best = next((i for i in words if raw.startswith(self.bytes[i])), raw[0])
            ids.append(best)
            raw = raw[len(self.bytes[best]) :]
        return ids

    def text(self, ids: Sequence[int], control: bool = True) -> str:
        """Without the bytes of a last character that is not whole."""
        raw = b"".join(self.bytes[i] for i in ids if control or i not in self.control)
        for cut in range(4):
            try:
                return raw[: len(raw) - cut].decode()
            except UnicodeDecodeError:
                continue
        return raw.decode("utf-8", "replace")

    def id(self, text: str) -> int:
        return self.bytes.index(text.encode())


@dataclass
class Mishap:
    """Instead of an answer: a status with headers and a body; or, with `after`, so many tokens and then the
    connection breaks, or an `error` is streamed."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None
    after: int | None = None
    error: Any = None


@dataclass
class Fake:
    """One upstream. `bodies` are the continuations asked for, `aborted` those whose client hung up."""

    kind: str
    model: Model
    vocabulary: Vocabulary
    context: int = 512
    prefill: bool = True
    ends_closed: bool = False
    hides_markers: bool = False
    ignores_ids: bool = False
    ignores_mask: bool = False
    pause: float = 0.0
    key: str | None = None
    mishaps: dict[int, Mishap] = field(default_factory=dict)
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list, repr=False)
    aborted: list[int] = field(default_factory=list)
    _seen: list[tuple[int, ...]] = field(default_factory=list, repr=False)

    def render(self, messages: list[dict[str, str]]) -> str:
        text = "".join(f"<|{one['role']}|>{one['content']}{END}" for one in messages) + ASSISTANT
        return text + (
            f"{THINK}\n" if self.prefill else f"{THINK}\n\n{CLOSE}\n\n" if self.ends_closed else ""
        )

    async def models(self, request: web.Request) -> web.Response:
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"error": {"message": "no such key"}}, status=401)
        card = {"id": "m", "owned_by": self.kind, "max_model_len": self.context}
        return web.json_response({"data": [card]})

    async def props(self, request: web.Request) -> web.Response:
        return web.json_response({"default_generation_settings": {"n_ctx": self.context}})

    async def tokenize(self, request: web.Request) -> web.Response:
        body = await request.json()
        if "messages" in body and self.kind == "vllm":
            ids = self.vocabulary.encode(self.render(body["messages"]))
        else:
            text = body["content"] if self.kind == "llamacpp" else body["prompt"]
            ids = self.vocabulary.encode(text, body.get("parse_special", True))
        return web.json_response({"tokens": ids, "count": len(ids)})

    async def detokenize(self, request: web.Request) -> web.Response:
        text = self.vocabulary.text((await request.json())["tokens"])
        return web.json_response({{"vllm": "prompt", "sglang": "text"}.get(self.kind, "content"): text})

    async def apply(self, request: web.Request) -> web.Response:
        return web.json_response({"prompt": self.render((await request.json())["messages"])})

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body, number = await request.json(), len(self.bodies)
        self.bodies.append(body)
        mishap = self.mishaps.get(number)
        if mishap is not None and mishap.after is None and mishap.error is None:
            return web.json_response(mishap.body, status=mishap.status, headers=mishap.headers)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        told = 0
        try:
            await response.prepare(request)
            for event in self.events(body):
                if mishap is not None and told == (mishap.after or 0):
                    if mishap.error is None:
                        assert request.transport is not None
                        request.transport.close()
                        return response
                    event = {"error": mishap.error}
                await response.write(f"data: {json.dumps(event)}\r\n\r\n".encode())
                told += 1
                if self.pause:
                    await asyncio.sleep(self.pause)
                if "error" in event:
                    break
            if self.kind != "llamacpp":
                await response.write(b"data: [DONE]\n\n")
        except (ConnectionError, asyncio.CancelledError):
            self.aborted.append(number)
        return response

    def events(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        native = self.kind == "llamacpp"
        prompt = (
            body["prompt"] if isinstance(body["prompt"], list) else self.vocabulary.encode(body["prompt"])
        )
        cached = max((_common(one, prompt) for one in self._seen), default=0)
        ids, text, sent, hidden = list[int](), "", 0, list[int]()
        most = body["n_predict"] if native else body["max_tokens"]
        end = self.vocabulary.id(END)
        stops, stop_ids = body["stop"], set(body.get("stop_token_ids", ()))
        shows = not (self.hides_markers if native else body["skip_special_tokens"])
        while True:
            masked = {token for token, bias in body.get("logit_bias", ()) if bias is False}
            masked |= {end} if body.get("ignore_eos") else set()
            masked |= stop_ids | {end} if body.get("min_tokens", 0) > len(ids) else set()
            ranked = self.model([*prompt, *ids])
            token = next(one for one in ranked if self.ignores_mask or one not in masked)
            ids.append(token)
            finish, matched = None, None
            if token == end:
                finish = "end"
            elif token in stop_ids:
                finish, matched = "stop", token
            else:
                text = self.vocabulary.text(ids, shows)
                found = [one for one in stops if one in text]
                if found:
                    finish, matched = "stop", found[0]
                    text = text[: text.index(found[0])]
            if finish is None and len(ids) >= most:
                finish = "length"
            if native and finish is None and self.vocabulary.text([*hidden, token]) == "" and token < 256:
                hidden.append(token)  # inside a character: nothing is sent, and the ids are lost
                continue
            hidden = []
            held = 0 if finish or self.kind == "sglang" else max((len(one) - 1 for one in stops), default=0)
            if native and not finish:
                held = next((k for k in range(held, 0, -1) if any(s.startswith(text[-k:]) for s in stops)), 0)
            upto = max(len(text) - held, sent)
            piece, sent = text[sent:upto], upto
            timings = {"predicted_n": len(ids), "cache_n": cached}
            if native:
                yield {"content": piece, "tokens": [token], "stop": False, "timings": timings}
                if finish:
                    kind = {"end": "eos", "stop": "word", "length": "limit"}[finish]
                    last = {"stop_type": kind, "stopping_word": matched or "", "tokens_predicted": len(ids)}
                    yield {"content": "", "tokens": [], "stop": True, **last, "timings": timings}
                    break
                continue
            choice: dict[str, Any] = {"index": 0, "text": piece, "finish_reason": None}
            if not self.ignores_ids:
                choice["token_ids"] = [token]
            if finish:
                name = "stop_reason" if self.kind == "vllm" else "matched_stop"
                eos = end if self.kind == "sglang" else None
                choice |= {"finish_reason": "length" if finish == "length" else "stop"}
                choice |= {name: matched if finish == "stop" else eos if finish == "end" else None}
            yield {"choices": [choice]}
            if finish:
                break
        self._seen.append((*prompt, *ids))
        if not native:
            usage = {"prompt_tokens": len(prompt), "prompt_tokens_details": {"cached_tokens": cached}}
            yield {"choices": [], "usage": usage}


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


@contextmanager
def upstream(kind: str, model: Model, vocabulary: Vocabulary | None = None, **how: Any) -> Iterator[Fake]:
    """The server in a thread of its own, gone at the end."""
    fake = Fake(kind, model, vocabulary or Vocabulary(), **how)
    app = web.Application()
    path = "/completion" if kind == "llamacpp" else "/v1/completions"
    app.router.add_get("/v1/models", fake.models)
    app.router.add_post(path, fake.complete)
    app.router.add_post("/tokenize", fake.tokenize)
    app.router.add_post("/detokenize", fake.detokenize)
    if kind == "llamacpp":
        app.router.add_get("/props", fake.props)
        app.router.add_post("/apply-template", fake.apply)
    with live(app, handler_cancellation=True) as url:
        fake.url = url
        yield fake
