"""Token ids and text: what every room that touches ids shares.

Promises: text stays text. `encode_text` never turns a control token's spelling inside text into the control
token, and never adds begin- or end-of-text ids.
Does not: load tokenizers (see `students`), count money, or know about thinking.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    """Ids of `text` as plain text: no special tokens added, none recognised."""
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def encode_marker(tokenizer: Tokenizer, marker: str) -> tuple[int, ...]:
    """Ids of a marker: the one added token of that spelling where the tokenizer has it, else its text."""
    known = tokenizer.get_added_vocab().get(marker)
    return (known,) if known is not None else tuple(encode_text(tokenizer, marker))


def decode_ids(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Text of `ids`, control tokens spelled out, spaces untouched."""
    return tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
