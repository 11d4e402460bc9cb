"""reasoning-gym's scorers: strict, in a worker, and never running an answer."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tutelage.errors import UsageError
from tutelage.records import Problem
from tutelage.verify import gym
from tutelage.verify.gym_scorers import Refused, plain_eval
from tutelage.verify.workers import WorkerPool

NO_GOLD = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}
"""Tasks that score by the metadata alone."""
RUN_BY_SCORER = {
    "binary_matrix",
    "countdown",
    "intermediate_integration",
    "n_queens",
    "polynomial_multiplication",
    "puzzle24",
    "simple_integration",
    "spiral_matrix",
    "string_insertion",
}
"""Tasks whose scorer hands the answer to eval or parse_expr."""


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with WorkerPool(seconds=60) as pool:
        yield pool


def item(task: str, seed: int = 7, **config: Any) -> Problem:
    """An item of the task as it comes back from a file."""
    import reasoning_gym

    found = reasoning_gym.create_dataset(task, size=1, seed=seed, **config)[0]
    metadata = json.loads(json.dumps(found["metadata"], default=str))
    return Problem("p", found["question"], found["answer"], f"gym:{task}", metadata=metadata)


@pytest.fixture
def legs() -> Problem:
    metadata = {"source_dataset": "leg_counting", "source_index": 0}
    return Problem("p", "How many legs have 2 dogs and a bird?", "10", "gym:leg_counting", metadata=metadata)


def status(problem: Problem, answer: str, pool: WorkerPool) -> str:
    return gym.decide(problem, answer, pool)[0]


@pytest.mark.slow
def test_only_a_whole_score_counts(legs: Problem, pool: WorkerPool) -> None:
    assert gym.decide(legs, "10", pool) == ("correct", "the task's scorer gives 1", "gym", "10")
    for answer in ("<answer>10</answer>", r"So \boxed{10}", "The answer is 10.", "Think.\n10", " 10 \n"):
        assert status(legs, answer, pool) == "correct", answer
    # The package gives 2/11 for this: the gold text occurs in the answer.
    found = gym.decide(legs, "10 or 12 or 14", pool)
    assert found[:2] == ("incorrect", "the task's scorer gives 0.143; only 1 counts")
    for answer in (r"\boxed{110}", "100", "-10", "<answer>11</answer> 10", "It is not 10", r"10 \boxed{12}"):
        assert status(legs, answer, pool) == "incorrect", answer


def test_no_answer_and_no_gold(legs: Problem, pool: WorkerPool) -> None:
    assert gym.decide(legs, " ", pool)[:2] == ("incorrect", "no answer")
    bare = Problem("p", "q", None, "gym:leg_counting")
    assert gym.decide(bare, "10", pool)[:2] == ("undecided", "no gold answer")
    assert gym.decide(legs, "1" * 200_000, pool)[0] == "undecided"


def test_a_whole_item_from_a_file(pool: WorkerPool) -> None:
    problem = item("countdown")
    whole = Problem(
        "p", problem.question, problem.gold, problem.checker, metadata={"metadata": problem.metadata}
    )
    assert status(whole, f"<answer>{problem.gold}</answer>", pool) == "correct"
    missing = Problem("p", problem.question, problem.gold, problem.checker)
    assert status(missing, str(problem.gold), pool) == "undecided"


def test_another_right_answer_than_the_gold(pool: WorkerPool) -> None:
    problem = item("puzzle24")
    assert status(problem, f"0 + {problem.gold}", pool) == "incorrect"  # five numbers
    assert status(problem, f"({problem.gold})", pool) == "correct"


def test_two_scorers_that_take_wrong_answers_are_not_asked(pool: WorkerPool) -> None:
    halting = Problem("p", "Does it halt?", "True", "gym:game_of_life_halting", metadata={"a": 1})
    assert status(halting, "<answer>False</answer>", pool) == "incorrect"
    assert status(halting, "True", pool) == "correct"
    apples = Problem("p", "3 + 7?", "3", "gym:gsm_symbolic", metadata={"a": 1})
    found = gym.decide(apples, "Ann has 3 and 7, so 10.", pool)
    assert found[0] == "incorrect" and "reads the first number" in found[1]


def test_an_unknown_task_and_a_missing_package(
    legs: Problem, pool: WorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = Problem("p", "q", "1", "gym:leg_countin")
    gym.require(wrong)
    with pytest.raises(UsageError, match=r"gym:leg_countin: .* did you mean 'leg_counting'"):
        gym.decide(wrong, "1", pool)
    with pytest.raises(UsageError, match="names no task"):
        gym.require(Problem("p", "q", "1", "gym:"))
    monkeypatch.setattr(gym, "PACKAGE", "no_such_package")
    with pytest.raises(UsageError, match=r"pip install 'tutelage\[gym\]'"):
        gym.require(legs)


@pytest.mark.parametrize("text", ["[1, 'a', (2.5, None)]", "1/2 + 0x1f - 3 >> 1 if 0 else 1", "-2**3"])
def test_plain_eval_reads_literals_and_arithmetic(text: str) -> None:
    if " if " in text:
        with pytest.raises(Refused):
            plain_eval(text)
    else:
        assert plain_eval(text) == eval(text)  # noqa: S307 - our own texts


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')",
        "open('x')",
        "().__class__",
        "[x for x in (1,)]",
        "(lambda: 1)()",
        "f'{1}'",
        "x",
        "a[0]",
    ],
)
def test_plain_eval_refuses_code(text: str) -> None:
    with pytest.raises(Refused):
        plain_eval(text)


def hostile(canary: Path) -> list[str]:
    code = f"__import__('pathlib').Path({str(canary)!r}).touch()"
    return [
        code,
        f"[{code}]",
        f"[[{code}]]",
        f"['a', {code}]",
        f"1 + int(bool({code}))",
        f"sqrt({code})",
        f"Symbol('x', **dict(a={code}))",
        f"(lambda: {code})()",
        f"[{code} for _ in (1,)]",
        f"x + S({code!r})",
        f"sympify({code!r})",
        "preview(x)",
    ]


@pytest.mark.slow
def test_every_task_accepts_its_own_answer_and_runs_none(pool: WorkerPool, tmp_path: Path) -> None:
    from reasoning_gym.factory import DATASETS

    canary = tmp_path / "canary"
    refused = set()
    for task in sorted(set(DATASETS) - {"composite"}):
        problem = item(task, seed=random.Random(task).randrange(1000))
        for answer in hostile(canary):
            decision = gym.decide(problem, answer, pool)
            assert decision[0] != "correct", (task, answer)
            if "run this answer" in decision[1]:
                refused.add(task)
        if task in NO_GOLD:
            assert problem.gold is None
            continue
        for answer in (problem.gold, f"<answer>{problem.gold}</answer>"):
            assert gym.decide(problem, answer or "", pool)[0] == "correct", (task, problem)
        assert status(problem, "I do not know.", pool) != "correct", task
    assert not canary.exists()
    assert refused == RUN_BY_SCORER


def test_answers_of_the_tasks_that_would_run_them(pool: WorkerPool, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for task in sorted(RUN_BY_SCORER):
        problem = item(task)
        assert status(problem, str(problem.gold), pool) == "correct", task
        for answer in hostile(canary):
            assert status(problem, f"<answer>{answer}</answer>", pool) != "correct", (task, answer)
    assert not canary.exists()


@pytest.mark.slow
def test_a_hanging_scorer_is_stopped_and_the_next_answer_judged() -> None:
    problem = item("countdown")
    with WorkerPool(seconds=3.0) as pool:
        found = gym.decide(problem, "9**9**9**9", pool)
        assert found[0] in ("undecided", "incorrect")  # sympy may refuse it at once
        assert status(problem, str(problem.gold), pool) == "correct"
