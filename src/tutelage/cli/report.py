"""`tutelage report`: write the page of a finished run again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tutelage.cli.output import AsJson, emit


def report(
    run_dir: Annotated[Path, typer.Argument(help="A run folder.")],
    as_json: AsJson = False,
) -> None:
    """Write the report of a finished run again.

    From what the run folder holds; nothing else runs.

    \b
    Examples:
      tutelage report runs/demo
    """
    from tutelage.recipe.again import report_again

    pages = report_again(run_dir)
    written = [str(page) for page in pages]
    emit({"run_dir": str(run_dir), "outputs": written}, "\n".join(written), as_json)
