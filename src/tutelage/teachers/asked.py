"""A stored request as people see it: the question as it was put, the prompt around it, and the settings.

Promises: the fields of a request have the names that settings have where there is one (`base_url`, `model`,
`system`, `prompt`, else the dotted name in the body); a seed is counted from sample 0.
Does not: know teachers; it reads the bodies that they write.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

HOLE = "{question}"
NOT_SET = "(not set)"
# Longer values, such as a system message, are cut in what is shown.
SHOWN = 80


@dataclass(frozen=True, slots=True)
class Read:
    """A request, read: the `text` that holds the question, and all other fields."""

    text: str
    rest: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """The settings of a request: all fields but the question, and the `prompt` around it."""

    rest: Mapping[str, Any]
    prompt: str


@dataclass(frozen=True, slots=True)
class Template:
    """The text before and after a question."""

    before: str
    after: str

    @classmethod
    def of(cls, text: str, question: str) -> Template:
        """The template that made `text` of `question`."""
        before, found, after = text.partition(question)
        return cls(before, after) if found else cls("", "")

    @classmethod
    def parse(cls, text: str) -> Template:
        """The template written with {question}."""
        before, _, after = text.partition(HOLE)
        return cls(before, after)

    @property
    def text(self) -> str:
        """Written with {question}."""
        return f"{self.before}{HOLE}{self.after}"

    def question(self, text: str) -> str:
        """The question in `text`, "" when the text was not made so."""
        long_enough = len(text) >= len(self.before) + len(self.after)
        if long_enough and text.startswith(self.before) and text.endswith(self.after):
            return text[len(self.before) : len(text) - len(self.after)]
        return ""


def digest(text: str) -> bytes:
    """A short key for a long text."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).digest()


def read_request(teacher: str, request: str, sample: int) -> Read:
    """The request (JSON text) that the ledger keeps for `teacher` ("BASE_URL MODEL")."""
    base_url, _, model = teacher.partition(" ")
    body = json.loads(request)
    rest: dict[str, Any] = {"base_url": base_url, "model": model}
    text = request
    for name, value in body.items():
        if name == "messages" and isinstance(value, list):
            text, others = _last_user(value)
            rest |= others
        elif name in ("prompt", "question") and isinstance(value, str):
            text = value
        elif name == "seed" and isinstance(value, int):
            rest[name] = value - sample
        elif name not in ("model", "problem"):
            rest |= _flat(name, value)
    return Read(text, rest)


def _last_user(messages: Sequence[Any]) -> tuple[str, dict[str, Any]]:
    """The text of the last message, and the others."""
    *others, last = messages or [""]
    content = last.get("content") if isinstance(last, dict) else last
    text = content if isinstance(content, str) else json.dumps(content)
    rest: dict[str, Any] = {}
    for number, message in enumerate(others):
        is_system = isinstance(message, dict) and message.keys() == {"role", "content"}
        if is_system and message["role"] == "system" and number == 0:
            rest["system"] = message["content"]
        else:
            rest[f"messages.{number}"] = message
    return text, rest


def _flat(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {key: each for inner in value for key, each in _flat(f"{name}.{inner}", value[inner]).items()}
    return {name: value}


def differences(stored: Asked, asked: Asked) -> tuple[str, ...]:
    """`max_tokens: 8192 -> 32768` for each setting that differs."""
    names = [*stored.rest, *(name for name in asked.rest if name not in stored.rest)]
    found = [
        f"{name}: {_shown(stored.rest, name)} -> {_shown(asked.rest, name)}"
        for name in names
        if stored.rest.get(name, NOT_SET) != asked.rest.get(name, NOT_SET)
    ]
    if stored.prompt != asked.prompt:
        found.append(f"prompt: {_cut(json.dumps(stored.prompt))} -> {_cut(json.dumps(asked.prompt))}")
    return tuple(found)


def _shown(fields: Mapping[str, Any], name: str) -> str:
    if name not in fields:
        return NOT_SET
    value = fields[name]
    plain = isinstance(value, str) and name in ("base_url", "model")
    return _cut(value if plain else json.dumps(value))


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def new_templates(texts: Iterable[str], questions: Sequence[str]) -> Iterator[Template]:
    """The templates that made some of `texts` of one of `questions`: of the longest that is in it."""
    for text in texts:
        inside = max((each for each in questions if each in text), key=len, default="")
        if inside:
            yield Template.of(text, inside)
