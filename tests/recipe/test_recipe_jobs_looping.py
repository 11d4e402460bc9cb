"""The stage that looks at loops: settings that cannot be meant are refused, and a run's report shows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tinymodel import byte_tokenizer
from tutelage.errors import UsageError
from tutelage.recipe.load import build_recipe
from tutelage.recipe.run import run_recipe
from tutelage.recipe.single import run_single
from tutelage.recipe.stages import KINDS
from tutelage.records import Problem, write_records
from tutelage.students.pretrained import Student, save_student
from tutelage.students.recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM
from tutelage.students.template import Template


def saved(folder: Path, seed: int) -> str:
    """A random recurrent student in a folder."""
    tokenizer = byte_tokenizer()
    torch.manual_seed(seed)
    config = RecurrentDepthConfig(
        hidden_size=32,
        num_attention_heads=2,
        intermediate_size=48,
        vocab_size=len(tokenizer),
        mean_recurrence=4,
        norm_after_core="every",
    )
    student = Student(RecurrentDepthForCausalLM(config), tokenizer, Template(thinking=False), "random")
    return str(save_student(student, folder))


def settings(tmp_path: Path, **more: Any) -> dict[str, Any]:
    problems = [
        Problem(f"p{n}", f"{n}+{n}", gold=str(n % 3), metadata={"difficulty": 1 + n % 2, "examples": n % 2})
        for n in range(12)
    ]
    write_records(tmp_path / "p.parquet", problems, Problem)
    given = {
        "arm": "looping",
        "model": f"file:{saved(tmp_path / 'm', 0)}",
        "problems": f"file:{tmp_path / 'p.parquet'}",
        "baselines": {"other": f"file:{saved(tmp_path / 'b', 1)}"},
        "steps": [1, 2, 8],
        "at": 2,
        "exits": ["state:0.5", "kl:1e-3,min=2"],
        "shown": 2,
    }
    return {"kind": "depths", **given, **more}


def test_the_stage_writes_every_table_for_the_seed(tmp_path: Path) -> None:
    given = {key: value for key, value in settings(tmp_path).items() if key != "kind"}
    metrics = run_single("depths", given, tmp_path / "out", seed=3)["metrics"]
    told = json.loads((tmp_path / "out" / "depths.json").read_text())
    assert told["name"] == metrics["arm"] == "looping" and told["n"] == metrics["problems"] == 12
    whole = {str(row["steps"]): row["accuracy"] for row in told["accuracy"] if row["depth"] is None}
    assert metrics["by_passes"] == whole and list(whole) == ["1", "2", "8"]
    assert {row["exit"] for row in told["exits"]} == {"state:0.5", "kl:0.001,min=2"}
    assert len(told["heat"]) == 4 and told["paths"]["steps"] == 8 and len(told["restarts"]) == 3
    assert told["chosen_on"] == told["trained_on"] == 0 and told["device"]


@pytest.mark.slow
def test_a_run_measures_loops_and_its_report_shows_them(tmp_path: Path) -> None:
    report = {"kind": "report", "problems": f"file:{tmp_path / 'p.parquet'}", "evaluations": {}}
    stages = {"depths": settings(tmp_path), "report": {**report, "depths": ["depths"]}}
    recipe = build_recipe({"name": "loops", "seeds": [3], "threads": 1, "stages": stages})
    run_recipe(recipe, tmp_path / "run")
    told = json.loads((tmp_path / "run" / "metrics" / "depths-seed3" / "depths.json").read_text())
    summary = json.loads((tmp_path / "run" / "metrics" / "summary.json").read_text())
    assert summary["depths"] == [{**told, "seed": 3}]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Thinking in the state" in page and page.count('class="heat-block"') == 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"at": 3}, r"at is 3, which is not among steps \[1, 2, 8\]"),
        ({"exits": ["kl:-1"]}, "exit: the threshold is -1; it must be above 0"),
        ({"exits": ["entropy"]}, "exit: there is no 'entropy'"),
        ({"steps": []}, "steps"),
        ({"steps": [0]}, "steps"),
        ({"baselines": {"looping": "x"}}, "'looping' is the arm itself"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        build_recipe({"name": "loops", "stages": {"depths": settings(tmp_path, **change)}})


def test_the_stage_is_one_of_the_kinds() -> None:
    assert KINDS["depths"].per_seed and KINDS["depths"].outputs[0].type == "depths"
