"""The loss mask of a sample, token by token, for the eye.

Promises: every token shown with its text, tokens that are learned told from those that are not, control
tokens told from text of the same spelling; no text steers the terminal; a long sample is shown from both
ends, with the number of tokens between them.
Does not: choose samples, or check the mask (see `check`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tutelage.plain import visible
from tutelage.tokens import decode_ids
from tutelage.train.examples import IGNORE, Example

SHOWN = 240
_LEARNED, _NOT_LEARNED, _CONTROL, _PLAIN = "\x1b[32m", "\x1b[90m", "\x1b[7m", "\x1b[0m"
# Tokens before a token that its text may depend on: decoders treat the first one of a text otherwise.
_BEFORE = 4


@dataclass(frozen=True, slots=True)
class Piece:
    """The text of one token (of several where one character is made of several), without control characters;
    whether it is learned; whether it is a control token."""

    text: str
    learned: bool
    control: bool


def pieces(tokenizer: Any, example: Example) -> list[Piece]:
    """The tokens of a sample in their order."""
    control = set(tokenizer.get_added_vocab().values())
    ids, labels = example.input_ids, example.labels
    found: list[Piece] = []
    start = 0
    while start < len(ids):
        end = start + 1
        text = _text(tokenizer, ids, start, end)
        # A character of several bytes can be spread over tokens: they are one piece then.
        while text.endswith("\ufffd") and end < min(len(ids), start + 4) and ids[end] not in control:
            if (labels[end] == IGNORE) != (labels[start] == IGNORE):
                break
            end += 1
            text = _text(tokenizer, ids, start, end)
        learned = labels[start] != IGNORE
        found.append(Piece(_shown(text), learned, ids[start] in control))
        start = end
    return found


def painted(found: Sequence[Piece], *, colour: bool) -> str:
    """The pieces as text, tokens separated by `·`, what is learned in green (without `colour`: in ⟦⟧)."""
    if len(found) > SHOWN:
        half = SHOWN // 2
        between = f"\n… {len(found) - SHOWN} tokens …\n"
        return painted(found[:half], colour=colour) + between + painted(found[-half:], colour=colour)
    written: list[str] = []
    for number, piece in enumerate(found):
        first = number == 0 or found[number - 1].learned != piece.learned
        last = number + 1 == len(found) or found[number + 1].learned != piece.learned
        if colour:
            tone = (_LEARNED if piece.learned else _NOT_LEARNED) + (_CONTROL if piece.control else "")
            written.append(("" if first else "·") + f"{tone}{piece.text}{_PLAIN}")
        else:
            opened, closed = ("⟦", "⟧") if piece.learned else ("", "")
            written.append(f"{opened if first else '·'}{piece.text}{closed if last else ''}")
    return "".join(written)


def _text(tokenizer: Any, ids: Sequence[int], start: int, end: int) -> str:
    """What the tokens add to the text before them."""
    before = list(ids[max(0, start - _BEFORE) : start])
    lead = decode_ids(tokenizer, before)
    whole = decode_ids(tokenizer, [*before, *ids[start:end]])
    return whole[len(lead) :] if whole.startswith(lead) else decode_ids(tokenizer, ids[start:end])


def _shown(text: str) -> str:
    return visible(text).replace("\t", "→").replace("\n", "⏎\n")
