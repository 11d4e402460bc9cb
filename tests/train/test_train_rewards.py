"""Rewards as plain functions: the published values, bounds, and that they grow and fall as they should."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinymodel import byte_tokenizer
from tutelage.errors import UsageError
from tutelage.records import ClosedBy, Problem, Status, Trace, Verdict
from tutelage.train.rewards import (
    Check,
    Plus,
    Reward,
    Unrewarded,
    Weighted,
    by_user,
    correctness,
    overlong,
    plus,
    reply_ids,
    reply_tokens,
    well_formed,
)
from tutelage.verify.workers import WorkerPool

few = settings(max_examples=40, deadline=None)
PROBLEM = Problem("p", "2 + 2?", "4")
LENGTHS = st.integers(0, 40_000)


def trace(
    tokens: int = 10,
    *,
    closed_by: ClosedBy = "model",
    finish: str = "stop",
    answer: str = "4",
    thinking: str = "so",
) -> Trace:
    return Trace(
        "t",
        "p",
        0,
        "m",
        answer,
        thinking,
        thinking_sampled=tokens,
        thinking_forced=0,
        answer_sampled=0,
        answer_forced=0,
        finish_reason=finish,
        closed_by=closed_by,
    )


def saying(status: Status) -> Check:
    return lambda problem, trace: Verdict(trace.id, problem.id, status, "because", "number")


def nothing_repeated(trace: Trace) -> range:
    return range(40)


def earned(reward: Reward, of: Trace) -> float:
    return reward(PROBLEM, of)


def test_correctness_is_plus_or_minus_one() -> None:
    assert earned(correctness(saying("correct")), trace()) == 1.0
    assert earned(correctness(saying("incorrect")), trace()) == -1.0


def test_what_a_limit_cut_off_is_not_right() -> None:
    assert earned(correctness(saying("correct")), trace(finish="length")) == -1.0


def test_an_undecided_reply_has_no_reward_and_says_why() -> None:
    for reward in (correctness(saying("undecided")), plus(saying("undecided"), nothing_repeated)):
        with pytest.raises(Unrewarded, match="undecided: because"):
            earned(reward, trace())


@pytest.mark.parametrize(
    ("tokens", "right", "wrong"),
    [
        (0, 1.0, -1.0),
        (1_000, 1.0, -0.915),
        (1_851, 1.0, -0.75),
        (3_702, 1.0, -0.5),
        (25_600, 1.0, -0.5),
        (28_672, 0.75, -0.5),
        (31_744, 0.5, -0.5),
        (99_999, 0.5, -0.5),
    ],
)
def test_the_published_values_of_the_length_aware_accuracy(tokens: int, right: float, wrong: float) -> None:
    assert Plus().accuracy(True, tokens) == pytest.approx(right, abs=1e-3)
    assert Plus().accuracy(False, tokens) == pytest.approx(wrong, abs=1e-3)


@few
@given(LENGTHS, LENGTHS)
def test_right_replies_lose_with_length_and_wrong_ones_gain(one: int, other: int) -> None:
    short, long = sorted((one, other))
    constants = Plus()
    assert 0.5 <= constants.accuracy(True, long) <= constants.accuracy(True, short) <= 1.0
    assert -1.0 <= constants.accuracy(False, short) <= constants.accuracy(False, long) <= -0.5


@few
@given(st.integers(1, 100_000))
def test_other_limits_keep_the_proportions(longest: int) -> None:
    constants = Plus().within(longest)
    assert constants.longest == longest
    assert constants.free_right == pytest.approx(25_600 / 31_744 * longest, abs=1.0)
    assert constants.free_wrong == pytest.approx(max(1.0, 3_702 / 31_744 * longest), abs=1.0)
    assert Plus().within(31_744) == Plus()


@few
@given(LENGTHS, st.sampled_from(["model", "budget", "none", "eos"]), st.sampled_from(["stop", "length"]))
def test_the_whole_reward_stays_within_its_bounds(tokens: int, closed_by: ClosedBy, finish: str) -> None:
    for status in ("correct", "incorrect"):
        for ids in (nothing_repeated, lambda trace: [1] * 50):
            found = earned(plus(saying(status), ids), trace(tokens, closed_by=closed_by, finish=finish))
            assert -9 / 13 <= found <= 8 / 13


def test_overrides_look_at_the_thinking_first() -> None:
    """Then at the end; the repetition is worth an eighth of the accuracy."""
    reward = plus(saying("correct"), lambda trace: [])
    assert earned(reward, trace()) == pytest.approx(8 / 13)
    assert earned(reward, trace(closed_by="none", finish="length")) == pytest.approx(-8 / 13)
    assert earned(reward, trace(closed_by="budget")) == pytest.approx(-8 / 13)
    assert earned(reward, trace(finish="length")) == pytest.approx(-4 / 13)
    loops = plus(saying("correct"), lambda trace: [1] * 100)
    assert earned(loops, trace()) == pytest.approx(8 / 13 - 1 / 13)
    plain = plus(saying("correct"), lambda trace: [], thinks=False)
    assert earned(plain, trace(closed_by="none")) == pytest.approx(8 / 13)


def test_overrides_ask_for_no_verdict() -> None:
    def never(problem: Problem, trace: Trace) -> Verdict:
        raise AssertionError("asked")

    assert earned(plus(never, lambda trace: []), trace(finish="length")) < 0


@few
@given(st.integers(1, 5_000), st.integers(1, 5_000), LENGTHS, LENGTHS)
def test_overlong_falls_from_zero_to_minus_one(longest: int, cache: int, one: int, other: int) -> None:
    cache = min(cache, longest)
    reward = overlong(longest, cache)
    short, long = sorted((one, other))
    assert -1.0 <= earned(reward, trace(long)) <= earned(reward, trace(short)) <= 0.0
    assert earned(reward, trace(longest - cache)) == 0.0
    assert earned(reward, trace(longest)) == -1.0


def test_overlong_has_the_published_values() -> None:
    reward = overlong(20_480, 4_096)
    values = [earned(reward, trace(count)) for count in (16_384, 18_432, 20_480, 30_000)]
    assert values == [0.0, -0.5, -1.0, -1.0]


@pytest.mark.parametrize(("longest", "cache"), [(10, 0), (10, 11), (0, 0)])
def test_an_overlong_cache_outside_its_limit_is_refused(longest: int, cache: int) -> None:
    with pytest.raises(UsageError, match="overlong_cache"):
        overlong(longest, cache)


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({}, 1.0),
        ({"finish": "length"}, 0.0),
        ({"answer": "  "}, 0.0),
        ({"closed_by": "none"}, 0.0),
        ({"closed_by": "budget"}, 0.0),
        ({"closed_by": "unknown"}, 1.0),
    ],
)
def test_a_well_formed_reply_closes_its_thinking_ends_and_answers(wrong: dict, expected: float) -> None:  # type: ignore[type-arg]
    assert earned(well_formed(), trace(**wrong)) == expected


def test_lengths_are_tokens_and_never_guessed() -> None:
    assert reply_tokens(trace(12)) == 12
    with pytest.raises(Unrewarded, match="how many tokens"):
        reply_tokens(Trace("t", "p", 0, "m", "4"))


def test_ids_are_those_of_thinking_and_answer() -> None:
    tokenizer = byte_tokenizer()
    assert tokenizer.decode(reply_ids(tokenizer, trace(thinking="a</think>", answer="b"))) == "a</think>b"
    # What looks like the marker is text, not the marker.
    assert tokenizer.convert_tokens_to_ids("</think>") not in reply_ids(tokenizer, trace(thinking="</think>"))


@few
@given(st.floats(-100, 100), st.floats(-5, 5))
def test_a_weighted_sum_clamps_its_parts(value: float, weight: float) -> None:
    reward = Weighted({"a": (weight, lambda problem, trace: value), "one": (2.0, lambda problem, trace: 1.0)})
    clamped = max(-10.0, min(10.0, value))
    assert reward.each(PROBLEM, trace()) == {"a": clamped, "one": 1.0}
    assert math.isclose(earned(reward, trace()), weight * clamped + 2.0, abs_tol=1e-9)


USER = """
import time
from tutelage.records import Verdict
def half(problem, trace): return -0.5 * len(trace.answer)
def verdict(problem, trace): return Verdict("", "", "correct", "", "")
def raises(problem, trace): raise KeyError("gone")
def words(problem, trace): return "good"
def endless(problem, trace): time.sleep(60)
"""


@pytest.mark.slow
def test_a_users_function_runs_as_a_users_checker_does(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(USER)
    with WorkerPool(1, seconds=1.0) as pool:
        assert earned(by_user(f"{file}:half", pool), trace(answer="abc")) == -1.5
        assert earned(by_user(f"{file}:verdict", pool), trace()) == 1.0
        for name, why in (("raises", "KeyError"), ("words", "not a finite number"), ("endless", "timeout")):
            with pytest.raises(Unrewarded, match=why):
                earned(by_user(f"{file}:{name}", pool), trace())
        with pytest.raises(UsageError, match="no function 'missing'"):
            by_user(f"{file}:missing", pool)
