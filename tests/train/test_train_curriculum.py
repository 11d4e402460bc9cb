"""Short examples first: what each step may draw, and that nothing but the step decides it."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopstudent import loop_examples, loop_student

from tutelage.errors import UsageError
from tutelage.records import Problem
from tutelage.train.curriculum import ByLength
from tutelage.train.examples import sized
from tutelage.train.settings import Optimiser, Ramp
from tutelage.train.sft import train_sft

SHAPES = st.sampled_from(["linear", "1-sqrt"])


@given(
    start=st.floats(0.5, 50),
    full=st.floats(0.5, 50),
    over=st.floats(0.01, 1),
    shape=SHAPES,
    steps=st.integers(1, 500),
)
def test_a_ramp_goes_from_start_to_full_without_turning_back(
    start: float, full: float, over: float, shape: str, steps: int
) -> None:
    ramp = Ramp(start, over, shape)  # type: ignore[arg-type]
    values = [ramp.at(step, steps, full) for step in range(steps + 1)]
    assert values[0] == start and values[-1] == pytest.approx(full)
    rising = all(a <= b + 1e-9 for a, b in pairwise(values))
    falling = all(a >= b - 1e-9 for a, b in pairwise(values))
    assert rising if full >= start else falling


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=40),
    over=st.floats(0.05, 1),
    shape=SHAPES,
    batch=st.integers(1, 9),
    seed=st.integers(0, 3),
)
def test_a_step_draws_within_its_limit_and_depends_on_nothing_else(
    sizes: list[int], over: float, shape: str, batch: int, seed: int
) -> None:
    steps = 30
    ramp = Ramp(min(sizes), over, shape)  # type: ignore[arg-type]
    rows = ByLength(sizes, ramp, steps, batch, seed)
    whole = list(rows)
    assert len(whole) == len(rows) == steps * batch
    for step in range(steps):
        drawn = whole[step * batch : (step + 1) * batch]
        limit = ramp.at(step, steps, max(sizes))
        assert all(sizes[row] <= limit + 1e-6 for row in drawn)
        assert ByLength(sizes, ramp, steps, batch, seed).rows(step) == drawn  # as after a restart
        allowed = sum(size <= limit * (1 + 1e-9) for size in sizes)
        if step < over * steps:
            most = -(-batch // allowed)
            assert max(Counter(drawn).values()) <= most


def test_after_the_ramp_rows_come_epoch_by_epoch() -> None:
    rows = list(ByLength([1, 2, 3, 4, 5, 6], Ramp(1, 0.2), 10, 3, 0))
    after = rows[2 * 3 :]
    for epoch in range(4):
        assert sorted(after[6 * epoch : 6 * epoch + 6]) == list(range(6))
    assert after[:6] != after[6:12]
    assert list(ByLength([1, 2, 3, 4, 5, 6], Ramp(1, 0.2), 10, 3, 1)) != rows


@pytest.mark.parametrize("sizes", [[], [4, 5]])
def test_a_start_below_every_example_is_refused(sizes: list[int]) -> None:
    with pytest.raises(UsageError, match="no example is within start 3"):
        ByLength(sizes, Ramp(3), 10, 2, 0)


def test_sizes_are_the_steps_of_problems_or_tokens() -> None:
    examples = loop_examples(loop_student(), 3)
    problems = {
        "p0": Problem("p0", "?", metadata={"steps": 4}),
        "p1": Problem("p1", "?", metadata={"steps": [["a", "b", 1]] * 7}),
        "p2": Problem("p2", "?"),
    }
    assert [each.size for each in sized(examples[:2], problems, "steps")] == [4, 7]
    assert [each.size for each in sized(examples, problems, "tokens")] == [len(e.input_ids) for e in examples]
    with pytest.raises(UsageError, match="problem p2 has no number of steps"):
        sized(examples, problems, "steps")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_stage_feeds_the_rows_of_its_steps(accumulate: int) -> None:
    begun = loop_student()
    examples = sized(loop_examples(begun, 8), {}, "tokens")
    sizes = [each.size for each in examples]
    ramp = Ramp(sorted(sizes)[2], 0.5)
    told = Optimiser(6, batch=4, accumulate=accumulate, warmup_steps=0, lengths=ramp, seed=3)
    found = train_sft(begun, examples, told)
    rows = list(ByLength(sizes, ramp, 6, 4, 3))
    assert found.tokens_seen == sum(sizes[row] for row in rows) and found.epochs == 3.0
