"""Options that several verbs share, and the way a verb runs its stage."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from tutelage.cli.output import emit
from tutelage.errors import UsageError

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
_ITEM = re.compile(r'(?:\s*"((?:[^"]|"")*)"\s*|([^",]*))(,|$)')


def comma_list(text: str | None, option: str) -> list[str] | None:
    """The items of `a,b,"c, d"`: commas part them, except between double quotes (`""` is a quote there).
    White space is kept.

    Raises UsageError for a quote that does not end, or an empty item that is not quoted."""
    if text is None:
        return None
    items: list[str] = []
    rest, more = text, ","
    while more:
        found = _ITEM.match(rest)
        if found is None or (found[1] is None and not found[2].strip()):
            raise UsageError(f'{option} {text}: write items with commas between them, such as a,b or "a,",b')
        items.append(found[2] if found[1] is None else found[1].replace('""', '"'))
        rest, more = rest[found.end() :], found[3]
    return items


def comma_numbers(text: str | None, option: str, kind: Callable[[str], float] = int) -> list[float] | None:
    """The numbers of `0,32,64`. Raises UsageError for what is not one."""
    items = comma_list(text, option)
    try:
        return None if items is None else [kind(item) for item in items]
    except ValueError as error:
        raise UsageError(
            f"{option} {text}: write numbers with commas between them, such as 0,32,64"
        ) from error


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
    kind: str = "",
) -> None:
    """Run the stage of the kind `kind` (default: `verb`) in this process, with progress on stderr, and print
    what came of it."""
    result = stage_result(
        verb, out, settings=settings, inputs=inputs, overrides=overrides, seed=seed, ledger=ledger, kind=kind
    )
    plain = {name: each for name, each in result["metrics"].items() if not isinstance(each, dict)}
    lines = [f"{name}: {each}" for name, each in plain.items()]
    emit(result, "\n".join([*lines, *written(result)]), as_json)


def written(result: Mapping[str, Any]) -> list[str]:
    """Where the outputs of a stage are, in lines for people."""
    return [f"wrote {path}" for path in result["outputs"].values()]


def stage_result(
    verb: str,
    out: Path,
    *,
    settings: Mapping[str, Any],
    inputs: Mapping[str, str | Sequence[str] | None],
    overrides: Sequence[str] | None,
    seed: int = 0,
    ledger: Path | None = None,
    kind: str = "",
) -> dict[str, Any]:
    """What `run_single` gives for the stage of the kind `kind` (default: `verb`), with progress on stderr."""
    from tutelage.recipe.single import run_single

    return shown(
        verb,
        lambda progress: run_single(
            kind or verb,
            settings,
            out,
            inputs=inputs,
            verb=verb,
            seed=seed,
            ledger=ledger,
            overrides=overrides or (),
            progress=progress,
        ),
    )


def shown(verb: str, work: Callable[[Progress], dict[str, Any]]) -> dict[str, Any]:
    """What `work` gives; what it says about its progress is shown on stderr."""
    from rich.console import Console

    from tutelage.recipe.display import Display
    from tutelage.train.ranks import is_first

    if not is_first():
        return work(lambda done, total, note: None)

    def heard(done: int, total: int, note: str) -> None:
        display.progress(verb, done, total, note)
        display.tick(None)

    with Display(Console(stderr=True), 1) as display:
        display.started(verb)
        return work(heard)
