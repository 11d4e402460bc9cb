"""`tutelage collect`: get traces from a teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from tutelage.cli.options import Checker, Columns, Limit, Problems, Settings, shown
from tutelage.cli.output import AsJson, emit, write
from tutelage.errors import PartialError, UsageError


def collect(
    problems: Problems,
    teacher: Annotated[
        str,
        typer.Option(
            "--teacher",
            metavar="KIND:NAME",
            help="openai:MODEL, completions:MODEL, anthropic:MODEL, local:MODEL or replay:FILE.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="The folder of the ledger and the traces.")
    ],
    base_url: Annotated[
        str | None, typer.Option("--base-url", metavar="URL", help="A server's address, up to /v1.")
    ] = None,
    key_env: Annotated[
        str | None,
        typer.Option("--key-env", metavar="NAME", help="The NAME of the environment variable with the key."),
    ] = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Replies for each question.")] = 1,
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="The system message.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", min=1, help="Limit of one reply.")] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", min=0)] = None,
    reasoning: Annotated[
        bool, typer.Option("--reasoning", help="Stop when the first replies hold no thinking.")
    ] = False,
    price: Annotated[
        str | None,
        typer.Option("--price", metavar="PROMPT,COMPLETION", help="US dollars per million tokens."),
    ] = None,
    prices: Annotated[
        str | None,
        typer.Option("--prices", metavar="FILE|genai", help="A price list to look the model up in."),
    ] = None,
    budget: Annotated[
        str | None, typer.Option("--budget", metavar="DOLLARS", help="A hard cap on what is spent.")
    ] = None,
    pilot: Annotated[
        int, typer.Option("--pilot", min=0, help="Buy and judge so many first, and say what the rest costs.")
    ] = 20,
    pilot_only: Annotated[bool, typer.Option("--pilot-only", help="Stop after the pilot.")] = False,
    retry: Annotated[
        str | None,
        typer.Option("--retry", metavar="FILTER", help="Buy chosen traces again: finish_reason=length."),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Buy nothing; say what is in the ledger, and why not.")
    ] = False,
    limit: Limit = None,
    checker: Checker = None,
    columns: Columns = None,
    engine: Annotated[
        Literal["local", "ray"], typer.Option("--engine", help="This process, or a Ray cluster.")
    ] = "local",
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Get traces from a teacher.

    Every reply is kept in DIR/ledger.sqlite and is never bought twice: the same command continues.

    \b
    Examples:
      tutelage collect --problems q.jsonl --teacher openai:m --base-url http://host:8000/v1 --out runs/m
      tutelage collect --problems q.jsonl --teacher anthropic:MODEL --out runs/a --samples 4 \\
        --max-tokens 8192 --price 3,15 --budget 5.00
      tutelage collect --problems q.jsonl --teacher openai:m --base-url http://host:8000/v1 --out runs/m \\
        --retry finish_reason=length --set max_tokens=32768
      tutelage collect --problems q.jsonl --teacher replay:deepseek.jsonl --out runs/r
    """
    from tutelage.problems.files import read_problems
    from tutelage.recipe import collecting
    from tutelage.recipe.given import column_pairs

    if pilot_only and (explain or retry is not None or pilot == 0):
        raise UsageError(
            "tutelage collect: --pilot-only needs --pilot, and goes without --retry and --explain"
        )
    options = {
        "key_env": key_env,
        "system": system,
        "max_tokens": max_tokens,
        "sampling": None if temperature is None else {"temperature": temperature},
        "reasoning": reasoning or None,
        "price": collecting.price_settings(price),
        "prices": prices,
        "budget": budget,
    }
    stage = {
        "teacher": collecting.teacher_settings(teacher, base_url, options),
        "samples": samples,
        "pilot": pilot,
        "pilot_only": pilot_only,
        "engine": engine,
    }
    questions = read_problems(
        problems, columns=column_pairs(columns) or None, checker=checker or "number", limit=limit
    )
    if explain:
        document = collecting.explain_folder(out, questions, stage, retry=retry, overrides=settings or ())
        emit(document, collecting.explanation_text(document), as_json)
        return
    try:
        document = shown(
            "collect",
            lambda progress: collecting.collect_folder(
                out, questions, stage, retry=retry, overrides=settings or (), progress=progress
            ),
        )
    except PartialError as error:
        if error.done and not as_json:
            write(collecting.as_text(error.done) + "\n")
        raise
    emit(document, collecting.as_text(document), as_json)
