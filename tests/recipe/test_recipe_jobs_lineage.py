"""What a trained model remembers of a real training: its card, its questions, and what it was chosen on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tutelage.errors import UsageError
from tutelage.recipe.files import content_hash
from tutelage.recipe.single import run_single
from tutelage.records import Problem, read_records
from tutelage.students.lineage import read_training

pytestmark = pytest.mark.slow
SHORT = {"max_tokens": 8, "answer_reserve": 4, "close_text": "Answer"}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Problems of two worlds and an untrained student."""
    folder = tmp_path_factory.mktemp("lab")
    for name, seed in (("world", 0), ("held", 5)):
        world = {"train": 16, "test": 8, "min_steps": 4, "max_steps": 6, "seed": seed}
        run_single("lab-problems", world, folder / f"{name}.parquet")
    run_single("student", {"source": "tiny", "seed": 3}, folder / "base")
    return folder


def trained(lab: Path, out: Path, model: Path, **look: Any) -> Path:
    """A model after three steps on gold answers, validated on the held-out problems."""
    settings: dict[str, Any] = {"steps": 3, "batch": 4, "warmup_steps": 0, "system": "own"}
    settings["answer"] = "Answer: {gold}"
    if look:
        held = {"problems": f"file:{lab / 'held-test.parquet'}", "every": 1, "limit": 6, "policy": SHORT}
        settings["validate_on"] = {**held, **look}
    inputs = {"model": str(model), "problems": [str(lab / "world.parquet")]}
    run_single("sft", settings, out, inputs=inputs)
    return out


def measured(lab: Path, out: Path, model: Path, problems: str, **settings: Any) -> dict[str, Any]:
    inputs = {"model": str(model), "problems": str(lab / problems)}
    settings = {"arm": "a", "policy": SHORT, "max_answer_tokens": 4, **settings}
    run_single("evaluate", settings, out, inputs=inputs)
    found = json.loads((out / "evaluation.json").read_text())
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def chosen(lab: Path) -> Path:
    """A model whose best checkpoint was kept, and another stage after it, which chose nothing."""
    first = trained(lab, lab / "first", lab / "base", choose="best")
    return trained(lab, lab / "second", first)


def test_what_a_model_was_chosen_on_is_refused_also_a_stage_later(
    lab: Path, chosen: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"chose its checkpoint.* on 6 of these 8 questions"):
        measured(lab, tmp_path / "e", chosen, "held-test.parquet")
    with pytest.raises(UsageError, match="allow_chosen_on: true"):
        inputs = {"model": str(chosen), "problems": str(lab / "held-test.parquet")}
        run_single("sweep", {"arm": "a", "budgets": [0]}, tmp_path / "s", inputs=inputs)
    assert not (tmp_path / "e").exists() and not (tmp_path / "s").exists()


def test_allowed_or_learned_from_it_stands_beside_the_number(lab: Path, chosen: Path, tmp_path: Path) -> None:
    found = measured(lab, tmp_path / "e", chosen, "held-test.parquet", allow_chosen_on=True)
    assert (found["chosen_on"], found["trained_on"], found["n"]) == (6, 0, 8)
    seen = measured(lab, tmp_path / "t", chosen, "world.parquet")
    assert (seen["chosen_on"], seen["trained_on"]) == (0, 16)
    clean = measured(lab, tmp_path / "c", chosen, "world-test.parquet")
    assert (clean["chosen_on"], clean["trained_on"]) == (0, 0)


def test_looking_without_choosing_is_no_choice(lab: Path, tmp_path: Path) -> None:
    model = trained(lab, tmp_path / "m", lab / "base", choose="last")
    assert measured(lab, tmp_path / "e", model, "held-test.parquet")["chosen_on"] == 0


def test_the_record_and_the_card_tell_every_stage(lab: Path, chosen: Path) -> None:
    lineage = read_training(chosen)
    first, second = lineage.stages
    assert lineage.start["source"] == "tiny"
    assert first["kind"] == second["kind"] == "sft" and first["steps"] == 3
    assert first["numbers"]["tokens_seen"] > first["numbers"]["tokens_learned"] > 0
    assert len(first["validations"]) == 3 and len(first["selected_on"]) == 6 and second["selected_on"] == []
    assert first["versions"]["trl"] and first["data"] and first["settings"]["learning_rate"] == 1e-5
    assert len(lineage.learned) == len(read_records(lab / "world.parquet", Problem)) == 16
    card = (chosen / "README.md").read_text()
    assert "chosen on 6 questions" in card and "16 different questions" in card
    assert str(lab) not in card + (chosen / "tutelage_training.json").read_text()


def test_the_same_training_elsewhere_gives_the_same_folder(lab: Path, chosen: Path, tmp_path: Path) -> None:
    again = trained(lab, tmp_path / "first", lab / "base", choose="best")
    assert content_hash(again) == content_hash(lab / "first")
