"""What every stage that trains is told: the optimiser, what survives a kill, and when to look at held-out
problems.

Promises: frozen values; settings that cannot work are refused when they are made.
Does not: load torch, or train (see `fit`).
"""

from __future__ import annotations

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
class Optimiser:
    """AdamW and its schedule. `batch` is samples per step over all processes, split into `accumulate`
    micro-batches. `bf16` is mixed precision with float32 weights, `checkpointing` recomputes activations to
    save memory. Raises UsageError for numbers that cannot work."""

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

    def __post_init__(self) -> None:
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
