"""What verbs print: one JSON document or plain text on stdout, everything else on stderr.

Promises: inside `only_ours`, what anything else prints to stdout (C code included) goes to stderr.
Does not: decide what is said.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Annotated, Any, TypeVar, cast

import typer

from tutelage.train.ranks import is_first

AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout; everything else on stderr.")
]

Verb = TypeVar("Verb", bound=Callable[..., Any])
_ours: list[IO[str]] = []


@contextlib.contextmanager
def only_ours() -> Iterator[None]:
    """Keep the real stdout for `write`; send everybody else's prints to stderr."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        with os.fdopen(os.dup(saved), "w", encoding="utf-8", errors="replace") as stream:
            _ours.append(stream)
            with contextlib.redirect_stdout(sys.stderr):
                yield
    finally:
        _ours.clear()
        os.dup2(saved, 1)
        os.close(saved)


def guarded(verb: Verb) -> Verb:
    """The verb with stdout kept for its own result."""

    @functools.wraps(verb)
    def inner(*args: Any, **kwargs: Any) -> Any:
        with only_ours():
            return verb(*args, **kwargs)

    return cast(Verb, inner)


def write(text: str) -> None:
    """Text for stdout."""
    stream = _ours[-1] if _ours else sys.stdout
    stream.write(text)
    stream.flush()  # who starts a server waits for its line


def note(text: str) -> None:
    """A line for whoever watches, on stderr."""
    sys.stderr.write(f"{' '.join(text.split())}\n")
    sys.stderr.flush()


def emit(document: Mapping[str, Any], text: str, as_json: bool) -> None:
    """The result of a verb: `document` with --json, `text` without. Where several processes run the same
    verb (`accelerate launch`), the first one says it."""
    if not is_first():
        return
    write((json.dumps(document, ensure_ascii=True, default=str) if as_json else text.rstrip("\n")) + "\n")


def fail(message: str, code: int, as_json: bool, done: Mapping[str, Any] | None = None) -> int:
    """An error, in one line on stderr, and as a document with --json. Gives back `code`.

    `done` is the document of what was done all the same (without --json the verb has printed it)."""
    line = " ".join(message.split())
    sys.stderr.write(f"error: {line.encode('utf-8', 'replace').decode()}\n")
    if as_json:
        write(json.dumps({**(done or {}), "error": {"message": line, "exit_code": code}}, default=str) + "\n")
    return code
