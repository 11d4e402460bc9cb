"""Estimates from the engine and the verifier, and the replies to search in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tinymodel import tiny_student
from tutelage.errors import UsageError
from tutelage.records import Problem
from tutelage.think.policy import ThinkingPolicy
from tutelage.think.sampling import Sampling
from tutelage.train.continuations import Oracle, attempts, logprobs
from tutelage.train.rollouts import Rollout, sample
from tutelage.verify.workers import WorkerPool

STUDENT = tiny_student(closes=1.5)
PROBLEM = Problem("p", "1?", "so", "exact")
POLICY = ThinkingPolicy(max_tokens=4, close_text="so")


def drawn(samples: int, **more: Any) -> list[Rollout]:
    return sample(
        STUDENT,
        [PROBLEM],
        samples=samples,
        policy=POLICY,
        sampling=Sampling(1.0),
        seed=1,
        max_answer=3,
        **more,
    )


def oracle(seed: int = 0) -> Oracle:
    return Oracle(STUDENT, {"p": PROBLEM}, WorkerPool(1), POLICY, Sampling(1.0), seed, max_answer=3)


def test_an_estimate_counts_successes_and_what_came_next() -> None:
    one = drawn(1)[0]
    found = oracle()([("p", ()), ("p", one.ids[:1]), ("p", one.ids)], 16, 0)
    assert [each.n for each in found] == [16, 16, 16]
    for each in found[:2]:
        assert sum(n for _, n in each.firsts.values()) == 16
        assert sum(right for right, _ in each.firsts.values()) == each.successes
    assert found[2].firsts == {} and found[2].p in (0.0, 1.0)  # a whole reply is what it is


def test_rounds_draw_other_random_numbers_and_a_seed_the_same() -> None:
    asked = [("p", ())]
    first, again, other = (oracle(0)(asked, 32, round_)[0].firsts for round_ in (0, 0, 1))
    assert first == again != other
    assert oracle(1)(asked, 32, 0)[0].firsts != first


def test_cut_off_continuations_are_counted_and_no_success() -> None:
    by = oracle()
    by([("p", ())], 24, 0)
    assert by.counts["continuations"] == 24
    ends = sum(each.trace.finish_reason == "length" for each in drawn(24))
    assert by.counts["cut off"] > 0 and ends > 0  # this model hardly ever ends its answer


def test_log_probabilities_are_those_of_the_engine() -> None:
    for each in drawn(3, logprobs=True):
        assert each.logprobs is not None
        assert logprobs(STUDENT, each.prompt_ids, each.ids) == pytest.approx(each.logprobs, abs=1e-4)


def judged(number: int, status: Any, *, reason: str = "stop", ids: tuple[int, ...] | None = None) -> Rollout:
    one = drawn(1)[0]
    trace = replace(one.trace, id=f"t{number}", finish_reason=reason)
    ids = ids or (65 + number, *one.ids[1:])
    return replace(one, trace=trace, status=status, ids=ids)


def test_right_and_wrong_finished_replies_are_searched_in_turn() -> None:
    rollouts = [
        judged(0, "correct"),
        judged(1, "correct"),
        judged(2, "incorrect", reason="length"),
        judged(3, "undecided"),
        judged(4, "incorrect"),
        judged(5, "correct", ids=judged(0, "correct").ids),
    ]
    found = attempts(STUDENT, rollouts, 2)
    assert [(each.trace_id, each.right) for each in found] == [("t0", True), ("t4", False)]
    assert [each.trace_id for each in attempts(STUDENT, rollouts, 9)] == ["t0", "t4", "t1"]
    assert len(found[0].logprobs) == len(found[0].ids)
    with pytest.raises(UsageError, match="has no verdict"):
        attempts(STUDENT, [judged(0, None)], 1)
