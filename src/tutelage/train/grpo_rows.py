"""The rows of a GRPO step: from the step's number to the groups that TRL's trainer learns from.

Promises: ids that the policy forced are marked as not to be learned; what a step draws is a function of
(seed, step, weights); the temperature of the loss is that of the sampling.
Does not: choose among replies (see `drawing`), or compute losses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from trl import GRPOTrainer

from tutelage.errors import UsageError
from tutelage.records import Problem, stable_hash
from tutelage.students.pretrained import Student
from tutelage.students.template import markers, render_prompt
from tutelage.think.sampling import Sampling
from tutelage.train.decoding import Decoding, longest_reply
from tutelage.train.drawing import Drawn, Grouping, Member, draw_groups
from tutelage.train.grading import Grader
from tutelage.train.groups import in_turn
from tutelage.train.heat import Heat
from tutelage.train.merged import merged
from tutelage.train.rewards import finished
from tutelage.train.rollouts import Rollout, sample
from tutelage.train.settings import Optimiser, Progress


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


class Source:
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
