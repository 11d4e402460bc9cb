"""Options that several verbs share, and the way a verb runs its stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from tutelage.cli.output import emit

Problems = Annotated[
    str,
    typer.Option(
        "--problems",
        metavar="FILE",
        help="Questions: .jsonl, .json, .parquet, hub:owner/name, or gym:TASK.",
    ),
]
Out = Annotated[Path, typer.Option("--out", metavar="PATH", help="Where the result goes.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Only the first so many questions.")]
Checker = Annotated[
    str | None,
    typer.Option(
        "--checker",
        help="How answers are judged: exact, number, math, choice, code, gym:TASK, or file.py:function.",
    ),
]
Columns = Annotated[
    list[str] | None,
    typer.Option("--column", metavar="OURS=THEIRS", help="Name a column, e.g. question=problem; repeatable."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any other setting the stage has in a recipe."),
]
Progress = Callable[[int, int, str], None]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")]
Ledger = Annotated[
    Path | None,
    typer.Option("--ledger", help="Where paid replies are kept.  [default: ledger.sqlite beside --out]"),
]


def run_stage(
    verb: str,
    out: Path,
    *,
    settings: Mapping[str, Any],
    inputs: Mapping[str, str | Sequence[str] | None],
    overrides: Sequence[str] | None,
    as_json: bool,
    seed: int = 0,
    ledger: Path | None = None,
) -> None:
    """Run the stage of the kind `verb` in this process, with progress on stderr, and print what came of
    it."""
    from tutelage.recipe.single import run_single

    result = shown(
        verb,
        lambda progress: run_single(
            verb,
            settings,
            out,
            inputs=inputs,
            seed=seed,
            ledger=ledger,
            overrides=overrides or (),
            progress=progress,
        ),
    )
    plain = {name: each for name, each in result["metrics"].items() if not isinstance(each, dict)}
    lines = [f"{name}: {each}" for name, each in plain.items()]
    places = [f"wrote {path}" for path in result["outputs"].values()]
    emit(result, "\n".join([*lines, *places]), as_json)


def shown(verb: str, work: Callable[[Progress], dict[str, Any]]) -> dict[str, Any]:
    """What `work` gives; what it says about its progress is shown on stderr."""
    from rich.console import Console

    from tutelage.recipe.display import Display

    def heard(done: int, total: int, note: str) -> None:
        display.progress(verb, done, total, note)
        display.tick(None)

    with Display(Console(stderr=True), 1) as display:
        display.started(verb)
        return work(heard)
