"""A column of texts as its bytes, in parts that fit the cache of a core.

Promises: nothing is copied that Arrow already holds as UTF-8 with 64-bit offsets; a part is whole texts; every
text is in one part, in order; null counts as no text.
Does not: look at the texts, or check their UTF-8 (Arrow did).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

PART = 1 << 19
"""Bytes that are worked on at once. A text of more bytes is a part of its own."""
_MOST_TEXTS = 1 << 16


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


def as_strings(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """The column as one array of strings with 64-bit offsets and without nulls ("" for them).

    Raises pyarrow.ArrowException for a column that holds no texts."""
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
