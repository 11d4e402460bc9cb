"""Supervised fine-tuning through TRL.

Promises: `steps` optimiser steps on batches drawn without replacement, epoch by epoch, in an order that
depends on the seed alone; the same seed, data and machine give the same weights; tokens are counted as they
are fed; the student given is trained in place (a LoRA adapter is merged into it at the end).
Does not: pack, cut, choose data, save, or evaluate.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from tutelage.errors import UsageError
from tutelage.students.pretrained import Student
from tutelage.train.examples import IGNORE, Example

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Lora:
    """Low-rank adaptation (Hu et al. 2021) of every linear layer but the head: rank, scaling, dropout."""

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0


@dataclass(frozen=True, slots=True)
class SftSettings:
    """Everything the optimiser is told. `batch` is samples per step, split into `accumulate` micro-batches.
    `bf16` is mixed precision with float32 weights."""

    steps: int
    batch: int = 32
    accumulate: int = 1
    learning_rate: float = 3e-3
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: int = 50
    weight_decay: float = 0.01
    beta2: float = 0.98
    max_grad_norm: float = 1.0
    seed: int = 0
    bf16: bool = False
    checkpointing: bool = False
    lora: Lora | None = None


@dataclass(frozen=True, slots=True)
class SftResult:
    """What was done: steps, tokens fed (padding not counted), tokens under the loss, epochs, seconds, and the
    training loss as (step, loss) points."""

    steps: int
    tokens_seen: int
    tokens_learned: int
    epochs: float
    seconds: float
    losses: list[tuple[int, float]] = field(default_factory=list)


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Passes steps on to the caller's progress, counts micro-batches, keeps the losses, and stops when one is
    not finite."""

    def __init__(self, steps: int, progress: Progress | None) -> None:
        self.steps, self.progress = steps, progress
        self.losses: list[tuple[int, float]] = []
        self.fed = 0

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.fed += 1

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.fed += 1
        if self.progress:
            note = f"loss {self.losses[-1][1]:.3f}" if self.losses else ""
            self.progress(state.global_step, self.steps, note)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append((state.global_step, float(logs["loss"])))
            control.should_training_stop |= not math.isfinite(self.losses[-1][1])


class _Counting:
    """TRL's collator; `made` holds (tokens, tokens under the loss) of each micro-batch. The loader makes one
    ahead of training, so the last of them may never be fed."""

    def __init__(self, pad: int) -> None:
        self.inner = DataCollatorForLanguageModeling(pad_token_id=pad)
        self.made: list[tuple[int, int]] = []

    def __call__(self, rows: list[dict[str, Any]]) -> Any:
        batch = self.inner(rows)
        seen, learned = batch["attention_mask"].sum(), (batch["labels"] != IGNORE).sum()
        self.made.append((int(seen), int(learned)))
        return batch


def train_sft(
    student: Student, examples: Sequence[Example], settings: SftSettings, progress: Progress | None = None
) -> SftResult:
    """Fine-tune `student` on `examples` and give back what was done.

    Raises UsageError for settings that cannot work (no steps, a batch that does not divide) and when the loss
    is no longer finite."""
    if settings.steps < 1:
        raise UsageError(f"steps is {settings.steps}; training needs at least 1")
    if settings.accumulate < 1 or settings.batch < 1 or settings.batch % settings.accumulate:
        raise UsageError(
            f"batch {settings.batch} does not divide into accumulate {settings.accumulate} parts"
        )
    if not examples:
        raise UsageError("there is no example to train on")
    started = time.monotonic()
    tokenizer = student.tokenizer
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    data = Dataset.from_dict(
        {"input_ids": [e.input_ids for e in examples], "labels": [e.labels for e in examples]}
    )
    collator, watch = _Counting(pad), _Watch(settings.steps, progress)
    model = student.model
    if settings.lora:
        torch.manual_seed(settings.seed)  # the adapter's first weights
        model = get_peft_model(model, _lora_config(settings.lora))
    model.train()
    on_cpu = next(model.parameters()).device.type == "cpu"
    with TemporaryDirectory(prefix="tutelage-sft-") as scratch:
        trainer = SFTTrainer(
            model=model,
            args=_arguments(settings, Path(scratch), on_cpu),
            train_dataset=data,
            data_collator=collator,
            processing_class=tokenizer,
            callbacks=[watch],
        )
        trainer.remove_callback(PrinterCallback)  # it prints every log to stdout
        average = float(trainer.train().training_loss)
        steps, epochs = int(trainer.state.global_step), float(trainer.state.epoch or 0.0)
    trained = trainer.accelerator.unwrap_model(trainer.model)
    if settings.lora:
        trained = trained.merge_and_unload()
    trained.eval()
    if trained is not student.model and not settings.lora:
        raise RuntimeError("the trainer replaced the model instead of training it in place")
    if not math.isfinite(average):
        raise UsageError(
            f"the loss is no longer a number by step {steps}; lower learning_rate {settings.learning_rate:g}"
        )
    fed = collator.made[: watch.fed]
    return SftResult(
        steps=steps,
        tokens_seen=sum(seen for seen, _ in fed),
        tokens_learned=sum(learned for _, learned in fed),
        epochs=round(epochs, 3),
        seconds=round(time.monotonic() - started, 3),
        losses=watch.losses,
    )


def _lora_config(lora: Lora) -> LoraConfig:
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def _arguments(settings: SftSettings, scratch: Path, on_cpu: bool) -> SFTConfig:
    return SFTConfig(
        output_dir=str(scratch),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch // settings.accumulate,
        gradient_accumulation_steps=settings.accumulate,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        adam_beta2=settings.beta2,
        max_grad_norm=settings.max_grad_norm,
        optim="adamw_torch_fused",
        seed=settings.seed,
        data_seed=settings.seed,
        bf16=settings.bf16,
        activation_checkpointing=settings.checkpointing,
        use_cpu=on_cpu,
        # Rows are ready: ids, labels and nothing to cut.
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        remove_unused_columns=False,
        logging_steps=max(1, settings.steps // 20),
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=not on_cpu,
    )
