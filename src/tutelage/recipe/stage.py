"""What a stage is: its settings, what it reads, what it writes, and the function that does the work.

Promises: declaring a stage kind imports no heavy library (the function is named as text and loaded by
the worker that runs it); an input is found by its marker, wherever it sits in the settings.
Does not: know any room (see `stages`), order stages (see `plan`) or run them (see `run`).

A kind in short::

    class TrainConfig(StageConfig):
        problems: Annotated[str, InputRef("problems")]
        steps: int = 300

    StageKind("sft", TrainConfig, run="tutelage.recipe.jobs:sft",
              outputs=(Output("model", "models/{job}", "model"),), per_seed=True, expected_s=20.0)

    def train(ctx: JobContext[TrainConfig]) -> dict[str, Any]:
        problems = read_records(ctx.path("problems"), Problem)
        ...                                    # write ctx.outputs["model"], whole or not at all
        return {"loss": 0.1}                   # JSON; kept in the manifest
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo

from tutelage.errors import UsageError

Progress = Callable[[int, int, str], None]


class Settings(BaseModel):
    """Base of every block of settings: unknown keys are refused, values are not changed after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class StageConfig(Settings):
    """Base of the settings of a stage. `kind` names the StageKind."""

    kind: str


Config = TypeVar("Config", bound=StageConfig, covariant=True)


@dataclass(frozen=True)
class InputRef:
    """Marks a text field (or a list or mapping of texts) as the name of another stage's output.

    The value is `stage` (its first output), `stage.output`, or `file:PATH` for a file or folder that no
    stage made. `types` are the accepted `Output.type`s; none means any. Between two per-seed stages the
    same seed is meant; a stage that is not per seed receives one source for each seed."""

    types: tuple[str, ...] = ()

    def __init__(self, *types: str) -> None:
        object.__setattr__(self, "types", types)


@dataclass(frozen=True)
class InputPath:
    """Marks a text field as a local file or folder whose content is an input, so that a change runs the
    stage again.

    The path is looked up beside the recipe, then in the current folder, and is handed on absolute.
    `file.py:name` (a user's function) counts as `file.py`. `or_name`: a value that is no such file is
    left as it is (a Hub or package name); `or_hub`: one that begins with `hub:` is; otherwise it is
    refused."""

    or_name: bool = False
    or_hub: bool = False

    def names(self, value: str) -> bool:
        """Whether `value` may be something else than a file."""
        return self.or_name or (self.or_hub and value.startswith("hub:"))


Ref = Annotated[str, InputRef()]
LocalOrName = Annotated[str, InputPath(or_name=True)]
LocalOrHub = Annotated[str, InputPath(or_hub=True)]


@dataclass(frozen=True)
class Output:
    """One file or folder that a stage leaves. `path` is relative to the run folder and may use `{stage}`
    (its name in the recipe), `{seed}` and `{job}` (`stage`, or `stage-seed0` for a per-seed stage)."""

    name: str
    path: str
    type: str = ""


@dataclass(frozen=True)
class StageKind:
    """One kind of stage. `run` is `package.module:function`; `version` is raised whenever the code of
    the stage changes what it writes, so that old outputs are made again; `expected_s` is a guess of the
    seconds it takes (number, or a function of the settings), used for the order of work and the time
    left; `sees_run` hands the whole manifest to the job (a report)."""

    name: str
    config: type[StageConfig]
    run: str
    outputs: tuple[Output, ...]
    per_seed: bool = False
    expected_s: float | Callable[[Any], float] = 1.0
    version: int = 1
    sees_run: bool = False
    about: str = ""

    def seconds(self, config: StageConfig) -> float:
        """The guess of the seconds one job takes."""
        return float(self.expected_s(config)) if callable(self.expected_s) else float(self.expected_s)

    def output(self, name: str) -> Output | None:
        """The output of that name ("": the first one), or None."""
        if not name:
            return self.outputs[0] if self.outputs else None
        return next((output for output in self.outputs if output.name == name), None)


@dataclass(frozen=True)
class Source:
    """One input as a job receives it: `key` is the place in a list ("0", "1", …) or mapping, "" for a
    plain field; `stage` is "" and `seed` None for a `file:` input; `seed` is None when the stage is not
    per seed."""

    key: str
    stage: str
    output: str
    seed: int | None
    path: Path


@dataclass(frozen=True)
class JobContext(Generic[Config]):
    """Everything a stage function gets.

    `inputs` by settings field (`"problems"`; nested fields dotted, `"teacher.traces"`); `outputs` by
    output name, to be written whole or not at all; `seed` is None when the stage is not per seed. `run`
    is the plain content of the manifest with `wall_s` and the resolved recipe (empty unless the kind
    `sees_run`)."""

    run_dir: Path
    job_id: str
    stage: str
    seed: int | None
    config: Config
    inputs: Mapping[str, tuple[Source, ...]]
    outputs: Mapping[str, Path]
    ledger_path: Path
    threads: int
    progress: Progress
    run: Mapping[str, Any] = field(default_factory=dict)

    def path(self, name: str) -> Path:
        """The path of the input `name`, of which there is exactly one.

        Raises KeyError where the field is not an input or not set (a defect of the stage, not of the
        user)."""
        (source,) = self.inputs[name]
        return source.path

    def maybe(self, name: str) -> Path | None:
        """Like `path`, but None where an optional input is not set."""
        return self.path(name) if self.inputs.get(name) else None


@dataclass(frozen=True)
class Marked:
    """A marked value found in some settings: `field` and `key` as in JobContext.inputs and Source, `place`
    the keys that lead to it (`("evaluations", 0)`)."""

    field: str
    key: str
    place: tuple[str | int, ...]
    value: str
    marker: InputRef | InputPath


def marked(settings: BaseModel, above: tuple[str | int, ...] = ()) -> Iterator[Marked]:
    """Every marked value in `settings`, nested blocks included, in the order of the fields."""
    for name, info in type(settings).model_fields.items():
        place = (*above, name)
        marker = marker_of(info)
        value = getattr(settings, name)
        if marker is None:
            yield from _nested(value, place)
            continue
        dotted = ".".join(str(part) for part in place)
        for key, text in _texts(value):
            yield Marked(dotted, "" if key is None else str(key), (*place, *_some(key)), text, marker)


def _nested(value: Any, place: tuple[str | int, ...]) -> Iterator[Marked]:
    if isinstance(value, BaseModel):
        yield from marked(value, place)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _nested(item, (*place, key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _nested(item, (*place, index))


def _texts(value: Any) -> Iterator[tuple[str | int | None, str]]:
    if isinstance(value, str):
        yield None, value
    elif isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, list | tuple):
        yield from enumerate(value)


def _some(key: str | int | None) -> tuple[str | int, ...]:
    return () if key is None else (key,)


def marker_of(info: FieldInfo) -> InputRef | InputPath | None:
    """The marker of a field of some settings, if it has one."""
    own = next((m for m in info.metadata if isinstance(m, InputRef | InputPath)), None)
    return own or _inner_marker(info.annotation)


def _inner_marker(annotation: Any) -> InputRef | InputPath | None:
    """The marker inside `list[Ref]`, `Ref | None`, `dict[str, Ref]` and the like."""
    for found in getattr(annotation, "__metadata__", ()):
        if isinstance(found, InputRef | InputPath):
            return found
    for inner in getattr(annotation, "__args__", ()):
        marker = _inner_marker(inner)
        if marker is not None:
            return marker
    return None


def load_dotted(name: str) -> Any:
    """The object called `package.module:name`.

    Raises UsageError when it cannot be imported because a package is missing (an extra that is not
    installed)."""
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "tutelage":
            raise
        raise UsageError(
            f"this step needs the Python package {error.name!r}, which is not installed; "
            "try: pip install 'tutelage[all]'"
        ) from error
    return getattr(module, attribute)
