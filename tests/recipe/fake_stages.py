"""Small stages for the tests of the runner: numbers in text files. Imported by tests and by real workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from tutelage.errors import PartialError, UsageError
from tutelage.recipe.files import write_text
from tutelage.recipe.stage import (
    InputPath,
    InputRef,
    JobContext,
    LocalOrName,
    Output,
    Settings,
    StageConfig,
    StageKind,
)


class MakeConfig(StageConfig):
    count: int = Field(default=3, ge=0)
    factor: float = 1.0
    source: Annotated[str, InputPath()] | None = None
    model: LocalOrName = "some/name"


class Inner(Settings):
    numbers: Annotated[str, InputRef("numbers")] | None = None
    gain: float = 1.0


class AddConfig(StageConfig):
    numbers: Annotated[str, InputRef("numbers")]
    plus: int = 0
    sleep_s: float = 0.0
    inner: Inner = Inner()


class TotalConfig(StageConfig):
    parts: list[Annotated[str, InputRef("numbers")]]
    named: dict[str, Annotated[str, InputRef("numbers")]] = Field(default_factory=dict)


class MischiefConfig(StageConfig):
    numbers: Annotated[str, InputRef("numbers")] | None = None
    what: str


def _read(path: Path) -> list[int]:
    return list(json.loads(path.read_text()))


def _count_run(ctx: JobContext[Any]) -> None:
    """Who ran how often: outside the contract, for the tests only."""
    with (ctx.run_dir.parent / "ran.txt").open("a") as file:
        file.write(ctx.job_id + "\n")


def make(ctx: JobContext[MakeConfig]) -> dict[str, Any]:
    _count_run(ctx)
    numbers = [round(i * ctx.config.factor) for i in range(ctx.config.count)]
    if ctx.config.source is not None:
        numbers += _read(Path(ctx.config.source))
    write_text(ctx.outputs["numbers"], json.dumps(numbers))
    write_text(ctx.outputs["spare"], json.dumps([-number for number in numbers]))
    print("a library prints to stdout")
    os.system("echo a child prints to stdout")
    return {"count": len(numbers)}


def add(ctx: JobContext[AddConfig]) -> dict[str, Any]:
    _count_run(ctx)
    steps = max(int(ctx.config.sleep_s / 0.02), 1)
    for step in range(steps):
        ctx.progress(step, steps, f"step {step} [bold]\x1b[31m")
        time.sleep(ctx.config.sleep_s / steps)
    numbers = [number + ctx.config.plus + (ctx.seed or 0) for number in _read(ctx.path("numbers"))]
    if ctx.maybe("inner.numbers"):
        numbers += _read(ctx.path("inner.numbers"))
    write_text(ctx.outputs["numbers"], json.dumps(numbers))
    return {"sum": sum(numbers), "threads": os.environ["OMP_NUM_THREADS"]}


def total(ctx: JobContext[TotalConfig]) -> dict[str, Any]:
    _count_run(ctx)
    found = {}
    for field in ("parts", "named"):
        for source in ctx.inputs.get(field, ()):
            found[f"{source.key}:{source.stage}.{source.output}@{source.seed}"] = sum(_read(source.path))
    write_text(ctx.outputs["total"], json.dumps(found, sort_keys=True))
    jobs: Mapping[str, Any] = ctx.run.get("jobs", {})
    return {"total": sum(found.values()), "saw": sorted(jobs)}


def mischief(ctx: JobContext[MischiefConfig]) -> dict[str, Any]:
    _count_run(ctx)
    what = ctx.config.what
    if what == "usage":
        raise UsageError("data.jsonl:17: not JSON;\nfix the line")
    if what == "partial":
        raise PartialError("3 of 9 requests failed")
    if what == "defect":
        raise ValueError("the oven is cold")
    if what == "full":
        raise OSError(28, "No space left on device")
    if what == "signal":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "exit":
        os._exit(7)
    if what == "nothing":
        return {}
    if what == "nan":
        write_text(ctx.outputs["numbers"], "[]")
        return {"loss": float("nan")}
    if what == "orphans":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        (ctx.run_dir.parent / "pids.txt").write_text(f"{os.getpid()} {child.pid}")
        time.sleep(60)
    write_text(ctx.outputs["numbers"], "[1]")
    return {}


def _numbers(*names: str) -> tuple[Output, ...]:
    return tuple(Output(name, f"data/{{job}}-{name}.json", "numbers") for name in names)


KINDS = {
    kind.name: kind
    for kind in (
        StageKind("make", MakeConfig, "fake_stages:make", _numbers("numbers", "spare"), expected_s=0.1),
        StageKind(
            "add",
            AddConfig,
            "fake_stages:add",
            _numbers("numbers"),
            per_seed=True,
            expected_s=lambda config: config.sleep_s + 0.01,
        ),
        StageKind("sum", TotalConfig, "fake_stages:total", (Output("total", "metrics/{job}.json", "total"),)),
        StageKind(
            "report",
            TotalConfig,
            "fake_stages:total",
            (Output("total", "report.json", "page"),),
            sees_run=True,
        ),
        StageKind("mischief", MischiefConfig, "fake_stages:mischief", _numbers("numbers")),
    )
}

RECIPE: dict[str, Any] = {
    "name": "numbers",
    "seeds": [0, 1],
    "workers": 2,
    "stages": {
        "world": {"kind": "make", "count": 4},
        "arm": {"kind": "add", "numbers": "world", "plus": 1},
        "other": {"kind": "add", "numbers": "world.spare", "plus": 2},
        "next": {"kind": "add", "numbers": "arm", "inner": {"numbers": "other"}},
        "all": {"kind": "sum", "parts": ["next", "world"], "named": {"x": "arm"}},
        "page": {"kind": "report", "parts": ["next"]},
    },
}
