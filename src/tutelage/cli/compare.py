"""`tutelage compare`: is one set of answers better than another?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tutelage.cli.output import AsJson, emit


def compare(
    a: Annotated[Path, typer.Argument(help="Verdicts of one model, or what evaluate wrote.")],
    b: Annotated[Path, typer.Argument(help="Verdicts of another on the same questions.")],
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the bootstrap.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Compare two models on the same questions.

    The difference in accuracy (A minus B) with its paired 95 % interval. An undecided answer counts as
    not right, and is counted.

    \b
    Examples:
      tutelage compare teacher.parquet human.parquet
      tutelage compare runs/eval-after runs/eval-before --json
    """
    from tutelage.recipe.pairing import compare_files

    found = compare_files(a, b, seed=seed)
    lo, hi = found["ci95"]
    text = (
        f"{found['a']} minus {found['b']}: {found['difference']:+.1%}, 95 % interval {lo:+.1%} to {hi:+.1%} "
        f"(n = {found['n']} questions, p = {found['p']:.2g}, {found['test']}); "
        f"undecided: {found['undecided'][0]} and {found['undecided'][1]}"
    )
    emit(found, text, as_json)
