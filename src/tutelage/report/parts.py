"""What every page of this room is put together from: its files, its content policy, its settings.

Promises: a page is written whole or not at all.
Does not: know any page.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from tutelage.errors import StorageError, UsageError
from tutelage.plain import visible


def write_page(path: Path, html: str) -> None:
    """Write a page. Raises StorageError when the disk refuses."""
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(html, encoding="utf-8", errors="replace")
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise StorageError(f"{path}: cannot write the report ({error.strerror or error})") from error


def asset(name: str) -> str:
    """A template, style sheet or script of this room."""
    return files("tutelage.report").joinpath(name).read_text(encoding="utf-8")


def digest(content: str) -> str:
    """The content-policy source of an inline element: its SHA-256."""
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def mapping(summary: Mapping[str, Any], section: str) -> Mapping[str, Any]:
    """An object of the summary, empty where it has none. Raises UsageError for something else."""
    value = summary.get(section) or {}
    if not isinstance(value, Mapping):
        raise UsageError(f"summary: {section} must be an object")
    return value


def flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted name, value) pairs."""
    rows: list[tuple[str, str]] = []
    for key, value in tree.items():
        name = f"{prefix}{visible(key)}"
        if isinstance(value, Mapping) and value:
            rows += flat(value, f"{name}.")
        else:
            shown = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
            rows.append((name, visible(shown)))
    return rows
