"""Errors that a person can act on.

Every failure that a user can cause or repair is one of these. The command line prints the message as one
line and ends with `exit_code`; a traceback is kept for defects of ours. The message names the file, the row
or the field, and says what to do.

Does not: log, retry or print.
"""

from __future__ import annotations

import errno
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


_REFUSED = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG}
_REFUSALS = (
    "No space left on device",
    "Disk quota exceeded",
    "File too large",
    "Read-only file system",
    "PytorchStreamWriter failed",
)


def storage_error(error: BaseException, what: str) -> StorageError | None:
    """A StorageError if `error`, or what caused it, says that the disk is full or read-only; else None.

    Libraries in Rust and C++ wrap the error number in text, so the text counts too."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, StorageError):
            return seen
        full = isinstance(seen, OSError) and seen.errno in _REFUSED
        if full or any(words in str(seen) for words in _REFUSALS):
            detail = (seen.strerror if isinstance(seen, OSError) else None) or "no space left on device"
            return StorageError(
                f"{what}: cannot write ({detail}); free some space and run the same command again"
            )
        seen = seen.__cause__ or seen.__context__
    return None
