"""`tutelage verify`: judge traces."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tutelage.cli.options import Checker, Columns, Out, Problems, Settings, run_stage
from tutelage.cli.output import AsJson


def verify(
    problems: Problems,
    traces: Annotated[Path, typer.Option("--traces", metavar="FILE", help="Traces, as collect writes them.")],
    out: Out,
    checker: Checker = None,
    columns: Columns = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Judge traces.

    Each is correct, incorrect or undecided, with the reason.

    \b
    Examples:
      tutelage verify --problems q.jsonl --traces traces.parquet --out verdicts.parquet
      tutelage verify --problems q.jsonl --traces t.parquet --out v.parquet --checker checker.py:check
    """
    from tutelage.recipe.given import questions_file

    questions = questions_file(problems, out, checker=checker, columns=columns)
    run_stage(
        "verify",
        out,
        settings={},
        inputs={
            "problems": str(questions),
            "traces": str(traces),
        },
        overrides=settings,
        as_json=as_json,
    )
