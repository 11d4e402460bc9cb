"""Files of a run folder: written whole or not at all, and known by their content.

Promises: a reader never sees half of what `write_text` or `replace_folder` writes, also after `kill -9`;
the hash of a folder covers the names and contents of all files in it; a full disk is one StorageError.
Does not: know what the files mean.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tutelage.errors import StorageError, storage_error

PARTIAL = ".partial"


def write_text(path: Path, text: str, *, sync: bool = True) -> None:
    """Write `text` at `path`, whole or not at all; `sync` waits until it is on the disk.

    Raises StorageError when the disk refuses."""
    partial = path.with_name(path.name + PARTIAL)
    try:
        with partial.open("w", encoding="utf-8", errors="replace") as file:
            file.write(text)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise storage_error(error, str(path)) or StorageError(
            f"{path}: cannot write ({error.strerror or error})"
        ) from error


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """A fresh folder to write into, which takes the place of `path` when the block ends without an error."""
    partial = path.with_name(path.name + PARTIAL)
    remove(partial)
    partial.mkdir(parents=True)
    try:
        yield partial
        remove(path)
        os.replace(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def remove(path: Path) -> None:
    """Remove the file or folder at `path`, if there is one. Links are removed, never followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def content_hash(path: Path) -> str | None:
    """SHA-256 (hex) of the file, or of the sorted listing of the folder; None when there is nothing.

    Partial files, byte-compiled Python and the like are left out of folders."""
    if path.is_dir():
        digest = hashlib.sha256()
        for file in sorted(path.rglob("*")):
            inner = file.relative_to(path)
            if file.is_file() and "__pycache__" not in inner.parts and not file.name.endswith(PARTIAL):
                digest.update(f"{inner.as_posix()}\0{_file_hash(file)}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()
    return _file_hash(path) if path.is_file() else None


_known: dict[tuple[str, int, int, int], str] = {}  # a 500 MB model feeds many jobs of one run


def _file_hash(path: Path) -> str:
    stat = path.stat()
    key = (str(path), stat.st_ino, stat.st_size, stat.st_mtime_ns)
    if key not in _known:
        with path.open("rb") as file:
            _known[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _known[key]
