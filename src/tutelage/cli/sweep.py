"""`tutelage sweep`: accuracy against thinking."""

from __future__ import annotations

from typing import Annotated

import typer

from tutelage.cli.options import Checker, Columns, Limit, Out, Problems, Seed, Settings, run_stage
from tutelage.cli.output import AsJson


def sweep(
    model: Annotated[
        str, typer.Option("--model", help="The model: a folder, a Hub name, a GGUF file, or gguf:PACKAGE.")
    ],
    problems: Problems,
    out: Out,
    budgets: Annotated[
        list[int] | None, typer.Option("--budget", help="A cap on thinking tokens; may be repeated.")
    ] = None,
    seed: Seed = 0,
    limit: Limit = None,
    checker: Checker = None,
    columns: Columns = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Measure accuracy against thinking.

    One model under many thinking policies: caps, waits, votes and their controls.

    \b
    Examples:
      tutelage sweep --model models/mine --problems test.jsonl --out curve.json
      tutelage sweep --model models/mine --problems test.jsonl --out curve.json --budget 16 --budget 64
    """
    from tutelage.recipe.given import questions_file, student_folder

    questions = questions_file(problems, out, limit=limit, checker=checker, columns=columns)
    run_stage(
        "sweep",
        out,
        settings={"arm": out.stem, "budgets": budgets or None},
        inputs={
            "model": str(student_folder(model, out)),
            "problems": str(questions),
        },
        overrides=settings,
        as_json=as_json,
        seed=seed,
    )
