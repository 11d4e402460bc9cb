"""The numbers of words are those of `questions.words`, whatever the text, its batch and its size."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tutelage.curate import hashed as module
from tutelage.curate.hashed import NUMBER, Hashed, hashed
from tutelage.curate.spelling import NUMBER_WORDS
from tutelage.questions import words

PIECES = [
    *("1", "23", "200", "1,200", "1.5", "0", "٣", "४२", "²", "１", "𐩀"),
    *("a", "B", "Word", "x_y", "seven", "é", "e\u0301", "ß", "İ", "几何", "🙂", "\ufdfa"),
    *(",", ".", "-", "−", "+", "*", "/", "=", "<", "%", "(", ")", "[", "'", "?", "$"),
    *(" ", "  ", "\n", "\t", "\x0b", "\x1c", "\x1d", "\x1e", "\x1f", "\x85", "\xa0", "\u2028"),
    *("\0", "\x01", "\x7f", "\ud800", "\udcff", "\ufffd", "\xfe", "\xff"),
]
NASTY = st.lists(st.sampled_from(PIECES), max_size=24).map("".join)
PLAIN = st.lists(st.sampled_from([each for each in PIECES if each.isascii()]), max_size=24).map("".join)
CLIPS = 10028838633567432685  # the number of this word
TEXTS = st.lists(st.one_of(NASTY, PLAIN, st.text(max_size=20)), max_size=8)


def rows(found: Hashed) -> list[list[int]]:
    """The numbers of each text."""
    return [found.words[a:b].tolist() for a, b in pairwise(found.starts.tolist())]


def same(one: Hashed, other: Hashed) -> bool:
    return all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in ("words", "starts", "number")
    )


def agrees(texts: Sequence[str], found: Hashed) -> None:
    """As many numbers as words in each text, equal where the words are."""
    expected = [words(text) for text in texts]
    assert found.sizes.tolist() == [len(each) for each in expected], texts
    names = [word for each in expected for word in each]
    pairs = set(zip(names, found.words.tolist(), strict=True))
    assert len(pairs) == len(set(names)) == len({number for _, number in pairs}), texts
    assert found.number.tolist() == [word[0].isdecimal() for word in names], texts


@settings(max_examples=200, deadline=None)
@given(TEXTS)
@example(["-", "3", "- 3", "1,", "200", "1.", "5"])
@example(["\ud800", "\ud801", "\ufffd", "?", "a\ud800b"])
@example(["1,200,300 1,2000 12,345 1,23 1,200.5", "1200300", "2.1,234"])
@example(["-" + " " * 9 + "7", "- \n\x1c-\t (", "--(--"])
@example(["1.2", "12", "1.2.3", "1..2", ".5", "5."])
def test_one_number_for_each_word_and_equal_ones_for_equal_words(texts: list[str]) -> None:
    agrees(texts, hashed(texts))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(st.none(), NASTY.map(lambda text: text.encode("utf-8", "replace").decode())), max_size=8
    )
)
def test_every_kind_of_column_gives_what_a_list_gives(texts: list[str | None]) -> None:
    expected = hashed([text or "" for text in texts])
    assert same(hashed(texts), expected)  # type: ignore[arg-type]
    small = pa.array(texts, pa.string())
    around = pa.array(["x 1", None, *texts, "not this"], pa.string())
    for column in (
        small,
        small.cast(pa.large_string()),
        small.cast(pa.large_binary()),
        small.cast(pa.string_view()),
        small.dictionary_encode(),
        around.slice(2, len(texts)),
        around.cast(pa.large_string()).slice(2, len(texts)),
        around.cast(pa.large_binary()).slice(2, len(texts)),
        pa.chunked_array([small.slice(0, 1), small.slice(1)], pa.string()),
        pa.chunked_array([small.cast(pa.large_binary())], pa.large_binary()),
    ):
        assert same(hashed(column), expected), column.type


def test_nothing_gives_nothing() -> None:
    kinds = (pa.string(), pa.large_string(), pa.large_binary())
    for none in ([], *(pa.array([], kind) for kind in kinds), pa.chunked_array([], pa.string())):
        found = hashed(none)
        assert len(found) == 0 and found.starts.tolist() == [0] and len(found.whole()) == 0
    empty = hashed(["", None, "?!", " "])  # type: ignore[list-item]
    assert len(empty) == 4 and not len(empty.words) and empty.whole().tolist() == [0] * 4
    assert hashed(pa.nulls(3)).sizes.tolist() == [0, 0, 0]


@pytest.mark.parametrize("chunk", [1, 16, 64])
@settings(max_examples=100, deadline=None)
@given(
    texts=st.lists(
        st.one_of(
            st.lists(st.one_of(PLAIN, NASTY), max_size=6).map("".join),
            # Commas, minuses and points in every place of a chunk.
            st.text(alphabet="12-, .(a", max_size=150),
        ),
        max_size=4,
    )
)
def test_where_a_long_text_is_cut_changes_nothing(chunk: int, texts: list[str]) -> None:
    expected = hashed(texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", chunk)
        found = hashed(texts)
    assert same(found, expected), texts


# Without a border between two words of letters for more than _LARGEST bytes.
LONG = {
    "numbers": "1 22 333 ",
    "a list": "1,0,1,12,",
    "a list of hundreds": "123,1234,",
    "grouped": "1,200 3,400 ",
    "operators": "ab+cd=",
    "digits and letters": "a1b22",
    "minuses": "- 3 -(4",
    "brackets": "((-3)",
    "sentences of numbers": "1. 2. ",
    "hyphens": "-----",
    "letters of other scripts": "é 1 ",
}


@pytest.mark.parametrize("piece", LONG.values(), ids=LONG)
def test_a_long_text_of_short_words_keeps_all_of_them(piece: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 256)
    monkeypatch.setattr(module, "_LARGEST", 1024)
    for before in range(3):  # chunks end in every place of the piece, the texts beside it stay whole
        texts = ["one", "x" * before + piece * (5000 // len(piece)), "1,200 -3"]
        agrees(texts, hashed(texts))


def test_only_a_word_beyond_the_largest_is_cut() -> None:
    inside, beyond = "a" * module._LARGEST, "a" * (2 * module._LARGEST + 5)
    found = hashed([f"one {inside[:-9]} two", f"one {beyond} two", "one two"])
    assert found.sizes.tolist()[0] == 3 and found.sizes.tolist()[1] in (4, 5) and found.sizes.tolist()[2] == 2
    one, two = rows(found)[2]
    assert all((each[0], each[-1]) == (one, two) for each in rows(found))


@pytest.mark.parametrize("text", ["clips and 3 boxes, ", "é ", "1,200.5 ", "-   ", "a"])
def test_a_text_of_20_megabytes_takes_memory_for_its_bytes_and_words(text: str) -> None:
    if not text.isascii():
        text *= 200
    elif len(text) > 4:
        text *= 1000
    size = 20_000_000 if text.isascii() else 2_000_000
    column = pa.array([text * (size // len(text.encode()))], pa.large_string())
    hashed(column.slice(0, 0))
    tracemalloc.start()
    found = hashed(column)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # 9 bytes a word, twice while the parts are joined; words of other scripts are Python's own for a while.
    assert peak < 1.5 * size + len(found.words) * (20 if text.isascii() else 250) + 64e6


def test_blanks_behind_a_minus_take_no_time_of_their_own() -> None:
    text = "-" + " " * 900_000 + "3 "
    start = time.process_time()
    found = hashed([text * 4, "- 3", "-" + " " * 50_000 + "x"])
    assert rows(found)[0] == rows(found)[1] * 4 and found.sizes.tolist() == [8, 2, 1]
    assert time.process_time() - start < 5  # one by one: more than ten seconds


def test_numbers_are_the_same_in_every_process() -> None:
    texts = ["Ada has 1,200 clips - 3.", "几何 ٣ é", "a\0b"]
    code = (
        "from tutelage.curate.hashed import hashed\n"
        f"found = hashed({texts!r})\n"
        "print(found.words.tolist(), found.masked().words.tolist(), found.whole().tolist())"
    )
    made = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "77")
    }
    found = hashed(texts)
    assert made == {f"{found.words.tolist()} {found.masked().words.tolist()} {found.whole().tolist()}"}
    # Sketches and indexes are kept on disk: a number must not move between versions either.
    assert rows(hashed(["clips"])) == [[CLIPS]]


@settings(max_examples=200, deadline=None)
@given(TEXTS)
@example(["3 -(", "3", "", "-(", "- 3 -("])
@example(["a b", "b a", "a a", "a", "ab"])
def test_the_number_of_a_whole_text_is_that_of_its_words_in_their_order(texts: list[str]) -> None:
    whole = hashed(texts).whole().tolist()
    for text, number in zip(texts, whole, strict=True):
        assert (number == 0) == (not words(text))
    keys = {(tuple(words(text)), number) for text, number in zip(texts, whole, strict=True)}
    assert len(keys) == len({key for key, _ in keys}) == len({number for _, number in keys})


def test_masked_texts_have_one_number_for_all_numbers() -> None:
    texts = [
        "Ada has 3 clips",
        "ada has Seventy clips",
        "Ada has 1,200.5 clips",
        "Ada has ٣ clips",
        "Ada has no clips",
    ]
    found = hashed(texts)
    masked = found.masked()
    assert (
        len({tuple(each) for each in rows(masked)}) == 2 and masked.starts.tolist() == found.starts.tolist()
    )
    assert (
        rows(masked)[0][2] == int(NUMBER)
        and masked.number.tolist() == [False, False, True, False] * 4 + [False] * 4
    )
    assert (hashed([" ".join(NUMBER_WORDS)]).masked().words == NUMBER).all()
    assert not (hashed(["ones tens first fort and"]).masked().words == NUMBER).any()


def test_owners_and_sizes() -> None:
    found = hashed(["a b", "", "c"])
    assert found.owners().tolist() == [0, 0, 2] and found.sizes.tolist() == [2, 0, 1] and len(found) == 3
