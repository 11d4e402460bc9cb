"""One reply through an upstream server: the policy's segments, played as continuations of token ids.

Promises: what was sampled is continued id for id; forced and sampled tokens are counted apart, and the pieces
add up to the counts at the end; a marker that has begun is held back until it is known whether it is one;
leaving the generator stops the upstream at its next step.
Does not: choose tokens, or talk HTTP (see `upstream_kinds`).

Each segment is a request of its own, so the whole prefix is sent again for every close that is refused or
forced; the upstream's prefix cache makes that cheap where it has one, and `reprefilled` says how much it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Literal

from tutelage.serve.source import Ended, Order, Refused, Said
from tutelage.serve.upstream_kinds import Ask, Chunk, Kind
from tutelage.think.play import Play
from tutelage.think.segments import Done, Force, Generate, Stop

Shown = Literal["thinking", "answer"]


@dataclass(slots=True)
class Reply:
    """Choice `index` of `order`. `spans`: the ids of every text that may be forced; `close` is the text of
    the closing marker."""

    kind: Kind
    order: Order
    index: int
    play: Play
    prompt: tuple[int, ...]
    spans: Mapping[str, tuple[int, ...]]
    close: str
    ids: list[int] = field(init=False)
    _torn: int = 0
    _asked: int = 0
    _computed: int = 0
    _reprefilled: int = 0
    _cached: int = 0

    def __post_init__(self) -> None:
        self.ids = list(self.prompt)

    async def run(self) -> AsyncGenerator[Said | Ended, None]:
        """The pieces as they come, and the end. Raises Refused."""
        play = self.play
        while not isinstance(segment := play.segment, Done):
            if isinstance(segment, Force):
                ids = self.spans.get(segment.text)
                if ids is None:  # the rest of a marker that the model had begun
                    ids = await self.kind.encode(segment.text)
                self.ids += ids
                play.forced(len(ids))
                if segment.phase in ("thinking", "answer"):
                    shown: Shown = "thinking" if segment.phase == "thinking" else "answer"
                    yield Said(self.index, segment.text, shown, True, len(ids))
                continue
            async with aclosing(self._generate(segment)) as pieces:
                async for piece in pieces:
                    yield piece
        yield self._ended(segment)

    def _ended(self, done: Done) -> Ended:
        progress = self.play.progress
        forced = progress.forced.get("thinking", 0)
        return Ended(
            self.index,
            done.finish_reason,
            progress.closed_by,
            len(self.prompt),
            progress.used,
            progress.thinking - forced,
            forced,
            progress.waits,
            progress.refused,
            self._cached,
            self._reprefilled,
        )

    async def _generate(self, segment: Generate) -> AsyncGenerator[Said, None]:
        thinking = segment.phase == "thinking"
        watched = _Watched(self, segment)
        if segment.mask_first:
            # Only one token may be kept from closing, and the controls that do it hold for a whole request.
            async with aclosing(self._continue(watched, 1, masked=True)) as pieces:
                async for piece in pieces:
                    yield piece
            if watched.ids and watched.ids[0] == self._marker[0]:
                raise Refused(502, f"{self.kind.name} wrote the closing marker although it was masked")
        left = segment.at_most - len(watched.ids)
        if watched.finish is None or (watched.finish == "length" and left > 0):
            async with aclosing(self._continue(watched, left)) as pieces:
                async for piece in pieces:
                    yield piece
        ending = await self._think_over(watched) if thinking else _answered(watched)
        produced = max(ending.produced, watched.told)
        play = self.play
        refused = play.progress.refused
        play.generated(produced, ending.stop, ending.marker, ending.begun)
        self.ids += ending.ids if play.progress.refused == refused else ending.kept
        self._computed = len(self.ids)
        text, tokens = ending.text, produced - watched.told
        self._torn = 0
        if ending.begun and isinstance(play.segment, Generate):
            # The cut lingers: what has begun is thinking until the model completes the marker.
            text, tokens, self._torn = text + ending.begun, tokens + ending.marker, ending.marker
        if text or tokens:
            yield Said(self.index, text, segment.phase, False, tokens)

    @property
    def _marker(self) -> tuple[int, ...]:
        return self.spans[self.close]

    async def _continue(
        self, watched: _Watched, at_most: int, masked: bool = False
    ) -> AsyncGenerator[Said, None]:
        """Ask for `at_most` tokens more than `watched` has, and tell what of them is certain."""
        ids = (*self.ids, *watched.ids)
        self._reprefilled += self._computed
        self._asked += 1
        ask = Ask(
            self.order,
            ids,
            at_most,
            _seed(self.order.choice_seed(self.index), self._asked),
            watched.stop,
            (self._marker[0],) if masked else watched.stop_ids,
            masked,
        )
        async with self.kind.stream(ask) as chunks:
            async for chunk in chunks:
                if chunk.cached is not None and self._asked == 1:
                    self._cached = min(chunk.cached, len(self.prompt))
                text, tokens = watched.take(chunk)
                if text:
                    yield Said(self.index, text, watched.phase, False, tokens)
                if watched.completed:
                    break
        await watched.complete(self.kind)
        self._computed = len(self.ids) + len(watched.ids)

    async def _think_over(self, watched: _Watched) -> _Ending:
        """What the model did at the end of a segment of thinking."""
        marker, ids = self._marker, tuple(watched.ids)
        if watched.completed:
            return _Ending(ids, (), 0, "close", len(ids))
        if watched.finish == "stop" and watched.matched != "\n":
            text = watched.flush()
            kept = ids[: len(ids) - len(marker)]
            if ids[len(kept) :] != marker:
                # The marker's text was made of other tokens, some of which may hold more than it: where it is
                # refused, what came before it is tokenised again.
                kept = (await self.kind.encode(watched.text))[: len(ids) - 1]
            return _Ending(ids, kept, len(kept), "close", len(ids) - len(kept), text)
        if watched.finish == "end":
            kept = ids[: len(ids) - watched.tail]
            return _Ending(kept, kept, len(kept), "end", 0, watched.flush())
        if watched.finish == "stop":
            return _Ending(ids, ids, len(ids), "newline", 0, watched.flush() + "\n")
        stop: Stop = "length"
        if self.order.policy.close == "newline" and "\n" in await self.kind.decode(ids[-1:]):
            stop = "newline"  # the line ends where the cut is
        begun = next((k for k in range(len(marker) - 1, 0, -1) if ids[-k:] == marker[:k]), 0)
        if not begun or not watched.held:
            return _Ending(ids, ids, len(ids), stop, 0, watched.flush())
        return _Ending(ids, ids, len(ids) - begun, stop, begun, "", watched.held)


@dataclass(frozen=True, slots=True)
class _Ending:
    """How a segment ended: its ids, and those that stay where its close is refused; how many of them count
    for its phase, and how many are the marker's; text that was held back until now, and the text of a marker
    that had only begun."""

    ids: tuple[int, ...]
    kept: tuple[int, ...]
    produced: int
    stop: Stop
    marker: int = 0
    text: str = ""
    begun: str = ""


class _Watched:
    """A segment as it comes: `text` and `ids` so far, `held` of the text may be the beginning of a marker;
    `told` tokens were told. `completed`: it began with the rest of a marker that had begun before it."""

    def __init__(self, reply: Reply, segment: Generate) -> None:
        self.phase: Shown = segment.phase
        marker = reply.spans.get(reply.close, ())
        thinking = segment.phase == "thinking"
        ends = (reply.close,) if thinking else reply.order.stop
        newline = ("\n",) if segment.until == "newline" else ()
        # A marker of one token is found by its id; llama.cpp stops at texts alone.
        single = thinking and len(marker) == 1
        self.stop_ids = marker if single else ()
        self.stop = newline if single and reply.kind.name != "llama.cpp" else ends + newline
        self.ids: list[int] = []
        self.text = ""
        self.held = ""
        self.told = 0
        self.tail = 0
        self.finish: Literal["length", "end", "stop"] | None = None
        self.matched: str | int | None = None
        self.completed = False
        # What a marker that had begun before this segment still lacks; nothing where none had.
        self._rest = marker[reply._torn :] if reply._torn else ()
        self._ends = ends
        self._reserve = len(marker) if thinking else 1
        self._leaks = reply.kind.leaks
        self._count: int | None = None
        self._before = 0

    def take(self, chunk: Chunk) -> tuple[str, int]:
        """Text and tokens of `chunk` that are certain."""
        self.ids += chunk.ids
        self._count = chunk.count if chunk.count is not None else self._count
        if chunk.finish is not None:
            self.finish, self.matched, self.tail = chunk.finish, chunk.matched, chunk.tail
        self.text += chunk.text
        fresh = self.held + chunk.text
        width = _beginning(fresh, self._ends)
        if self._rest:
            lead = tuple(self.ids[: len(self._rest)])
            self.completed = lead == self._rest
            if self._rest[: len(lead)] == lead:
                width = len(fresh)
            else:
                self._rest = ()
        if self.completed:
            self.ids, self.held = list(self._rest), ""
            return "", 0
        text, self.held = fresh[: len(fresh) - width], fresh[len(fresh) - width :]
        certain = len(self.ids) - self._reserve
        tokens = max(certain - self.told, 0) if text else 0
        self.told += tokens
        return text, tokens

    async def complete(self, kind: Kind) -> None:
        """Where the server kept ids to itself (llama.cpp does so inside a character), tokenise the text of
        the segment again: the model continues what it wrote, if in other tokens."""
        counted, self._count = self._count, None
        before, self._before = self._before, len(self.ids)
        if counted is not None and counted > len(self.ids) - before:
            marker = (self.matched,) if isinstance(self.matched, int) else ()
            behind = self.matched if isinstance(self.matched, str) else ""
            self.ids = [*await kind.encode(self.text + behind), *marker]
            self.tail = 0
            self._before = len(self.ids)

    def flush(self) -> str:
        """The text held back, for the end of the segment. A server that leaks has sent the beginning of the
        stop string that matched: that is no text."""
        held, self.held = self.held, ""
        if self._leaks and self.matched in self._ends:
            self.text = self.text.removesuffix(held)
            return ""
        return held


def _answered(watched: _Watched) -> _Ending:
    """What the model did at the end of its answer."""
    ids = tuple(watched.ids)
    kept = ids[: len(ids) - watched.tail] if watched.finish == "end" else ids
    stop: Stop = watched.finish or "length"
    return _Ending(kept, kept, len(kept), stop, 0, watched.flush())


def _beginning(text: str, ends: tuple[str, ...]) -> int:
    """How many of the last characters of `text` are the beginning, not the whole, of one of `ends`."""
    widest = min(max((len(end) for end in ends), default=1) - 1, len(text))
    return next((k for k in range(widest, 0, -1) if any(end.startswith(text[-k:]) for end in ends)), 0)


def _seed(seed: int, number: int) -> int:
    """The seed of request `number` of a reply: with the same one, every segment would begin with the same
    random numbers."""
    if number == 1:
        return seed
    digest = hashlib.blake2b(f"{seed}/{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
