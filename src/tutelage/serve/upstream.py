"""A proxy: replies made by an upstream server, with the thinking controlled from here.

Promises: every control of the policy is enforced by continuing the upstream's own tokens, or the request is
refused with the reason; closing the iterator of a reply closes its upstream stream at once; what the
upstream computed again because of it is told (`reprefilled`).
Does not: force inside a decoding step: `close` "rank:K" needs the model's scores and is refused, and so are
log-probabilities. See `upstream_kinds` for the servers, `upstream_play` for one reply.

What a chat becomes is the upstream's business where it can tell (vLLM, llama.cpp), else that of a local copy
of the model's tokenizer. Whether it ends with an open thinking is read off its ids.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack, aclosing
from typing import Any

from tutelage.errors import UsageError
from tutelage.serve.source import Depth, Ended, Order, Refused, Replies, Said, Turn
from tutelage.serve.upstream_http import Http
from tutelage.serve.upstream_kinds import Ask, Kind, meet
from tutelage.serve.upstream_play import Reply
from tutelage.think.play import Play
from tutelage.wire import open_session

OPEN, CLOSE = "<think>", "</think>"
# Seconds without a byte after which the upstream counts as dead: it may queue a request for long.
IDLE = 600.0
_PLENTY = 10**12


class Upstream:
    """A `Source` before the server at `url` (with or without "/v1"). Call `connect` first.

    `model`: which of its models (None: the only one); `key`: its bearer key; `tokenizer`: a local copy of
    the model's tokenizer for chats, where the server has no way to apply its template; `kind` names a server
    behind a gateway that hides it (a key of `upstream_kinds.KINDS`); `context` overrides what it says;
    `think_open` and `think_close` delimit the thinking."""

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        key: str | None = None,
        kind: str | None = None,
        context: int | None = None,
        tokenizer: Any = None,
        think_open: str = OPEN,
        think_close: str = CLOSE,
        idle: float = IDLE,
    ) -> None:
        self.model = model or ""
        self.thinks = True  # whether a prompt leaves thinking to the reply is seen when it is rendered
        self.depth: Depth | None = None  # none of the servers can be told of loops
        self.context = context or 0
        self._url, self._key, self._kind_name, self._idle = url, key, kind, idle
        self._tokenizer = tokenizer
        self._markers = (think_open, think_close)
        self._known: dict[str, tuple[int, ...]] = {}
        self._running = 0
        self._reprefilled = 0
        self._stack = AsyncExitStack()
        self._kind: Kind | None = None

    async def connect(self) -> None:
        """Meet the server and try once that a prefix can be continued.

        Raises UsageError for a server that cannot do what is needed, Refused where nobody answers."""
        session = await self._stack.enter_async_context(open_session(self._url, 0))
        try:
            kind = await meet(
                Http(session, self._url, self._key, self._idle), self.model or None, self._kind_name
            )
            context = self.context or await kind.context()
            if not context:
                raise UsageError(
                    "--upstream: the server does not tell the length of its context; give --context"
                )
            self._kind, self.model, self.context = kind, kind.model, context
            await self._probe(kind)
        except BaseException:
            await self._stack.aclose()
            raise

    async def _probe(self, kind: Kind) -> None:
        """Two tokens after a prompt of ids, then one after the prompt and the first of them."""
        prompt = await kind.encode("Count: one, two, three,", whole=True)
        order = Order(prompt, thinks=False, temperature=0.0)
        found: list[tuple[int, ...]] = []
        for ids, most in ((prompt, 2), (prompt, 1)):
            got: list[int] = []
            async with kind.stream(Ask(order, (*ids, *(found[0][:1] if found else ())), most, 0)) as chunks:
                async for chunk in chunks:
                    got += chunk.ids
            found.append(tuple(got))
        if not found[0] or len(found[0]) > 2 or len(found[1]) > 1:
            raise UsageError(
                f"--upstream: this {kind.name} gives {len(found[0])} and {len(found[1])} token ids where 2 "
                "and 1 were asked for, so its replies cannot be continued; use a newer version"
            )

    async def open(self, order: Order) -> Replies:
        """See `Source.open`."""
        kind = self._met()
        self._check(order)
        prompt = await self._prompt(order.prompt)
        opening, closing = [await self._encode(text) for text in self._delimiters(order)]
        breaks = [await self._encode(text) for text in ("\n\n", "\n")]
        prefilled, thinks = _state_of(prompt, opening, closing, breaks)
        # A model that has a marker of its own, or whose prompt holds one, is one that thinks.
        thinks = order.thinks and thinks and (prefilled or len(closing) == 1)
        texts = (*self._delimiters(order), *order.policy.wait_strings, order.policy.close_text)
        spans = {text: await self._encode(text) for text in texts if text}
        plays = [self._play(order, len(prompt), spans, prefilled, thinks) for _ in range(order.n)]
        close = self._delimiters(order)[1]
        replies = [Reply(kind, order, index, play, prompt, spans, close) for index, play in enumerate(plays)]
        pieces = self._together(replies)
        try:  # what the upstream refuses it refuses before its first piece
            first = await anext(pieces)
        except BaseException:
            await pieces.aclose()
            raise
        return _Begun(first, pieces)

    def _met(self) -> Kind:
        assert self._kind is not None, "connect first"
        return self._kind

    def _check(self, order: Order) -> None:
        if order.logprobs is not None:
            raise Refused(
                400, "logprobs: a proxy does not have those of forced tokens; leave it out", param="logprobs"
            )
        if order.policy.rank is not None:
            raise Refused(
                400,
                f'thinking_close: "{order.policy.close}" needs the scores of every step, which the upstream '
                'server does not give; use "hard" or "newline"',
                param="thinking_close",
            )

    def _delimiters(self, order: Order) -> tuple[str, str]:
        policy = order.policy
        return policy.think_open or self._markers[0], policy.think_close or self._markers[1]

    def _play(
        self, order: Order, prompt: int, spans: Mapping[str, tuple[int, ...]], prefilled: bool, thinks: bool
    ) -> Play:
        left = self.context - prompt
        room = left if order.max_new_tokens is None else min(left, order.max_new_tokens)
        if left < 1:
            raise Refused(
                400,
                f"the prompt is {prompt} tokens long; the context of {self.context} leaves no room to reply",
                code="context_length_exceeded",
                param="messages",
            )

        def play(room: int) -> Play:
            return order.policy.segments(
                room, count=lambda text: len(spans[text]), prefilled=prefilled, thinks=thinks
            )

        try:
            return play(room)
        except UsageError as error:
            play(_PLENTY)  # raises again where it is not the room that is too small
            if room == left:
                raise Refused(400, str(error), code="context_length_exceeded", param="messages") from None
            raise

    async def _prompt(self, prompt: tuple[Turn, ...] | str | tuple[int, ...]) -> tuple[int, ...]:
        kind = self._met()
        if isinstance(prompt, str):
            return await kind.encode(prompt, whole=True)
        if not prompt or isinstance(prompt[0], int):
            return tuple(one for one in prompt if isinstance(one, int))
        turns = [turn for turn in prompt if isinstance(turn, Turn)]
        if self._tokenizer is None:
            return await kind.render(turns)
        from tutelage.students.template import Template, render_conversation

        template = Template(think_open=self._markers[0], think_close=self._markers[1], prefill=False)
        pairs = [(turn.role, turn.content) for turn in turns]
        return tuple(await asyncio.to_thread(render_conversation, self._tokenizer, template, pairs))

    async def _encode(self, text: str) -> tuple[int, ...]:
        """Ids of one of the few texts that are forced, asked for once."""
        if text not in self._known:
            if len(self._known) > 1000:
                self._known.clear()
            self._known[text] = await self._met().encode(text)
        return self._known[text]

    async def _together(self, replies: list[Reply]) -> AsyncGenerator[Said | Ended, None]:
        """The pieces of all replies as they come; leaving it stops them all."""
        queue: asyncio.Queue[Said | Ended | BaseException] = asyncio.Queue(maxsize=64)

        async def play(reply: Reply) -> None:
            try:
                async with aclosing(reply.run()) as pieces:
                    async for piece in pieces:
                        await queue.put(piece)
            except Exception as error:  # noqa: BLE001 - handed to the reader, who raises it
                await queue.put(error)

        tasks = [asyncio.create_task(play(reply)) for reply in replies]
        self._running += len(tasks)
        try:
            left = len(replies)
            while left:
                piece = await queue.get()
                if isinstance(piece, BaseException):
                    raise piece
                if isinstance(piece, Ended):
                    self._reprefilled += piece.reprefilled
                    left -= 1
                yield piece
        finally:
            self._running -= len(tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def tokenize(self, prompt: tuple[Turn, ...] | str) -> tuple[int, ...]:
        """See `Source.tokenize`."""
        return await self._prompt(prompt)

    async def detokenize(self, ids: tuple[int, ...]) -> str:
        """See `Source.detokenize`."""
        return await self._met().decode(ids)

    def gauges(self) -> Mapping[str, float]:
        """See `Source.gauges`."""
        return {"rows": self._running, "reprefilled_tokens_total": self._reprefilled}

    async def aclose(self) -> None:
        """Close all connections."""
        await self._stack.aclose()


class _Begun:
    """An iterator whose first piece is there already. Closing it, begun or not, closes what is behind it."""

    def __init__(self, first: Said | Ended, rest: AsyncGenerator[Said | Ended, None]) -> None:
        self._first: Said | Ended | None = first
        self._rest = rest

    def __aiter__(self) -> AsyncIterator[Said | Ended]:
        return self

    async def __anext__(self) -> Said | Ended:
        first, self._first = self._first, None
        return first if first is not None else await anext(self._rest)

    async def aclose(self) -> None:
        await self._rest.aclose()


def _state_of(
    prompt: tuple[int, ...],
    opening: tuple[int, ...],
    closing: tuple[int, ...],
    breaks: list[tuple[int, ...]],
) -> tuple[bool, bool]:
    """Whether the prompt ends with an open thinking, and whether it leaves thinking to the reply: some
    templates end with a thinking that is closed already, which is how they switch it off. `breaks` are the
    line breaks that may stand behind a marker."""
    tails = ((), *breaks)
    opened = any(_ends(prompt, (*opening, *tail)) for tail in tails)
    closed = any(_ends(prompt, (*closing, *tail)) for tail in tails)
    return opened, opened or not closed


def _ends(prompt: tuple[int, ...], tail: tuple[int, ...]) -> bool:
    return prompt[max(len(prompt) - len(tail), 0) :] == tail
