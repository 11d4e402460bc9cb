"""The stage that looks at what loops do: accuracy by problem depth and passes, exits, paths of states.

Promises: importing it loads no heavy library. Does not: hold the stage's logic (see
`recipe.jobs.looping`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tutelage.errors import UsageError
from tutelage.recipe.stage import Output, StageConfig, StageKind
from tutelage.recipe.training import Count, Model, Positive, Problems
from tutelage.think.effort import Exit


class Depths(StageConfig):
    """What the loops of a recurrent-depth student do, one seed. Accuracy after each of `steps` passes of the
    core by problem depth (metadata `difficulty`) and worked examples in the question (metadata `examples`).
    `baselines` answer the same problems and are compared with the student after `at` passes (null: the most
    of `steps`); `exits` (such as kl:5e-4) let each token leave by itself, after `at` at most. `shown`
    problems appear token by token. A problem is right when the greedy reply is its reference answer, token
    for token, and ends there. `allow_chosen_on` is that of `evaluate`."""

    kind: Literal["depths"]
    arm: str
    model: Model
    problems: Problems
    baselines: Mapping[str, Model] = {}
    steps: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1, 2, 4, 8, 12, 16, 32)
    at: Positive | None = None
    exits: tuple[str, ...] = ()
    shown: Count = 6
    bf16: bool = False
    allow_chosen_on: bool = False
    expected_s: float = 20.0

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.at is not None and self.at not in self.steps:
            raise ValueError(f"at is {self.at}, which is not among steps {list(self.steps)}")
        if self.arm in self.baselines:
            raise ValueError(f"baselines: {self.arm!r} is the arm itself; give the baseline another name")
        for text in self.exits:
            try:
                Exit.parse(text)
            except UsageError as error:
                raise ValueError(str(error)) from error
        return self


DEPTHS = StageKind(
    "depths",
    Depths,
    "tutelage.recipe.jobs.looping:depths_of_arm",
    (Output("depths", "metrics/{job}", "depths"),),
    per_seed=True,
    expected_s=lambda config: config.expected_s,
)
