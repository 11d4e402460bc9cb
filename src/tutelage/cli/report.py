"""`tutelage report`: write the page of a finished run again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tutelage.cli.output import AsJson, emit


def report(
    run_dir: Annotated[Path, typer.Argument(help="A run folder.")],
    into: Annotated[
        Path | None,
        typer.Option(
            "--into", help="Write its tables into this Markdown file, between <!-- run NAME --> marks."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="NAME in those marks.  [default: the folder's name]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the report of a finished run again.

    From what the run folder holds; nothing else runs.

    \b
    Examples:
      tutelage report runs/demo
      tutelage report runs/demo --into docs/results.md
    """
    from tutelage.recipe.again import report_again, write_tables

    if into is not None:
        write_tables(run_dir, into, name or run_dir.resolve().name)
        emit(
            {"run_dir": str(run_dir), "outputs": [str(into)]},
            f"tables of {run_dir} written into {into}",
            as_json,
        )
        return
    pages = report_again(run_dir)
    written = [str(page) for page in pages]
    emit({"run_dir": str(run_dir), "outputs": written}, "\n".join(written), as_json)
