"""The upstream servers that can be continued: what vLLM, SGLang and llama.cpp are sent, and what they answer.

Promises: a continuation is asked for in token ids and answered in token ids, so that nothing is tokenised a
second time; why it ended is told exactly: a closing marker, a stop string, the model's own end of text, or
its length. A server that cannot do this is refused by name when it is met.
Does not: force anything (see `upstream_play`).

Each server says these things in its own way. vLLM and SGLang speak OpenAI's `/v1/completions` and add what is
needed: `return_token_ids`, `stop_token_ids`, what matched (`stop_reason`, `matched_stop`), and `min_tokens`,
under which the end of text and the ids in `stop_token_ids` cannot be sampled. llama.cpp's `/v1/completions`
does not tell a stop string from an end of text, nor ids; its native form of it, `/completion`, does.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from tutelage.errors import UsageError
from tutelage.serve.source import Order, Refused, Turn
from tutelage.serve.upstream_http import Http

Finish = Literal["length", "end", "stop"]


@dataclass(frozen=True, slots=True)
class Ask:
    """One continuation of `ids` by at most `at_most` tokens. It ends at one of the `stop` strings or
    `stop_ids`; with `masked` neither these nor an end of text may come first (`at_most` is 1 then).
    Sampling is as `order` says, with a seed of its own."""

    order: Order
    ids: tuple[int, ...]
    at_most: int
    seed: int
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    masked: bool = False


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a continuation. `count`: tokens so far, where the server counts them apart from the ids.
    With `finish` it is the last piece; `matched`: the stop string or id that ended it; `tail`: how many of
    all ids are the end of text or the id that stopped it. `cached`: tokens of the prompt that the server had
    already."""

    text: str = ""
    ids: tuple[int, ...] = ()
    count: int | None = None
    finish: Finish | None = None
    matched: str | int | None = None
    tail: int = 0
    cached: int | None = None


class Kind(Protocol):
    """One kind of server. `leaks`: it streams the beginning of a stop string before it knows."""

    name: str
    leaks: bool
    model: str
    http: Http

    async def context(self) -> int | None:
        """Tokens that prompt and reply share; None where it does not say."""
        ...

    async def encode(self, text: str, whole: bool = False) -> tuple[int, ...]:
        """Ids of `text`, markers recognised; `whole`: of a prompt, with what the model wants before it."""
        ...

    async def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`."""
        ...

    async def render(self, turns: Sequence[Turn]) -> tuple[int, ...]:
        """Ids of a conversation, up to where the reply begins. Raises Refused where it cannot."""
        ...

    def stream(self, ask: Ask) -> Any:
        """`async with kind.stream(ask) as chunks`: the continuation; leaving the block ends it."""
        ...


def _messages(turns: Sequence[Turn]) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def _ids(found: Any, where: str) -> tuple[int, ...]:
    if not isinstance(found, list) or not all(isinstance(one, int) for one in found):
        raise Refused(502, f"the upstream server's {where} gave no token ids")
    return tuple(found)


@dataclass(slots=True)
class Vllm:
    """vLLM's OpenAI-compatible server."""

    http: Http
    model: str
    name: str = "vLLM"
    leaks: bool = False

    async def context(self) -> int | None:
        return await _listed(self.http, self.model)

    async def encode(self, text: str, whole: bool = False) -> tuple[int, ...]:
        if not text:
            return ()
        body = {"model": self.model, "prompt": text, "add_special_tokens": whole}
        return _ids((await self.http.post("/tokenize", body)).get("tokens"), "/tokenize")

    async def decode(self, ids: Sequence[int]) -> str:
        body = {"model": self.model, "tokens": list(ids)}
        return str((await self.http.post("/detokenize", body)).get("prompt", ""))

    async def render(self, turns: Sequence[Turn]) -> tuple[int, ...]:
        body = {"model": self.model, "messages": _messages(turns), "add_generation_prompt": True}
        return _ids((await self.http.post("/tokenize", body)).get("tokens"), "/tokenize")

    def body(self, ask: Ask) -> dict[str, Any]:
        """What is sent."""
        order = ask.order
        return {
            "model": self.model,
            "prompt": list(ask.ids),
            "max_tokens": ask.at_most,
            "temperature": order.temperature,
            "top_p": order.top_p,
            "top_k": order.top_k or -1,
            "min_p": order.min_p,
            "seed": ask.seed % 2**63,
            "stop": list(ask.stop),
            "stop_token_ids": list(ask.stop_ids),
            # Until so many tokens are there, neither the end of text nor a stop id can be sampled.
            "min_tokens": 1 if ask.masked else 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
            # Otherwise a marker that is a special token would not show in the text.
            "skip_special_tokens": False,
        }

    @asynccontextmanager
    async def stream(self, ask: Ask) -> AsyncIterator[AsyncIterator[Chunk]]:
        async with (
            self.http.stream("/v1/completions", self.body(ask)) as found,
            aclosing(self._chunks(found, ask)) as chunks,
        ):
            yield chunks

    async def _chunks(self, found: AsyncIterator[dict[str, Any]], ask: Ask) -> AsyncGenerator[Chunk, None]:
        last: Chunk | None = None
        seen = False
        async for event in found:
            cached = _cached(event.get("usage"))
            for choice in event.get("choices") or ():
                given = choice.get("token_ids")
                seen = seen or isinstance(given, list)
                ids = _ids(given, "/v1/completions") if given else ()
                finish = choice.get("finish_reason")
                if finish is None:
                    yield Chunk(str(choice.get("text") or ""), ids, cached=cached)
                    continue
                if finish not in ("stop", "length"):
                    raise Refused(502, f"the upstream server ended the reply with {finish!r}")
                matched = choice.get("stop_reason", choice.get("matched_stop"))
                last = _ended(str(choice.get("text") or ""), ids, finish, matched, ask)
            if last is not None and cached is not None:
                yield Chunk(cached=cached)
        if last is None:
            raise Refused(502, "the upstream server's stream broke off before its end")
        if not seen:
            raise Refused(502, f"this {self.name} gives no token ids (return_token_ids); use a newer one")
        yield last


@dataclass(slots=True)
class Sglang(Vllm):
    """SGLang's OpenAI-compatible server; its `/tokenize` takes text alone."""

    name: str = "SGLang"
    leaks: bool = True

    async def decode(self, ids: Sequence[int]) -> str:
        body = {"model": self.model, "tokens": list(ids), "skip_special_tokens": False}
        return str((await self.http.post("/detokenize", body)).get("text", ""))

    async def render(self, turns: Sequence[Turn]) -> tuple[int, ...]:
        raise Refused(
            501,
            "SGLang does not apply a chat template without answering; start the proxy with the model's "
            "tokenizer (--tokenizer), or send /v1/completions",
            param="messages",
        )


@dataclass(slots=True)
class LlamaCpp:
    """llama.cpp's server."""

    http: Http
    model: str
    name: str = "llama.cpp"
    leaks: bool = False

    async def context(self) -> int | None:
        found = await self.http.get("/props")
        settings = found.get("default_generation_settings") if isinstance(found, dict) else None
        most = settings.get("n_ctx") if isinstance(settings, dict) else None
        return most if isinstance(most, int) and most > 0 else None

    async def encode(self, text: str, whole: bool = False) -> tuple[int, ...]:
        if not text:
            return ()
        body = {"content": text, "add_special": whole, "parse_special": True}
        return _ids((await self.http.post("/tokenize", body)).get("tokens"), "/tokenize")

    async def decode(self, ids: Sequence[int]) -> str:
        return str((await self.http.post("/detokenize", {"tokens": list(ids)})).get("content", ""))

    async def render(self, turns: Sequence[Turn]) -> tuple[int, ...]:
        found = await self.http.post("/apply-template", {"messages": _messages(turns)})
        if not isinstance(found.get("prompt"), str):
            raise Refused(502, "the upstream server's /apply-template gave no prompt; use a newer one")
        return await self.encode(found["prompt"], whole=True)

    def body(self, ask: Ask) -> dict[str, Any]:
        """What is sent. Every sampler that the server would apply by itself is set or switched off."""
        order = ask.order
        return {
            "prompt": list(ask.ids),
            "n_predict": ask.at_most,
            "temperature": order.temperature,
            "top_p": order.top_p,
            "top_k": order.top_k,
            "min_p": order.min_p,
            "repeat_penalty": 1.0,
            "samplers": ["top_k", "top_p", "min_p", "temperature"],
            "seed": ask.seed % 2**32,
            "stop": list(ask.stop),
            "ignore_eos": ask.masked,
            "logit_bias": [[token, False] for token in ask.stop_ids] if ask.masked else [],
            "stream": True,
            "return_tokens": True,
            "timings_per_token": True,
            "cache_prompt": True,
        }

    @asynccontextmanager
    async def stream(self, ask: Ask) -> AsyncIterator[AsyncIterator[Chunk]]:
        async with (
            self.http.stream("/completion", self.body(ask)) as found,
            aclosing(self._chunks(found, ask)) as chunks,
        ):
            yield chunks

    async def _chunks(self, found: AsyncIterator[dict[str, Any]], ask: Ask) -> AsyncGenerator[Chunk, None]:
        last: Chunk | None = None
        async for event in found:
            ids = _ids(event.get("tokens") or [], "/completion")
            timings: dict[str, Any] = event.get("timings") or {}
            text, count, cached = (
                str(event.get("content") or ""),
                timings.get("predicted_n"),
                timings.get("cache_n"),
            )
            if not event.get("stop"):
                stopping = next((token for token in ids if token in ask.stop_ids), None)
                if stopping is not None and not ask.masked:
                    # A marker that is a control token is not in the text, so no stop string can match it.
                    yield Chunk(text, ids, count, "stop", stopping, 1, cached)
                    return
                yield Chunk(text, ids, count, cached=cached)
                continue
            count = event.get("tokens_predicted", count)
            match event.get("stop_type"):
                case "eos":
                    last = Chunk(text, ids, count, "end", None, 1, cached)
                case "word":
                    last = Chunk(text, ids, count, "stop", event.get("stopping_word"), 0, cached)
                case "limit":
                    last = Chunk(text, ids, count, "length", None, 0, cached)
                case other:
                    raise Refused(502, f"the upstream server ended the reply with {other!r}")
        if last is None:
            raise Refused(502, "the upstream server's stream broke off before its end")
        yield last


def _ended(text: str, ids: tuple[int, ...], finish: str, matched: Any, ask: Ask) -> Chunk:
    if finish == "length":
        return Chunk(text, ids, finish="length")
    if isinstance(matched, str):
        return Chunk(text, ids, finish="stop", matched=matched)
    if matched in ask.stop_ids:
        return Chunk(text, ids, finish="stop", matched=matched, tail=1)
    return Chunk(text, ids, finish="end", tail=1)


def _cached(usage: Any) -> int | None:
    details = usage.get("prompt_tokens_details") if isinstance(usage, dict) else None
    found = details.get("cached_tokens") if isinstance(details, dict) else None
    return found if isinstance(found, int) else None


async def _listed(http: Http, model: str) -> int | None:
    found = await http.get("/v1/models")
    cards = found.get("data") or [] if isinstance(found, dict) else []
    most = next((card.get("max_model_len") for card in cards if card.get("id") == model), None)
    return most if isinstance(most, int) and most > 0 else None


KINDS: dict[str, type[Vllm] | type[LlamaCpp]] = {"vllm": Vllm, "sglang": Sglang, "llamacpp": LlamaCpp}


async def meet(http: Http, model: str | None, kind: str | None) -> Kind:
    """The upstream that answers at `http`, and its model (`model`: which one; None: the only one).

    `kind` (a key of KINDS) is for a server behind a gateway that hides what it is. Raises UsageError for
    what cannot be continued, Refused where nobody answers."""
    found = await http.get("/v1/models")
    cards = (
        [card for card in found.get("data") or [] if isinstance(card, dict)]
        if isinstance(found, dict)
        else []
    )
    names = [str(card.get("id")) for card in cards]
    if model is None and len(names) == 1:
        model = names[0]
    if model is None or (names and model not in names):
        raise UsageError(f"--upstream: name one of its models: {', '.join(names) or 'it lists none'}")
    owner = kind or next((str(card.get("owned_by")) for card in cards if card.get("id") == model), None)
    if owner not in KINDS:
        raise UsageError(
            f"--upstream: the server says that it is {owner!r}; control of thinking needs one that can be "
            f"continued in token ids: {', '.join(KINDS)} (name the kind if a gateway hides it)"
        )
    return KINDS[owner](http, model)
