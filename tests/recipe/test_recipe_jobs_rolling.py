"""Jobs that draw replies: judged rollouts as data, and PPO, each run on its own with the lab's base model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tutelage.errors import UsageError
from tutelage.recipe.jobs.training import LAB_BASE
from tutelage.recipe.single import run_single
from tutelage.records import Problem, Trace, Verdict, read_records
from tutelage.students.pretrained import load_student
from tutelage.students.template import render_prompt
from tutelage.train.journal import read_log
from tutelage.train.rollouts import read_rollouts

POLICY = {"max_tokens": 16, "answer_reserve": 4}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a few problems."""
    folder = tmp_path_factory.mktemp("rolling")
    run_single(
        "lab-problems", {"train": 8, "test": 4, "min_steps": 1, "max_steps": 2}, folder / "train.parquet"
    )
    return folder


def given(world: Path) -> dict[str, Any]:
    return {"model": str(LAB_BASE), "problems": str(world / "train.parquet")}


def test_rollouts_come_with_ids_traces_and_verdicts_that_belong_together(world: Path, tmp_path: Path) -> None:
    settings = {"samples": 3, "first": 5, "policy": POLICY, "max_answer_tokens": 4}
    out = tmp_path / "r.parquet"
    found = run_single("rollouts", settings, out, inputs=given(world), seed=4)
    metrics, outputs = found["metrics"], found["outputs"]
    drawn = read_rollouts(out)
    traces = read_records(Path(outputs["traces"]), Trace)
    verdicts = read_records(Path(outputs["verdicts"]), Verdict)
    assert [each.trace for each in drawn] == traces and len(traces) == 15
    assert [each.status for each in drawn] == [verdict.status for verdict in verdicts]
    problems = {each.id: each for each in read_records(world / "train.parquet", Problem)[:5]}
    assert {each.problem_id for each in traces} == set(problems)
    student = load_student(LAB_BASE, device="cpu")
    for each in drawn:
        question = problems[each.trace.problem_id].question
        assert list(each.prompt_ids) == render_prompt(student.tokenizer, student.template, question)
    right = sum(verdict.status == "correct" for verdict in verdicts)
    assert metrics["accuracy"] == pytest.approx(right / 15) and metrics["replies"] == 15
    assert (metrics["n"], metrics["samples"]) == (5, 3) and len(metrics["ci95"]) == 2
    assert metrics["tokens"] == sum(len(each.ids) for each in drawn)
    again = tmp_path / "again.parquet"
    run_single("rollouts", settings, again, inputs=given(world), seed=4)
    assert [each.ids for each in read_rollouts(again)] == [each.ids for each in drawn]
    run_single("rollouts", settings, tmp_path / "other.parquet", inputs=given(world), seed=5)
    assert [each.ids for each in read_rollouts(tmp_path / "other.parquet")] != [each.ids for each in drawn]


@pytest.mark.slow
def test_ppo_leaves_a_model_its_log_and_its_counts(world: Path, tmp_path: Path) -> None:
    settings = {
        "steps": 2,
        "batch": 8,
        "group": 4,
        "minibatch": 4,
        "kl": 0.01,
        "learning_rate": 1e-4,
        "policy": POLICY,
        "max_answer_tokens": 4,
        "reward": {"correct": 1.0, "format": 0.5},
    }
    found = run_single("ppo", settings, tmp_path / "model", inputs=given(world))
    metrics = found["metrics"]
    assert metrics["steps"] == 2 and metrics["replies"] == 16
    rows = read_log(Path(found["outputs"]["log"]))
    assert {"drawn/right", "drawn/reward/format", "ppo/kl", "ppo/entropy"} <= set(rows[0])
    trained, start = (load_student(each, device="cpu") for each in (tmp_path / "model", LAB_BASE))
    one, other = trained.model.state_dict(), start.model.state_dict()
    assert list(one) == list(other) and trained.template == start.template
    assert any(not one[name].equal(other[name]) for name in one)
    assert not list(tmp_path.glob("*.work"))


@pytest.mark.slow
def test_ppo_that_cannot_work_is_refused_in_one_line(world: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="batch 6 does not divide into groups of 4"):
        run_single(
            "ppo",
            {"steps": 1, "batch": 6, "group": 4, "policy": POLICY},
            tmp_path / "model",
            inputs=given(world),
        )
    assert not (tmp_path / "model").exists()
