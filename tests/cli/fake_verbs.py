"""Stages with the settings that the verbs use, which tell what they were given."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

from pydantic import Field

from tutelage.problems.files import read_problems
from tutelage.recipe.files import write_text
from tutelage.recipe.stage import InputRef, JobContext, LocalOrName, Output, StageConfig, StageKind


class WithProblems(StageConfig):
    problems: Annotated[str, InputRef("problems")]
    extra: float = 0.0


class CollectConfig(WithProblems):
    teacher: dict[str, Any]
    samples: int = 1


class VerifyConfig(WithProblems):
    traces: Annotated[str, InputRef("traces")]


class TrainConfig(VerifyConfig):
    model: LocalOrName
    steps: int = 10


class EvaluateConfig(WithProblems):
    model: LocalOrName
    samples: int = 1


class SweepConfig(WithProblems):
    model: LocalOrName
    budgets: tuple[int, ...] = ()


class MakeConfig(StageConfig):
    count: int = 1


class PageConfig(StageConfig):
    parts: list[Annotated[str, InputRef()]] = Field(default_factory=list)


def tell(ctx: JobContext[Any]) -> dict[str, Any]:
    print("a library prints")
    for step in range(3):
        ctx.progress(step, 3, "working")
    write_text(next(iter(ctx.outputs.values())), json.dumps(time.time()))
    settings = ctx.config.model_dump(mode="json")
    if "problems" in settings:
        settings["problems"] = len(read_problems(ctx.path("problems")))
    return dict(settings)


_OUT = (Output("result", "{job}.json"),)
KINDS = {
    name: StageKind(name, config, "fake_verbs:tell", _OUT, per_seed=name in ("train", "evaluate", "sweep"))
    for name, config in {
        "collect": CollectConfig,
        "verify": VerifyConfig,
        "train": TrainConfig,
        "evaluate": EvaluateConfig,
        "sweep": SweepConfig,
        "make": MakeConfig,
    }.items()
}
KINDS["page"] = StageKind(
    "page", PageConfig, "fake_verbs:tell", (Output("page", "page.html"),), sees_run=True
)
