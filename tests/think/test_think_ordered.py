"""Ordered exits: no token leaves the loop before the tokens before it in its text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopmodels import small
from tutelage.think.effort import Effort, Exit
from tutelage.think.loops import Loops
from tutelage.think.trajectories import trace_loops

_IDS = st.lists(st.integers(0, 40), min_size=1, max_size=12)
_EXITS = st.sampled_from(
    ["kl:1e-3,ordered", "state:0.2,ordered", "argmax:2,every=2,ordered", "acceleration:0.2,min=3,ordered"]
)


@pytest.fixture(scope="module")
def model() -> object:
    return small(num_core_layers=1, vocab_size=41, max_recurrence=16)


def test_the_word_survives_its_text() -> None:
    assert str(Exit.parse("kl:5e-4,min=2,ordered")) == "kl:0.0005,min=2,ordered"
    assert Exit.parse(str(Exit("state", 0.1, ordered=True))).ordered
    assert not Exit.parse("kl:5e-4").ordered


@pytest.mark.slow
@given(rows=st.lists(_IDS, min_size=1, max_size=4), text=_EXITS)
@settings(max_examples=15, deadline=None)
def test_passes_never_fall_along_a_row_whatever_its_neighbours(
    model: object, rows: list[list[int]], text: str
) -> None:
    effort = Effort(12, Exit.parse(text))
    together = Loops(model)
    handles, _ = together.prefill(rows, [effort] * len(rows))
    for row, handle in zip(rows, handles, strict=True):
        made = list(together.passes(handle))
        assert made == sorted(made)
        alone = Loops(model)
        (own,), _ = alone.prefill([row], [effort])
        assert list(alone.passes(own)) == made


@pytest.mark.slow
@given(row=st.lists(st.integers(0, 40), min_size=2, max_size=8), text=_EXITS)
@settings(max_examples=10, deadline=None)
def test_what_is_fed_later_waits_for_what_the_row_holds_and_the_trace_says_the_same(
    model: object, row: list[int], text: str
) -> None:
    exit = Exit.parse(text)
    engine = Loops(model)
    (handle,), _ = engine.prefill([row[:1]], [Effort(12, exit)])
    for token in row[1:]:
        engine.extend({handle: [token]})
    made = list(engine.passes(handle))
    assert made == sorted(made)
    (trace,) = trace_loops(model, [row], 12, exit=exit, alone=[1])
    assert trace.steps.tolist() == made
