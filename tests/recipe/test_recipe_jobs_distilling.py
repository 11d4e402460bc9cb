"""The jobs of distribution distillation, each run on its own with untrained tiny models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tutelage.errors import UsageError
from tutelage.recipe.single import run_single
from tutelage.records import Trace, read_records
from tutelage.students.pretrained import load_student, save_student
from tutelage.train.logprobs import ScoreFile


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with problems, traces of a detailed teacher, a student and a teacher model, and its scores."""
    folder = tmp_path_factory.mktemp("lab")
    run_single(
        "lab-problems", {"train": 16, "test": 4, "min_steps": 2, "max_steps": 3}, folder / "train.parquet"
    )
    common = {"problems": str(folder / "train.parquet")}
    teacher = {"kind": "lab", "style": "detailed"}
    run_single("collect", {"teacher": teacher, "samples": 2}, folder / "traces.parquet", inputs=common)
    run_single("student", {"source": "tiny", "seed": 3}, folder / "student")
    run_single("student", {"source": "tiny", "seed": 4}, folder / "teacher")
    scored(folder, folder / "scores.parquet")
    return folder


def data(lab: Path) -> dict[str, Any]:
    return {"problems": [str(lab / "train.parquet")], "traces": [str(lab / "traces.parquet")]}


def scored(lab: Path, out: Path, **settings: Any) -> dict[str, Any]:
    inputs = {"model": str(lab / "teacher"), **data(lab)}
    metrics = run_single("score", {"top_k": 5, **settings}, out, inputs=inputs)["metrics"]
    assert isinstance(metrics, dict)
    return metrics


def distilled(lab: Path, out: Path, **settings: Any) -> dict[str, Any]:
    inputs: dict[str, Any] = {"model": str(lab / "student"), **data(lab)}
    for name in ("teacher", "scores"):
        if name in settings:
            inputs[name] = str(settings.pop(name))
    settings = {"steps": 3, "batch": 8, "warmup_steps": 0, "system": "own", **settings}
    metrics = run_single("distill", settings, out, inputs=inputs)["metrics"]
    assert isinstance(metrics, dict)
    return metrics


def changed(lab: Path, out: Path) -> bool:
    a, b = (load_file(each / "model.safetensors") for each in (lab / "student", out))
    return any(not torch.equal(a[name], b[name]) for name in a)


def test_scores_are_of_the_chosen_traces(lab: Path, tmp_path: Path) -> None:
    metrics = scored(lab, tmp_path / "s.parquet")
    found = ScoreFile(tmp_path / "s.parquet")
    traces = [trace for trace in read_records(lab / "traces.parquet", Trace) if trace.sample == 0]
    assert sorted(found.names()) == sorted(trace.id for trace in traces)
    assert metrics["examples"] == 16 and metrics["top_k"] == found.header.top_k == 5
    assert metrics["places"] == sum(len(row.tail) for row in found)
    assert 0 < metrics["mean_tail"] < 1 and 0 <= metrics["best_id_written"] < 1
    assert metrics["dtype"] == "float32" and metrics["megabytes"] > 0
    both = scored(lab, tmp_path / "both.parquet", per_problem=2, bf16=True)
    assert both["examples"] == 32 and both["dtype"] == "bfloat16"


@pytest.mark.slow
def test_a_student_learns_from_scores_and_remembers_how(lab: Path, tmp_path: Path) -> None:
    metrics = distilled(lab, tmp_path / "m", scores=lab / "scores.parquet", beta=0.5)
    assert changed(lab, tmp_path / "m") and metrics["steps"] == 3 and metrics["epochs"] == 1.5
    assert metrics["top_k"] == 5 and metrics["tokens_seen"] > metrics["tokens_learned"] > 0
    assert metrics["written_by_student"] == 0 and len(metrics["losses"]) == 3
    log = [json.loads(line) for line in (tmp_path / "m-log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log if "loss" in row] == [1, 2, 3]


@pytest.mark.slow
def test_a_student_learns_from_a_live_teacher_and_on_its_own_replies(lab: Path, tmp_path: Path) -> None:
    metrics = distilled(
        lab, tmp_path / "m", teacher=lab / "teacher", on_policy=1.0, max_new_tokens=48, steps=1
    )
    assert changed(lab, tmp_path / "m") and metrics["written_by_student"] == 8
    again = distilled(lab, tmp_path / "n", teacher=lab / "teacher", on_policy=1.0, max_new_tokens=48, steps=1)
    assert again["losses"] == metrics["losses"]


def test_what_does_not_go_together_is_refused(lab: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no scores of trace"):
        distilled(lab, tmp_path / "m", scores=lab / "scores.parquet", per_problem=2)
    with pytest.raises(UsageError, match="of another reply than the one trained on"):
        distilled(lab, tmp_path / "m", scores=lab / "scores.parquet", target="answer")
    with pytest.raises(UsageError, match="exactly one of teacher and scores"):
        distilled(lab, tmp_path / "m")
    with pytest.raises(UsageError, match="need a live teacher"):
        distilled(lab, tmp_path / "m", scores=lab / "scores.parquet", on_policy=0.5)
    other = load_student(lab / "teacher", device="cpu")
    other.tokenizer.add_tokens(["<more>"])
    other.model.resize_token_embeddings(len(other.tokenizer), mean_resizing=False)
    save_student(other, tmp_path / "other")
    with pytest.raises(UsageError, match="has another tokenizer than the student; set aligned: true"):
        distilled(lab, tmp_path / "m", teacher=tmp_path / "other")
    assert not (tmp_path / "m").exists()


@pytest.mark.slow
def test_the_labs_words_cannot_be_aligned(lab: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the student's tokenizer is not byte-level BPE"):
        distilled(lab, tmp_path / "m", teacher=lab / "teacher", aligned=True)
