"""One stage on its own, in this process: what a verb of the command line does.

Promises: the same settings, checks and function as in a recipe, so that a verb and a stage cannot differ;
messages name the option; an existing folder of the user is never replaced.
Does not: keep a manifest or resume (a ledger given with `ledger` still keeps every paid reply).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_origin

from tutelage.errors import PartialError, UsageError, storage_error
from tutelage.recipe.load import FILE_PREFIX, build_recipe
from tutelage.recipe.plan import plan_jobs
from tutelage.recipe.pool import job_message
from tutelage.recipe.stage import InputRef, Progress, StageKind, load_dotted, marker_of
from tutelage.recipe.worker import perform


def run_single(
    kind: str,
    settings: Mapping[str, Any],
    out: Path,
    *,
    inputs: Mapping[str, str | Sequence[str] | None] | None = None,
    verb: str = "",
    ledger: Path | None = None,
    seed: int = 0,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
    kinds: Mapping[str, StageKind] | None = None,
    look: str = "",
    places: Mapping[str, Path] | None = None,
) -> dict[str, Any]:
    """Run a stage of that `kind` once; gives `{"metrics": ..., "outputs": {name: path}}`.

    `settings` and `inputs` (files, folders, or names where the setting takes names) fill the settings of
    the stage, None is left out; `overrides` are `key=value` on top. The first output goes to `out`, others
    beside it as `out-NAME`, or where `places` says. `ledger` is where paid replies are kept (default:
    ledger.sqlite beside `out`). `look` names another function (`package.module:name`) that takes the same
    settings and writes nothing.
    Raises what the stage raises, and UsageError for wrong settings; the `done` of a PartialError becomes a
    document as above."""
    verb = verb or kind
    kinds = load_dotted("tutelage.recipe.stages:KINDS") if kinds is None else kinds
    given = {name: value for name, value in settings.items() if value is not None}
    for name, value in (inputs or {}).items():
        if value is not None:
            given[name] = _as_input(kinds[kind], name, value)
    recipe = build_recipe(
        {"name": verb, "seeds": [seed], "threads": threads(), "stages": {verb: {"kind": kind, **given}}},
        overrides=[f"stages.{verb}.{each}" for each in overrides],
        kinds=kinds,
        source=f"tutelage {verb}",
        hidden=2,
    )
    (job,) = plan_jobs(recipe)
    out = _free(out)
    put = {name: _free(path) for name, path in (places or {}).items()}
    for index, (name, path) in enumerate(job.outputs):
        if name not in put:
            put[name] = out if index == 0 else _free(out.with_name(f"{out.stem}-{name}{Path(path).suffix}"))
    message = job_message(recipe, job, out.parent, {})
    message["outputs"] = {name: str(path) for name, path in put.items()}
    message["ledger"] = str((ledger or out.parent / "ledger.sqlite").absolute())
    if look:
        message |= {"run": look, "outputs": {}}

    def send(heard: Mapping[str, Any]) -> None:
        if progress is not None:
            progress(*heard["progress"])

    try:
        metrics, _ = perform(message, send)
    except PartialError as error:
        if error.done:
            written = {name: path for name, path in message["outputs"].items() if Path(path).exists()}
            error.done = {"metrics": error.done, "outputs": written}
        raise
    except OSError as error:
        stored = storage_error(error, f"tutelage {verb}")
        raise stored or error from error
    return {"metrics": metrics, "outputs": message["outputs"]}


def _as_input(kind: StageKind, name: str, value: str | Sequence[str]) -> Any:
    """`value` as the setting `name` wants it: files are given to it as `file:PATH` where it names stages."""
    info = kind.config.model_fields.get(name)
    several = info is not None and get_origin(info.annotation) in (tuple, list)
    texts = [value] if isinstance(value, str) else list(value)
    if info is not None and isinstance(marker_of(info), InputRef):
        texts = [FILE_PREFIX + text for text in texts]
    return texts if several or not isinstance(value, str) else texts[0]


def _free(path: Path) -> Path:
    """The place of an output, absolute. A stage replaces whole folders: a folder with files in it is not
    ours."""
    path = path.absolute()
    if path.is_dir() and any(path.iterdir()):
        raise UsageError(f"{path}: this folder exists and is not empty; give a new place")
    return path


def threads() -> int:
    """As many compute threads as the user allows, else one per core."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdecimal() and int(wanted) > 0:
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
