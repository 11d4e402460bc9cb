"""The one way a model is trained: a trainer of transformers or TRL, with what all stages need around it.

Promises: the same seed, data and machine give the same weights; with a folder to keep things in, a run that
was killed goes on at its last whole checkpoint to the same losses and weights; a loss that is not finite ends
the run before the weights are touched, and says at which samples; metrics are rows of a JSON Lines file, and
go to a tracker only on request; TRL's telemetry is off.
Does not: make batches or losses (a stage's trainer does), or save the trained model.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import huggingface_hub.constants
import torch
from peft import LoraConfig, get_peft_model
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback
from transformers.utils import logging as hf_logging

from tutelage.errors import StorageError, UsageError, storage_error
from tutelage.students.pretrained import Student
from tutelage.train import ranks
from tutelage.train.checkpoints import Resumed, open_folder
from tutelage.train.curriculum import ByLength
from tutelage.train.dry import out_of_memory
from tutelage.train.journal import LOG, Journal
from tutelage.train.muon import build_muon
from tutelage.train.recurrent import Pace, paced
from tutelage.train.settings import Keep, Lora, Optimiser, Progress, Validation
from tutelage.train.watch import Watch

huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True  # TRL's trainers would report each use

Build = Callable[[Any, dict[str, Any], list[TrainerCallback]], Trainer]


@dataclass(frozen=True, slots=True)
class Fitted:
    """What was done: optimiser steps, seconds of this process, the rows of the log, why it stopped before the
    last step (None: it did not), and the validations as (step, accuracy); `chosen_step` is where the weights
    are from when the best validation was kept. `weights` are the whole model's, in the first process, where
    several processes held a part each (FSDP); else None, and the student's model holds them. `alarms` are
    what was wrong with a recurrent student's states when the run ended, a line each (see `alarms`)."""

    steps: int
    seconds: float
    log: list[dict[str, Any]] = field(default_factory=list)
    stopped: str | None = None
    validations: list[tuple[int, float]] = field(default_factory=list)
    chosen_step: int | None = None
    weights: dict[str, torch.Tensor] | None = None
    alarms: list[str] = field(default_factory=list)


class _NotFinite(Exception):
    """The loss of a micro-batch is not a number."""


def fit(
    student: Student,
    optimiser: Optimiser,
    build: Build,
    *,
    keep: Keep | None = None,
    validation: Validation | None = None,
    progress: Progress | None = None,
    names: Callable[[], str] | None = None,
    counts: dict[str, float] | None = None,
    sizes: Sequence[float] | None = None,
) -> Fitted:
    """Train `student` in place with the trainer that `build(model, arguments, callbacks)` makes; a LoRA
    adapter is merged at the end. `names` tells which samples the last micro-batch held; `counts` are the
    stage's counters, restored when a run is resumed; `sizes` are those of the trainer's rows, where
    `optimiser.lengths` is to choose among them.

    Raises UsageError for a loss that is not finite and for too little GPU memory, with what to lower, and
    StorageError when a checkpoint cannot be written; the last whole checkpoint stays."""
    keep = keep or Keep()
    if optimiser.lengths and sizes is None:
        raise UsageError("lengths: this stage does not choose its examples by their length; leave it out")
    with ExitStack() as stack:
        folder = keep.folder
        if folder is None:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="tutelage-train-")))
        pace = stack.enter_context(paced(student.model, optimiser, student.name))
        return _fit(student, optimiser, build, folder, keep, validation, progress, names, counts, sizes, pace)


def _fit(
    student: Student,
    optimiser: Optimiser,
    build: Build,
    folder: Path,
    keep: Keep,
    validation: Validation | None,
    progress: Progress | None,
    names: Callable[[], str] | None,
    counts: dict[str, float] | None,
    sizes: Sequence[float] | None,
    pace: Pace | None,
) -> Fitted:
    started = time.monotonic()
    with ranks.first_goes_first():
        found = open_folder(folder, keep.mark) if keep.folder else None
    state = found[1] if found else Resumed()
    if counts is not None:
        counts.update(state.counts)
    model = student.model
    if optimiser.lora:
        torch.manual_seed(optimiser.seed)  # the adapter's first weights
        model = get_peft_model(model, _lora_config(optimiser.lora))
    model.train()
    journal = Journal(folder / LOG if keep.folder and ranks.is_first() else None, state.step)
    watch = Watch(student, optimiser, folder, state, journal, validation, progress, counts, pace)
    arguments = common_arguments(optimiser, folder, keep, model)
    trainer = build(model, arguments, [*([pace] if pace else []), watch])
    trainer.remove_callback(PrinterCallback)  # it prints every log to stdout
    trainer.remove_callback(ProgressCallback)
    watch.trainer = trainer
    if validation and trainer.accelerator.num_processes > 1:
        raise UsageError("validate_on works in one process; leave it out when training in several")
    if optimiser.lora and trainer.is_fsdp_enabled:
        raise UsageError(
            "lora is merged in each process whole; leave it out with FSDP, or launch without FSDP"
        )
    if optimiser.kind == "muon":
        _by_muon(trainer, optimiser)
    if optimiser.lengths and sizes is not None:
        rows = ByLength(sizes, optimiser.lengths, optimiser.steps, optimiser.batch, optimiser.seed)
        trainer._get_train_sampler = lambda *_: rows
    _check_losses(trainer, watch)
    try:
        with _quiet(), _settled():
            trainer.train(resume_from_checkpoint=str(found[0]) if found else None)
    except _NotFinite as error:
        where = f" ({names()})" if names else ""
        kept = "; the last checkpoint is kept" if keep.folder else ""
        raise UsageError(
            f"the loss is not a number at step {trainer.state.global_step + 1}{where}: lower learning_rate "
            f"{optimiser.learning_rate:g}, or look at these samples{kept}"
        ) from error
    except Exception as error:
        too_small = out_of_memory(error, optimiser)
        if too_small:
            raise too_small from error
        if keep.folder and _disk_refused(error, folder):
            raise StorageError(
                f"{folder}: a checkpoint cannot be written ({error}); free some space and run the same "
                "command again, it goes on at the last whole checkpoint"
            ) from error
        raise
    if watch.best is not None and validation and validation.choose == "best":
        watch.restore_best()
    sharded = bool(trainer.is_fsdp_enabled)
    weights = trainer.accelerator.get_state_dict(trainer.model) if sharded else None
    trained = trainer.accelerator.unwrap_model(trainer.model)
    if optimiser.lora:
        trained = trained.merge_and_unload()
    trained.eval()
    return Fitted(
        steps=int(trainer.state.global_step),
        seconds=round(time.monotonic() - started, 3),
        log=journal.rows,
        stopped=watch.stopped,
        validations=list(state.validations),
        chosen_step=watch.best[0] if watch.best and validation and validation.choose == "best" else None,
        weights=weights,
        alarms=watch.alarms,
    )


def common_arguments(optimiser: Optimiser, folder: Path, keep: Keep, model: Any) -> dict[str, Any]:
    """Keyword arguments that every subclass of transformers' TrainingArguments takes."""
    on_cpu = next(model.parameters()).device.type == "cpu"
    return {
        "output_dir": str(folder),
        "max_steps": optimiser.steps,
        "per_device_train_batch_size": optimiser.micro_batch(ranks.processes()),
        "gradient_accumulation_steps": optimiser.accumulate,
        "learning_rate": optimiser.learning_rate,
        # transformers' "constant" has no warm-up, whatever it is told.
        "lr_scheduler_type": "constant_with_warmup"
        if optimiser.schedule == "constant"
        else optimiser.schedule,
        "warmup_steps": optimiser.warmup_steps,
        "weight_decay": optimiser.weight_decay,
        "adam_beta2": optimiser.beta2,
        "max_grad_norm": optimiser.max_grad_norm,
        "optim": "adamw_torch_fused",
        "seed": optimiser.seed,
        "data_seed": optimiser.seed,
        "bf16": optimiser.bf16,
        "activation_checkpointing": optimiser.checkpointing,
        "use_cpu": on_cpu,
        "logging_steps": optimiser.log_every,
        "logging_nan_inf_filter": False,
        "save_strategy": "steps" if keep.folder else "no",
        "save_steps": keep.save_every(optimiser),
        "save_total_limit": 2,
        "report_to": list(keep.trackers) or "none",
        "disable_tqdm": True,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": not on_cpu,
        "remove_unused_columns": False,
    }


def _lora_config(lora: Lora) -> LoraConfig:
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """No bar for each checkpoint that is written: the stage has a bar of its own."""
    shown = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hf_logging.enable_progress_bar()


@contextmanager
def _settled() -> Iterator[None]:
    """What is already in memory is left alone by the garbage collector. accelerate has it run before the
    first step, over the million objects that the libraries are: 0.3 s, as long as a short training itself."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _by_muon(trainer: Trainer, optimiser: Optimiser) -> None:
    if trainer.is_fsdp_enabled:
        raise UsageError("optimiser: muon needs whole matrices in each process; use adamw with FSDP")
    # The trainer calls what it takes for a factory with the model, and with arguments of its own making.
    trainer.optimizer_cls_and_kwargs = (lambda: lambda model: build_muon(model, optimiser)), {}


def _check_losses(trainer: Trainer, watch: Watch) -> None:
    """Look at every micro-batch's loss before the optimiser uses its gradient."""
    inner, log = trainer.training_step, trainer.log

    def step(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        watch.inputs = dict(inputs) if isinstance(inputs, Mapping) else {}
        loss: torch.Tensor = inner(model, inputs, *args, **kwargs)
        if not torch.isfinite(loss).all():
            raise _NotFinite
        return loss

    def tell(logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        log(logs | watch.seen if "loss" in logs else logs, *args, **kwargs)
        watch.seen = {}

    trainer.training_step, trainer.log = step, tell


def _disk_refused(error: Exception, folder: Path) -> bool:
    """Whether the disk or the folder of checkpoints is what failed; not a socket or somebody's file."""
    ours = isinstance(error, OSError) and str(error.filename or "").startswith(str(folder))
    return ours or storage_error(error, str(folder)) is not None
