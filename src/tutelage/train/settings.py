"""What every stage that trains is told: the optimiser and its curricula, what survives a kill, and when to
look at held-out problems.

Promises: frozen values; settings that cannot work are refused when they are made.
Does not: load torch, or train (see `fit`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tutelage.errors import UsageError

if TYPE_CHECKING:
    from tutelage.students.pretrained import Student

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Lora:
    """Low-rank adaptation (Hu et al. 2021) of every linear layer but the head: rank, scaling, dropout."""

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0


@dataclass(frozen=True, slots=True)
class Ramp:
    """A quantity that grows from `start` to its full value over the first share `over` of the steps, evenly
    ("linear") or slowly first ("1-sqrt": with 1 - sqrt(1 - x), McLeish et al. 2025, arXiv 2511.07384). Raises
    UsageError for numbers that cannot work."""

    start: float
    over: float = 0.25
    shape: Literal["linear", "1-sqrt"] = "linear"

    def __post_init__(self) -> None:
        if not 0 < self.over <= 1:
            raise UsageError(f"over is {self.over:g}; it is a share of the steps, above 0 and up to 1")
        if not self.start > 0:
            raise UsageError(f"start is {self.start:g}; it must be above 0")

    def at(self, step: int, steps: int, full: float) -> float:
        """The value at `step` (from 0) of `steps`."""
        done = min(1.0, step / max(1.0, self.over * steps))
        if self.shape == "1-sqrt":
            done = 1.0 - math.sqrt(1.0 - done)
        return self.start + (full - self.start) * done


@dataclass(frozen=True, slots=True)
class Depth:
    """How deep a recurrent student goes in training. `drawn`: each step's depth is drawn around the mean
    (Geiping et al. 2025, section 3.3); else every step is at the mean, from the initial states of evaluation.
    `ramp`: the mean grows from its start to the model's own; fewer loops than that carry a gradient while the
    mean is below them."""

    drawn: bool = True
    ramp: Ramp | None = None

    def __post_init__(self) -> None:
        if self.ramp and self.ramp.start < 1:
            raise UsageError(f"depth: start is {self.ramp.start:g}; the core runs at least once")


@dataclass(frozen=True, slots=True)
class Optimiser:
    """The optimiser and its schedule. `kind` "adamw", or "muon": the matrices of the layers by Muon at
    `muon_learning_rate`, all else by AdamW at `learning_rate` (see `muon`); the schedule scales both. `batch`
    is samples per step over all processes, split into `accumulate` micro-batches. `bf16` is mixed precision
    with float32 weights, `checkpointing` recomputes activations to save memory. `depth` is for recurrent
    students; `lengths` learns from short examples first, up to so large a `size`. Raises UsageError for
    numbers that cannot work."""

    steps: int
    batch: int = 32
    accumulate: int = 1
    learning_rate: float = 1e-5
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: int = 50
    weight_decay: float = 0.01
    beta2: float = 0.98
    max_grad_norm: float = 1.0
    seed: int = 0
    bf16: bool = False
    checkpointing: bool = False
    lora: Lora | None = None
    kind: Literal["adamw", "muon"] = "adamw"
    muon_learning_rate: float = 1e-3
    depth: Depth = Depth()
    lengths: Ramp | None = None

    def __post_init__(self) -> None:
        if self.kind == "muon" and self.lora:
            raise UsageError("optimiser: muon turns whole matrices; with lora use adamw")
        if self.steps < 1:
            raise UsageError(f"steps is {self.steps}; training needs at least 1")
        if self.accumulate < 1 or self.batch < 1 or self.batch % self.accumulate:
            raise UsageError(f"batch {self.batch} does not divide into accumulate {self.accumulate} parts")

    def micro_batch(self, processes: int) -> int:
        """Samples that go through the model at once in each of so many processes. Raises UsageError when the
        batch does not divide."""
        parts = self.accumulate * processes
        if self.batch % parts:
            raise UsageError(
                f"batch {self.batch} does not divide into accumulate {self.accumulate} parts in each of "
                f"{processes} processes"
            )
        return self.batch // parts

    @property
    def log_every(self) -> int:
        """Steps between two rows of the log: at most a hundred rows."""
        return max(1, self.steps // 100)


@dataclass(frozen=True, slots=True)
class Validation:
    """A look at held-out problems every so many steps. `evaluate` gives the accuracy in [0, 1] of the student
    as it is; `patience` looks without a new best end the stage; `choose` says which weights are kept."""

    evaluate: Callable[[Student], float]
    every: int
    patience: int | None = None
    choose: Literal["last", "best"] = "last"


@dataclass(frozen=True, slots=True)
class Keep:
    """What survives a kill: checkpoints and the log in `folder`, one every so many steps (None: a tenth of
    the run). `mark` is a fingerprint of the settings, the data and the start: a folder with another one
    starts anew. Without a folder nothing is kept. `trackers` are TRL's `report_to`."""

    folder: Path | None = None
    mark: str = ""
    every: int | None = None
    trackers: tuple[str, ...] = ()

    def save_every(self, optimiser: Optimiser) -> int:
        """Steps between two checkpoints: whole rows of the log, so that a resumed log is the same."""
        wanted = self.every or max(1, optimiser.steps // 10)
        return -(-wanted // optimiser.log_every) * optimiser.log_every
