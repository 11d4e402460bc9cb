"""Scripts: letters and their groups."""

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.curate.columnar import as_strings
from tutelage.curate.scripts import GROUPS, foreign, letters


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=12), max_size=6))
def test_letters_are_those_of_unicode(texts: list[str]) -> None:
    texts = [text.encode("utf-8", "replace").decode() for text in texts]
    found = letters(as_strings(pa.array(texts, pa.string())))
    for row, text in enumerate(texts):
        assert found[row].sum() == sum(map(counts, text))


def counts(sign: str) -> bool:
    code = ord(sign)
    mathematical = 0x2000 <= code < 0x2C00 or 0x1D400 <= code < 0x1D800 or 0x1EE00 <= code < 0x1EF00
    return 0x80 <= code < 0x32400 and sign.isalpha() and not mathematical


@pytest.mark.parametrize(
    ("text", "group"),
    [("ñß", "Latin"), ("αω", "Greek"), ("дЯ", "Cyrillic"), ("אב", "Hebrew"), ("مر", "Arabic"),
     ("हत", "Indic"), ("กข", "Southeast Asian"), ("数カの𠀀", "Chinese or Japanese"), ("한국", "Korean"),
     ("ქԱ", "Armenian or Georgian"), ("ᎠᏣ", "another")],
)  # fmt: skip
def test_letters_fall_in_their_group(text: str, group: str) -> None:
    (found,) = letters(as_strings(pa.array([text])))
    assert {GROUPS[at]: int(many) for at, many in enumerate(found) if many} == {group: len(text)}


def test_a_question_makes_its_scripts_its_own_above_the_same_share() -> None:
    texts = as_strings(pa.array(["Да" * 20] * 2))
    questions = as_strings(pa.array(["abcdefgh Да", "abcdefgh" * 10 + " Да"]))
    assert [hit.row for hit in foreign(questions, texts, share=0.05, least=20)] == [1]
