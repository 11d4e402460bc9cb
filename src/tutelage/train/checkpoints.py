"""Checkpoints that survive a kill at any moment.

Promises: a checkpoint counts only once it is whole and on the disk (it then holds a mark); one that was being
written when the process ended, or that belongs to other settings or data, is removed and never resumed from;
while a new one is written the last whole one stays.
Does not: write weights or optimiser states (transformers' Trainer does).
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tutelage.errors import UsageError

MARK = "tutelage.json"
OWNER = "owner.json"


@dataclass(slots=True)
class Resumed:
    """What a checkpoint knows beside the weights: its step, counters of the stage, and the validations (step,
    accuracy) so far."""

    step: int = 0
    counts: dict[str, float] = field(default_factory=dict)
    validations: list[tuple[int, float]] = field(default_factory=list)


def open_folder(folder: Path, mark: str) -> tuple[Path, Resumed] | None:
    """The last whole checkpoint in `folder` and what it knows, None to start at the beginning. Everything of
    another `mark` is removed. Raises UsageError when the folder holds what is not ours."""
    owner = folder / OWNER
    if folder.exists() and not owner.is_file() and any(folder.iterdir()):
        raise UsageError(f"{folder}: is not a folder of checkpoints; remove it or choose another place")
    if _owner_of(owner) != mark:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_json(owner, {"mark": mark})
    whole: list[tuple[int, Path, Resumed]] = []
    for place in folder.glob("checkpoint-*"):
        found = _read(place)
        if found is None:
            shutil.rmtree(place)
        else:
            whole.append((found.step, place, found))
    if not whole:
        return None
    _, place, state = max(whole, key=lambda each: each[0])
    return place, state


def seal(place: Path, state: Resumed) -> None:
    """Mark the checkpoint at `place` as whole, after its files have reached the disk."""
    for file in place.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
    write_json(place / MARK, asdict(state))


def write_json(path: Path, value: object) -> None:
    """`value` at `path`, whole or not at all, on the disk."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _owner_of(path: Path) -> str | None:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["mark"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read(place: Path) -> Resumed | None:
    try:
        state = json.loads((place / MARK).read_text(encoding="utf-8"))
        return Resumed(
            int(state["step"]), dict(state["counts"]), [(int(s), float(a)) for s, a in state["validations"]]
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
