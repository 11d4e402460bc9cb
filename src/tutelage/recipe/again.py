"""The report of a finished run, made again from its folder, and its tables in a document.

Promises: runs the stages that show the run (`sees_run`) and nothing else; an unfinished run is refused
with what is missing.
Does not: render (the stage does).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from tutelage.errors import UsageError
from tutelage.recipe.files import write_text
from tutelage.recipe.load import load_recipe
from tutelage.recipe.run import run_recipe
from tutelage.recipe.stage import StageKind
from tutelage.report.tables import insert, markdown


def report_again(run_dir: Path, *, kinds: Mapping[str, StageKind] | None = None) -> list[Path]:
    """Run the report stages of the run in `run_dir` again; gives what they wrote.

    Raises UsageError when the folder is no run folder, the run is unfinished, or its recipe has no report."""
    if not (run_dir / "recipe.yaml").is_file() or not (run_dir / "manifest.json").is_file():
        raise UsageError(f"{run_dir}: not a run folder (no recipe.yaml and manifest.json)")
    recipe = load_recipe(run_dir / "recipe.yaml", kinds=kinds)
    showing = [stage for stage in recipe.stages if recipe.kind(stage).sees_run]
    if not showing:
        raise UsageError(f"{run_dir}: its recipe has no report stage")
    plan = run_recipe(recipe, run_dir, dry_run=True, again=showing)
    missing = [job.id for job in plan.jobs if job.state != "kept" and job.stage not in showing]
    if missing:
        raise UsageError(
            f"{run_dir}: {len(missing)} jobs are not finished ({', '.join(missing[:3])}"
            f"{', ...' if len(missing) > 3 else ''}); finish it first: "
            f"tutelage run {run_dir / 'recipe.yaml'} --run-dir {run_dir}"
        )
    result = run_recipe(recipe, run_dir, again=showing)
    return [run_dir / path for job in result.jobs if job.stage in showing for path in job.outputs.values()]


def write_tables(run_dir: Path, document: Path, name: str) -> None:
    """Write the tables of the run in `run_dir` into the block `name` of the Markdown file `document`.

    Raises UsageError when the run has no summary yet, or the document has no such block."""
    summary = run_dir / "metrics" / "summary.json"
    if not summary.is_file():
        raise UsageError(f"{run_dir}: no metrics/summary.json; finish the run first")
    if not document.is_file():
        raise UsageError(f"{document}: no such file")
    try:
        # Bytes, so that the line ends of the rest of the document stay as they are.
        before = document.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{document}: not UTF-8 text (byte {error.start})") from error
    try:
        text = insert(before, name, markdown(json.loads(summary.read_text(encoding="utf-8"))))
    except UsageError as error:
        raise UsageError(f"{document}: {error}") from error
    write_text(document, text)
