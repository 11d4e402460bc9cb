"""The program in an answer, and the tests in a gold answer.

Promises: linear time on any text; nothing is run or parsed as Python here (the sandbox does that: Python's
own parser can be made slow and deep). A reply that was cut inside its last block gives the block as it
stands.
Does not: repair programs, or understand tests that call a function by JSON arguments (`fn_name`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LONGEST = 1_000_000
"""Characters of a program; nobody's answer to a question is longer."""
_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[ \t]*([^\s`]*)[^\n`]*$", re.MULTILINE)
_PYTHON = {"python", "py", "python3", "py3", "{python}"}
_CHECK = re.compile(r"^def check\(", re.MULTILINE)
_CALLS_CHECK = re.compile(r"^check\(", re.MULTILINE)
_ASSERTS = re.compile(r"\bassert\b|\bcheck\(|\braise\b")


@dataclass(frozen=True, slots=True)
class IoTests:
    """Inputs for stdin and the outputs expected on stdout."""

    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class PythonTests:
    """Python text that raises when the program is wrong."""

    text: str


class NotTests(ValueError):
    """The gold answer is no tests; the message says why."""


def programs_in(answer: str) -> list[str]:
    """What may be the program, to be tried in this order: the last block marked as Python; else the last
    block without a mark, then the whole answer."""
    marked, plain = "", ""
    opener: tuple[str, str, int] | None = None
    for match in _FENCE.finditer(answer):
        fence, word = match[1], match[2]
        if opener is None:
            opener = (fence, word.lower(), match.end() + 1)
        elif fence.startswith(opener[0]) and not word:
            marked, plain = _kept(answer[opener[2] : match.start()], opener[1], marked, plain)
            opener = None
    if opener is not None:
        marked, plain = _kept(answer[opener[2] :], opener[1], marked, plain)
    if marked:
        return [marked]
    return [text for text in (plain, answer) if text]


def _kept(block: str, word: str, marked: str, plain: str) -> tuple[str, str]:
    block = _dedented(block)
    if not block.strip():
        return marked, plain
    if word in _PYTHON:
        return block, plain
    return marked, block if not word else plain


def _dedented(block: str) -> str:
    """Without the indentation of a list item that the whole block stands in."""
    lines = block.split("\n")
    indents = [len(line) - len(line.lstrip(" ")) for line in lines if line.strip()]
    least = min(indents, default=0)
    return "\n".join(line[least:] for line in lines)


def read_tests(gold: str, metadata: Mapping[str, Any]) -> IoTests | PythonTests:
    """The tests that a gold answer holds: JSON `[{"input": .., "output": ..}]` or `{"inputs": [..],
    "outputs": [..]}`, a JSON list of assert statements, or Python text. Raises NotTests."""
    text = gold.strip()
    if text[:1] in "[{":
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            return _columns(value)
        if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
            return _python("\n".join(value), metadata)
        if isinstance(value, list):
            return IoTests(tuple(_pair(item, number) for number, item in enumerate(value, 1)) or _none())
    return _python(gold, metadata)


def _none() -> tuple[tuple[str, str], ...]:
    raise NotTests("the gold answer is an empty list of tests")


def _columns(value: dict[str, Any]) -> IoTests:
    if value.get("fn_name"):
        raise NotTests("the gold answer's tests call a function (fn_name): give them as Python asserts")
    inputs, outputs = value.get("inputs"), value.get("outputs")
    if not isinstance(inputs, list) or not isinstance(outputs, list):
        raise NotTests("the gold answer is JSON without lists `inputs` and `outputs`")
    if len(inputs) != len(outputs):
        raise NotTests(f"the gold answer has {len(inputs)} inputs and {len(outputs)} outputs")
    return IoTests(
        tuple(
            _pair({"input": given, "output": wanted}, number)
            for number, (given, wanted) in enumerate(zip(inputs, outputs, strict=True), 1)
        )
        or _none()
    )


def _pair(item: Any, number: int) -> tuple[str, str]:
    if not isinstance(item, dict) or "input" not in item or "output" not in item:
        raise NotTests(f"test {number} of the gold answer has no `input` and `output`")
    return _lines(item["input"], number), _lines(item["output"], number)


def _lines(value: Any, number: int) -> str:
    """A text, or a list of lines as some collections have it."""
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        value = "\n".join(value)
    if not isinstance(value, str):
        raise NotTests(f"test {number} of the gold answer: input and output must be text or lists of lines")
    return value


def _python(text: str, metadata: Mapping[str, Any]) -> PythonTests:
    if not _ASSERTS.search(text):
        raise NotTests("the gold answer is no tests: neither JSON pairs of input and output, nor asserts")
    if _CHECK.search(text) and not _CALLS_CHECK.search(text):
        name = metadata.get("entry_point")
        if not isinstance(name, str) or not name.isidentifier():
            raise NotTests("the gold answer defines check(candidate), and metadata has no entry_point")
        text = f"{text.rstrip()}\n\ncheck({name})\n"
    return PythonTests(text)
