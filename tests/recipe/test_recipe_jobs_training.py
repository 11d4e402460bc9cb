"""The jobs that learn traces: packed mid-training, mixes, sample efficiency, and the system message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tinymodel import tiny_student
from tutelage.errors import UsageError
from tutelage.recipe.jobs.training import speaking
from tutelage.recipe.single import run_single
from tutelage.records import Problem, Trace, write_records
from tutelage.students.pretrained import load_student, save_student
from tutelage.students.template import REASONING_SYSTEM, render_prompt

PROBLEMS = [Problem(f"p{n}", f"What is {n} + 1?", gold=str(n + 1)) for n in range(10)]
# Three traces a problem: short, and (for every other problem) a long one.
TRACES = [
    Trace(f"t{n}-{sample}", f"p{n}", sample, "m", str(n + 1), thinking="so " * (9 if sample == n % 2 else 2))
    for n in range(10)
    for sample in range(3)
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    student = tiny_student()
    student.model.config.max_position_embeddings = 512  # the reasoning message alone is over 300 bytes
    save_student(student, folder / "student")
    write_records(folder / "p.parquet", PROBLEMS, Problem)
    write_records(folder / "t.parquet", TRACES, Trace)
    return folder


def trained(data: Path, out: Path, kind: str, **settings: Any) -> dict[str, Any]:
    given = {"steps": 1, "batch": 2, "warmup_steps": 0, "system": "own", "per_problem": 3, **settings}
    inputs = {
        "model": str(data / "student"),
        "problems": [str(data / "p.parquet")],
        "traces": [str(data / "t.parquet")],
    }
    metrics = run_single(kind, given, out, inputs=inputs)["metrics"]
    assert isinstance(metrics, dict)
    return metrics


def test_mid_training_packs_every_trace_and_says_how_full_the_rows_are(data: Path, tmp_path: Path) -> None:
    metrics = trained(data, tmp_path / "m", "mid-train", max_length=120, steps=2)
    packing = metrics["packing"]
    assert metrics["examples"] == 30 and packing["room"] == 120 and packing["rows"] < 30
    assert 0.5 < packing["filled"] <= 1
    masked = metrics["tokens_learned"]
    whole = trained(data, tmp_path / "d", "mid-train", max_length=120, steps=2, loss_on="document")
    assert whole["tokens_seen"] == metrics["tokens_seen"] and whole["tokens_learned"] > masked


def test_a_mix_is_exact_and_its_leftovers_are_counted(data: Path, tmp_path: Path) -> None:
    mixed = trained(data, tmp_path / "m", "sft", mix={"long": 1, "short": 2})
    assert mixed["examples"] == 30 and mixed["mix"]["long"] == 10 and mixed["mix"]["short"] == 20
    few = trained(data, tmp_path / "f", "sft", mix={"long": 3, "short": 4})
    assert (few["examples"], few["mix"]["long_left_out"], few["mix"]["short_left_out"]) == (21, 1, 8)


def test_the_first_problems_alone(data: Path, tmp_path: Path) -> None:
    metrics = trained(data, tmp_path / "m", "sft", first=4, per_problem=2)
    assert metrics["problems"] == 4 and metrics["examples"] == 8


def test_the_system_message_of_training_is_kept_with_the_model(data: Path, tmp_path: Path) -> None:
    trained(data, tmp_path / "m", "sft", system="reasoning")
    assert load_student(tmp_path / "m", device="cpu").template.system == REASONING_SYSTEM


def test_a_system_message_needs_a_place_in_the_chat_template() -> None:
    student = tiny_student(system="Mine.")
    assert speaking(student, "own") is student
    heard = speaking(student, "reasoning")
    text = heard.tokenizer.decode(render_prompt(heard.tokenizer, heard.template, "Why?"))
    assert text.startswith(f"<|system|>{REASONING_SYSTEM}<|user|>Why?")
    assert speaking(student, "Be brief.").template.system == "Be brief."
    student.tokenizer.chat_template = None
    with pytest.raises(UsageError, match="has no chat template, so there is no place for a system message"):
        speaking(student, "reasoning")
    assert speaking(student, "none").template.system is None


def test_choosing_among_traces_that_are_not_there_is_refused(data: Path, tmp_path: Path) -> None:
    inputs = {"model": str(data / "student"), "problems": [str(data / "p.parquet")]}
    with pytest.raises(UsageError, match="verdicts, keep and mix choose among traces, but there are none"):
        run_single("sft", {"steps": 1, "mix": {}}, tmp_path / "m", inputs=inputs)
