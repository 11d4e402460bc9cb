"""From plain documents to token ids, for next-token training on all of them.

Promises: every token of every document is in exactly one example; a document ends with the end of text; every
token but the first of an example, which nothing predicts, is learned.
Does not: know questions, thinking or templates (see `examples`), or pack (see `packing`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tutelage.errors import UsageError
from tutelage.problems.texts import Text
from tutelage.tokens import encode_text
from tutelage.train.examples import IGNORE, Example


def document_examples(tokenizer: Any, texts: Sequence[Text], max_length: int) -> list[Example]:
    """The examples of `texts`: a document of more than `max_length` tokens becomes several, one after the
    other, since cutting plain text loses no answer. A tokenizer without an end of text leaves it out.

    Raises UsageError where `max_length` has no room for two tokens, and where nothing can be learned."""
    if max_length < 2:
        raise UsageError(f"max_length is {max_length}; an example needs at least 2 tokens")
    made = [each for text in texts for each in _pieces(tokenizer, text, max_length)]
    if not any(len(each.input_ids) > 1 for each in made):
        raise UsageError("no document has two tokens, so there is nothing to learn; give longer ones")
    return made


def _pieces(tokenizer: Any, text: Text, max_length: int) -> Iterator[Example]:
    end = tokenizer.eos_token_id
    ids = encode_text(tokenizer, text.text) + ([] if end is None else [end])
    for number, start in enumerate(range(0, len(ids), max_length)):
        piece = ids[start : start + max_length]
        yield Example(piece, [IGNORE, *piece[1:]], text.id, f"{text.id}-{number}")
