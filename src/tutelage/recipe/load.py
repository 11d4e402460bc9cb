"""A recipe: read, overridden, checked, with every path resolved.

Promises: what `load_recipe` returns can be planned or the call raises one UsageError whose line names the
file, the line and the key (`recipe.yaml:12: stages.arm.steps: ...`); unknown keys and wrong types are
refused; `resolved` gives YAML that loads to the same recipe again.
Does not: look at what stages refer to (see `plan`), or read data.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field

import tutelage
from tutelage.errors import UsageError
from tutelage.recipe.document import Document, Place, nearest, override, read_document
from tutelage.recipe.settings import Model, validated
from tutelage.recipe.stage import InputPath, Settings, StageConfig, StageKind, load_dotted, marked

SHIPPED = Path(tutelage.__file__).parent / "recipes"
FILE_PREFIX = "file:"
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")
_FUNCTION = re.compile(r"^(?P<file>.+\.py):(?P<name>[A-Za-z_]\w*)$")


class RecipeSettings(Settings):
    """The top level of a recipe file."""

    name: str = Field(min_length=1, max_length=100)
    title: str = ""
    about: str = ""
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = (0,)
    workers: int = Field(default=1, ge=1, le=256)
    threads: int = Field(default=1, ge=1, le=1024)
    stages: dict[str, Any] = Field(min_length=1)


@dataclass(frozen=True)
class Recipe:
    """A checked recipe. `workers` jobs run at the same time, each with `threads` compute threads; per-seed
    stages run once for each of `seeds`. `document` keeps the lines for messages."""

    name: str
    title: str
    about: str
    seeds: tuple[int, ...]
    workers: int
    threads: int
    stages: Mapping[str, StageConfig]
    kinds: Mapping[str, StageKind]
    document: Document

    def kind(self, stage: str) -> StageKind:
        """The kind of the stage of that name."""
        return self.kinds[self.stages[stage].kind]

    def resolved(self) -> dict[str, Any]:
        """The whole recipe as plain data, defaults written out and paths absolute."""
        return {
            "name": self.name,
            "title": self.title,
            "about": self.about,
            "seeds": list(self.seeds),
            "workers": self.workers,
            "threads": self.threads,
            "stages": {name: config.model_dump(mode="json") for name, config in self.stages.items()},
        }

    def to_yaml(self) -> str:
        """`resolved` as YAML text."""
        head = f"# The recipe as it ran: defaults written out. From {self.document.source}.\n"
        body = yaml.dump(self.resolved(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
        return head + body


class _Dumper(yaml.SafeDumper):
    """Quotes text that our YAML reader would take for a number, which plain YAML 1.1 leaves bare (`1e-3`)."""


def _text(dumper: _Dumper, text: str) -> yaml.Node:
    bare = re.match(r"^[-+.]?[0-9]", text) or text in {"true", "false", "True", "False"}
    # Unicode's line ends are folded to a space unless they are written as escapes.
    style = '"' if bare or re.search("[\x85\u2028\u2029]", text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def load_recipe(
    name_or_file: str | Path, *, overrides: Sequence[str] = (), kinds: Mapping[str, StageKind] | None = None
) -> Recipe:
    """The recipe in a file, or the shipped one of that name, with `--set` style `overrides`.

    Raises UsageError with one line."""
    path = _find(str(name_or_file))
    return _check(override(read_document(path), overrides), path.parent.resolve(), kinds)


def build_recipe(
    data: Mapping[str, Any],
    *,
    overrides: Sequence[str] = (),
    kinds: Mapping[str, StageKind] | None = None,
    folder: Path | None = None,
    source: str = "recipe",
    hidden: int = 0,
) -> Recipe:
    """The same from Python: `data` is what the YAML would hold; `folder` is where relative paths are looked
    up; `source` and `hidden` are for messages, as in Document."""
    document = Document(json.loads(json.dumps(data)), source, hidden=hidden)
    return _check(override(document, overrides), (folder or Path.cwd()).resolve(), kinds)


def _find(name: str) -> Path:
    shipped = SHIPPED / f"{name}.yaml"
    if re.fullmatch(r"[\w-]+", name) and shipped.is_file():
        return shipped
    path = Path(name)
    if path.is_dir():
        raise UsageError(f"{name}: a folder; give the recipe file in it")
    if not path.is_file():
        raise UsageError(
            f"{name}: no such recipe file, and no shipped recipe{nearest(name, shipped_recipes())}"
        )
    return path


def _check(document: Document, folder: Path, kinds: Mapping[str, StageKind] | None) -> Recipe:
    if kinds is None:
        kinds = load_dotted("tutelage.recipe.stages:KINDS")
    top = _validate(RecipeSettings, document, ())
    if not top.seeds or len(set(top.seeds)) != len(top.seeds):
        raise UsageError(f"{document.where(('seeds',))}: give at least one seed, each once")
    stages: dict[str, StageConfig] = {}
    for name, settings in top.stages.items():
        place = ("stages", name)
        if not _NAME.match(name):
            raise UsageError(f"{document.where(place)}: a stage name is letters, digits, - and _ (to 64)")
        if not isinstance(settings, dict):
            raise UsageError(f"{document.where(place)}: a stage is a mapping with the key `kind`")
        kind = settings.get("kind")
        if not isinstance(kind, str):
            raise UsageError(f"{document.where(place)}: the key `kind` is missing{nearest('', list(kinds))}")
        if kind not in kinds:
            raise UsageError(
                f"{document.where((*place, 'kind'))}: unknown stage kind {kind!r}{nearest(kind, list(kinds))}"
            )
        config = _validate(kinds[kind].config, document, place)
        stages[name] = _with_paths(config, document, place, folder)
    return Recipe(
        name=top.name,
        title=top.title,
        about=top.about,
        seeds=top.seeds,
        workers=top.workers,
        threads=top.threads,
        stages=stages,
        kinds=kinds,
        document=document,
    )


def _validate(model: type[Model], document: Document, place: Place) -> Model:
    data: Any = document.data
    for part in place:
        data = data[part]
    return validated(model, data, lambda inner: document.where((*place, *inner)))


def _with_paths(config: StageConfig, document: Document, place: Place, folder: Path) -> StageConfig:
    """The settings with every local path made absolute."""
    changed: dict[Place, str] = {}
    for mark in marked(config):
        where = document.where((*place, *mark.place))
        if isinstance(mark.marker, InputPath):
            changed[mark.place] = resolve_path(
                mark.value, folder, where, or_name=mark.marker.names(mark.value)
            )
        elif mark.value.startswith(FILE_PREFIX):
            found = resolve_path(mark.value.removeprefix(FILE_PREFIX), folder, where)
            changed[mark.place] = FILE_PREFIX + found
    if not changed:
        return config
    data = config.model_dump(mode="json")
    target: Any
    for inner, value in changed.items():
        target = data
        for part in inner[:-1]:
            target = target[part]
        target[inner[-1]] = value
    return validated(type(config), data, lambda inner: document.where((*place, *inner)))


def resolve_path(value: str, folder: Path, where: str, *, or_name: bool = False) -> str:
    """`value` as an absolute path, looked up in `folder`, then in the current folder; `file.py:function`
    keeps its function. A value that is no file is returned as it is where `or_name`, else it is refused."""
    function = _FUNCTION.match(value)
    text = function["file"] if function else value
    try:
        for base in (folder, Path.cwd()):
            candidate = base / Path(text).expanduser()
            if candidate.exists():
                return str(candidate.resolve()) + (f":{function['name']}" if function else "")
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"{where}: not a usable path ({error})") from error
    if or_name and not (function or text.startswith(("/", "./", "../", "~"))):
        return value
    raise UsageError(f"{where}: no such file or folder: {text}")


def path_of(value: str) -> Path | None:
    """The local file or folder behind a resolved value, or None for a name."""
    function = _FUNCTION.match(value)
    path = Path(function["file"] if function else value.removeprefix(FILE_PREFIX))
    return path if path.is_absolute() else None


def limited(recipe: Recipe, count: int) -> list[str]:
    """Overrides that keep every source of problems of `recipe` to its first `count` training and `count` test
    problems. Raises UsageError when the recipe reads no problems from a source."""
    names = [
        f"stages.{stage}.{field}={count}"
        for stage, config in recipe.stages.items()
        for field in type(config).model_fields
        if field in ("train_limit", "test_limit")
    ]
    if not names:
        raise UsageError(f"{recipe.document.source}: no stage reads problems from a source; nothing to limit")
    return names
