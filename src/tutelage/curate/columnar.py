"""Columns of texts: without nulls, as strings for Arrow's functions or as their bytes for numpy's.

Promises: nothing is copied that Arrow already holds as UTF-8 with 64-bit offsets; a part of `Bytes` is whole
texts that fit the cache of a core, every text is in one part, in order; null counts as no text.
Does not: look at the texts, or check their UTF-8 (Arrow did).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tutelage.errors import UsageError
from tutelage.plain import some

PART = 1 << 19
"""Bytes that are worked on at once. A text of more bytes is a part of its own."""
_MOST_TEXTS = 1 << 16
_TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)


@dataclass(frozen=True, slots=True)
class Bytes:
    """Texts, one after another: text i is `raw[offsets[i] : offsets[i + 1]]`."""

    raw: NDArray[np.uint8]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Bytes of each text, (texts,)."""
        return np.diff(self.offsets)

    def parts(self) -> Iterator[tuple[int, Bytes]]:
        """The texts a part at a time, each with the number of its first text; offsets begin at 0."""
        first = 0
        while first < len(self):
            last = int(np.searchsorted(self.offsets, self.offsets[first] + PART, side="right")) - 1
            last = min(max(last, first + 1), first + _MOST_TEXTS)
            begin, end = self.offsets[first], self.offsets[last]
            yield first, Bytes(self.raw[begin:end], self.offsets[first : last + 1] - begin)
            first = last


@dataclass(frozen=True, slots=True)
class Columns:
    """Some rows of a table: their numbers there, ascending, and columns of strings without nulls."""

    rows: NDArray[np.int64]
    columns: Mapping[str, pa.Array]

    def __getitem__(self, name: str) -> pa.Array:
        return self.columns[name]

    def without(self, left_out: Sequence[int]) -> Columns:
        """All but those rows of this table, by their places here."""
        if not left_out:
            return self
        kept = np.setdiff1d(np.arange(len(self.rows)), left_out)
        at = pa.array(kept)
        return Columns(self.rows[kept], {name: column.take(at) for name, column in self.columns.items()})


def read_columns(table: pa.Table, needed: Sequence[str], optional: Sequence[str] = ()) -> Columns:
    """The columns of `table`, "" for nulls and for an optional column that is not there.

    Raises UsageError for a column that is missing or holds no texts."""
    columns = {}
    for name in (*needed, *optional):
        if name in table.column_names:
            columns[name] = as_strings(table.column(name), name)
        elif name in optional:
            columns[name] = pa.repeat(pa.scalar("", pa.large_string()), len(table))
        else:
            there = some(table.column_names, 12) or "none"
            raise UsageError(f"the batch has no column {name!r}; columns there: {there}")
    return Columns(np.arange(len(table)), columns)


def as_strings(column: pa.Array | pa.ChunkedArray, name: str = "") -> pa.Array:
    """The column as one array of strings with 64-bit offsets and without nulls ("" for them).

    Raises UsageError for a column that holds no texts."""
    of = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not any(fits(of) for fits in _TEXTS):
        raise UsageError(f"column {name!r} holds {column.type}; it must hold texts")
    texts = column.cast(pa.large_string())
    if isinstance(texts, pa.ChunkedArray):
        texts = texts.combine_chunks()
    return pc.fill_null(texts, "") if texts.null_count else texts


def as_bytes(texts: pa.Array) -> Bytes:
    """The bytes behind an array that `as_strings` made."""
    if not len(texts):
        return Bytes(np.empty(0, np.uint8), np.zeros(1, np.int64))
    offsets = np.frombuffer(texts.buffers()[1], np.int64, len(texts) + 1, texts.offset * 8)
    raw = np.frombuffer(texts.buffers()[2], np.uint8, offsets[-1]) if offsets[-1] else np.empty(0, np.uint8)
    return Bytes(raw, offsets)
