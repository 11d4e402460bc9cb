"""What goes on around the steps of a training run: progress, the log, checkpoints, validations, alarms.

Promises: the first process alone writes; a validation leaves the model and the random state as they were;
the weights of the best validation can be put back; a recurrent student is looked at whenever a row is logged,
and early on.
Does not: train (see `fit`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from tutelage.students.pretrained import Student
from tutelage.train import ranks
from tutelage.train.alarms import EARLY, alarms, look
from tutelage.train.checkpoints import Resumed, seal
from tutelage.train.journal import Journal
from tutelage.train.merged import merged
from tutelage.train.recurrent import Pace
from tutelage.train.settings import Optimiser, Progress, Validation

BEST = "best.safetensors"


class Watch(TrainerCallback):  # type: ignore[misc]
    """Passes steps on to the caller's progress, writes the log, seals checkpoints, and validates."""

    def __init__(
        self,
        student: Student,
        optimiser: Optimiser,
        folder: Path,
        state: Resumed,
        journal: Journal,
        validation: Validation | None,
        progress: Progress | None,
        counts: dict[str, float] | None,
        pace: Pace | None,
    ) -> None:
        self.student, self.optimiser, self.folder = student, optimiser, folder
        self.resumed, self.journal, self.validation = state, journal, validation
        self.progress, self.counts = progress, counts if counts is not None else {}
        self.pace = pace
        self.stopped: str | None = None
        self.note = ""
        self.trainer: Any = None
        self.inputs: dict[str, Any] = {}  # of the last micro-batch
        self.seen: dict[str, float] = {}  # of a recurrent student, for the row of this step

    @property
    def best(self) -> tuple[int, float] | None:
        """The first of the best validations."""
        return max(self.resumed.validations, key=lambda each: (each[1], -each[0]), default=None)

    @property
    def alarms(self) -> list[str]:
        """What is wrong with a recurrent student's states, as far as the log says."""
        ramp, steps = self.optimiser.depth.ramp, self.optimiser.steps
        grown = ramp.over * steps if ramp else 0
        return alarms(self.journal.rows, after=max(self.optimiser.warmup_steps, int(grown)))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.pace and state.is_world_process_zero:
            self._look(self.pace, state.global_step)
        if self.progress:
            self.progress(state.global_step, self.optimiser.steps, self.note)
        if self.validation and (
            state.global_step % self.validation.every == 0 or state.global_step == self.optimiser.steps
        ):
            self._validate(state.global_step, control)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and logs and "train_runtime" not in logs:
            self.journal.add(state.global_step, logs)
            if "loss" in logs:
                short = [each.partition(":")[0] for each in self.alarms]
                self.note = "; ".join([f"loss {float(logs['loss']):.3f}", *short])

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        ranks.wait()  # each process writes a part of the checkpoint
        if state.is_world_process_zero:
            self.resumed.step = state.global_step
            self.resumed.counts = dict(self.counts)
            seal(self.folder / f"checkpoint-{state.global_step}", self.resumed)

    def _look(self, pace: Pace, step: int) -> None:
        """Look for the ways in which loops fail, at each row of the log and early on."""
        logged = step % self.optimiser.log_every == 0
        if self.trainer.is_fsdp_enabled or not (logged or step in EARLY):
            return
        found = {"mean_depth": float(pace.core.clock.mean)}
        found |= look(self.trainer.accelerator.unwrap_model(self.trainer.model), self.inputs)
        if logged:
            self.seen = found
        else:
            self.journal.add(step, found)

    def _validate(self, step: int, control: Any) -> None:
        assert self.validation is not None
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        model.eval()
        with torch.random.fork_rng(), merged(model) as plain:
            accuracy = self.validation.evaluate(
                Student(plain, self.student.tokenizer, self.student.template, self.student.name)
            )
        model.train()
        before = self.best
        self.resumed.validations.append((step, accuracy))
        self.journal.add(step, {"validation_accuracy": accuracy})
        if self.validation.choose == "best" and (before is None or accuracy > before[1]):
            self._save_best(model)
        if self.validation.patience is not None and self._waited() >= self.validation.patience:
            self.stopped = (
                f"no better validation in {self.validation.patience} looks; best {self.best[1]:.1%} at step "
                f"{self.best[0]}"
                if self.best
                else None
            )
            control.should_training_stop = True

    def _waited(self) -> int:
        """Looks since the best one."""
        if self.best is None:
            return 0
        steps = [step for step, _ in self.resumed.validations]
        return len(steps) - 1 - steps.index(self.best[0])

    def _save_best(self, model: Any) -> None:
        weights = {name: each.detach().cpu().clone() for name, each in _trainable(model).items()}
        partial = self.folder / (BEST + ".partial")
        save_file(weights, partial)
        partial.replace(self.folder / BEST)

    def restore_best(self) -> None:
        """Put the weights of the best validation back into the model."""
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        weights = load_file(self.folder / BEST)
        with torch.no_grad():
            for name, each in _trainable(model).items():
                each.copy_(weights[name])


def _trainable(model: Any) -> dict[str, Any]:
    return {name: each for name, each in model.named_parameters() if each.requires_grad}
