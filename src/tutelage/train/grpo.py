"""Reinforcement learning with verifiable rewards: group-relative policy optimisation, by TRL's trainer.

GRPO (Shao et al. 2024, arXiv 2402.03300), Dr. GRPO (arXiv 2503.20783) and DAPO (arXiv 2503.14476) losses are
TRL's. Ours is what they learn from: replies by our engine under a thinking policy, rewards, the choice of
groups (see `drawing`), and the annealed temperature.

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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from tutelage.errors import UsageError
from tutelage.records import Problem, stable_hash
from tutelage.students.pretrained import Student
from tutelage.students.template import markers, render_prompt
from tutelage.think.backend import check_model
from tutelage.think.policy import ThinkingPolicy
from tutelage.think.sampling import Sampling
from tutelage.train.drawing import Drawn, Grouping, Member, draw_groups
from tutelage.train.fit import Fitted, fit
from tutelage.train.grading import Grader
from tutelage.train.groups import annealed, in_turn, uniform_length
from tutelage.train.heat import Heat
from tutelage.train.merged import merged
from tutelage.train.rewards import finished, reply_tokens
from tutelage.train.rollouts import Rollout, sample
from tutelage.train.settings import Keep, Optimiser, Progress, Validation

ROUNDS = 2
"""Rounds of replies by which the problems of uniform length are chosen."""


@dataclass(frozen=True, slots=True)
class Decoding:
    """How replies are drawn. `anneal_to`: the temperature that is reached, from `sampling.temperature`, after
    half of the steps; None: it stays."""

    policy: ThinkingPolicy = field(default_factory=ThinkingPolicy)
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=1.0))
    max_answer: int = 64
    max_batch: int = 64
    anneal_to: float | None = None

    def __post_init__(self) -> None:
        if self.sampling.greedy:
            raise UsageError("sampling: temperature 0 draws the same reply again and again; give one above 0")
        if self.anneal_to is not None and not self.anneal_to > 0:
            raise UsageError(f"anneal_to is {self.anneal_to}; it must be above 0")

    def at(self, step: int, steps: int) -> Sampling:
        """The sampling of step `step` (from 0) of `steps`."""
        if self.anneal_to is None:
            return self.sampling
        return replace(
            self.sampling, temperature=annealed(step, steps, self.sampling.temperature, self.anneal_to)
        )


@dataclass(frozen=True, slots=True)
class GrpoLoss:
    """`kl` weighs the divergence from the start. `mask_truncated`: nothing is learned from replies that a
    limit cut off (DAPO's overlong filtering); they still count in their group. `reuse`: optimiser steps per
    set of replies."""

    kind: Literal["grpo", "dr_grpo", "dapo"] = "dapo"
    kl: float = 0.0
    clip_low: float = 0.2
    clip_high: float = 0.2
    mask_truncated: bool = False
    reuse: int = 1

    def __post_init__(self) -> None:
        if self.kl < 0 or self.clip_low <= 0 or self.clip_high <= 0 or self.reuse < 1:
            raise UsageError(
                f"grpo: kl {self.kl} must not be negative, clip_low {self.clip_low} and clip_high "
                f"{self.clip_high} must be above 0, reuse {self.reuse} at least 1"
            )


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
    chosen = list(problems)
    if uniform < 1:
        chosen = _uniform(student, chosen, decoding, grouping.size, uniform, optimiser.seed, progress)
    if loss.reuse > 1 and keep is not None:  # a resumed run draws anew: checkpoints lie where replies end
        whole = math.lcm(loss.reuse, optimiser.log_every)
        keep = replace(keep, every=-(-keep.save_every(optimiser) // whole) * whole)
    wanted = optimiser.batch // grouping.size
    if len(chosen) < wanted:
        raise UsageError(f"a step takes {wanted} problems, but there are {len(chosen)}; lower batch")
    source = _Source(student, chosen, grader, grouping, loss, decoding, optimiser)

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
    source: _Source,
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
            # It counts steps; which problems a step takes is `_Source`'s to say.
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


class _Source:
    """TRL's rollout function: from a step's number to its rows."""

    def __init__(
        self,
        student: Student,
        problems: Sequence[Problem],
        grader: Grader,
        grouping: Grouping,
        loss: GrpoLoss,
        decoding: Decoding,
        optimiser: Optimiser,
    ) -> None:
        self.student, self.problems, self.grader = student, problems, grader
        self.grouping, self.loss, self.decoding, self.optimiser = grouping, loss, decoding, optimiser
        self.longest = longest_reply(student, decoding)
        self.totals: dict[str, float] = {}
        self.drawn: Drawn | None = None
        self.numbers: dict[str, float] = {}
        self.heats: list[Heat] = []

    def attach(self, trainer: GRPOTrainer) -> GRPOTrainer:
        """Make the temperature of `trainer` ours to change."""
        models = [trainer.model, *([trainer.ref_model] if trainer.ref_model is not None else [])]
        self.heats = [Heat(model, trainer.temperature) for model in models]
        return trainer

    def detach(self) -> None:
        """Leave the student's model as it was before."""
        for heat in self.heats:
            heat.remove()

    def telling(self, progress: Progress | None) -> Progress | None:
        """`progress`, told how often the replies are right."""
        if progress is None:
            return None

        def tell(done: int, total: int, note: str) -> None:
            right = self.numbers.get("drawn/right")
            progress(done, total, note if right is None else f"{note}, {right:.0%} right")

        return tell

    def names(self) -> str:
        """The problems of the last step."""
        groups = self.drawn.groups if self.drawn else []
        return "problems " + ", ".join(group[0].rollout.trace.problem_id for group in groups)

    def __call__(self, prompts: Sequence[Any], trainer: GRPOTrainer) -> dict[str, Any]:
        """The rows of the step that `trainer` is at: as many as `prompts`, group by group."""
        size, step = self.grouping.size, int(trainer.state.global_step)
        if len(prompts) % size:
            raise UsageError(f"{len(prompts)} replies in one process are not groups of {size}; change batch")
        process, processes = trainer.accelerator.process_index, trainer.accelerator.num_processes
        sampling = self.decoding.at(step, self.optimiser.steps)
        trainer.temperature = sampling.temperature
        for heat in self.heats:
            heat.set(sampling.temperature)
        wanted = len(prompts) // size

        def replies(
            few: Sequence[Problem], number: int, each: Callable[[int, Rollout], None]
        ) -> list[Rollout]:
            return self._replies(student, few, sampling, (step, process, number), each)

        with merged(trainer.accelerator.unwrap_model(trainer.model)) as plain:
            student = replace(self.student, model=plain)
            self.drawn = draw_groups(
                wanted,
                self._candidates(step, wanted, process, processes),
                replies,
                self.grader,
                self.grouping,
                stable_hash(self.optimiser.seed, step, process),
            )
        counts = self.drawn.totals()
        added = torch.tensor(list(counts.values()), dtype=torch.float64, device=trainer.accelerator.device)
        added = trainer.accelerator.reduce(added, reduction="sum")
        for name, count in zip(counts, added.tolist(), strict=True):
            self.totals[name] = self.totals.get(name, 0.0) + count
        self.numbers = {**self.drawn.numbers(), "temperature": sampling.temperature}
        return self._rows(self.drawn)

    def reward(
        self, reward: Sequence[float], log_metric: Callable[[str, float], None], **_: Any
    ) -> list[float]:
        """TRL's reward function: the rewards are in the rows already."""
        for name, value in self.numbers.items():
            log_metric(name, value)
        return list(reward)

    def _candidates(self, step: int, wanted: int, process: int, processes: int) -> Iterator[Problem]:
        """The step's own problems in the turn of all, then the others at random."""
        count = len(self.problems)
        turn = in_turn(count, self.optimiser.seed, (step * processes + process) * wanted)
        own = [next(turn) for _ in range(wanted)]
        others = in_turn(count, int(stable_hash(self.optimiser.seed, "refill", step, process), 16), 0)
        yield from (self.problems[number] for number in own)
        rest = (next(others) for _ in range(count))
        yield from (self.problems[number] for number in rest if number not in own)

    def _replies(
        self,
        student: Student,
        problems: Sequence[Problem],
        sampling: Sampling,
        place: tuple[int, int, int],
        each: Callable[[int, Rollout], None],
    ) -> list[Rollout]:
        return sample(
            student,
            problems,
            samples=self.grouping.size,
            policy=self.decoding.policy,
            sampling=sampling,
            seed=int(stable_hash(self.optimiser.seed, *place), 16),
            max_answer=self.decoding.max_answer,
            max_batch=self.decoding.max_batch,
            each=each,
        )

    def _rows(self, drawn: Drawn) -> dict[str, Any]:
        """The groups as TRL takes them. One that is missing is a group of one token that is not learned."""
        members = [member for group in drawn.groups for member in group]
        empty = (drawn.wanted - len(drawn.groups)) * drawn.size
        end = sorted(markers(self.student.tokenizer, self.student.template).end)[:1]
        prompt = render_prompt(self.student.tokenizer, self.student.template, drawn.pools[0].problem.question)
        return {
            "prompt_ids": [list(each.rollout.prompt_ids) for each in members] + [prompt] * empty,
            "completion_ids": [list(each.rollout.ids) for each in members] + [end] * empty,
            "logprobs": None,
            "env_mask": [self._learned(each) for each in members] + [[0]] * empty,
            "reward": [each.reward for each in members] + [0.0] * empty,
        }

    def _learned(self, member: Member) -> list[int]:
        if self.loss.mask_truncated and not finished(member.rollout.trace):
            return [0] * len(member.rollout.ids)
        return [int(free) for free in member.rollout.free]


def longest_reply(student: Student, decoding: Decoding) -> int:
    """Most tokens that a reply under `decoding` may have, markers left out."""
    policy, context = decoding.policy, check_model(student.model)
    if policy.max_tokens is None:
        return context
    return min(context, policy.max_tokens + policy.grace_tokens + decoding.max_answer)


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
