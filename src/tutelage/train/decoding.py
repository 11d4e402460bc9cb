"""How replies are drawn while a model is reinforced.

Promises: frozen values; settings that cannot work are refused when they are made.
Does not: decode (see `rollouts`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from tutelage.errors import UsageError
from tutelage.students.pretrained import Student
from tutelage.think.backend import check_model
from tutelage.think.policy import ThinkingPolicy
from tutelage.think.sampling import Sampling
from tutelage.train.groups import annealed


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


def longest_reply(student: Student, decoding: Decoding) -> int:
    """Most tokens that a reply under `decoding` may have, markers left out."""
    policy, context = decoding.policy, check_model(student.model)
    if policy.max_tokens is None:
        return context
    return min(context, policy.max_tokens + policy.grace_tokens + decoding.max_answer)
