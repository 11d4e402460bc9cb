"""Stages with the settings that the verbs use, which tell what they were given."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

from pydantic import Field

from tutelage.problems.files import read_problems
from tutelage.recipe.files import replace_folder, write_text
from tutelage.recipe.stage import InputRef, JobContext, LocalOrName, Output, StageConfig, StageKind


class WithProblems(StageConfig):
    problems: Annotated[str, InputRef("problems")]
    extra: float = 0.0


class VerifyConfig(WithProblems):
    traces: Annotated[str, InputRef("traces")]


class StudentConfig(StageConfig):
    source: LocalOrName


class TrainConfig(StageConfig):
    problems: tuple[Annotated[str, InputRef("problems")], ...]
    traces: tuple[Annotated[str, InputRef("traces")], ...] = ()
    verdicts: tuple[Annotated[str, InputRef("verdicts")], ...] = ()
    keep: str = "all"
    model: Annotated[str, InputRef("model")]
    steps: int
    extra: float = 0.0


class EvaluateConfig(WithProblems):
    arm: str
    model: Annotated[str, InputRef("model")]
    samples: int = 1


class SweepConfig(WithProblems):
    arm: str
    model: Annotated[str, InputRef("model")]
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


def student(ctx: JobContext[StudentConfig]) -> dict[str, Any]:
    with replace_folder(ctx.outputs["result"]) as folder:
        (folder / "config.json").write_text(ctx.config.source)
    return {}


_OUT = (Output("result", "{job}.json"),)
KINDS = {
    name: StageKind(name, config, "fake_verbs:tell", _OUT, per_seed=name in ("train", "evaluate", "sweep"))
    for name, config in {
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
KINDS["student"] = StageKind("student", StudentConfig, "fake_verbs:student", _OUT)
