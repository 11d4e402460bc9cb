"""Keys and values of rows whose tokens go different ways through a loop: slots with a layer per step.

Promises: a token that left the loop is read, at the steps it did not make, at its last one; what is read of a
row follows from that row alone; any tokens of any rows may take part in a step, and only the rows they belong
to are read.
Does not: decide who leaves, or compute anything but attention.

Layers lie in this order: prelude, coda, then the core's, step by step. There are as many steps as the deepest
token so far made, so memory is (prelude + coda + steps · core) layers; with "shared:m" step i writes and
reads where step i mod m did, and there are m at most. Each row has a `reach`: up to there every token of it
has something to read at every step. A token that leaves earlier writes its last keys and values on up to the
reach; a token that goes beyond it first copies the row's last step one further. So a deep bound costs nothing
until somebody goes there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tutelage.think.slots import _READ, Slots, _Shelf


@dataclass(frozen=True, slots=True)
class Batch:
    """Tokens that are fed together: row by row in the order of the shelves. `owner` (tokens,) is the place of
    a token's row in `rows`; `slot` and `position` (tokens,) where its keys and values lie; `spans`: each
    shelf's share, first and last token."""

    rows: list[int]
    owner: np.ndarray
    slot: np.ndarray
    position: np.ndarray
    spans: list[tuple[_Shelf, int, int]]

    @property
    def ends(self) -> list[int]:
        """The place of the last token of each row."""
        found: list[int] = (np.cumsum(np.bincount(self.owner)) - 1).tolist()
        return found


@dataclass(frozen=True, slots=True)
class _Part:
    """One shelf's share of a step. `mine`: its tokens among those of the step. `rows` (n,): the slots that
    are read, None: the first `count`, where they lie. `line`, `column` (tokens,): where each token's query
    stands in (rows, columns), None: one token for each row. `mask`: what may be read, as the products want
    it."""

    shelf: _Shelf
    mine: slice
    slot: Tensor
    position: Tensor
    rows: Tensor | None
    count: int
    read: int
    line: Tensor | None
    column: Tensor | None
    columns: int
    mask: Tensor


@dataclass(frozen=True, slots=True)
class Plan:
    """A step's tokens, `who` (taking part,) of their batch, and how they attend. `rows`: those they belong
    to, and whether these hold other tokens too; `reach`: the least of them."""

    who: np.ndarray
    parts: list[_Part]
    rows: list[tuple[int, bool]]
    reach: int


class LoopSlots(Slots):
    """The cache of a model with `outer` layers that are passed once and `core` layers that are passed again
    and again, of `heads` key heads of `width`. `shared`: steps that have places of their own, None: all."""

    def __init__(
        self,
        outer: int,
        core: int,
        heads: int,
        width: int,
        device: torch.device,
        dtype: torch.dtype,
        *,
        shared: int | None = None,
        steps: int = 1,
    ) -> None:
        super().__init__(outer + (shared or steps) * core, heads, width, device, dtype)
        self._outer, self._core, self._shared = outer, core, shared
        self._steps = shared or steps  # that there are places for
        self._reach: dict[int, int] = {}

    def place(self, step: int, layer: int) -> int:
        """The cache's layer for core layer `layer` at `step`, counted from 0."""
        slot = step if self._shared is None else step % self._shared
        return self._outer + slot * self._core + layer

    def open(self, room: int) -> int:
        """A new row without tokens, on the shelf for `room` of them; its handle."""
        row = self.new(room)
        self.length[row] = 0
        self._reach[row] = 0
        return row

    def fork(self, row: int, length: int) -> int:
        """See `Slots`."""
        copy = super().fork(row, length)
        self._reach[copy] = self._reach[row]
        return copy

    def free(self, row: int) -> None:
        """See `Slots`."""
        super().free(row)
        del self._reach[row]

    def lay(self, fed: Mapping[int, int]) -> Batch:
        """Make room for the next `fed[row]` tokens of each row in `fed`, which then belong to it."""
        for row, count in fed.items():
            before = self._place[row]
            if self.length[row] + count > before[0].capacity:
                self._put(row, self.length[row] + count - 1)
                self._copy(before, self._place[row], self.length[row])
                self._close_hole(*before)
        rows: list[int] = []
        slots: list[int] = []
        spans, first = [], 0
        for capacity in sorted(self._shelves):
            shelf, last = self._shelves[capacity], first
            for slot, row in enumerate(shelf.rows):
                if row in fed:
                    rows.append(row)
                    slots.append(slot)
                    last += fed[row]
            if last > first:
                spans.append((shelf, first, last))
            first = last
        counts = np.array([fed[row] for row in rows])
        start = np.array([self.length[row] for row in rows])
        owner = np.repeat(np.arange(len(rows)), counts)
        within = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
        for row, count in fed.items():
            self.length[row] += count
        return Batch(rows, owner, np.array(slots)[owner], start[owner] + within, spans)

    def plan(self, batch: Batch, who: np.ndarray) -> Plan:
        """How the tokens `who` (ascending places in `batch`) attend, until that set changes."""
        parts = []
        for shelf, first, last in batch.spans:
            low, high = np.searchsorted(who, (first, last))
            if low < high:
                parts.append(self._part(shelf, batch, who, int(low), int(high)))
        taking = np.bincount(batch.owner[who], minlength=len(batch.rows)).tolist()
        rows = [
            (row, count < self.length[row]) for row, count in zip(batch.rows, taking, strict=True) if count
        ]
        return Plan(who, parts, rows, min(self._reach[row] for row, _ in rows))

    def enter(self, plan: Plan, step: int) -> Plan:
        """Before `step`, counted from 0, of the tokens of `plan`: make sure that the tokens before them can
        be read there. Returns `plan` with its reach of now."""
        if step < plan.reach or (self._shared is not None and step >= self._shared):
            return plan
        if step >= self._steps:
            self._grow(2 * self._steps)
        behind: dict[int, list[int]] = {}  # by capacity: slots with tokens that did not come so far
        for row, others in plan.rows:
            if self._reach[row] <= step:
                self._reach[row] = step + 1
                shelf, slot = self._place[row]
                if others and step:
                    behind.setdefault(shelf.capacity, []).append(slot)
        for capacity, slots in behind.items():
            shelf, index = self._shelves[capacity], self.index(slots)
            here, there = self._layers(step), self._layers(step - 1)
            # The whole slots: it is rare, and what takes part now is written over.
            shelf.keys[here, index] = shelf.keys[there, index]
            shelf.values[here, index] = shelf.values[there, index]
        return Plan(plan.who, plan.parts, plan.rows, step + 1)

    def settle(self, batch: Batch, who: np.ndarray, step: int) -> None:
        """The tokens `who` leave after `step`, counted from 0: later steps read them as they are now."""
        if self._shared is not None and step >= self._shared - 1:
            return
        reach = np.array([self._reach[row] for row in batch.rows])[batch.owner[who]]
        deepest = int(reach.max())
        if deepest <= step + 1:
            return
        # Beyond a row's own reach nothing is read before it is written, so all may go as far as the furthest.
        source, target = (
            self._layers(step),
            slice(self.place(step + 1, 0), self.place(deepest - 1, self._core)),
        )
        for shelf, first, last in batch.spans:
            mine = who[(who >= first) & (who < last)]
            if len(mine):
                slot, position = self.index(batch.slot[mine]), self.index(batch.position[mine])
                for whole, before, after in (
                    (
                        shelf.keys,
                        (source, slot, ..., position),
                        (slice(None), slice(None), slot, ..., position),
                    ),
                    (
                        shelf.values,
                        (source, slot, slice(None), position),
                        (..., slot, slice(None), position, slice(None)),
                    ),
                ):
                    steps = whole[target].view(-1, self._core, *whole.shape[1:])
                    steps[after] = whole[before][:, None]

    def attend_some(
        self, layer: int, plan: Plan, query: Tensor, key: Tensor, value: Tensor, scale: float
    ) -> Tensor:
        """Write `key` and `value` (tokens, heads, width) of the tokens of `plan`, and return the attention
        of `query` (tokens, query heads, width) over their rows up to themselves: of the shape of `query`."""
        heads, width = key.shape[1:]
        groups = query.shape[1] // heads
        out = []
        for part in plan.parts:
            keys, values = part.shelf.keys[layer], part.shelf.values[layer]
            keys[part.slot, :, :, part.position] = key[part.mine]
            values[part.slot, :, part.position] = value[part.mine]
            if part.rows is None:
                keys, values = keys[: part.count, ..., : part.read], values[: part.count, :, : part.read]
            else:
                keys = keys[..., : part.read].index_select(0, part.rows)
                values = values[:, :, : part.read].index_select(0, part.rows)
            asked = query[part.mine]
            if part.line is None:
                asked = asked.reshape(-1, heads, groups, width)
                weights = torch.add(part.mask, torch.matmul(asked, keys), alpha=scale).softmax(dim=-1)
                out.append(torch.matmul(weights, values).reshape(-1, heads * groups, width))
                continue
            spread = asked.new_zeros((part.count, part.columns, heads * groups, width))
            spread[part.line, part.column] = asked
            mixed = functional.scaled_dot_product_attention(
                spread.transpose(1, 2),
                keys.transpose(2, 3).contiguous(),
                values.contiguous(),
                attn_mask=part.mask,
                scale=scale,
                enable_gqa=groups > 1,
            )
            out.append(mixed.transpose(1, 2)[part.line, part.column])
        return out[0] if len(out) == 1 else torch.cat(out)

    def _part(self, shelf: _Shelf, batch: Batch, who: np.ndarray, low: int, high: int) -> _Part:
        mine = who[low:high]
        slot, position = batch.slot[mine], batch.position[mine]
        # Tokens of a row stand together, and rows in the order of their slots.
        new_row = np.diff(slot, prepend=-1) != 0
        rows, line = slot[new_row], np.cumsum(new_row) - 1
        read = shelf.capacity
        if self._dtype != torch.bfloat16:
            read = min(read, (int(position.max()) // _READ + 1) * _READ)
        place = self.index(position)
        lines: tuple[Tensor | None, Tensor | None, int] = (None, None, 1)
        if len(rows) == len(slot):
            late = torch.arange(read, device=self._device) > place[:, None]
            mask = torch.zeros(late.shape, dtype=self._dtype, device=self._device)
            mask = mask.masked_fill_(late, self._low)[:, None, None]
        else:
            starts = np.flatnonzero(new_row)
            column = np.arange(len(slot)) - starts[line]
            columns = int(column.max()) + 1
            # Where a row has fewer tokens than others, a query that nobody reads sees the first key.
            upto = np.zeros((len(rows), columns), dtype=np.int64)
            upto[line, column] = position
            mask = torch.arange(read, device=self._device) <= self.index(upto)[:, None, :, None]
            lines = (self.index(line), self.index(column), columns)
        whole = len(rows) == int(rows[-1]) + 1
        return _Part(
            shelf,
            slice(low, high),
            self.index(slot),
            place,
            None if whole else self.index(rows),
            len(rows),
            read,
            *lines,
            mask,
        )

    def _layers(self, step: int) -> slice:
        return slice(self.place(step, 0), self.place(step, self._core))

    def index(self, numbers: np.ndarray | Sequence[int]) -> Tensor:
        """`numbers` on the device of the cache."""
        return torch.as_tensor(np.ascontiguousarray(numbers), device=self._device)

    def _grow(self, steps: int) -> None:
        """Places for `steps` steps."""
        self._steps = steps
        _, heads, width = self._shape
        self._shape = (self._outer + steps * self._core, heads, width)
        for shelf in self._shelves.values():
            keys, values = self._pair(shelf.keys.shape[1], shelf.capacity)
            had = len(shelf.keys)
            keys[:had], values[:had] = shelf.keys, shelf.values
            shelf.keys, shelf.values = keys, values
