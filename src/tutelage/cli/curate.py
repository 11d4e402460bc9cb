"""`tutelage curate`: choose what to learn from, check a file against benchmarks, say why a record is gone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from tutelage.cli.options import Checker, Seed, Settings, comma_list, shown
from tutelage.cli.output import AsJson, emit
from tutelage.errors import UsageError


def curate(
    more: Annotated[
        list[str] | None, typer.Argument(metavar="[BENCH]...", help="More benchmarks, after --against.")
    ] = None,
    traces: Annotated[
        str | None,
        typer.Option(
            "--traces",
            metavar="FILE",
            help="The pool: traces of collect, or recorded ones with their questions.",
        ),
    ] = None,
    problems: Annotated[
        Path | None,
        typer.Option(
            "--problems",
            metavar="FILE",
            help="Questions of --traces.  [default: problems.parquet beside them]",
        ),
    ] = None,
    verdicts: Annotated[
        list[str] | None,
        typer.Option("--verdicts", metavar="FILE", help="Verdicts on the traces; repeatable."),
    ] = None,
    method: Annotated[
        Literal["s1", "s1-code", "random", "diverse", "longest", "full", "facility", "long-short"],
        typer.Option("--method", help="How the target is chosen."),
    ] = "s1",
    target: Annotated[
        int | None, typer.Option("--target", min=1, help="How many problems to keep.  [default: all]")
    ] = None,
    seed: Seed = 0,
    keep: Annotated[
        Literal["all", "correct"] | None,
        typer.Option("--keep", help="Right and wrong traces, or right ones only."),
    ] = None,
    prefer: Annotated[
        Literal["first", "longest", "shortest", "limo"] | None,
        typer.Option("--prefer", help="Which trace of a problem."),
    ] = None,
    solvers: Annotated[
        list[str] | None,
        typer.Option(
            "--solver",
            metavar="NAME=FILE|KIND:MODEL",
            help="Verdicts on a solver's attempts, or a model to be asked (openai:MODEL, ...); repeatable.",
        ),
    ] = None,
    solver_url: Annotated[
        str | None, typer.Option("--solver-url", metavar="URL", help="The solvers' server, up to /v1.")
    ] = None,
    attempts: Annotated[int, typer.Option("--attempts", min=1, help="Attempts of each solver.")] = 1,
    check: Annotated[
        str | None,
        typer.Option(
            "--check", metavar="FILE", help="Only look for benchmark items in the rows of this file."
        ),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            "--against", metavar="BENCH", help="A benchmark: a file, or hub:owner/name; repeatable."
        ),
    ] = None,
    against_column: Annotated[
        str | None,
        typer.Option("--against-column", metavar="NAME", help="Where the benchmarks' questions are."),
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            "--column",
            metavar="NAME|OURS=THEIRS",
            help="Where the questions are, or which column is what (answer=response); repeatable.",
        ),
    ] = None,
    detectors: Annotated[
        str | None,
        typer.Option("--detectors", metavar="A,B", help="exact, ngram-N, overlap, numbers, fuzzy."),
    ] = None,
    allow: Annotated[
        Path | None,
        typer.Option("--allow", metavar="FILE", help="Lines of boilerplate that count for nothing."),
    ] = None,
    meaning: Annotated[
        str | None,
        typer.Option(
            "--meaning",
            metavar="words|MODEL",
            help="Look for other wordings too, by words or by an encoder (folder or Hub name).",
        ),
    ] = None,
    meaning_least: Annotated[
        float | None,
        typer.Option("--meaning-least", metavar="SHARE", help="How alike they must be.  [default: 0.8]"),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            "--judge", metavar="openai:MODEL", help="A model confirms what --meaning found.  [default: none]"
        ),
    ] = None,
    judge_url: Annotated[
        str | None, typer.Option("--judge-url", metavar="URL", help="Its server, up to /v1.")
    ] = None,
    why: Annotated[
        str | None, typer.Option("--why", metavar="ID", help="Say what became of a record of --out.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="The folder of the result.")
    ] = None,
    checker: Checker = None,
    engine: Annotated[
        Literal["local", "ray"], typer.Option("--engine", help="This machine, or a Ray cluster.")
    ] = "local",
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="How many parts are looked at at once.  [default: cores]"),
    ] = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Choose what to learn from, and keep the reason for every drop.

    \b
    Examples:
      tutelage curate --traces runs/traces/data/traces.parquet --target 1000 --out runs/chosen
      tutelage curate --traces recorded.jsonl --target 1000 --against test.jsonl --out runs/chosen \\
        --solver small=small-verdicts.parquet --solver openai:m --solver-url http://host:8000/v1
      tutelage curate --check train.jsonl --against test.jsonl other.jsonl --out runs/check --json
      tutelage curate --why ID --out runs/chosen
    """
    from tutelage.recipe import contamination, curating
    from tutelage.recipe.given import column_pairs
    from tutelage.recipe.single import threads

    modes = [
        name
        for name, value in (("--traces", traces), ("--check", check), ("--why", why))
        if value is not None
    ]
    if len(modes) != 1:
        raise UsageError(
            f"tutelage curate: {' and '.join(modes) or 'nothing to do'}; give one of --traces, --check, --why"
        )
    if out is None:
        raise UsageError(f"tutelage curate: {modes[0]} needs --out DIR")
    of_check: dict[str, object] = {
        "--against": against,
        "--against-column": against_column,
        "--column": columns,
        "--detectors": detectors,
        "--allow": allow,
        "--meaning": meaning,
        "--engine ray": engine != "local",
        "--workers": workers,
    }
    of_traces: dict[str, object] = {
        "--problems": problems,
        "--verdicts": verdicts,
        f"--method {method}": method != "s1",
        "--target": target,
        "--seed": seed,
        "--keep": keep,
        "--prefer": prefer,
        "--solver": solvers,
        "--solver-url": solver_url,
        "--attempts": attempts != 1,
        "--checker": checker,
        "--set": settings,
    }
    stray = [] if traces else [*of_traces.items()]
    stray += [*of_check.items()] if why is not None else []
    if found := [name for name, value in stray if value]:
        raise UsageError(f"tutelage curate: {found[0]} has no part in {modes[0]}; leave it out")
    if more and not against:
        raise UsageError(f"tutelage curate: {more[0]}: benchmarks come after --against")
    if why is not None:
        told = curating.why(out, why)
        emit(told, curating.why_text(told), as_json)
        return
    benchmarks = [*(against or ()), *(more or ())]
    named = comma_list(detectors, "--detectors")
    by_meaning = contamination.meaning_settings(meaning, meaning_least, judge, judge_url)
    if check is not None:
        single = [each.removeprefix("question=") for each in columns or ()]
        if len(single) > 1 or any("=" in each for each in single):
            raise UsageError("tutelage curate --check: --column names the column of the questions, once")
        document = shown(
            "curate",
            lambda progress: contamination.check_file(
                check,
                benchmarks,
                out,
                column=single[0] if single else None,
                against_column=against_column,
                detectors=named or None,
                allow=allow,
                meaning=by_meaning,
                engine=engine,
                workers=workers or threads(),
                progress=progress,
            ),
        )
        emit(document, contamination.check_text(document), as_json)
        return
    assert traces is not None
    pool = traces
    pairs = column_pairs([each if "=" in each else f"question={each}" for each in columns or ()])
    given = {
        "method": method,
        "target": target,
        "seed": seed,
        "keep": keep,
        "prefer": prefer,
        "against": benchmarks or None,
        "against_column": against_column,
        "detectors": named,
        "allow": str(allow) if allow else None,
        "meaning": by_meaning,
        "engine": engine,
        "workers": workers,
    }
    document = shown(
        "curate",
        lambda progress: curating.curate_folder(
            pool,
            out,
            given,
            problems=problems,
            verdicts=verdicts or (),
            columns=pairs,
            checker=checker,
            solvers=solvers or (),
            solver_url=solver_url,
            attempts=attempts,
            overrides=settings or (),
            progress=progress,
        ),
    )
    emit(document, curating.as_text(document), as_json)
