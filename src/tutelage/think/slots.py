"""Where keys and values lie: a slot per row, rows of like length together on a shelf.

Promises: a row's tokens lie from slot position 0 on without gaps, so that taking tokens back only makes the
row shorter and position and place are the same number; a fork copies and computes nothing; one long row does
not make its neighbours longer.
Does not: know a model, choose tokens, or say which rows share a prefix.

Shelves. A row lies on the shelf whose capacity is the next of 128, 256, 512, ...; where it is full it moves
to the next one. On a shelf rows lie without holes: the last one fills a hole. Attention runs once per shelf,
over its whole capacity, so that a row costs less than twice its length beyond the first 128 positions. Rows
are copied one at a time (300 tokens of SmolLM2-135M in bfloat16 are 7 MB: 0.2 ms on one thread), but for a
shelf that is full, whose slots are doubled by copying it. Memory is given back when the last row goes.

Keys lie as (rows, heads, positions, width), values as (rows, heads, width, positions), and attention reads
whole shelves, so that the products work on the cache where it lies (a slice of it would be copied). One step
of 32 such rows on one thread, in bfloat16: 29 ms, of which reading the cache takes 9; in float32 the layout
the other way round would be a fifth faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_SMALLEST = 128
# Rows that a new shelf has room for.
_FEW = 4


@dataclass(slots=True)
class _Shelf:
    """`keys` (layers, slots, heads, capacity, width), `values` (layers, slots, heads, width, capacity);
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
    bias: Tensor  # (rows, 1, 1, capacity), 0 or the lowest number


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
            position = torch.tensor([self.length[row] for row in shelf.rows], device=self._device)
            late = torch.arange(capacity, device=self._device)[None] > position[:, None]
            bias = torch.zeros((count, capacity), dtype=self._dtype, device=self._device)
            bias.masked_fill_(late, self._low)
            index = torch.arange(count, device=self._device)
            self._parts.append(
                _Part(
                    shelf.keys[:, :count],
                    shelf.values[:, :count],
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
            keys[part.index, :, part.position] = key[mine]
            values[part.index, :, :, part.position] = value[mine]
            asked = query[mine].reshape(-1, heads, groups, width)
            scores = torch.matmul(asked, keys.transpose(2, 3))  # (rows, heads, groups, capacity)
            weights = torch.add(part.bias, scores, alpha=scale).softmax(dim=-1)
            mixed = torch.matmul(weights, values.transpose(2, 3))
            out.append(mixed.reshape(-1, heads * groups, width))
        return out[0] if len(out) == 1 else torch.cat(out)

    def store(self, layer: int, row: int, keys: Tensor, values: Tensor) -> None:
        """Write the whole of a new row's `keys` and `values`, (tokens, heads, width)."""
        shelf, slot = self._place[row]
        shelf.keys[layer, slot, :, : len(keys)] = keys.transpose(0, 1)
        shelf.values[layer, slot, ..., : len(values)] = values.permute(1, 2, 0)

    def _put(self, row: int, length: int) -> None:
        """Give `row` a slot on the shelf for `length` tokens and one more."""
        capacity = _SMALLEST
        while capacity <= length:
            capacity *= 2
        shelf = self._shelves.get(capacity)
        if shelf is None:
            layers, heads, width = self._shape
            # Zeros, not garbage, where a row has nothing: masked values still must be finite.
            shelf = self._shelves[capacity] = _Shelf(
                capacity,
                self._zeros((layers, _FEW, heads, capacity, width)),
                self._zeros((layers, _FEW, heads, width, capacity)),
                [],
            )
        if len(shelf.rows) == shelf.keys.shape[1]:
            for name in ("keys", "values"):
                old = getattr(shelf, name)
                new = old.new_zeros((old.shape[0], 2 * old.shape[1], *old.shape[2:]))
                new[:, : old.shape[1]] = old
                setattr(shelf, name, new)
        self._place[row] = (shelf, len(shelf.rows))
        shelf.rows.append(row)

    def _zeros(self, shape: tuple[int, ...]) -> Tensor:
        return torch.zeros(shape, dtype=self._dtype, device=self._device)

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
        there.keys[:, j, :, :length] = here.keys[:, i, :, :length]
        there.values[:, j, ..., :length] = here.values[:, i, ..., :length]
