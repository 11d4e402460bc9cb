"""Where keys and values lie: a slot per row, rows of like length together on a shelf.

Promises: a row's tokens lie from slot position 0 on without gaps, so that taking tokens back only makes the
row shorter and position and place are the same number; a fork copies and computes nothing; one long row does
not make its neighbours longer.
Does not: know a model, choose tokens, or say which rows share a prefix.

Shelves. A row lies on the shelf whose capacity is the next of 128, 256, 512, ...; where it is full it moves
to the next one. On a shelf rows lie without holes: the last one fills a hole. Attention runs once per shelf.
Rows are copied one at a time (300 tokens of SmolLM2-135M in bfloat16 are 7 MB: 0.2 ms on one thread). On a
CPU a shelf is made with room for many rows at once: what nobody has written to takes no memory there, and
shelves that had to be copied to grow took a tenth of the time of 64 requests of 32 to 512 tokens. Memory is
given back when the last row goes.

Keys are (rows, heads, width, positions) and values (rows, heads, positions, width), each as the products want
them, so that these work on the cache where it lies. In float32 that is how they lie in memory, and products
read as far as the longest row of the shelf goes, rounded up. In bfloat16 both lie the other way round, and
the whole shelf is read: products of a part of it take longer than those of all. Two cores, 32 rows of 200
tokens: attention takes 17 ms of a step in float32 (24 the other way round) and 14 in bfloat16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_SMALLEST = 128
# Rows that a new shelf has room for: as many as this memory holds, within bounds.
_RESERVED = 1 << 30
_FEW, _MANY = 4, 64
# What is read of a shelf is a multiple of so many positions.
_READ = 64


@dataclass(slots=True)
class _Shelf:
    """`keys` (layers, slots, heads, width, capacity), `values` (layers, slots, heads, capacity, width);
    `rows` holds the handle of each used slot."""

    capacity: int
    keys: Tensor
    values: Tensor
    rows: list[int]


@dataclass(frozen=True, slots=True)
class _Part:
    """One shelf's share of a decode step: rows `first` to `last` of the batch."""

    keys: Tensor
    values: Tensor
    first: int
    last: int
    index: Tensor  # (rows,) 0, 1, ...
    position: Tensor  # (rows,) where each row writes
    bias: Tensor  # (rows, 1, 1, positions read), 0 or the lowest number


class Slots:
    """The cache of a model with `layers` layers of `heads` key heads of `width`."""

    def __init__(self, layers: int, heads: int, width: int, device: torch.device, dtype: torch.dtype) -> None:
        self._shape = (layers, heads, width)
        self._device, self._dtype = device, dtype
        self._low = torch.finfo(dtype).min
        self._shelves: dict[int, _Shelf] = {}
        self._place: dict[int, tuple[_Shelf, int]] = {}
        self._next = 0
        self._parts: list[_Part] = []
        self.length: dict[int, int] = {}

    def new(self, length: int) -> int:
        """A new row that will hold `length` tokens; its handle."""
        row, self._next = self._next, self._next + 1
        self._put(row, length)
        self.length[row] = length
        return row

    def fork(self, row: int, length: int) -> int:
        """A new row with the first `length` tokens of `row`."""
        copy = self.new(length)
        self._copy(self._place[row], self._place[copy], length)
        return copy

    def free(self, row: int) -> None:
        """Forget `row`."""
        shelf, slot = self._place.pop(row)
        del self.length[row]
        self._close_hole(shelf, slot)
        if not self._place:
            self._shelves.clear()
            self._parts.clear()

    def cut(self, row: int, length: int) -> None:
        """Forget what `row` holds beyond `length` tokens."""
        self.length[row] = length

    def order(self) -> list[int]:
        """All rows, in the order in which a step has them."""
        return [row for capacity in sorted(self._shelves) for row in self._shelves[capacity].rows]

    def advance(self, rows: Sequence[int]) -> Tensor:
        """Make room for one more token in each of `rows`, which are all there are, and get ready for
        `attend`. Returns `positions` (rows,) of the new tokens, in `order`, which may have changed."""
        for row in rows:
            shelf, _ = self._place[row]
            if self.length[row] == shelf.capacity:
                self._move(row)
        self._parts, first = [], 0
        for capacity in sorted(self._shelves):
            shelf = self._shelves[capacity]
            if not shelf.rows:
                continue
            count = len(shelf.rows)
            lengths = [self.length[row] for row in shelf.rows]
            read = capacity
            if self._dtype != torch.bfloat16:
                read = min(capacity, (max(lengths) // _READ + 1) * _READ)
            position = torch.tensor(lengths, device=self._device)
            late = torch.arange(read, device=self._device)[None] > position[:, None]
            bias = torch.zeros((count, read), dtype=self._dtype, device=self._device)
            bias.masked_fill_(late, self._low)
            index = torch.arange(count, device=self._device)
            self._parts.append(
                _Part(
                    shelf.keys[:, :count, ..., :read],
                    shelf.values[:, :count, :, :read],
                    first,
                    first + count,
                    index,
                    position,
                    bias[:, None, None],
                )
            )
            first += count
        for row in rows:
            self.length[row] += 1
        return torch.cat([part.position for part in self._parts])

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Write `key` and `value` (rows, heads, width) of the step's tokens, and return the attention of
        `query` (rows, query heads, width) over their rows: (rows, query heads, width). Neighbouring query
        heads share a key head. Products run in the cache's type, the softmax in float32 within."""
        heads, width = key.shape[1:]
        groups = query.shape[1] // heads
        out = []
        for part in self._parts:
            keys, values = part.keys[layer], part.values[layer]
            mine = slice(part.first, part.last)
            keys[part.index, :, :, part.position] = key[mine]
            values[part.index, :, part.position] = value[mine]
            asked = query[mine].reshape(-1, heads, groups, width)
            scores = torch.matmul(asked, keys)  # (rows, heads, groups, positions read)
            weights = torch.add(part.bias, scores, alpha=scale).softmax(dim=-1)
            mixed = torch.matmul(weights, values)
            out.append(mixed.reshape(-1, heads * groups, width))
        return out[0] if len(out) == 1 else torch.cat(out)

    def store(self, layer: int, row: int, keys: Tensor, values: Tensor) -> None:
        """Write the whole of a new row's `keys` and `values`, (tokens, heads, width)."""
        shelf, slot = self._place[row]
        shelf.keys[layer, slot, ..., : len(keys)] = keys.permute(1, 2, 0)
        shelf.values[layer, slot, :, : len(values)] = values.transpose(0, 1)

    def _put(self, row: int, length: int) -> None:
        """Give `row` a slot on the shelf for `length` tokens and one more."""
        capacity = _SMALLEST
        while capacity <= length:
            capacity *= 2
        shelf = self._shelves.get(capacity)
        if shelf is None:
            layers, heads, width = self._shape
            per_row = layers * heads * width * capacity * self._dtype.itemsize
            slots = _FEW
            if self._device.type == "cpu":
                slots = max(_FEW, min(_MANY, _RESERVED // per_row))
            shelf = self._shelves[capacity] = _Shelf(capacity, *self._pair(slots, capacity), [])
        if len(shelf.rows) == (full := shelf.keys.shape[1]):
            keys, values = self._pair(2 * full, capacity)
            keys[:, :full], values[:, :full] = shelf.keys, shelf.values
            shelf.keys, shelf.values = keys, values
        self._place[row] = (shelf, len(shelf.rows))
        shelf.rows.append(row)

    def _pair(self, slots: int, capacity: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a shelf, see `_Shelf`."""
        layers, heads, width = self._shape
        wide, long = (layers, slots, heads, width, capacity), (layers, slots, heads, capacity, width)
        if self._dtype == torch.bfloat16:
            return self._zeros(long).transpose(3, 4), self._zeros(wide).transpose(3, 4)
        return self._zeros(wide), self._zeros(long)

    def _zeros(self, shape: tuple[int, ...]) -> Tensor:
        """Zeros, not garbage, where a row has nothing: masked values still must be finite."""
        if self._device.type != "cpu":
            return torch.zeros(shape, dtype=self._dtype, device=self._device)
        # numpy leaves it to the system to clear pages when they are first written to; torch clears them now.
        return torch.from_numpy(np.zeros((*shape[:-1], shape[-1] * self._dtype.itemsize), np.uint8)).view(
            self._dtype
        )

    def _move(self, row: int) -> None:
        """Take `row` to the next larger shelf."""
        before = self._place[row]
        self._put(row, self.length[row])
        self._copy(before, self._place[row], self.length[row])
        self._close_hole(*before)

    def _close_hole(self, shelf: _Shelf, slot: int) -> None:
        last = shelf.rows.pop()
        if slot < len(shelf.rows):
            shelf.rows[slot] = last
            self._copy((shelf, len(shelf.rows)), (shelf, slot), self.length[last])
            self._place[last] = (shelf, slot)

    @staticmethod
    def _copy(source: tuple[_Shelf, int], target: tuple[_Shelf, int], length: int) -> None:
        (here, i), (there, j) = source, target
        there.keys[:, j, ..., :length] = here.keys[:, i, ..., :length]
        there.values[:, j, :, :length] = here.values[:, i, :, :length]
