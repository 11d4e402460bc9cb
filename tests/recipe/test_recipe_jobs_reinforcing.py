"""The job grpo with the untrained tiny student: its rewards, its metrics, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tutelage.errors import UsageError
from tutelage.recipe.jobs.reinforcing import rewarding
from tutelage.recipe.single import run_single
from tutelage.recipe.training import Reward
from tutelage.records import Problem, Trace
from tutelage.students.pretrained import load_student
from tutelage.think.policy import ThinkingPolicy
from tutelage.train.decoding import Decoding

SHORT = {"max_tokens": 12, "answer_reserve": 4, "close_text": "Answer"}
PROBLEMS = [Problem("p", "2 + 2?", "4")]
USER = "def even(problem, trace): return float(len(trace.answer) % 2)\n"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with problems and an untrained student."""
    folder = tmp_path_factory.mktemp("lab")
    run_single(
        "lab-problems", {"train": 24, "test": 2, "min_steps": 2, "max_steps": 4}, folder / "train.parquet"
    )
    run_single("student", {"source": "tiny", "seed": 3}, folder / "tiny")
    return folder


def reinforced(lab: Path, out: Path, **settings: Any) -> dict[str, Any]:
    inputs = {"model": str(lab / "tiny"), "problems": str(lab / "train.parquet")}
    given = {
        "steps": 2,
        "batch": 16,
        "group": 8,
        "learning_rate": 1e-3,
        "warmup_steps": 0,
        "policy": SHORT,
        "max_answer_tokens": 4,
        **settings,
    }
    metrics = run_single("grpo", given, out, inputs=inputs)["metrics"]
    assert isinstance(metrics, dict)
    return metrics


def graded(lab: Path, reward: Reward, *traces: Trace, most: int | None = 12) -> list[Any]:
    student = load_student(str(lab / "tiny"))
    decoding = Decoding(ThinkingPolicy(max_tokens=most), max_answer=4)
    with rewarding(reward, decoding, student, PROBLEMS) as grader:
        return grader.results([grader.submit(PROBLEMS[0], trace) for trace in traces])


def reply(answer: str, tokens: int = 5, closed_by: Any = "model") -> Trace:
    return Trace(
        f"t-{answer}-{tokens}",
        "p",
        0,
        "m",
        answer,
        "Counter: 4",
        thinking_sampled=tokens,
        answer_sampled=1,
        closed_by=closed_by,
    )


@pytest.mark.slow
def test_a_students_own_replies_train_it_and_are_counted(lab: Path, tmp_path: Path) -> None:
    metrics = reinforced(lab, tmp_path / "m", oversample=32, drop_above=1.0)
    assert metrics["steps"] == 2 and metrics["problems_kept"] == 24
    assert metrics["replies"] >= 32 and metrics["problems"] >= 4
    assert metrics["late_rewards"] == metrics["unrewarded"] == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (lab / "tiny", tmp_path / "m"))
    assert metrics["missing_groups"] < 4
    assert any(not torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.slow
def test_a_users_reward_and_every_part_are_in_the_log(lab: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(USER)
    function = f"{tmp_path}/mine.py:even"
    reward = {"correct": 0.0, "plus": 0.5, "format": 1.0, "overlong": 1.0, "user": function}
    settings = {"balance": False, "drop_above": 1.0, "uniform_length": 0.5}
    metrics = reinforced(lab, tmp_path / "m", reward=reward, **settings)
    assert metrics["problems_kept"] == 12
    log = (tmp_path / "m-log.jsonl").read_text()
    assert all(f"drawn/reward/{name}" in log for name in ("plus", "format", "overlong", "user"))


@pytest.mark.slow
def test_parts_are_weighed_as_written(lab: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(USER)
    settings = Reward(correct=2.0, format=0.5, user=f"{tmp_path}/mine.py:even", user_weight=-1.0)
    right, wrong, cut = graded(lab, settings, reply("4"), reply("12"), reply("4", closed_by="budget"))
    assert right.parts == {"correct": 1.0, "format": 1.0, "user": 1.0}
    assert (right.reward, right.right, right.method) == (1.5, True, "number")
    assert (wrong.reward, wrong.right) == (-1.5, False)
    assert cut.reward == 1.0


def test_overlong_takes_its_limit_from_the_policy(lab: Path) -> None:
    found = graded(lab, Reward(correct=0.0, overlong=1.0), *(reply("4", tokens) for tokens in (11, 14, 15)))
    # The limit is 12 + 4 tokens, the cache a fifth of it: 3. Each reply has one token of answer.
    assert [each.reward for each in found] == pytest.approx([0.0, -2 / 3, -1.0])
    with pytest.raises(UsageError, match=r"reward\.overlong needs reward\.max_tokens"):
        graded(lab, Reward(overlong=1.0), most=None)


def test_rewards_that_cannot_work_are_refused(lab: Path) -> None:
    with pytest.raises(UsageError, match="no part weighs anything"):
        graded(lab, Reward(correct=0.0))
    student = load_student(str(lab / "tiny"))
    with (
        pytest.raises(UsageError, match="unknown checker"),
        rewarding(Reward(), Decoding(), student, [Problem("p", "?", "4", checker="guess")]),
    ):
        pass
