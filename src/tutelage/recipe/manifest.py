"""manifest.json: what was made, from what, with which settings, and how long it took.

Promises: written whole after every job; a job counts as finished only while its fingerprint (settings,
content of its inputs, seed, version of the stage) is the recorded one and its outputs have the recorded
content; the wall time of all attempts adds up, killed ones included (to the last heartbeat); a folder of
another format, of another recipe or with other people's files is refused in one line.
Does not: decide what to run (see `run`).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import tutelage
from tutelage.errors import UsageError
from tutelage.recipe.files import PARTIAL, content_hash, write_text
from tutelage.recipe.plan import RESERVED, Job

FORMAT = 1
Ending = Literal["done", "failed", "interrupted"]
_PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "tokenizers",
    "numpy",
    "pyarrow",
    "math-verify",
)


@dataclass
class Manifest:
    """The manifest of an open run folder. `jobs` by job id and `attempts` are plain JSON data."""

    run_dir: Path
    name: str
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    attempts: list[dict[str, Any]] = field(default_factory=list)
    _began: float = 0.0

    def begin(self) -> None:
        """Start an attempt. One that was still open was killed."""
        for attempt in self.attempts:
            if attempt["ended"] == "running":
                attempt["ended"] = "killed"
        self._began = time.monotonic()
        self.attempts.append({"started": now(), "seconds": 0.0, "ended": "running", "pid": os.getpid()})
        self.save()

    def beat(self) -> None:
        """Write down how long this attempt has run. Costs no wait for the disk."""
        self._tick()
        self.save(sync=False)

    def end(self, how: Ending) -> None:
        """Close the attempt."""
        self._tick()
        self.attempts[-1]["ended"] = how
        self.save()

    def record(self, job_id: str, entry: dict[str, Any]) -> None:
        """Keep the entry of a job that has just finished."""
        self.jobs[job_id] = entry
        self._tick()
        self.save()

    def forget(self, job_id: str) -> None:
        """Drop the entry of a job that is about to run again."""
        if self.jobs.pop(job_id, None) is not None:
            self.save()

    @property
    def wall_s(self) -> float:
        """Seconds of all attempts together, up to now."""
        self._tick()
        return round(sum(float(attempt["seconds"]) for attempt in self.attempts), 3)

    def plain(self) -> dict[str, Any]:
        """The content as JSON data."""
        return {
            "format": FORMAT,
            "name": self.name,
            "versions": versions(),
            "wall_s": self.wall_s,
            "attempts": self.attempts,
            "jobs": self.jobs,
        }

    def save(self, *, sync: bool = True) -> None:
        """Write manifest.json, whole or not at all. Raises StorageError."""
        text = json.dumps(self.plain(), indent=1, ensure_ascii=False) + "\n"
        write_text(self.run_dir / "manifest.json", text, sync=sync)

    def _tick(self) -> None:
        if self.attempts and self.attempts[-1]["ended"] == "running":
            self.attempts[-1]["seconds"] = round(time.monotonic() - self._began, 3)


def open_manifest(run_dir: Path, name: str) -> Manifest:
    """The manifest in `run_dir` for the recipe `name`; a new one where the folder is new.

    Raises UsageError when the folder is not one that this recipe can continue."""
    path = run_dir / "manifest.json"
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        _refuse_foreign_folder(run_dir)
        return Manifest(run_dir, name)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({error})") from error
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: damaged ({error}); use another --run-dir, or remove this one") from error
    found = data.get("format") if isinstance(data, dict) else None
    if found != FORMAT:
        writer = f" by tutelage {_writer(data)}" if _writer(data) else ""
        raise UsageError(
            f"{run_dir}: a run folder of format {found!r}, written{writer}; tutelage {tutelage.__version__} "
            f"continues format {FORMAT}; use another --run-dir, or remove this one"
        )
    jobs, attempts, owner = data.get("jobs"), data.get("attempts"), data.get("name")
    if not isinstance(jobs, dict) or not isinstance(attempts, list):
        raise UsageError(f"{path}: damaged (no jobs or attempts); use another --run-dir, or remove this one")
    if owner != name:
        raise UsageError(f"{run_dir}: belongs to the recipe {owner!r}; give {name!r} another --run-dir")
    return Manifest(run_dir, name, jobs, attempts)


def _writer(data: Any) -> str:
    written_by = data.get("versions") if isinstance(data, dict) else None
    return str(written_by.get("tutelage", "")) if isinstance(written_by, dict) else ""


def _refuse_foreign_folder(run_dir: Path) -> None:
    if not run_dir.exists():
        return
    if not run_dir.is_dir():
        raise UsageError(f"{run_dir}: is a file; --run-dir names a folder")
    known = RESERVED | {"ledger.sqlite-wal", "ledger.sqlite-shm"}
    for entry in run_dir.iterdir():
        if entry.name not in known and not entry.name.endswith(PARTIAL):
            raise UsageError(
                f"{run_dir}: holds {entry.name!r} but no manifest.json, so it is no run folder; "
                "use another --run-dir"
            )


def fingerprint(job: Job, inputs: Mapping[str, str | None], about: Any) -> str:
    """What decides whether a finished job may stand: SHA-256 over the kind and its version, the settings,
    the content of the inputs, the seed, and `about` (what a kind that `sees_run` shows of the recipe).

    Paths are not part of it, contents are: a moved folder stays finished."""
    settings = job.config.model_dump(mode="json")
    for place, path in job.files:
        target: Any = settings
        for part in place[:-1]:
            target = target[part]
        target[place[-1]] = path.name
    for need in job.needs:
        if not need.job:
            target = settings
            for part in need.place[:-1]:
                target = target[part]
            target[need.place[-1]] = "file"
    shown = about if job.kind.sees_run else None
    parts = [FORMAT, job.kind.name, job.kind.version, settings, dict(inputs), job.seed, shown]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def input_hashes(job: Job, run_dir: Path) -> dict[str, str | None]:
    """Content hash of every input by `field[.key]:stage.output@seed`; None for one that is not there."""
    hashes: dict[str, str | None] = {}
    for need in job.needs:
        field_name = f"{need.field}.{need.key}" if need.key else need.field
        seed = "" if need.seed is None else f"@{need.seed}"
        hashes[f"{field_name}:{need.stage}.{need.output}{seed}"] = content_hash(run_dir / need.path)
    for place, path in job.files:
        hashes["file:" + ".".join(str(part) for part in place)] = content_hash(path)
    return hashes


def finished(entry: Mapping[str, Any] | None, job: Job, mark: str, run_dir: Path) -> bool:
    """Whether the recorded `entry` still stands for `job` with the fingerprint `mark`."""
    if entry is None or entry["fingerprint"] != mark:
        return False
    recorded = entry["outputs"]
    return set(recorded) == {name for name, _ in job.outputs} and all(
        recorded[name]["path"] == path and content_hash(run_dir / path) == recorded[name]["sha256"]
        for name, path in job.outputs
    )


def versions() -> dict[str, str]:
    """Versions of this package, Python, and the packages that numbers depend on (those installed)."""
    if not _versions:
        _versions.update(tutelage=tutelage.__version__, python=platform.python_version())
        for package in _PACKAGES:
            try:
                _versions[package] = metadata.version(package)
            except metadata.PackageNotFoundError:
                continue  # an extra that is not installed has no version to report
    return dict(_versions)


_versions: dict[str, str] = {}


def now() -> str:
    """The time, with the offset from UTC."""
    return datetime.now().astimezone().isoformat(timespec="seconds")
