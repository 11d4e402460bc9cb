"""The recipes for large students run from end to end with the lab student and a few problems of the lab."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tutelage.lab.world import make_problems
from tutelage.recipe.load import load_recipe
from tutelage.recipe.run import run_recipe
from tutelage.records import Problem, write_records
from tutelage.report.tables import markdown
from tutelage.students.lineage import read_training

pytestmark = pytest.mark.slow
TEACHER = "{kind: lab, style: careless, slip: 0.4}"
POLICY = {"policy.max_tokens": 40, "policy.answer_reserve": 8, "max_answer_tokens": 8}
TRAINING = {"steps": 2, "batch": 4, "accumulate": 1, "warmup_steps": 0, "bf16": False, "checkpointing": False}
TRACES = {**TRAINING, "max_length": 160, "system": "none"}
SMALL: dict[str, dict[str, Any]] = {
    "problems": {"checker": "number", "detectors": "[exact]"},
    "student": {"source": "lab-base", "template": "null"},
    "mid-train": {**TRACES, "steps": 4},
    "sft": TRACES,
    "rollouts": {**POLICY, "samples": 6, "first": 12, "bf16": False},
    "dpo": {**TRAINING, "max_length": 160},
    "grpo": {**TRAINING, **POLICY, "batch": 8, "group": 4, "oversample": 8, "drop_above": 1.0},
    "evaluate": {**POLICY, "samples": 1, "bf16": False},
    "sweep": {"budgets": [0, 8], "waits": [1], "max_thinking": 40, "max_answer_tokens": 8, "bf16": False},
}


def ran(name: str, folder: Path, **own: Any) -> dict[str, Any]:
    """The summary of the recipe's run with small numbers, `own` on top of them."""
    drawn = make_problems(60, seed=1, min_steps=4, max_steps=5)
    write_records(folder / "train.parquet", drawn[:40], Problem)
    write_records(folder / "test.parquet", drawn[40:], Problem)
    settings: dict[str, Any] = {"workers": 1, "threads": 1}
    for stage, config in load_recipe(name).stages.items():
        settings |= {f"stages.{stage}.{key}": value for key, value in SMALL.get(config.kind, {}).items()}
    settings |= {f"stages.problems.{part}": folder / f"{part}.parquet" for part in ("train", "test")}
    settings |= {f"stages.{key}": value for key, value in own.items()}
    recipe = load_recipe(name, overrides=[f"{key}={value}" for key, value in settings.items()])
    run_recipe(recipe, folder / "run", console=None)
    found = json.loads((folder / "run/metrics/summary.json").read_text())
    page = (folder / "run/report.html").read_text()
    assert page.startswith("<!doctype html>") and "How did training go?" in page
    assert isinstance(found, dict)
    assert "| stage | kind | seed | steps |" in markdown(found)
    return found


def arms(summary: dict[str, Any]) -> list[str]:
    for arm in summary["arms"]:
        assert arm["n"] == 20 and arm["ci95"][0] <= arm["accuracy"] <= arm["ci95"][1]
        assert (arm["chosen_on"], arm["trained_on"]) == (0, 0)
    return [arm["name"] for arm in summary["arms"]]


def test_the_four_stages_of_phi_4_mini(tmp_path: Path) -> None:
    look = {f"mid.validate_on.{key}": value for key, value in {**POLICY, "every": 2, "limit": 5}.items()}
    own = {"problems.validation": 8, "teacher.teacher": TEACHER, "teacher.samples": 3, **look}
    summary = ran("phi4-mini", tmp_path, **own)
    assert arms(summary) == ["base", "mid-training", "SFT", "DPO", "RL"]
    training = {row["stage"]: row for row in summary["training"]}
    assert list(training) == ["mid", "sft", "dpo", "rl"]
    assert [look["step"] for look in training["mid"]["validations"]] == [2, 4]
    assert all(look["n"] == 5 and len(look["ci95"]) == 2 for look in training["mid"]["validations"])
    assert 0 < training["mid"]["packing"] <= 1
    assert all(row["series"]["loss"] for row in training.values())
    assert "drawn/right" in training["rl"]["series"] and "rewards/accuracies" in training["dpo"]["series"]
    seen = [arm["tokens_seen"] for arm in summary["arms"]]
    assert seen[0] == 0 and seen == sorted(seen), "what a stage saw is added to what the stages before it saw"
    lineage = read_training(tmp_path / "run/models/rl-seed0")
    assert [stage["stage"] for stage in lineage.stages] == ["mid", "sft", "dpo", "rl"]
    assert len(lineage.chosen_on) == 5 and lineage.start["source"] == "lab-base"
    assert "mid → sft → dpo → rl" in (tmp_path / "run/models/rl-seed0/README.md").read_text()


def test_s1_with_its_sweep(tmp_path: Path) -> None:
    # Words that the lab's tokenizer has.
    words = {"eval-s1.policy.close_text": "Answer", "sweep-s1.close_text": "Answer"}
    waits = {"sweep-s1.wait_strings": '[". Wait", null]'}
    summary = ran("s1", tmp_path, **{"traces.teacher": TEACHER}, **words, **waits)
    assert arms(summary) == ["base", "s1"]
    methods = {point["method"] for point in summary["curve"]}
    assert methods == {"natural", "budget", "wait", "suppress"}
    assert [row["stage"] for row in summary["training"]] == ["sft"]


def test_distilling_by_rejection(tmp_path: Path) -> None:
    own = {"teacher.teacher": TEACHER, "teacher.pilot": 0, "problems.train_limit": "null"}
    summary = ran("r1-distill", tmp_path, **own)
    assert arms(summary) == ["base", "answers-only", "distilled"]
    rejected = next(row for row in summary["funnel"] if row["stage"].startswith("judged"))
    assert rejected["dropped"] > 0 < rejected["kept"]
    assert summary["cost"]["requests"] == 40 * 4
