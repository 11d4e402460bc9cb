"""Settings of the stages that make a recurrent-depth student of a pretrained one, and heal it: surgery, plain
documents, training on them, and how well they are predicted after.

Promises: importing it loads no heavy library; every setting is used by the stage that has it.
Does not: cut or train (see `recipe.jobs.retrofitting`).
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tutelage.recipe.stage import InputRef, LocalOrName, Output, StageConfig, StageKind
from tutelage.recipe.training import Count, Depth, LaunchFile, Model, Positive, Training

TextFiles = Annotated[str, InputRef("texts")]


class Texts(StageConfig):
    """Plain documents: a `.txt` or `.md` file (one document), a folder of such files, `.jsonl`, `.json`,
    `.parquet` or `hub:owner/name`. Several `columns` are put one after the other. `licence` stands where a
    row tells none."""

    kind: Literal["texts"]
    source: LocalOrName
    columns: Annotated[tuple[str, ...], Field(min_length=1)] = ("text",)
    split: str = "train"
    limit: Positive | None = None
    licence: str = ""


class Pretrain(Training):
    """Next-token training on plain documents, packed into rows of `max_length` tokens: what heals a model
    after surgery. Longer documents become several pieces. `batch` counts packed rows; `launch` as for
    `sft`, `depth` as for `mid-train`."""

    kind: Literal["pretrain"]
    texts: Annotated[tuple[TextFiles, ...], Field(min_length=1)]
    depth: Depth | None = None
    launch: LaunchFile | None = None
    max_length: Positive = 1024


class Retrofit(StageConfig):
    """A pretrained `model` of the families Llama, SmolLM2, Qwen2 and Qwen3 as one of recurrent depth.

    `prelude`, `core` and `coda` are its layers, counted from 0 (`0-3`, `0-2,5`, or nothing); or `layers` says
    how many of each, and they are chosen `by` block influence or angular distance on the first `sample`
    documents of `texts` (the lab's questions without any), `tokens` of each.

    `mean`: the mean number of passes in training, and their number in evaluation; `backprop`: how many carry
    a gradient (null: 8, or the mean where that is less); `most`: the most that may be asked for (null: eight
    times the mean). `start`: what the adapter starts as, in state s and embedding e: `embedding` e, `sum`
    s + e, `mean` their mean, `identity` s + e/2, `noise` as McLeish et al. 2025. `untie` gives the head
    weights of its own, as they do. `state_std` is that of the initial state."""

    kind: Literal["retrofit"]
    model: Model
    prelude: str | None = None
    core: str | None = None
    coda: str | None = None
    layers: tuple[Count, Positive, Count] | None = None
    by: Literal["influence", "angle"] = "angle"
    texts: tuple[TextFiles, ...] = ()
    sample: Positive = 32
    tokens: Annotated[int, Field(ge=2)] = 256
    mean: Positive = 4
    backprop: Positive | None = None
    most: Positive | None = None
    adapter: Literal["linear", "add"] = "linear"
    start: Literal["embedding", "sum", "mean", "identity", "noise"] = "embedding"
    untie: bool = False
    state_std: Annotated[float, Field(ge=0)] = 0.0087
    seed: int = 0

    @model_validator(mode="after")
    def _layers_are_named_or_counted(self) -> Self:
        named = [name for name in ("prelude", "core", "coda") if getattr(self, name) is not None]
        if self.layers is not None and named:
            raise ValueError(f"layers chooses the layers, so {named[0]} cannot name them; leave one out")
        if self.layers is None and self.core is None:
            raise ValueError("name the layers of prelude, core and coda, or give layers (how many of each)")
        if self.layers is None and self.texts:
            raise ValueError("texts are for choosing layers; give layers, or leave texts out")
        return self


class Perplexity(StageConfig):
    """Perplexity of the first `documents` of `texts` after each of `steps` passes of a recurrent student,
    with intervals over documents; these are cut into windows of `window` tokens. A model without loops
    has one."""

    kind: Literal["perplexity"]
    model: Model
    texts: Annotated[tuple[TextFiles, ...], Field(min_length=1)]
    steps: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1, 2, 4, 8)
    documents: Positive = 100
    window: Annotated[int, Field(ge=2)] = 512
    bf16: bool = False
    expected_s: float = 60.0


_JOBS = "tutelage.recipe.jobs.retrofitting"
HEALING: tuple[StageKind, ...] = (
    StageKind("texts", Texts, f"{_JOBS}:texts", (Output("texts", "data/{stage}.texts.parquet", "texts"),)),
    StageKind(
        "retrofit",
        Retrofit,
        f"{_JOBS}:retrofit_model",
        (Output("model", "models/{stage}", "model"),),
        expected_s=30.0,
    ),
    StageKind(
        "pretrain",
        Pretrain,
        f"{_JOBS}:pretrain",
        (Output("model", "models/{job}", "model"), Output("log", "metrics/{job}.jsonl", "log")),
        per_seed=True,
        expected_s=lambda settings: settings.expected_s,
    ),
    StageKind(
        "perplexity",
        Perplexity,
        f"{_JOBS}:perplexity",
        (Output("perplexity", "metrics/{job}.json", "perplexity"),),
        per_seed=True,
        expected_s=lambda settings: settings.expected_s,
    ),
)
