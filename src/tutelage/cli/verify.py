"""`tutelage verify`: judge answers or traces, and check gold answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tutelage.cli.options import Columns, Ledger, Settings, shown
from tutelage.cli.output import AsJson, emit, write
from tutelage.errors import PartialError, UsageError


def verify(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="Rows with answers: .jsonl, .json or .parquet.")
    ] = None,
    answer: Annotated[
        str, typer.Option("--answer", metavar="COLUMN", help="FILE: where the answers are.")
    ] = "answer",
    gold: Annotated[
        str, typer.Option("--gold", metavar="COLUMN", help="FILE: the gold answers ('' for none).")
    ] = "gold",
    question: Annotated[
        str, typer.Option("--question", metavar="COLUMN", help="FILE: the questions, for a judge.")
    ] = "",
    identity: Annotated[
        str, typer.Option("--id", metavar="COLUMN", help="FILE: ids  [default: the number of the row]")
    ] = "",
    kind: Annotated[
        str | None,
        typer.Option(
            "--kind",
            "--checker",
            help="exact, number, math, choice, code, gym:TASK, file.py:function  [default: number]",
        ),
    ] = None,
    problems: Annotated[
        str | None,
        typer.Option("--problems", metavar="FILE", help="Instead of FILE: the questions of --traces."),
    ] = None,
    traces: Annotated[
        Path | None, typer.Option("--traces", metavar="FILE", help="Traces, as collect writes them.")
    ] = None,
    gold_file: Annotated[
        str | None,
        typer.Option("--check-gold", metavar="FILE", help="Only check the gold answers of these questions."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="PATH",
            help="Verdicts: .parquet or .jsonl (FILE without it: in the document of --json).",
        ),
    ] = None,
    seconds: Annotated[float | None, typer.Option("--seconds", help="At most, for one verdict.")] = None,
    tolerance: Annotated[
        float | None, typer.Option("--tolerance", min=0, help="Relative, for numbers.  [default: exact]")
    ] = None,
    engine: Annotated[
        Literal["local", "ray"] | None, typer.Option("--engine", help="This machine, or a Ray cluster.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="How many are judged at once.")
    ] = None,
    weaker: Annotated[
        bool,
        typer.Option(
            "--allow-weaker-sandbox", help="Run programs under Landlock where bubblewrap cannot run."
        ),
    ] = False,
    judge: Annotated[
        str | None,
        typer.Option(
            "--judge", metavar="openai:MODEL", help="A model judges what the rules leave undecided."
        ),
    ] = None,
    judge_url: Annotated[
        str | None, typer.Option("--judge-url", metavar="URL", help="Its server, up to /v1.")
    ] = None,
    judge_key_env: Annotated[
        str | None,
        typer.Option("--judge-key-env", metavar="NAME", help="The environment variable with its key."),
    ] = None,
    judge_price: Annotated[
        str | None,
        typer.Option("--judge-price", metavar="PROMPT,COMPLETION", help="US dollars per million tokens."),
    ] = None,
    judge_prices: Annotated[
        str | None,
        typer.Option("--judge-prices", metavar="FILE|genai", help="A price list to look the judge up in."),
    ] = None,
    judge_budget: Annotated[
        str | None, typer.Option("--judge-budget", metavar="USD", help="A hard cap on what it costs.")
    ] = None,
    second_look: Annotated[
        bool, typer.Option("--second-look", help="The judge also looks at what the rules rejected.")
    ] = False,
    agreement: Annotated[
        bool, typer.Option("--agreement", help="Compare the rule with a second parser (and the judge).")
    ] = False,
    ledger: Ledger = None,
    columns: Columns = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Judge answers.

    Each is correct, incorrect or undecided, with the reason.

    \b
    Examples:
      tutelage verify answers.jsonl --answer reply --gold answer --kind number --json
      tutelage verify answers.jsonl --kind math --out verdicts.jsonl --agreement
      tutelage verify --problems q.jsonl --traces traces.parquet --out verdicts.parquet
      tutelage verify --check-gold q.jsonl --kind math
      tutelage verify a.jsonl --question q --out v.parquet --judge openai:gpt-4.1-mini \\
        --judge-prices genai --judge-budget 1
    """
    from tutelage.recipe import collecting, verifying

    chosen = [
        name
        for name, value in (("FILE", file), ("--problems", problems), ("--check-gold", gold_file))
        if value
    ]
    if len(chosen) != 1:
        said = " and ".join(chosen) or "nothing to judge"
        raise UsageError(
            f"tutelage verify: {said}; give one of FILE, --problems with --traces, or --check-gold FILE"
        )
    if gold_file is not None:
        _check_gold(gold_file, kind, columns, seconds, tolerance, workers, weaker, as_json)
        return
    given: dict[str, Any] = {
        "seconds": seconds,
        "tolerance": tolerance,
        "engine": engine,
        "workers": workers,
        "allow_weaker_sandbox": weaker or None,
        "judge": verifying.judge_settings(
            judge,
            judge_url,
            {
                "key_env": judge_key_env,
                "price": collecting.price_settings(judge_price),
                "prices": judge_prices,
                "budget": judge_budget,
            },
        ),
        "second_look": second_look or None,
        "agreement": agreement or None,
    }
    common: dict[str, Any] = {"settings": given, "ledger": ledger, "overrides": settings or ()}
    if file is not None:
        _tell(
            lambda progress: verifying.verify_answers(
                file,
                answer=answer,
                gold=gold,
                kind=kind or "number",
                question=question,
                identity=identity,
                out=out,
                progress=progress,
                **common,
            ),
            as_json,
        )
        return
    if problems is None or traces is None or out is None:
        raise UsageError("tutelage verify: --problems needs --traces FILE and --out PATH")
    _tell(
        lambda progress: verifying.verify_records(
            problems, traces, out=out, checker=kind, columns=columns, progress=progress, **common
        ),
        as_json,
    )


def _check_gold(
    source: str,
    kind: str | None,
    columns: list[str] | None,
    seconds: float | None,
    tolerance: float | None,
    workers: int | None,
    weaker: bool,
    as_json: bool,
) -> None:
    from tutelage.recipe import verifying

    document = shown(
        "verify",
        lambda progress: verifying.check_gold_file(
            source,
            checker=kind,
            columns=columns,
            seconds=seconds,
            tolerance=tolerance,
            workers=workers or 1,
            allow_weaker_sandbox=weaker,
            progress=progress,
        ),
    )
    if not document["failed"]:
        emit(document, verifying.gold_text(document), as_json)
        return
    if not as_json:
        write(verifying.gold_text(document) + "\n")
    count = len({each["id"] for each in document["failed"]})
    said = f"{count} of {document['checked']} gold answers fail; no answer can be judged by them"
    raise PartialError(said, done=document if as_json else None)


def _tell(work: Callable[..., dict[str, Any]], as_json: bool) -> None:
    """Do the work with progress on stderr, and print what came of it, also when it ended early."""
    try:
        document = shown("verify", work)
    except PartialError as error:
        if error.done and not as_json:
            write(_text(error.done) + "\n")
            error.done = {}  # told already
        raise
    emit(document, _text(document), as_json)


def _text(document: dict[str, Any]) -> str:
    from tutelage.recipe import verifying

    counts = document.get("metrics", document)
    text = [verifying.counts_text(counts)] if "methods" in counts else []
    places = [*document.get("outputs", {}).values(), document.get("verdicts")]
    return "\n".join([*text, *(f"wrote {place}" for place in places if isinstance(place, str))])
