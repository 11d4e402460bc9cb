"""Stages with the settings that the verbs use, which tell what they were given."""

from __future__ import annotations

import json
import time
from pathlib import Path
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
    policy: dict[str, int | str | bool] = Field(default_factory=dict)


class SweepConfig(WithProblems):
    arm: str
    model: Annotated[str, InputRef("model")]
    budgets: tuple[int, ...] = ()
    waits: tuple[int, ...] = ()
    minimums: tuple[int, ...] = ()
    wait_strings: tuple[str | None, ...] = ()
    samples: int = 1
    temperature: float = 0.0
    votes: tuple[int, ...] = ()
    methods: tuple[str, ...] = ()
    num_steps: tuple[int, ...] = ()
    exits: tuple[str, ...] = ()
    continuous: bool = False
    depth: int | None = None
    targets: tuple[float, ...] = ()
    max_thinking: int | None = None
    close_text: str = ""
    max_answer_tokens: int = 64


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


def curve(folder: Path) -> dict[str, Any]:
    """What the verb reads of a sweep's folder, and the metrics that it tells."""
    with replace_folder(folder) as made:
        (made / "curve.json").write_text('[{"setting": "greedy"}]')
        (made / "analysis.json").write_text('{"lines": []}')
    unforced = {"setting": "greedy", "accuracy": 0.5, "ci95": [0.1, 0.9], "thinking_tokens_mean": 7.0}
    best = {"setting": "at most 8 tokens", "accuracy": 0.75, "ci95": [0.2, 0.95], "thinking_tokens_mean": 9.4}
    unforced, best = {**unforced, "loops": None}, {**best, "loops": 6.25}
    return {"points": 1, "problems": 2, "unforced": unforced, "highest": best}


def sweep(ctx: JobContext[SweepConfig]) -> dict[str, Any]:
    print("a library prints")
    settings = ctx.config.model_dump(mode="json")
    return {**settings, **curve(ctx.outputs["curve"])}


def student(ctx: JobContext[StudentConfig]) -> dict[str, Any]:
    with replace_folder(ctx.outputs["result"]) as folder:
        (folder / "config.json").write_text(ctx.config.source)
    return {}


_OUT = (Output("result", "{job}.json"),)
KINDS = {
    name: StageKind(name, config, "fake_verbs:tell", _OUT, per_seed=name in ("sft", "evaluate"))
    for name, config in {
        "verify": VerifyConfig,
        "sft": TrainConfig,
        "evaluate": EvaluateConfig,
        "make": MakeConfig,
    }.items()
}
KINDS["page"] = StageKind(
    "page", PageConfig, "fake_verbs:tell", (Output("page", "page.html"),), sees_run=True
)
KINDS["sweep"] = StageKind(
    "sweep", SweepConfig, "fake_verbs:sweep", (Output("curve", "{job}"),), per_seed=True
)
KINDS["student"] = StageKind("student", StudentConfig, "fake_verbs:student", _OUT)
