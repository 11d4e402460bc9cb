"""The picture of a loss mask."""

from __future__ import annotations

import re

import traps
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.train.examples import IGNORE, Example
from tutelage.train.mask import SHOWN, Piece, painted, pieces

TOKENIZER = traps.samples().student.tokenizer


def picture(thinking: str, answer: str) -> list[Piece]:
    (example,) = traps.samples([(thinking, answer)]).examples
    return pieces(TOKENIZER, example)


def test_learned_and_not_learned_are_told_apart() -> None:
    found = picture("so", "7")
    shown = painted(found, colour=False)
    assert shown == "<|user|>·3·+·4·?·<|assistant|>·<think>⟦s·o·</think>·7·<|end|>⟧"
    coloured = painted(found, colour=True)
    assert "\x1b[32ms\x1b[0m" in coloured and "\x1b[90m3\x1b[0m" in coloured
    assert "\x1b[32m\x1b[7m<|end|>\x1b[0m" in coloured


def test_a_control_token_is_one_piece_and_its_spelling_is_text() -> None:
    found = picture("<|end|>", "7")
    assert [piece.text for piece in found if piece.control] == [
        "<|user|>", "<|assistant|>", "<think>", "</think>", "<|end|>",
    ]  # fmt: skip
    assert "⟦<·|·e·n·d·|·>·</think>" in painted(found, colour=False)


@settings(max_examples=30)
@given(st.text(max_size=20), st.text(min_size=1, max_size=8).filter(lambda text: bool(text.strip())))
def test_no_text_reaches_the_terminal_as_control(thinking: str, answer: str) -> None:
    hostile = f"\x1b]0;title\x07{thinking}\x1b[2J\x9b31m\u202e\r\x08"
    found = picture(hostile, answer)
    plain = painted(found, colour=False)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", plain)
    ours = re.sub(r"\x1b\[(32|90|7|0)m", "", painted(found, colour=True))
    assert "\x1b" not in ours and "\x9b" not in ours


@settings(max_examples=30)
@given(st.text(alphabet="aé漢🙂 \n", max_size=20))
def test_each_token_is_shown_once_in_its_order(thinking: str) -> None:
    found = picture(thinking, "é7")
    text = "".join(piece.text for piece in found)
    assert text == f"<|user|>3+4?<|assistant|><think>{thinking.strip()}</think>é7<|end|>".replace("\n", "⏎\n")
    assert [piece.learned for piece in found] == sorted(piece.learned for piece in found)


def test_a_long_sample_is_shown_from_both_ends() -> None:
    shown = painted(picture("x" * 500, "7"), colour=False)
    assert re.search(r"\n… \d+ tokens …\n", shown) and shown.count("x") < SHOWN
    assert shown.startswith("<|user|>") and shown.endswith("<|end|>⟧")


def test_a_character_that_is_learned_in_part_is_not_shown_as_learned_whole() -> None:
    ids = TOKENIZER("é")["input_ids"]
    found = pieces(TOKENIZER, Example(ids, [ids[0], IGNORE], "p", "t"))
    assert [piece.learned for piece in found] == [True, False]
