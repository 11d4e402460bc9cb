"""A step's groups, drawn from scripted replies: oversampling, refilling, and what is counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import pytest

from tutelage.errors import UsageError
from tutelage.records import Problem, Trace, Verdict
from tutelage.train.drawing import Drawn, Grouping, draw_groups
from tutelage.train.grading import Grader
from tutelage.train.rewards import Weighted, correctness
from tutelage.train.rollouts import Rollout


class Script:
    """Replies by a word per problem: a problem whose question is "fails 9" gets nine wrong replies first,
    "right" right ones alone, "undecided" none that can be decided."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.calls: list[list[str]] = []
        self.drawn: dict[str, int] = {}

    def __call__(
        self, problems: Sequence[Problem], number: int, each: Callable[[int, Rollout], None]
    ) -> list[Rollout]:
        self.calls.append([problem.id for problem in problems])
        found = []
        for problem in problems:
            for _ in range(self.size):
                sample = self.drawn.get(problem.id, 0)
                self.drawn[problem.id] = sample + 1
                found.append(Rollout(_trace(problem, sample), (1,), (2, 3), (True, True)))
                each(len(found) - 1, found[-1])
        return found


def _trace(problem: Problem, sample: int) -> Trace:
    word, _, number = problem.question.partition(" ")
    answer = {"right": "yes", "undecided": "?"}.get(word) or ("no" if sample < int(number) else "yes")
    return Trace(
        f"{problem.id}-{sample}", problem.id, sample, "m", answer, thinking_sampled=4, answer_sampled=1
    )


def judge(problem: Problem, trace: Trace) -> Verdict:
    status: Any = {"yes": "correct", "no": "incorrect"}.get(trace.answer, "undecided")
    return Verdict(trace.id, problem.id, status, "", "script")


def problems(*questions: str) -> list[Problem]:
    return [Problem(f"p{n}", question) for n, question in enumerate(questions)]


def draw(wanted: int, questions: list[str], **settings: Any) -> tuple[Drawn, Script]:
    grouping = Grouping(**{"size": 4, "oversample": 16, **settings})
    script = Script(grouping.size)
    reward = Weighted({"correct": (1.0, correctness(judge))})
    with Grader(reward, judge) as grader:
        found = draw_groups(wanted, iter(problems(*questions)), script, grader, grouping, "seed")
    return found, script


def names(found: Drawn) -> list[str]:
    return [group[0].rollout.trace.problem_id for group in found.groups]


def test_a_hard_problem_is_drawn_from_until_it_has_a_right_reply() -> None:
    found, script = draw(2, ["fails 2", "fails 9"])
    assert script.calls == [["p0", "p1"], ["p1"], ["p1"]]
    assert names(found) == ["p0", "p1"] and [len(group) for group in found.groups] == [4, 4]
    hard = found.groups[1]
    # Three of the twelve are right: two are kept, with two wrong ones.
    assert [member.reward for member in hard] == [1.0, 1.0, -1.0, -1.0]
    assert [member.right for member in hard] == [True, True, False, False]
    assert len({member.rollout.trace.id for member in hard}) == 4


def test_what_teaches_nothing_is_replaced_by_the_next_candidate() -> None:
    found, script = draw(1, ["right", "fails 99", "undecided", "fails 3"])
    assert names(found) == ["p3"]
    assert found.dropped == {"too easy": 1, "none right": 1, "no reward": 1}
    assert script.drawn == {"p0": 4, "p1": 16, "p2": 16, "p3": 4}


def test_numbers_and_totals_are_those_of_what_was_drawn() -> None:
    found, _ = draw(1, ["right", "undecided", "fails 3"])
    assert found.totals() == {
        "replies": 24,
        "problems": 3,
        "discarded": 2,
        "missing_groups": 0,
        "late_rewards": 0,
        "unrewarded": 16,
    }
    numbers = found.numbers()
    assert numbers["drawn/oversampling"] == 6.0
    assert numbers["drawn/discarded"] == pytest.approx(2 / 3)
    assert numbers["drawn/zero_spread"] == pytest.approx(2 / 3)
    assert numbers["drawn/unrewarded"] == pytest.approx(16 / 24)
    assert numbers["drawn/path/script"] == 1.0
    assert numbers["drawn/tokens"] == 5.0
    # Of the eight that have a reward, five are right.
    assert numbers["drawn/right"] == pytest.approx(5 / 8)
    assert numbers["drawn/reward"] == numbers["drawn/reward/correct"] == pytest.approx(2 / 8)


def test_tries_and_candidates_bound_a_step() -> None:
    found, _ = draw(2, ["right"] * 50, tries=3)
    assert found.groups == [] and found.totals()["problems"] == 6 and found.totals()["missing_groups"] == 2
    found, _ = draw(3, ["fails 2"])
    assert names(found) == ["p0"] and found.totals()["missing_groups"] == 2


def test_a_step_that_is_drawn_again_is_the_same() -> None:
    questions = [f"fails {n}" for n in range(1, 20, 3)]
    first, second = (draw(3, questions)[0].groups for _ in range(2))
    assert first == second


def test_without_a_verdict_a_positive_reward_counts_as_right() -> None:
    numbers = count()
    with Grader(lambda problem, trace: (-1.0, 2.0)[next(numbers) % 2], workers=1) as grader:
        found = draw_groups(1, iter(problems("fails 9")), Script(4), grader, Grouping(4, 16), "seed")
    assert sorted(member.reward for member in found.groups[0]) == [-1.0, -1.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 1}, "group is 1"),
        ({"size": 5}, "group is 5"),
        ({"size": 8, "oversample": 4}, "oversample is 4"),
        ({"tries": 0}, "tries is 0"),
    ],
)
def test_numbers_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Grouping(**settings)
