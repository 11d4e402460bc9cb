"""A reply as text: whole characters, runs of one kind, and stop strings that come in parts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinymodel import byte_tokenizer
from tutelage.lab.tokenizer import build_tokenizer
from tutelage.think.machine import PHASES
from tutelage.think.text import Detokenizer, Stream
from tutelage.tokens import decode_ids, encode_text

TOKENIZER = byte_tokenizer()
THINKING, CLOSE, ANSWER = (PHASES.index(name) for name in ("thinking", "close", "answer"))
TEXT = st.text(st.sampled_from("ab \né好🎲é\ufffd"), max_size=12)


class Written:
    """As much of a machine's state as a stream reads: all of `runs` (text or ids, phase, forced)."""

    def __init__(self, runs):
        self.ids, self.phases, self.forced = [], bytearray(), bytearray()
        for text, phase, forced in runs:
            ids = encode_text(TOKENIZER, text) if isinstance(text, str) else text
            self.ids += ids
            self.phases += bytes([phase]) * len(ids)
            self.forced += bytes([forced]) * len(ids)
        self.settled = 0


def stream(runs, stop=(), upto=None):
    """Pieces as an engine gets them: a push after every id."""
    told, state, pieces = Stream(TOKENIZER, stop), Written(runs), []
    for settled in range(len(state.ids) + 1):
        state.settled = settled
        pieces += told.push(state)
        if told.stopped is not None:
            break
    return [*pieces, *told.finish()], told, state


@given(st.lists(st.integers(0, 255), max_size=60))
@settings(max_examples=200, deadline=None)
def test_the_text_of_any_bytes_comes_in_whole_characters(ids):
    words = Detokenizer(TOKENIZER)
    parts = [words.feed(token) for token in ids]
    assert "".join(parts) + words.flush() == decode_ids(TOKENIZER, ids)


def test_no_piece_ends_in_half_a_character():
    words = Detokenizer(TOKENIZER)
    parts = [words.feed(token) for token in encode_text(TOKENIZER, "é好🎲")]
    assert parts == ["", "é", "", "", "好", "", "", "", "🎲"]


def test_tokens_of_whole_phrases_keep_their_spaces():
    tokenizer, words = build_tokenizer(), Detokenizer(build_tokenizer())
    ids = encode_text(tokenizer, "Anna: 7. Count: 12\n") * 9
    assert "".join(words.feed(token) for token in ids) + words.flush() == decode_ids(tokenizer, ids)


@given(st.lists(st.tuples(TEXT, st.booleans()), max_size=6), st.lists(TEXT, max_size=2))
@settings(max_examples=150, deadline=None)
def test_pieces_are_all_forced_or_all_sampled_and_add_up(thoughts, answers):
    runs = [(text, THINKING, forced) for text, forced in thoughts]
    runs += [("</think>", CLOSE, True), *((text, ANSWER, number == 0) for number, text in enumerate(answers))]
    pieces, _, state = stream(runs)
    for phase in (THINKING, ANSWER):
        mine = [piece for piece in pieces if piece.phase == PHASES[phase]]
        assert "".join(piece.text for piece in mine) == "".join(text for text, own, _ in runs if own == phase)
        for forced in (False, True):
            expected = sum(
                own == phase and bool(by) == forced
                for own, by in zip(state.phases, state.forced, strict=True)
            )
            assert sum(piece.tokens for piece in mine if piece.forced == forced) == expected


@given(
    text=st.text("abc", max_size=14),
    stop=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    forced=st.text("abc", max_size=4),
)
@settings(max_examples=300, deadline=None)
def test_the_answer_ends_before_the_first_stop_string_in_what_was_sampled(text, stop, forced):
    pieces, told, _ = stream(
        [("abc" * 3, THINKING, False), (forced, ANSWER, True), (text, ANSWER, False)], stop
    )
    said = "".join(piece.text for piece in pieces if piece.phase == "answer")
    # The reference looks at every prefix, as a model writes it.
    for end in range(len(text) + 1):
        found = [(text[:end].find(one), one) for one in stop if one in text[:end]]
        if found:
            place, first = min(found)
            assert told.stopped == first and said == forced + text[:place]
            return
    assert told.stopped is None and said == forced + text
    assert "".join(piece.text for piece in pieces if piece.phase == "thinking") == "abc" * 3


@pytest.mark.parametrize(("text", "sent"), [("so: 12", "so: 12"), ("so: EN", "so: "), ("so: EE", "so: E")])
def test_what_may_become_a_stop_string_is_held_back(text, sent):
    told, state = Stream(TOKENIZER, ("END",)), Written([(text, ANSWER, False)])
    state.settled = len(state.ids)
    assert "".join(piece.text for piece in told.push(state)) == sent
    assert sent + "".join(piece.text for piece in told.finish()) == text
