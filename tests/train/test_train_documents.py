"""Documents as examples: nothing lost, nothing doubled."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinymodel import byte_tokenizer
from tutelage.errors import UsageError
from tutelage.problems.texts import Text
from tutelage.tokens import encode_text
from tutelage.train.documents import document_examples
from tutelage.train.examples import IGNORE

TOKENIZER = byte_tokenizer()


@given(st.lists(st.text(min_size=1, max_size=60), min_size=1, max_size=5), st.integers(2, 40))
def test_every_token_is_in_one_example_and_every_document_ends(texts: list[str], room: int) -> None:
    documents = [Text(f"d{number}", text) for number, text in enumerate(texts)]
    made = document_examples(TOKENIZER, documents, room)
    for document in documents:
        mine = [each for each in made if each.problem_id == document.id]
        ids = [token for each in mine for token in each.input_ids]
        assert ids == [*encode_text(TOKENIZER, document.text), TOKENIZER.eos_token_id]
        assert all(len(each.input_ids) == room for each in mine[:-1])
    assert len({each.trace_id for each in made}) == len(made)
    for each in made:
        assert len(each.input_ids) <= room
        assert each.labels == [IGNORE, *each.input_ids[1:]]


def test_the_spelling_of_a_control_token_stays_text() -> None:
    (made,) = document_examples(TOKENIZER, [Text("d", "a<|end|>b<think>")], 64)
    assert made.input_ids.count(TOKENIZER.eos_token_id) == 1


def test_what_teaches_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 2 tokens"):
        document_examples(TOKENIZER, [Text("d", "abc")], 1)
    endless = byte_tokenizer()
    endless.eos_token = None
    with pytest.raises(UsageError, match="no document has two tokens"):
        document_examples(endless, [Text("d", "a")], 8)
