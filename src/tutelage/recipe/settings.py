"""Settings checked by pydantic, with errors that a person can act on in one line.

Promises: unknown keys name the nearest known one; wrong types say what was given; JSON strictness (no text
for a number, no number for true/false).
Does not: know files (the caller says where a key stands).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from tutelage.errors import UsageError
from tutelage.recipe.document import Place, nearest

Model = TypeVar("Model", bound=BaseModel)


def validated(model: type[Model], data: Any, where: Callable[[Place], str]) -> Model:
    """`data` as a `model`; `where(place)` names the key at `place` for the message.

    Raises UsageError with the first thing that is wrong and the number of others."""
    try:
        # JSON mode is strict about types and still takes a list where a tuple is declared.
        return model.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        problems = error.errors(include_url=False)
    problems.sort(key=lambda problem: problem["type"] != "extra_forbidden")
    first = problems[0]
    place = _place(first["loc"], data)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    raise UsageError(f"{where(place)}: {_say(first, model, place)}{more}")


def _say(problem: Any, model: type[BaseModel], place: Place) -> str:
    if problem["type"] == "extra_forbidden":
        return f"unknown key{nearest(str(place[-1]), sorted(_known(model, place[:-1])))}"
    if problem["type"] == "missing":
        return "this key is missing"
    message = str(problem["msg"]).removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    given = problem["input"]
    if isinstance(given, dict | list) or problem["type"] == "value_error":
        return message
    shown = json.dumps(given, ensure_ascii=False)
    return f"{message}, got {shown if len(shown) <= 60 else shown[:57] + '...'}"


def _place(loc: tuple[str | int, ...], data: Any) -> Place:
    """Pydantic's location without the names of union members, which are no keys of the document."""
    place: list[str | int] = []
    for index, part in enumerate(loc):
        if isinstance(data, dict) and part in data:
            data = data[str(part)]
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        elif index < len(loc) - 1 or not isinstance(data, dict):
            continue
        place.append(part)
    return tuple(place)


def _known(model: type[BaseModel], place: Place) -> set[str]:
    """Names of the keys that are allowed at `place`."""
    models: set[type[BaseModel]] = {model}
    for part in place:
        if isinstance(part, int):
            continue
        fields = [each.model_fields[part] for each in models if part in each.model_fields]
        if fields:
            models = {inner for info in fields for inner in _models(info.annotation)}
    return {name for each in models for name in each.model_fields}


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _models(inner)
