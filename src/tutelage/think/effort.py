"""Effort in loops: how often a recurrent-depth model passes through its core, and when a token may stop.

Promises: frozen values, spelled alike in recipes, on the command line and on the wire; a threshold, step or
name that makes no sense is refused with what there is. No heavy import.
Does not: measure whether a state has settled (see `students.recurrent.exits`), or run a model.

    kl:5e-4                 stop when KL(p_t || p_{t-1}) of successive predictions falls below the threshold
    state:0.03              ... when the state's relative change |s_t - s_{t-1}| / |s_t| does
    argmax:5                ... when the likeliest token has been the same for so many steps
    acceleration:0.03       ... when the change of the change, relative to the state, does
    kl:5e-4,min=4,every=2   never before step 4, and looked at every second step
    kl:5e-4,ordered         no token before the tokens before it: one that waits for them looks settled, too
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, cast

from tutelage.errors import UsageError

Criterion = Literal["kl", "state", "argmax", "acceleration"]
DEFAULTS: dict[str, float] = {"kl": 5e-4, "state": 0.03, "argmax": 5, "acceleration": 0.03}
"""Thresholds where none is written: KL of Geiping et al. 2025, section 6.1; relative change and stable steps
of their code; the second difference is that of arXiv 2509.23314, its threshold ours."""
USAGE = "write it as CRITERION[:THRESHOLD][,min=STEPS][,every=STEPS][,ordered], such as kl:5e-4,min=2"


@dataclass(frozen=True, slots=True)
class Exit:
    """When a token leaves the loop: `criterion` below `threshold` (for "argmax": for so many steps), not
    before `min_steps`, looked at every `every` steps; if `ordered`, not before the tokens before it in its
    text, so that no token makes fewer steps than one before it. The bound is the effort's number of steps."""

    criterion: Criterion
    threshold: float
    min_steps: int = 1
    every: int = 1
    ordered: bool = False

    def __post_init__(self) -> None:
        if self.criterion not in DEFAULTS:
            raise UsageError(f"exit: there is no {self.criterion!r}; there is: {', '.join(DEFAULTS)}")
        if not (math.isfinite(self.threshold) and self.threshold > 0):
            raise UsageError(f"exit: the threshold is {self.threshold:g}; it must be above 0")
        if self.criterion == "argmax" and self.threshold != int(self.threshold):
            raise UsageError(f"exit: argmax counts steps; {self.threshold:g} is not a whole number")
        for name in ("min_steps", "every"):
            if getattr(self, name) < 1:
                raise UsageError(f"exit: {name} is {getattr(self, name)}; it must be at least 1")

    @classmethod
    def parse(cls, text: str) -> Exit:
        """The exit that `text` spells. Raises UsageError."""
        head, *rest = text.strip().split(",")
        name, _, value = head.partition(":")
        if name not in DEFAULTS:
            raise UsageError(f"exit: there is no {name!r}; there is: {', '.join(DEFAULTS)}; {USAGE}")
        options = {"min": 1, "every": 1}
        ordered = False
        try:
            threshold = float(value) if value else DEFAULTS[name]
            for option in rest:
                key, _, number = option.strip().partition("=")
                if option.strip() == "ordered":
                    ordered = True
                    continue
                if key not in options:
                    raise ValueError(key)
                options[key] = int(number)
        except ValueError as error:
            raise UsageError(f"exit: {text!r} is not readable; {USAGE}") from error
        return cls(cast(Criterion, name), threshold, options["min"], options["every"], ordered)

    def __str__(self) -> str:
        more = [
            f",{name}={value}"
            for name, value in (("min", self.min_steps), ("every", self.every))
            if value > 1
        ]
        return f"{self.criterion}:{self.threshold:g}{''.join(more)}{',ordered' * self.ordered}"


@dataclass(frozen=True, slots=True)
class Effort:
    """How deep each token is thought about: at most `num_steps` passes of the core (None: the model's mean;
    with an exit, its maximum), fewer where `exit` says so. `continuous`: the loop of a reply's token starts
    from the last state of the token before it (Geiping et al. 2025, section 6.3)."""

    num_steps: int | None = None
    exit: Exit | None = None
    continuous: bool = False

    def __post_init__(self) -> None:
        steps = self.num_steps
        if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
            raise UsageError(f"num_steps is {steps!r}; the core runs at least once, so write 1 or more")

    def bound(self, mean: int, most: int) -> int:
        """The most passes that it means for a model of that mean and maximum: without a number the maximum
        where an exit ends them, else the mean."""
        if self.num_steps is not None:
            return self.num_steps
        return mean if self.exit is None else most

    @property
    def asked(self) -> bool:
        """Whether anything is asked for that only a recurrent-depth model can do."""
        return self != Effort()


def check_effort(effort: Effort, most: int | None, model: str) -> None:
    """Raises UsageError for an effort that `model`, of at most `most` steps (None: it has no loop), cannot
    make."""
    if most is None and effort.asked:
        asked = "num_steps" if effort.num_steps is not None else "exit" if effort.exit else "continuous"
        raise UsageError(
            f"{asked}: {model} has no loop to pass through again; leave {asked} out, or use a "
            "recurrent-depth model"
        )
    if most is not None and (effort.num_steps or 0) > most:
        raise UsageError(
            f"num_steps is {effort.num_steps}; {model} may take {most} (max_recurrence in its config.json)"
        )
