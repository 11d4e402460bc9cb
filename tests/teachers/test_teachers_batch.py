"""batch: one transaction per turn of the loop, nothing waits longer, errors reach everyone concerned."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from tutelage.teachers.batch import Batch


def test_what_comes_together_is_written_together_and_in_order() -> None:
    written: list[list[int]] = []

    def write(items: Sequence[int]) -> list[int]:
        written.append(list(items))
        return [item * 10 for item in items]

    async def run() -> None:
        batch: Batch[int, int] = Batch(write)
        assert await asyncio.gather(*(batch.put(number) for number in range(5))) == [0, 10, 20, 30, 40]
        assert await batch.put(9) == 90

    asyncio.run(run())
    assert written == [[0, 1, 2, 3, 4], [9]]


def test_an_error_reaches_all_who_wait_and_the_next_batch_works() -> None:
    def write(items: Sequence[int]) -> list[int]:
        if 0 in items:
            raise OSError("full")
        return list(items)

    async def run() -> None:
        batch: Batch[int, int] = Batch(write)
        results = await asyncio.gather(*(batch.put(number) for number in range(3)), return_exceptions=True)
        assert [str(result) for result in results] == ["full"] * 3
        assert await batch.put(1) == 1

    asyncio.run(run())


def test_flush_writes_what_an_interrupted_task_left() -> None:
    written: list[int] = []

    def write(items: Sequence[int]) -> list[None]:
        written.extend(items)
        return [None] * len(items)

    async def run() -> None:
        batch: Batch[int, None] = Batch(write)
        task = asyncio.create_task(batch.put(7))
        await asyncio.sleep(0)
        assert written == []
        task.cancel()
        batch.flush()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert written == [7]
