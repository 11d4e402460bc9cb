"""`tutelage collect`: get traces from a teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tutelage.cli.options import Checker, Columns, Ledger, Limit, Out, Problems, Settings, run_stage
from tutelage.cli.output import AsJson
from tutelage.errors import UsageError


def collect(
    problems: Problems,
    out: Out,
    url: Annotated[
        str | None,
        typer.Option("--url", help="An OpenAI-compatible server, up to /v1."),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="The model to ask for there.")] = None,
    key_env: Annotated[
        str | None, typer.Option("--key-env", metavar="NAME", help="The environment variable with the key.")
    ] = None,
    recorded: Annotated[
        Path | None, typer.Option("--recorded", metavar="FILE", help="Recorded traces instead of a server.")
    ] = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Replies for each question.")] = 1,
    ledger: Ledger = None,
    limit: Limit = None,
    checker: Checker = None,
    columns: Columns = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Get traces from a teacher.

    Every reply is kept in the ledger and never bought twice.

    \b
    Examples:
      tutelage collect --problems q.jsonl --out traces.parquet --url http://localhost:8000/v1 --model m
      tutelage collect --problems q.jsonl --out traces.parquet --recorded deepseek.jsonl
      tutelage collect --problems q.jsonl --out t.parquet --url https://host/v1 --model m --key-env KEY \\
        --samples 4 --set teacher.max_tokens=8000 --set teacher.budget=5
    """
    from tutelage.recipe.given import questions_file

    if (recorded is None) == (url is None):
        raise UsageError("tutelage collect: give either --url (a server) or --recorded (a file)")
    teacher: dict[str, Any] = {"kind": "endpoint", "base_url": url, "model": model, "key_env": key_env}
    if recorded is not None:
        teacher = {"kind": "replay", "name": recorded.stem, "path": str(recorded)}
    elif model is None:
        raise UsageError("tutelage collect: --url needs --model, the name of the model on that server")
    questions = questions_file(problems, out, limit=limit, checker=checker, columns=columns)
    run_stage(
        "collect",
        out,
        settings={
            "teacher": {name: value for name, value in teacher.items() if value is not None},
            "samples": samples,
        },
        inputs={"problems": str(questions)},
        overrides=settings,
        as_json=as_json,
        ledger=ledger,
    )
