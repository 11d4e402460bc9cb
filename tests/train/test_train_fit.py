"""Around every training stage: what survives a stop, what is refused, what is kept."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from huggingface_hub import constants
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from tinymodel import tiny_student
from tutelage.errors import UsageError
from tutelage.students.pretrained import Student
from tutelage.train.checkpoints import open_folder
from tutelage.train.fit import Build, Fitted, fit
from tutelage.train.journal import LOG, read_log
from tutelage.train.settings import Keep, Lora, Optimiser, Validation

START = tiny_student()
ROWS = Dataset.from_dict(
    {
        "input_ids": [[5, 6, 7, 8 + n] for n in range(20)],
        "labels": [[-100, 6, 7, 8 + n] for n in range(20)],
    }
)


def student() -> Student:
    return Student(copy.deepcopy(START.model), START.tokenizer, START.template, START.name)


def builder(rows: Dataset = ROWS, **config: Any) -> Build:
    def build(model: Any, arguments: dict[str, Any], callbacks: list[Any]) -> SFTTrainer:
        return SFTTrainer(
            model=model,
            args=SFTConfig(
                **{**arguments, **config}, dataset_kwargs={"skip_prepare_dataset": True}, max_length=None
            ),
            train_dataset=rows,
            data_collator=DataCollatorForLanguageModeling(pad_token_id=0),
            processing_class=START.tokenizer,
            callbacks=callbacks,
        )

    return build


def settings(**changes: Any) -> Optimiser:
    return Optimiser(**{"steps": 12, "batch": 4, "warmup_steps": 2, "learning_rate": 1e-2, **changes})


class Stopped(Exception):
    pass


def stop_at(step: int) -> Callable[[int, int, str], None]:
    def progress(done: int, total: int, note: str) -> None:
        if done == step:
            raise Stopped

    return progress


def losses(fitted: Fitted) -> list[float]:
    return [row["loss"] for row in fitted.log if "loss" in row]


def same(a: Student, b: Student) -> bool:
    ours, theirs = a.model.state_dict(), b.model.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, Lora(4, 8, dropout=0.1)])
def test_a_stopped_run_goes_on_to_the_same_losses_and_weights(tmp_path: Path, lora: Lora | None) -> None:
    optimiser, keep = settings(lora=lora), Keep(tmp_path / "work", "mark", 3)
    whole = student()
    undisturbed = fit(whole, optimiser, builder())
    counts: dict[str, float] = {"fed": 0}

    def count(done: int, total: int, note: str) -> None:
        counts["fed"] += 1
        if done == 8:
            raise Stopped

    with pytest.raises(Stopped):
        fit(student(), optimiser, builder(), keep=keep, progress=count, counts=counts)
    assert counts == {"fed": 8}
    (tmp_path / "work/checkpoint-7").mkdir()  # one that was being written when the process was killed
    with (tmp_path / "work" / LOG).open("a") as file:
        file.write('{"step": 9, "lo')
    again, counts, steps = student(), {}, []
    resumed = fit(
        again, optimiser, builder(), keep=keep, counts=counts, progress=lambda done, *_: steps.append(done)
    )
    assert steps[0] == 7 and counts == {"fed": 6}
    assert losses(resumed) == losses(undisturbed) and len(losses(resumed)) == 12
    assert resumed.log == read_log(tmp_path / "work" / LOG)
    assert same(again, whole) and not same(again, START)


def test_another_mark_starts_anew_and_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    keep = Keep(tmp_path / "work", "one", 3)
    with pytest.raises(Stopped):
        fit(student(), settings(), builder(), keep=keep, progress=stop_at(5))
    assert open_folder(tmp_path / "work", "one") is not None
    assert open_folder(tmp_path / "work", "two") is None
    assert not list((tmp_path / "work").glob("checkpoint-*"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/novel.txt").write_text("Chapter 1")
    with pytest.raises(UsageError, match="not a folder of checkpoints"):
        fit(student(), settings(), builder(), keep=Keep(tmp_path / "mine", "one"))
    assert (tmp_path / "mine/novel.txt").is_file()


def test_a_loss_that_is_no_number_stops_before_the_weights_are_touched(tmp_path: Path) -> None:
    broken = student()
    with torch.no_grad():
        broken.model.lm_head.weight[8 + 19, 0] = float("nan")
    before = copy.deepcopy(broken.model.state_dict())
    with pytest.raises(UsageError, match=r"not a number at step 1 \(traces t19\): lower learning_rate"):
        fit(broken, settings(), builder(), keep=Keep(tmp_path / "w", "m"), names=lambda: "traces t19")
    after = broken.model.state_dict()
    assert all(torch.equal(before[name], after[name]) or before[name].isnan().any() for name in before)


def test_a_saturated_validation_ends_the_stage_and_the_best_weights_are_kept(tmp_path: Path) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    scores = iter([0.2, 0.5, 0.4, 0.5, 0.9])

    def evaluate(held: Student) -> float:
        assert not held.model.training
        seen.append(copy.deepcopy(held.model.state_dict()))
        return next(scores)

    begun = student()
    fitted = fit(begun, settings(), builder(), validation=Validation(evaluate, 2, patience=2, choose="best"))
    assert fitted.validations == [(2, 0.2), (4, 0.5), (6, 0.4), (8, 0.5)]
    assert fitted.steps == 8 and fitted.stopped and "best 50.0% at step 4" in fitted.stopped
    assert fitted.chosen_step == 4
    assert all(torch.equal(each, seen[1][name]) for name, each in begun.model.state_dict().items())
    told = [(row["step"], row["validation_accuracy"]) for row in fitted.log if "validation_accuracy" in row]
    assert told == fitted.validations


def test_looking_at_a_model_with_an_adapter_changes_nothing() -> None:
    plain, looked = student(), student()
    optimiser = settings(lora=Lora(4, 8, dropout=0.1))
    fit(plain, optimiser, builder())
    kinds = set()

    def evaluate(held: Student) -> float:
        kinds.add(type(held.model).__name__)
        assert not any("lora" in name for name, _ in held.model.named_parameters())
        torch.rand(3)
        return 0.5

    fit(looked, optimiser, builder(), validation=Validation(evaluate, 3))
    assert kinds == {type(START.model).__name__} and same(plain, looked)


def test_nothing_is_told_to_anybody() -> None:
    assert constants.HF_HUB_DISABLE_TELEMETRY is True


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"steps": 0}, "steps is 0"), ({"batch": 5, "accumulate": 2}, "batch 5 does not divide")],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, int], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        settings(**changes)
