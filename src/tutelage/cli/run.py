"""`tutelage run`: run a recipe, or continue it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tutelage.cli.output import AsJson, emit


def run(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped one, such as lab.")],
    run_dir: Annotated[
        Path | None, typer.Option("--run-dir", help="Where everything goes.  [default: runs/NAME]")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Override a setting, with * in every stage that has it; may be repeated.",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", min=1, help="Only so many training and so many test problems of each source."
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="STAGE", help="Only this stage and what it needs; may be repeated."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, touch nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a recipe, or continue it.

    Finished stages that did not change are kept.

    \b
    Examples:
      tutelage run lab --run-dir runs/demo
      tutelage run lab --run-dir runs/seeds --set seeds=[2,3] --dry-run
      tutelage run smollm2-gsm8k --limit 200 --set problems.train=train.jsonl --set problems.test=test.jsonl
      tutelage run smollm2-gsm8k --set '*.bf16=false' --set '*-full.steps=100'
      tutelage run my-recipe.yaml --set stages.train.steps=200
    """
    from rich.console import Console

    from tutelage.recipe.display import duration
    from tutelage.recipe.load import limited, load_recipe
    from tutelage.recipe.run import run_recipe

    overrides = [*(limited(load_recipe(recipe), limit) if limit else ()), *(settings or ())]
    loaded = load_recipe(recipe, overrides=overrides)
    where = run_dir or Path("runs") / loaded.name
    console = None if dry_run else Console(stderr=True)
    result = run_recipe(loaded, where, console=console, dry_run=dry_run, only=only)
    document = result.to_json()
    if dry_run:
        document["recipe"] = loaded.resolved()
        width = max(len(job.id) for job in result.jobs)
        lines = [f"{job.id:{width}}  {job.state:7}  {duration(job.seconds):>10}" for job in result.jobs]
        head = f"{loaded.to_yaml()}\n# {len(result.jobs)} jobs; about {duration(result.wall_s)} to run\n"
        emit(document, head + "\n".join(f"# {line}" for line in lines), as_json)
        return
    kept = sum(job.state == "kept" for job in result.jobs)
    text = (
        f"{len(result.jobs)} jobs finished ({kept} kept), {duration(result.wall_s)} in all attempts: {where}"
    )
    pages = [path for job in result.jobs for path in job.outputs.values() if path.endswith(".html")]
    emit(document, "\n".join([text, *(f"The report: {where / page}" for page in pages)]), as_json)
