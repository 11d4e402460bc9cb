"""Loops against counting one by one."""

from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.curate import columnar
from tutelage.curate.columnar import as_strings
from tutelage.curate.loops import loops, word_counts

WORDS = st.sampled_from(["a", "b", "ab", "é", "sixteen-bytes-ok", "more-than-sixteen-bytes-of-it", "𝑥"])
BLANKS = st.sampled_from([" ", "\n\n", "\t", "\x00 "])


def words_of(text: str) -> list[bytes]:
    found = []
    for word in "".join(" " if char <= " " else char for char in text).split(" "):
        raw = word.encode()
        found += [raw[at : at + 16] for at in range(0, len(raw), 16)]
    return found


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.tuples(WORDS, BLANKS), max_size=40), max_size=5), st.integers(2, 4))
def test_shares_of_repeated_runs_are_those_counted_one_by_one(
    drawn: list[list[tuple[str, str]]], width: int
) -> None:
    texts = [
        "".join(word + blank for word, blank in pairs)[: None if n % 2 else -1]
        for n, pairs in enumerate(drawn)
    ]
    column = as_strings(pa.array(texts, pa.string()))
    assert word_counts(column).tolist() == [len(words_of(text)) for text in texts]
    wanted = {}
    for row, text in enumerate(texts):
        own = words_of(text)
        runs = Counter(tuple(own[at : at + width]) for at in range(len(own) - width + 1))
        if len(runs) < runs.total():
            wanted[row] = (1 - len(runs) / runs.total(), max(runs.values()))
    found = {loop.row: (loop.again, loop.times) for loop in loops(column, width=width, share=0, turns=10**6)}
    assert found.keys() == wanted.keys()
    for row, (share, times) in wanted.items():
        assert found[row] == (pytest.approx(share), times)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 30), st.integers(1, 40), st.integers(0, 25), st.integers(1, 6), st.sampled_from(["", " w"])
)
def test_turns_at_the_end(period: int, copies: int, before: int, turns: int, cut: str) -> None:
    """Whole turns are counted, of a period or of 12 words if that is more; a last word that was cut changes
    nothing."""
    once = [f"w{n}" for n in range(period)]
    text = " ".join([*(f"x{n}" for n in range(before)), *once * copies]) + cut
    wanted = period * copies // max(period, 12)
    found = loops(as_strings(pa.array([text])), width=12, share=1, turns=turns)
    assert [loop.turns for loop in found] == ([wanted] if wanted > turns else [])


def test_a_loop_is_told_with_its_most_frequent_run() -> None:
    texts = as_strings(pa.array(["", "é x y z x y z x y z", None, "only once"]))
    (loop,) = loops(texts, width=3, share=0.4, turns=2)
    assert (loop.row, loop.run, loop.times, loop.at, loop.turns) == (1, "x y z", 3, 3, 3)
    assert loop.again == 0.5


def test_what_is_found_in_a_text_does_not_depend_on_the_size_of_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = as_strings(pa.array(["a b " * n for n in range(60)] + ["so it is and " * 20, "", "b a b"]))
    whole = loops(texts, width=4, share=0.2, turns=5)
    monkeypatch.setattr(columnar, "PART", 7)
    assert loops(texts, width=4, share=0.2, turns=5) == whole and len(whole) == 58
