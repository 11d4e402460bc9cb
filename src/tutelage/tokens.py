"""Token ids and text: what every room that touches ids shares.

Promises: text stays text. `encode_text` never turns a control token's spelling inside text into the control
token, and never adds begin- or end-of-text ids.
Does not: load tokenizers (see `students`), count money, or know about thinking.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class Tokenizer(Protocol):
    """The part of a Hugging Face fast tokenizer that the house uses."""

    eos_token_id: int | None
    pad_token_id: int | None

    def __call__(self, text: str, **kwargs: Any) -> Any: ...
    def decode(self, token_ids: Sequence[int], **kwargs: Any) -> str: ...
    def convert_tokens_to_ids(self, tokens: str) -> int | None: ...
    def get_added_vocab(self) -> dict[str, int]: ...


@dataclass(frozen=True, slots=True)
class Markers:
    """How thinking is delimited, as token ids (any number each). `end` ids finish the whole reply."""

    open: tuple[int, ...]
    close: tuple[int, ...]
    end: frozenset[int]


def encode_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of `text` as plain text: no special tokens added, none recognised. Lone surrogates become "?"."""
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode("utf-8")
    ids = _encode_plain(tokenizer, text)
    added = tokenizer.get_added_vocab()
    if set(added.values()).isdisjoint(ids):
        return ids
    # `split_special_tokens` splits special tokens only; added tokens that are not "special" (Qwen3's
    # <think>) are still recognised. Cutting their spelling after its first character leaves text.
    # White-space runs are text.
    spellings = sorted((t for t in added if len(t) > 1 and t.strip() and t in text), key=len, reverse=True)
    if not spellings:
        return ids
    pattern = re.compile("|".join(map(re.escape, spellings)))
    return [number for piece in _cut(pattern, text) for number in _encode_plain(tokenizer, piece)]


def _encode_plain(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def _cut(pattern: re.Pattern[str], text: str) -> Iterator[str]:
    """`text` in pieces, none of which holds a match of `pattern`."""
    start = 0
    found = pattern.search(text)
    while found is not None:
        yield text[start : found.start() + 1]
        start = found.start() + 1
        found = pattern.search(text, start)
    yield text[start:]


def encode_marker(tokenizer: Tokenizer, marker: str) -> tuple[int, ...]:
    """Ids of a marker: the one added token of that spelling where the tokenizer has it, else its text."""
    known = tokenizer.get_added_vocab().get(marker)
    return (known,) if known is not None else tuple(encode_text(tokenizer, marker))


def decode_ids(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Text of `ids`, control tokens spelled out, spaces untouched."""
    return tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
