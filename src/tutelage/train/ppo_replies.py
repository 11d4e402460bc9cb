"""The replies of one step of PPO: problems in turn, drawn by the engine, graded beside decoding.

Promises: what a step draws is a function of (seed, step, weights); a reply whose reward cannot be told is
left out and counted.
Does not: learn from them (see `ppo_trainer`), or choose among them.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tutelage.errors import UsageError
from tutelage.records import Problem, stable_hash
from tutelage.students.pretrained import Student
from tutelage.train.decoding import Decoding
from tutelage.train.grading import Graded, Grader
from tutelage.train.groups import in_turn
from tutelage.train.rewards import finished
from tutelage.train.rollouts import Rollout, sample
from tutelage.train.settings import Optimiser, Progress


@dataclass(frozen=True, slots=True)
class Rewarded:
    """Replies with their rewards, drawn at `temperature`."""

    rollouts: list[Rollout]
    rewards: list[float]
    temperature: float


class Replies:
    """From a step's number to rewarded replies, `group` to a problem. `totals` are counts over all steps, to
    be restored when a run goes on; `numbers` are those of the last step; `pad` is an id to fill up with."""

    def __init__(
        self,
        student: Student,
        problems: Sequence[Problem],
        grader: Grader,
        optimiser: Optimiser,
        group: int,
        decoding: Decoding,
    ) -> None:
        self.student, self.problems, self.grader = student, problems, grader
        self.optimiser, self.group, self.decoding = optimiser, group, decoding
        tokenizer = student.tokenizer
        self.pad = int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)
        self.totals: dict[str, float] = {}
        self.numbers: dict[str, float] = {}
        self.last: list[str] = []

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
        return "problems " + ", ".join(self.last)

    def draw(self, step: int, plain: Any) -> Rewarded:
        """The replies of `step`, by the model `plain`, that have a reward.

        Raises UsageError when none has one, and what the grader raises."""
        optimiser, group = self.optimiser, self.group
        wanted = optimiser.batch // group
        turn = in_turn(len(self.problems), optimiser.seed, step * wanted)
        problems = [self.problems[next(turn)] for _ in range(wanted)]
        self.last = [problem.id for problem in problems]
        sampling = self.decoding.at(step, optimiser.steps)
        tickets = {}

        def each(number: int, rollout: Rollout) -> None:
            tickets[number] = self.grader.submit(problems[number // group], rollout.trace)

        drawn = sample(
            replace(self.student, model=plain),
            problems,
            samples=group,
            policy=self.decoding.policy,
            sampling=sampling,
            seed=int(stable_hash(optimiser.seed, step), 16),
            max_answer=self.decoding.max_answer,
            max_batch=self.decoding.max_batch,
            each=each,
        )
        graded = self.grader.results([tickets[number] for number in range(len(drawn))])
        self._count(drawn, graded, sampling.temperature)
        rollouts, rewards = [], []
        for rollout, mark in zip(drawn, graded, strict=True):
            if mark.reward is not None:
                rollouts.append(rollout)
                rewards.append(mark.reward)
        if not rollouts:
            raise UsageError(f"no reply of step {step + 1} could be rewarded: {graded[0].why}")
        return Rewarded(rollouts, rewards, sampling.temperature)

    def _count(self, drawn: Sequence[Rollout], graded: Sequence[Graded], temperature: float) -> None:
        told = [each for each in graded if each.reward is not None]
        counts = {
            "replies": len(drawn),
            "unrewarded": len(drawn) - len(told),
            "late_rewards": sum(each.late for each in graded),
            "tokens_seen": sum(len(each.prompt_ids) + len(each.ids) for each in drawn),
            "tokens_learned": sum(sum(each.free) for each in drawn),
        }
        for name, count in counts.items():
            self.totals[name] = self.totals.get(name, 0.0) + count
        found = {
            "unrewarded": counts["unrewarded"] / len(drawn),
            "late": counts["late_rewards"] / len(drawn),
            "unfinished": statistics.fmean(not finished(each.trace) for each in drawn),
            "tokens": statistics.fmean(len(each.ids) for each in drawn),
            "temperature": temperature,
        }
        if told:
            found["right"] = statistics.fmean(each.right for each in told)
            found["reward"] = statistics.fmean(each.reward for each in told if each.reward is not None)
        for name, count in sorted(Counter(each.method for each in graded if each.method).items()):
            found[f"path/{name}"] = count / len(drawn)
        for name in sorted({name for each in told for name in each.parts}):
            found[f"reward/{name}"] = statistics.fmean(
                each.parts[name] for each in told if name in each.parts
            )
        self.numbers = {f"drawn/{name}": float(value) for name, value in found.items()}
