"""Errors that a person can act on.

Every failure that a user can cause or repair is one of these. The command line prints the message as one
line and ends with `exit_code`; a traceback is kept for defects of ours. The message names the file, the row
or the field, and says what to do.

Does not: log, retry or print.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

EXIT_DONE = 0
EXIT_USAGE = 2
EXIT_PARTIAL = 3
EXIT_INTERRUPTED = 130


class TutelageError(Exception):
    """A failure with a one-line message for people. `exit_code` 2: nothing was done that must be kept."""

    exit_code = EXIT_USAGE


class UsageError(TutelageError):
    """Bad input, arguments or configuration."""


class PartialError(TutelageError):
    """Work was done and saved, some of it failed; the same command again continues. `exit_code` 3.

    `done` is what a verb prints as its document beside the error: JSON-serialisable counts."""

    exit_code = EXIT_PARTIAL

    def __init__(self, message: str, done: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.done = dict(done or {})


class StorageError(PartialError):
    """The disk is full or read-only; what was committed before is safe."""


class BudgetError(PartialError):
    """The money cap is reached; nothing was bought beyond it."""
