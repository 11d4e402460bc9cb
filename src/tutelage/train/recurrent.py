"""What a trainer does for a student that thinks in loops: it says how deep each step goes.

Promises: the depth of an optimiser step and its initial states are a function of (seed, step), the same for
all micro-batches, processes and restarts, so that accumulating is the training of one large batch; the mean
follows its ramp, and no more loops than the mean carry a gradient; when training ends the model's clock is as
it was. Students without loops are left alone.
Does not: draw depths (see `students.recurrent.depth`), or look at what becomes of the states (see `alarms`).

Depth is drawn in the backbone's forward pass, since TRL's trainers call the backbone without the head.

Why preferences and reinforcement learning do not draw: they compare log-probabilities of the same text from
the policy, its start, and the policy that sampled. At two depths, or from two initial states, these differ by
more than an update changes them (a student of 40,000 weights gave one reply between -11.8 and -10.3 nats over
twenty draws), and the comparison is noise. There every pass has the mean depth and the initial states of
evaluation, which is what the engine samples with; the gradient still goes through the last loops only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from transformers import TrainerCallback

from tutelage.errors import UsageError
from tutelage.students.recurrent.depth import Clock
from tutelage.students.recurrent.model import RecurrentDepthModel
from tutelage.think.effort import Effort
from tutelage.train.settings import Depth, Optimiser


def backbone(model: Any) -> RecurrentDepthModel | None:
    """The recurrent backbone within `model` (plain, wrapped, with an adapter), None where there is none."""
    return next((each for each in model.modules() if isinstance(each, RecurrentDepthModel)), None)


class Pace(TrainerCallback):  # type: ignore[misc]
    """Sets the clock of `core` at the beginning of each optimiser step."""

    def __init__(self, core: RecurrentDepthModel, optimiser: Optimiser) -> None:
        self.core, self.optimiser = core, optimiser

    def mean(self, step: int) -> int:
        """The mean depth at `step` (from 0)."""
        full = self.core.config.mean_recurrence
        ramp = self.optimiser.depth.ramp
        if ramp is None:
            return full
        return max(1, math.floor(ramp.at(step, self.optimiser.steps, full) + 0.5))

    def set(self, step: int) -> None:
        """Make the clock that of `step`."""
        clock, mean = self.core.clock, self.mean(step)
        clock.step, clock.seed = step, self.optimiser.seed
        clock.mean, clock.backprop = mean, min(self.core.config.mean_backprop_depth, mean)
        clock.mode = "told" if self.optimiser.depth.drawn else "still"

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The step that begins."""
        self.set(int(state.global_step))


@contextmanager
def paced(model: Any, optimiser: Optimiser, name: str) -> Iterator[Pace | None]:
    """The pace of `model` while it is trained; None for a model without loops. Raises UsageError for a depth
    that the model cannot have."""
    core = backbone(model)
    if core is None:
        if optimiser.depth != Depth():
            raise UsageError(f"depth: {name} has no loops; leave depth out")
        yield None
        return
    ramp, full = optimiser.depth.ramp, core.config.mean_recurrence
    if ramp is not None and ramp.start > full:
        raise UsageError(f"depth: start is {ramp.start:g}, above the model's mean_recurrence {full}")
    kept = core.clock
    core.clock = Clock(kept.mean, kept.backprop)
    pace = Pace(core, optimiser)
    pace.set(0)
    try:
        yield pace
    finally:
        core.clock = kept


def comparing(optimiser: Optimiser, model: Any, effort: Effort | None = None) -> Optimiser:
    """`optimiser` for a stage that compares log-probabilities: at one depth, without draws. `effort` is what
    its replies are sampled with.

    Raises UsageError for a depth that changes, and for replies sampled at another depth than is learned."""
    core = backbone(model)
    if core is None:
        return optimiser
    if optimiser.depth.ramp is not None:
        raise UsageError("depth: this stage compares log-probabilities, so one depth is needed; no ramp")
    mean = core.config.mean_recurrence
    if effort is not None and effort not in (Effort(), Effort(mean)):
        raise UsageError(
            f"policy: replies to learn from are sampled at the depth that is trained, the model's {mean}; "
            "leave num_steps, exit and continuous out"
        )
    return replace(optimiser, depth=Depth(drawn=False))
