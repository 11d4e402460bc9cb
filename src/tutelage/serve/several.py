"""The replies to several orders as one: what a request with many prompts is answered with.

Promises: choice numbers go on from order to order; closing cancels all of them; an order that cannot be
opened closes those before it; the first failure of one ends all.
Does not: limit how many there are.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from tutelage.serve.source import Ended, Order, Replies, Said, Source


async def open_all(source: Source, orders: Sequence[Order]) -> Replies:
    """Open `orders`, which all have the same `n`; choice `i` of order `k` becomes choice `k * n + i`."""
    if len(orders) == 1:
        return await source.open(orders[0])
    opened: list[Replies] = []
    try:
        for order in orders:
            opened.append(await source.open(order))
    except BaseException:
        for replies in opened:
            await replies.aclose()
        raise
    return _Several(opened, orders[0].n)


class _Several:
    """Each order is read by a task of its own into a short queue, so that none runs ahead of the client."""

    def __init__(self, opened: Sequence[Replies], n: int) -> None:
        self._opened = opened
        self._ready: asyncio.Queue[Said | Ended | BaseException | None] = asyncio.Queue(64)
        self._left = len(opened)
        self._readers = [
            asyncio.create_task(self._read(replies, number * n)) for number, replies in enumerate(opened)
        ]

    async def _read(self, replies: Replies, first: int) -> None:
        try:
            async for item in replies:
                await self._ready.put(replace(item, index=item.index + first))
            await self._ready.put(None)
        except Exception as error:  # noqa: BLE001 - raised again where the pieces are read
            await self._ready.put(error)

    def __aiter__(self) -> AsyncIterator[Said | Ended]:
        return self

    async def __anext__(self) -> Said | Ended:
        while self._left:
            item = await self._ready.get()
            if isinstance(item, BaseException):
                raise item
            if item is not None:
                return item
            self._left -= 1
        raise StopAsyncIteration

    async def aclose(self) -> None:
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        for replies in self._opened:
            await replies.aclose()
