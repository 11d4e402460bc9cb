"""Reinforcement learning with verifiable rewards: group-relative policy optimisation, by TRL's trainer.

GRPO (Shao et al. 2024, arXiv 2402.03300), Dr. GRPO (arXiv 2503.20783) and DAPO (arXiv 2503.14476) losses are
TRL's. Ours is what they learn from: replies by our engine under a thinking policy, rewards, the choice of
groups (see `drawing` and `grpo_rows`), and the annealed temperature.

Promises: ids that the policy forced are never learned; what a step draws is a function of (seed, step,
weights), so that a run that was killed repeats; the temperature of the loss is that of the sampling; the KL
term's reference is the student as it was handed in.
Does not: grade, evaluate, or gather weights that are spread over several machines' GPUs (FSDP): each process
decodes with whole weights.

Advantages are TRL's: with the group's standard deviation (n - 1 in its denominator), rewards of +1 and -1 in
equal numbers give sqrt((G - 1) / G) instead of 1. By default each step learns once from fresh replies: the
ratio to the policy that sampled is then 1, and the clips come into play with `reuse` above 1 only.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from datasets import Dataset
from peft import PeftModel
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from tutelage.errors import UsageError
from tutelage.records import Problem, stable_hash
from tutelage.students.pretrained import Student
from tutelage.students.template import markers
from tutelage.train.decoding import Decoding
from tutelage.train.drawing import Grouping
from tutelage.train.fit import Fitted, fit
from tutelage.train.grading import Grader
from tutelage.train.groups import uniform_length
from tutelage.train.grpo_rows import GrpoLoss, Source
from tutelage.train.recurrent import comparing
from tutelage.train.rewards import reply_tokens
from tutelage.train.rollouts import sample
from tutelage.train.settings import Keep, Optimiser, Progress, Validation

ROUNDS = 2
"""Rounds of replies by which the problems of uniform length are chosen."""


@dataclass(frozen=True, slots=True)
class Reinforced:
    """What was done: the training itself, the problems that were kept for it, and the totals of `Drawn` over
    all steps and processes."""

    fitted: Fitted
    problems: int
    totals: dict[str, float]


def train_grpo(
    student: Student,
    problems: Sequence[Problem],
    grader: Grader,
    optimiser: Optimiser,
    *,
    grouping: Grouping | None = None,
    loss: GrpoLoss | None = None,
    decoding: Decoding | None = None,
    uniform: float = 1.0,
    keep: Keep | None = None,
    validation: Validation | None = None,
    progress: Progress | None = None,
) -> Reinforced:
    """Reinforce `student` in place on `problems`: `optimiser.batch` replies a step, `grouping.size` of them
    to one problem. `uniform`: the share of problems to keep, those whose replies vary least in length.

    Raises UsageError for settings that cannot work, and what `fit` raises."""
    grouping, loss, decoding = grouping or Grouping(), loss or GrpoLoss(), decoding or Decoding()
    if optimiser.batch % grouping.size or optimiser.batch < grouping.size:
        raise UsageError(f"batch {optimiser.batch} does not divide into groups of {grouping.size}")
    optimiser = comparing(optimiser, student.model, decoding.policy.effort)
    chosen = list(problems)
    if uniform < 1:
        chosen = _uniform(student, chosen, decoding, grouping.size, uniform, optimiser.seed, progress)
    if loss.reuse > 1 and keep is not None:  # a resumed run draws anew: checkpoints lie where replies end
        whole = math.lcm(loss.reuse, optimiser.log_every)
        keep = replace(keep, every=-(-keep.save_every(optimiser) // whole) * whole)
    wanted = optimiser.batch // grouping.size
    if len(chosen) < wanted:
        raise UsageError(f"a step takes {wanted} problems, but there are {len(chosen)}; lower batch")
    source = Source(student, chosen, grader, grouping, loss, decoding, optimiser)

    def build(model: Any, arguments: dict[str, Any], callbacks: list[TrainerCallback]) -> GRPOTrainer:
        return source.attach(_trainer(student, model, arguments, callbacks, source))

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")  # TRL's, each step
            fitted = fit(
                student,
                optimiser,
                build,
                keep=keep,
                validation=validation,
                progress=source.telling(progress),
                names=source.names,
                counts=source.totals,
            )
    finally:
        source.detach()
    return Reinforced(fitted, len(chosen), dict(source.totals))


def _trainer(
    student: Student,
    model: Any,
    arguments: dict[str, Any],
    callbacks: list[TrainerCallback],
    source: Source,
) -> GRPOTrainer:
    """TRL's trainer with our rollouts, and the reference that the KL term needs."""
    loss, rows = source.loss, source.optimiser.batch // source.grouping.size
    # TRL would read the reference from where the model was loaded; the student may have learned since.
    reference = copy.deepcopy(model) if loss.kl and not isinstance(model, PeftModel) else None
    tokenizer = student.tokenizer
    if tokenizer.pad_token is None:  # TRL sets it; the student's own stays as it is
        tokenizer = copy.deepcopy(tokenizer)
    config = GRPOConfig(
        **arguments,
        num_generations=source.grouping.size,
        max_completion_length=source.longest,
        loss_type=loss.kind,
        scale_rewards="none" if loss.kind == "dr_grpo" else "group",
        epsilon=loss.clip_low,
        epsilon_high=loss.clip_high,
        beta=0.0,
        temperature=source.decoding.sampling.temperature,
        num_iterations=loss.reuse,
        shuffle_dataset=False,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*rollout_func.*")  # experimental, and pinned
        trainer = GRPOTrainer(
            model=model,
            args=config,
            # It counts steps; which problems a step takes is `Source`'s to say.
            train_dataset=Dataset.from_dict({"prompt": ["?"] * rows}),
            processing_class=tokenizer,
            reward_funcs=[source.reward],
            rollout_func=source,
            callbacks=callbacks,
        )
    trainer.eos_token_ids = sorted(markers(student.tokenizer, student.template).end)
    trainer.beta = loss.kl
    if reference is not None:
        trainer.ref_model = trainer.accelerator.prepare_model(reference.eval(), evaluation_mode=True)
    return trainer


def _uniform(
    student: Student,
    problems: Sequence[Problem],
    decoding: Decoding,
    size: int,
    share: float,
    seed: int,
    progress: Progress | None,
) -> list[Problem]:
    lengths: dict[str, list[list[int]]] = {problem.id: [] for problem in problems}
    for number in range(ROUNDS):
        drawn = sample(
            student,
            problems,
            samples=size,
            policy=decoding.policy,
            sampling=decoding.sampling,
            seed=int(stable_hash(seed, "uniform", number), 16),
            max_answer=decoding.max_answer,
            max_batch=decoding.max_batch,
            progress=progress,
        )
        for index, problem in enumerate(problems):
            counts = [reply_tokens(each.trace) for each in drawn[index * size : (index + 1) * size]]
            lengths[problem.id].append(counts)
    kept = set(uniform_length(lengths, share))
    return [problem for problem in problems if problem.id in kept]
