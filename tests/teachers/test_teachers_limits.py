"""limits: learned concurrency, pauses and ceilings, with a clock that the test holds."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.teachers.limits import FALL, START, Bucket, Pace, request_bucket, token_bucket

waits = st.floats(0, 5)


def pace(highest: int = 1000, **more: float) -> Pace:
    return Pace(highest, jitter=random.Random(0), **more)  # type: ignore[arg-type]


def fill(one: Pace, now: float = 0.0) -> None:
    while one.wait(now) == 0:
        one.start(now)


# --- buckets ---


@given(
    st.floats(0.5, 1000),
    st.floats(1, 50),
    st.lists(st.tuples(waits, st.floats(0.1, 100)), min_size=1, max_size=40),
)
def test_no_window_gets_more_than_rate_and_burst(
    per_s: float, burst: float, asked: list[tuple[float, float]]
) -> None:
    bucket, now, taken = Bucket(per_s, burst), 0.0, []
    for wait, amount in asked:
        now += wait
        now += bucket.wait(now, amount)
        bucket.take(now, amount)
        taken.append((now, amount))
    for first, (start, _) in enumerate(taken):
        for last in range(first, len(taken)):
            window = taken[last][0] - start
            # What is larger than the bucket is taken when it is full, and paid back afterwards.
            inside = sum(amount for _, amount in taken[first:last])
            assert inside + min(taken[last][1], burst) <= per_s * window + burst + 1e-6 * (1 + inside)


@given(st.floats(0.5, 1000), st.floats(1, 50), st.floats(0.1, 100), waits)
def test_a_wait_is_enough_and_not_too_long(per_s: float, burst: float, amount: float, later: float) -> None:
    bucket = Bucket(per_s, burst)
    bucket.take(later, burst)
    seconds = bucket.wait(later, amount)
    assert bucket.wait(later + seconds, amount) < 1e-6
    assert seconds <= burst / per_s + 1e-9


def test_a_clock_that_stands_still_or_goes_back_gives_nothing() -> None:
    bucket = Bucket(1.0, 1.0)
    bucket.take(10.0, 1)
    assert bucket.wait(10.0, 1) == bucket.wait(3.0, 1) == 1.0


def test_ceilings_hold_in_each_second_and_minute() -> None:
    assert (request_bucket(2).burst, request_bucket(1000).burst) == (1.0, 50.0)
    bucket = token_bucket(6000)
    assert bucket.per_s * 60 + bucket.burst == pytest.approx(6000)


# --- concurrency ---


def test_it_starts_slowly_and_doubles_in_the_time_of_a_reply() -> None:
    one = pace()
    assert one.limit == START
    for _ in range(3):
        fill(one)
        before = one.at_once
        for _ in range(before):
            one.success()
        assert one.limit == 2 * before


def test_a_fall_ends_the_doubling() -> None:
    one = pace()
    fill(one)
    one.refused(1.0, 0.0, None, wait=False)
    low = one.limit
    assert low == int(START * FALL)
    for _ in range(low + 1):
        one.success()
    assert one.limit == low + 1


def test_a_burst_of_refusals_is_one_fall() -> None:
    one = pace()
    fill(one)
    for _ in range(START):
        one.refused(1.0, 0.5, None, wait=True)
    assert one.limit == int(START * FALL)
    one.refused(3.0, 2.0, None, wait=True)  # sent after the fall: another burst
    assert one.limit == int(START * FALL * FALL)


def test_a_limit_that_is_not_used_does_not_rise() -> None:
    one = pace()
    one.start(0.0)
    for _ in range(100):
        one.success()
    assert one.limit == START


@given(
    st.integers(1, 300),
    st.lists(st.tuples(st.sampled_from(["stop", "start", "success", "refused"]), waits), max_size=80),
)
def test_the_limit_stays_between_one_and_the_highest(highest: int, steps: list[tuple[str, float]]) -> None:
    one, now = pace(highest), 0.0
    for what, wait in steps:
        now += wait
        if what == "start" and one.wait(now) == 0:
            one.start(now)
        elif what == "stop" and one.at_once:
            one.end()
        elif what == "success":
            one.success()
        elif what == "refused":
            one.refused(now, now, None, wait=True)
        assert 1 <= one.limit <= highest
        assert one.at_once <= max(highest, START)


# --- pauses ---


def test_a_wait_that_the_server_asks_for_holds_for_all() -> None:
    one = pace()
    seconds = one.refused(10.0, 9.0, 2.0, wait=True)
    assert 2.0 <= seconds <= 2.1
    assert one.wait(10.0) == seconds
    assert one.wait(10.0 + seconds) == 0
    one.refused(10.1, 9.0, 0.5, wait=True)  # a shorter wait does not end the longer one
    assert one.pause_until == 10.0 + seconds


def test_without_a_wait_of_the_servers_pauses_double_until_a_success() -> None:
    one, pauses, now = pace(first_backoff=1.0), [], 0.0
    for _ in range(4):
        pauses.append(one.refused(now, now, None, wait=True))
        now += 100
    for number, pause in enumerate(pauses):
        assert 0.5 * 2**number <= pause <= 1.05 * 2**number
    one.success()
    assert one.refused(now, now, 0.0, wait=True) <= 1.05


def test_tokens_are_debited_when_they_are_known() -> None:
    one = pace()
    one.tokens = token_bucket(60_000)
    taken = one.start(0.0)
    one.count(0.0, taken, 1900)
    assert one.wait(0.0) == pytest.approx((1900 - (2000 - 1900)) / one.tokens.per_s)
    one.count(0.0, 0.0, None)  # a reply that does not tell leaves the guess
    assert one.start(10.0) == 1900
