"""One stage on its own, in this process: what a verb of the command line does.

Promises: the same settings, checks and function as in a recipe, so that a verb and a stage cannot differ;
messages name the option; an existing folder of the user is never replaced.
Does not: keep a manifest or resume (a ledger given with `ledger` still keeps every paid reply).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tutelage.errors import UsageError
from tutelage.recipe.files import storage_error
from tutelage.recipe.load import FILE_PREFIX, build_recipe
from tutelage.recipe.plan import plan_jobs
from tutelage.recipe.pool import job_message
from tutelage.recipe.stage import Progress, StageKind
from tutelage.recipe.worker import perform


def run_single(
    kind: str,
    settings: Mapping[str, Any],
    outputs: Mapping[str, Path],
    *,
    inputs: Mapping[str, Path | Sequence[Path] | Mapping[str, Path] | None] | None = None,
    verb: str = "",
    ledger: Path | None = None,
    seed: int = 0,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
    kinds: Mapping[str, StageKind] | None = None,
) -> dict[str, Any]:
    """Run a stage of that `kind` once and give back its metrics.

    `settings` and `inputs` fill the settings of the stage (None is left out); `overrides` are `key=value`
    on top; `outputs` says where each output goes. Raises what the stage raises, and UsageError for wrong
    settings."""
    verb = verb or kind
    given = {name: value for name, value in settings.items() if value is not None}
    given |= {name: _refs(value) for name, value in (inputs or {}).items() if value is not None}
    recipe = build_recipe(
        {"name": verb, "seeds": [seed], "threads": _threads(), "stages": {verb: {"kind": kind, **given}}},
        overrides=[f"stages.{verb}.{each}" for each in overrides],
        kinds=kinds,
        source=f"tutelage {verb}",
        hidden=2,
    )
    (job,) = plan_jobs(recipe)
    places = {name: _free(outputs[name]) for name, _ in job.outputs}
    ledger = (ledger or next(iter(places.values())).parent / "ledger.sqlite").absolute()
    message = job_message(recipe, job, next(iter(places.values())).parent, {})
    message |= {"outputs": {name: str(path) for name, path in places.items()}, "ledger": str(ledger)}

    def send(heard: Mapping[str, Any]) -> None:
        if progress is not None:
            progress(*heard["progress"])

    try:
        return perform(message, send)[0]
    except OSError as error:
        stored = storage_error(error, f"tutelage {verb}")
        raise stored or error from error


def _refs(value: Path | Sequence[Path] | Mapping[str, Path]) -> Any:
    if isinstance(value, Path):
        return f"{FILE_PREFIX}{value.absolute()}"
    if isinstance(value, Mapping):
        return {key: f"{FILE_PREFIX}{path.absolute()}" for key, path in value.items()}
    return [f"{FILE_PREFIX}{path.absolute()}" for path in value]


def _free(path: Path) -> Path:
    """The place of an output, absolute. A stage replaces whole folders: a folder with files in it is not
    ours."""
    path = path.absolute()
    if path.is_dir() and any(path.iterdir()):
        raise UsageError(f"{path}: this folder exists and is not empty; give a new place")
    return path


def _threads() -> int:
    """As many compute threads as the user allows, else one per core."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdecimal() and int(wanted) > 0:
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
