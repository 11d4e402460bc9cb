"""Proximal policy optimisation: clipped, with a value head and generalised advantages, on our own rollouts.

Schulman et al. 2017 (arXiv 1707.06347), as used on language models (Ouyang et al. 2022, arXiv 2203.02155):
the reward comes after the last id of a reply, minus `kl` times log(policy / start) at every id. Differences:
the reward of a whole reply is a checker's, not a reward model's; ids that the thinking policy forced are
read, never learned; the value head sits on the policy's own last state.

Promises: a step draws fresh replies, whose random numbers are a function of (seed, step), and takes `epochs`
passes over them in minibatches; old and new log-probabilities are of the tempered distribution that was
sampled from; a run that was killed goes on at the last step that was kept, to the same curve; replies whose
reward cannot be told are left out and counted; the student is the plain model that it was, without a head.
Does not: grade (see `grading`), choose among replies (see `drawing`, for GRPO), or train in several
processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import Trainer, TrainerCallback, TrainingArguments

from tutelage.errors import UsageError
from tutelage.records import Problem
from tutelage.students.pretrained import Student
from tutelage.train.decoding import Decoding
from tutelage.train.fit import Fitted, fit
from tutelage.train.grading import Grader
from tutelage.train.ppo_replies import Replies
from tutelage.train.ppo_trainer import PpoSettings, PpoTrainer
from tutelage.train.recurrent import comparing
from tutelage.train.settings import Keep, Optimiser, Progress, Validation

__all__ = ["Ppo", "PpoSettings", "train_ppo"]


@dataclass(frozen=True, slots=True)
class Ppo:
    """What was done: the training itself, and counts: replies, those that got no reward, ids learned from."""

    fitted: Fitted
    totals: dict[str, float]


def train_ppo(
    student: Student,
    problems: Sequence[Problem],
    grader: Grader,
    optimiser: Optimiser,
    *,
    settings: PpoSettings | None = None,
    decoding: Decoding | None = None,
    keep: Keep | None = None,
    validation: Validation | None = None,
    progress: Progress | None = None,
) -> Ppo:
    """Reinforce `student` in place on `problems`: `optimiser.steps` batches of `optimiser.batch` replies,
    which go through the model in parts of `batch` / `accumulate`.

    Raises UsageError for settings that cannot work, and what `fit` raises."""
    settings, decoding = settings or PpoSettings(), decoding or Decoding()
    _check(problems, optimiser, settings, decoding)
    optimiser = comparing(optimiser, student.model, decoding.policy.effort)
    replies = Replies(student, problems, grader, optimiser, settings.group, decoding)

    def build(model: Any, arguments: dict[str, Any], callbacks: list[TrainerCallback]) -> Trainer:
        # A step of ours is a whole batch of replies: the loader only counts steps.
        one = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}
        trainer = PpoTrainer(
            settings, replies, optimiser, model, TrainingArguments(**{**arguments, **one}), callbacks
        )
        if trainer.accelerator.num_processes > 1:
            raise UsageError("ppo trains in one process; start it without accelerate launch, or use grpo")
        return trainer

    fitted = fit(
        student,
        optimiser,
        build,
        keep=keep,
        validation=validation,
        progress=replies.telling(progress),
        names=replies.names,
        counts=replies.totals,
    )
    return Ppo(fitted, dict(replies.totals))


def _check(
    problems: Sequence[Problem], optimiser: Optimiser, settings: PpoSettings, decoding: Decoding
) -> None:
    if optimiser.batch % settings.group:
        raise UsageError(f"batch {optimiser.batch} does not divide into groups of {settings.group}")
    if not problems:
        raise UsageError("there is no problem to train on")
    if decoding.sampling.truncated:
        raise UsageError(
            "ppo compares probabilities of the whole distribution: leave top_k, top_p and min_p out of "
            "sampling"
        )
    if optimiser.lora and optimiser.lora.dropout:
        raise UsageError(
            "ppo compares probabilities before and after an update, which dropout would change: set "
            "lora.dropout 0"
        )
