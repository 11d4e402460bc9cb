"""Read the YAML of a recipe into plain data, with the line of every key, and apply `--set` overrides.

Promises: plain JSON-like data only (text, numbers, true/false, null, lists, mappings with text keys);
`1e-3` is a number, `no` and `2024-01-01` are text (YAML 1.2), a key given twice is refused; every error
is one line with the file and the line number.
Does not: know what the keys mean (see `plan`).
"""

from __future__ import annotations

import copy
import difflib
import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from tutelage.errors import UsageError

Place = tuple[str | int, ...]
MAX_BYTES = 1_000_000  # a recipe is written by hand
MAX_NODES = 50_000  # aliases multiply: nine short lines of YAML can stand for a billion values


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's idea of numbers and booleans."""


_KEPT = {"tag:yaml.org,2002:null", "tag:yaml.org,2002:merge", "tag:yaml.org,2002:int"}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in _KEPT - {"tag:yaml.org,2002:int"}]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_BOOL = re.compile(r"^(?:true|True|false|False)$")
_INT = re.compile(r"^[-+]?[0-9][0-9_]*$")
_FLOAT = re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", _BOOL, list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


@dataclass(frozen=True)
class Document:
    """Plain data and where it came from: `source` names the file, `lines` maps the place of a key to its
    line, `overridden` holds the places that `--set` wrote. `hidden` counts the first keys that messages
    leave out: a verb knows its settings as options, not as keys of a stage."""

    data: dict[str, Any]
    source: str
    lines: Mapping[Place, int] = field(default_factory=dict)
    overridden: frozenset[Place] = frozenset()
    hidden: int = 0

    def where(self, place: Place) -> str:
        """`recipe.yaml:12: stages.arm.steps` for messages; the nearest enclosing key that has a line."""
        dotted = ".".join(str(part) for part in place[self.hidden :])
        for length in range(len(place), 0, -1):
            if place[:length] in self.overridden:
                return f"--set {dotted}"
            if place[:length] in self.lines:
                return f"{self.source}:{self.lines[place[:length]]}: {dotted}"
        option = dotted.replace("_", "-") if self.hidden else dotted
        return f"{self.source}: {'--' if self.hidden else ''}{option}" if dotted else self.source


def read_document(path: Path) -> Document:
    """The recipe file at `path`. Raises UsageError when it is missing, not UTF-8, too large or not such
    YAML."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"{path}: larger than {MAX_BYTES:,} bytes, so not a recipe")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise UsageError(f"{path}: cannot read the recipe ({error.strerror or error})") from error
    return parse_document(text, str(path))


def parse_document(text: str, source: str) -> Document:
    """The recipe in `text`; `source` names it in messages. Raises UsageError as `read_document`."""
    lines: dict[Place, int] = {}
    data = _parse(text, source, lines)
    if not isinstance(data, dict):
        raise UsageError(f"{source}: a recipe is a mapping with the keys `name` and `stages`")
    return Document(data, source, lines)


def parse_value(text: str, source: str) -> Any:
    """One YAML value, as given to `--set`."""
    return _parse(text, source, {})


def _parse(text: str, source: str, lines: dict[Place, int]) -> Any:
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            return None if node is None else _build(loader, node, (), source, lines, [0])
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UsageError(f"{source}:{line}: not valid YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UsageError(f"{source}: not valid YAML: {' '.join(str(error).split())[:200]}") from error


def _build(
    loader: _Loader, node: yaml.Node, place: Place, source: str, lines: dict[Place, int], count: list[int]
) -> Any:
    count[0] += 1
    line = node.start_mark.line + 1
    if count[0] > MAX_NODES or len(place) > 40:
        raise UsageError(f"{source}:{line}: too deep or too large for a recipe")
    if node.tag not in _PLAIN:
        raise UsageError(f"{source}:{line}: the tag {node.tag!r} is not allowed")
    if isinstance(node, yaml.SequenceNode):
        items = []
        for index, item in enumerate(node.value):
            lines.setdefault((*place, index), item.start_mark.line + 1)
            items.append(_build(loader, item, (*place, index), source, lines, count))
        return items
    if isinstance(node, yaml.MappingNode):
        own = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        loader.flatten_mapping(node)  # `<<: *defaults`: merged keys come first, a later own key wins
        mapping: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise UsageError(f"{source}:{key.start_mark.line + 1}: keys are plain text")
            if own.count(key.value) > 1:
                twice = [each for each, _ in node.value if each.value == key.value][-1]
                at = f"{source}:{twice.start_mark.line + 1}"
                raise UsageError(f"{at}: the key {key.value!r} is given twice")
            lines[(*place, key.value)] = key.start_mark.line + 1
            mapping[key.value] = _build(loader, value, (*place, key.value), source, lines, count)
        return mapping
    return loader.construct_object(node)


_PLAIN = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")}


def override(document: Document, settings: Sequence[str]) -> Document:
    """`document` with each `a.b=value` of `settings` written into it, in order.

    A path that begins with the name of a stage means `stages.NAME…`; a name with `*` means each stage of such
    a name in which the setting is written already. The value is read as YAML. A number picks an item of a
    list. Raises UsageError for a setting without `=`, an unknown stage, or a path through a plain value."""
    data = copy.deepcopy(document.data)
    overridden = set(document.overridden)
    for setting in settings:
        dotted, equals, text = setting.partition("=")
        parts = [part.strip() for part in dotted.split(".")]
        if not equals or not all(parts):
            raise UsageError(f"--set {setting}: write it as key=value, such as stages.world.train=500")
        stages = data.get("stages")
        if isinstance(stages, dict):
            if parts[0] not in data and (parts[0] in stages or ("*" in parts[0] and len(parts) > 1)):
                parts = ["stages", *parts]
            elif parts[0] not in data and len(parts) > 1:
                raise UsageError(f"--set {dotted}: no stage {parts[0]!r}{nearest(parts[0], stages)}")
            if parts[0] == "stages" and len(parts) > 2 and parts[1] not in stages and "*" not in parts[1]:
                raise UsageError(f"--set {dotted}: no stage {parts[1]!r}{nearest(parts[1], stages)}")
        value = parse_value(text, f"--set {dotted}") if text.strip() else ""
        for path in _paths(data, parts, dotted):
            overridden.add(_write(data, path, value, dotted))
    return replace(document, data=data, overridden=frozenset(overridden))


def _paths(data: dict[str, Any], parts: list[str], dotted: str) -> list[list[str]]:
    """`parts` for each stage that its pattern names, or `parts` alone where there is no pattern."""
    if parts[0] != "stages" or len(parts) < 3 or "*" not in parts[1]:
        return [parts]
    named = fnmatch.filter(data["stages"], parts[1])
    paths = [["stages", name, *parts[2:]] for name in named if _holds(data["stages"][name], parts[2:])]
    if not paths:
        why = (
            f"none of {', '.join(named)} has {'.'.join(parts[2:])}; name a stage"
            if named
            else "no such stage"
        )
        raise UsageError(f"--set {dotted}: {why}")
    return paths


def _holds(target: Any, parts: Sequence[str]) -> bool:
    for part in parts:
        if not isinstance(target, dict) or part not in target:
            return False
        target = target[part]
    return True


def _write(data: dict[str, Any], parts: list[str], value: Any, dotted: str) -> Place:
    target: Any = data
    place: list[str | int] = []
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        key: str | int = part
        if isinstance(target, list):
            if not part.isdecimal() or int(part) >= len(target):
                raise UsageError(
                    f"--set {dotted}: {'.'.join(parts[:index])} is a list of {len(target)}; give a position"
                )
            key = int(part)
        elif not isinstance(target, dict):
            above = ".".join(parts[:index])
            raise UsageError(f"--set {dotted}: {above} is a plain value, it has no {part!r}")
        place.append(key)
        if last:
            target[key] = value
        elif isinstance(target, dict):
            target = target.setdefault(part, {})
        else:
            target = target[key]
    return tuple(place)


def nearest(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    """`; did you mean 'x'?` for the closest known name, else the list of what there is (up to 12)."""
    names = [str(item) for item in known]
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    if not names:
        return ""
    shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
    return f"; there is: {shown}"
