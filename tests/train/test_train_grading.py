"""Rewards beside decoding: in order, with a deadline, whatever the reward does."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from tutelage.errors import UsageError
from tutelage.records import Problem, Status, Trace, Verdict
from tutelage.train.grading import Graded, Grader, once
from tutelage.train.rewards import Weighted, correctness

PROBLEM = Problem("p", "2 + 2?", "4")


def traces(count: int) -> list[Trace]:
    return [Trace(f"t{n}", "p", n, "m", str(n)) for n in range(count)]


def graded(reward: Any, count: int, check: Any = None, **settings: Any) -> list[Graded]:
    with Grader(reward, check, **settings) as grader:
        return grader.results([grader.submit(PROBLEM, trace) for trace in traces(count)])


def test_results_come_in_the_order_that_replies_were_handed_in() -> None:
    found = graded(lambda problem, trace: float(trace.answer), 40, workers=3)
    assert [each.reward for each in found] == [float(n) for n in range(40)]
    assert [each.right for each in found] == [n > 0 for n in range(40)]


def test_grading_goes_on_while_the_caller_does_something_else() -> None:
    entered, done = threading.Event(), threading.Event()

    def reward(problem: Problem, trace: Trace) -> float:
        entered.set()
        done.wait(5)
        return 1.0

    with Grader(reward) as grader:
        ticket = grader.submit(PROBLEM, traces(1)[0])
        assert entered.wait(5)  # before anybody asks for the result
        done.set()
        assert grader.results([ticket])[0].reward == 1.0


def test_what_raises_or_is_no_number_has_no_reward_and_says_why() -> None:
    def reward(problem: Problem, trace: Trace) -> float:
        if trace.sample == 0:
            raise KeyError("gone")
        return float("nan") if trace.sample == 1 else 1.0

    broken, strange, fine = graded(reward, 3)
    assert broken.reward is None and "KeyError: 'gone'" in broken.why and not broken.late
    assert strange.reward is None and strange.why == "the reward is nan"
    assert (fine.reward, fine.why, fine.right) == (1.0, "", True)


def test_a_reward_that_hangs_is_given_up_and_the_others_go_on() -> None:
    free = threading.Event()

    def reward(problem: Problem, trace: Trace) -> float:
        if trace.sample < 3:  # more than there are workers
            free.wait(20)
        return 1.0

    started = time.monotonic()
    found = graded(reward, 6, workers=2, seconds=0.1, grace=0.1)
    free.set()
    assert time.monotonic() - started < 10
    assert [each.late for each in found] == [True] * 3 + [False] * 3
    assert [each.reward for each in found] == [None] * 3 + [1.0] * 3
    assert found[0].why == "no reward within 0.2 s"


def test_a_checker_that_cannot_be_used_stops_everything() -> None:
    def check(problem: Problem, trace: Trace) -> Verdict:
        raise UsageError("unknown checker")

    with pytest.raises(UsageError, match="unknown checker"):
        graded(correctness(check), 1, check)


def test_one_verdict_a_reply_tells_the_path_and_what_is_right() -> None:
    asked: list[str] = []
    statuses: list[Status] = ["correct", "incorrect", "undecided"]

    def judge(problem: Problem, trace: Trace) -> Verdict:
        asked.append(trace.id)
        return Verdict(trace.id, problem.id, statuses[trace.sample], "because", f"path{trace.sample}")

    check = once(judge)
    reward = Weighted({"correct": (2.0, correctness(check)), "again": (1.0, correctness(check))})
    right, wrong, open_ = graded(reward, 3, check, workers=2)
    assert sorted(asked) == ["t0", "t1", "t2"]
    assert (right.reward, right.right, right.method) == (3.0, True, "path0")
    assert right.parts == {"correct": 1.0, "again": 1.0}
    assert (wrong.reward, wrong.right, wrong.method) == (-3.0, False, "path1")
    assert (open_.reward, open_.right, open_.why) == (None, False, "undecided: because")


@pytest.mark.parametrize("settings", [{"workers": 0}, {"seconds": 0.0}])
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="at least 1 worker"):
        Grader(lambda problem, trace: 1.0, **settings)
