"""The log of a training stage: one JSON object a line, at most a hundred and some, as training goes on.

Promises: rows hold a `step` and finite numbers, nothing that depends on the clock; a log that is resumed is
cut back to its checkpoint, so that it reads like an undisturbed one; a row that was half written is dropped.
Does not: draw it (see `report`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LOG = "log.jsonl"
# What transformers logs that depends on the clock or the machine.
_LEFT_OUT = {"step_time", "total_flos", "epoch"}


class Journal:
    """Rows of a stage's log, in memory and, with a `path`, on the disk. `after` is the step of the checkpoint
    that is resumed from."""

    def __init__(self, path: Path | None, after: int) -> None:
        self.path = path
        self.rows = [row for row in read_log(path) if row["step"] <= after] if path and after else []
        if path:
            path.write_text("".join(_line(row) for row in self.rows), encoding="utf-8")

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """Note the finite numbers of `values` at `step`; those of one step come together in one row."""
        row = {"step": step, **{name: each for name, each in values.items() if _kept(name, each)}}
        if len(row) == 1:
            return
        self.rows.append(row)
        if self.path:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(row))


def read_log(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a log; none when there is no file."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue  # half written when the process ended
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def write_log(path: Path, rows: list[dict[str, Any]]) -> None:
    """`rows` as a file."""
    path.write_text("".join(_line(row) for row in rows), encoding="utf-8")


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


def _kept(name: str, value: Any) -> bool:
    if name in _LEFT_OUT or "runtime" in name or "per_second" in name or name.startswith("profiling"):
        return False
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)
