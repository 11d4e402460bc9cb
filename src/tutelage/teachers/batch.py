"""Group commit: what many tasks write in the same turn of the event loop shares one transaction.

Promises: a lone item is written in the next turn of the loop, nothing waits for company; `put` returns only
when the item is written; items are written in the order they came; `flush` writes what is left.
Does not: use threads, or hold an item back to make a batch bigger.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batch(Generic[Item, Result]):
    """`write` gets the items of one turn and gives a result for each."""

    def __init__(self, write: Callable[[Sequence[Item]], Sequence[Result]]) -> None:
        self._write = write
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []

    async def put(self, item: Item) -> Result:
        """Write `item`; gives its result. Raises what `write` raises."""
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self.flush)
        future: asyncio.Future[Result] = loop.create_future()
        self._waiting.append((item, future))
        return await future

    def flush(self) -> None:
        """Write all that waits, now. An error goes to those who wait for it."""
        batch, self._waiting = self._waiting, []
        if not batch:
            return
        try:
            results = self._write([item for item, _ in batch])
        except Exception as error:  # noqa: BLE001 - raised again in every task that waits
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(result)
