"""Mixes of long and short traces: exact, seeded, and honest about what they leave out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.errors import UsageError
from tutelage.records import Trace
from tutelage.train.mixing import mix


def traces(count: int) -> list[Trace]:
    return [Trace(f"t{n}", f"p{n}", 0, "m", "a") for n in range(count)]


@pytest.mark.slow
@given(
    lengths=st.lists(st.integers(0, 100), min_size=1, max_size=60),
    long=st.integers(1, 4),
    short=st.integers(1, 4),
    border=st.integers(0, 100),
    seed=st.integers(0, 3),
)
def test_the_proportion_is_exact_and_as_many_as_possible_are_used(
    lengths: list[int], long: int, short: int, border: int, seed: int
) -> None:
    above = sum(length > border for length in lengths)
    below = len(lengths) - above
    given = traces(len(lengths))
    if above < long or below < short:
        with pytest.raises(UsageError, match=f"mix {long}:{short} of long and short traces"):
            mix(given, lengths, long=long, short=short, border=border, seed=seed)
        return
    mixed = mix(given, lengths, long=long, short=short, border=border, seed=seed)
    assert mixed.long * short == mixed.short * long
    assert mixed.long_left_out < long or mixed.short_left_out < short
    assert (mixed.long + mixed.long_left_out, mixed.short + mixed.short_left_out) == (above, below)
    of = {trace.id: length for trace, length in zip(given, lengths, strict=True)}
    assert sum(of[trace.id] > border for trace in mixed.traces) == mixed.long
    assert len(mixed.traces) == mixed.long + mixed.short
    # In their old order, and the same again.
    order = [trace.id for trace in given]
    assert [trace.id for trace in mixed.traces] == [i for i in order if i in {t.id for t in mixed.traces}]
    assert mix(given, lengths, long=long, short=short, border=border, seed=seed) == mixed


def test_the_seed_chooses_which_ones() -> None:
    chosen = {
        tuple(t.id for t in mix(traces(60), [1] * 40 + [9] * 20, border=5, seed=seed).traces)
        for seed in range(5)
    }
    assert len(chosen) == 5


def test_without_a_border_the_median_divides() -> None:
    mixed = mix(traces(9), [1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert (mixed.border, mixed.long, mixed.short) == (5.0, 1, 4)
    assert mixed.to_dict() == {"border": 5.0, "long": 1, "short": 4, "long_left_out": 3, "short_left_out": 1}


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([7] * 10, r"0 long ones \(border 7 tokens of thinking\) where 1 are needed; set another mix.border"),
        ([1, 1, 9, 9, 9, 9, 9, 9], "2 short ones"),
        ([], "no trace to mix"),
    ],
)
def test_a_side_that_does_not_suffice_is_refused(lengths: list[int], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        mix(traces(len(lengths)), lengths, border=None if len(lengths) == 10 else 5)
    assert "\n" not in str(caught.value)
