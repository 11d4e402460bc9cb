"""What a run gives back: results of jobs, one error for all failures, and the preview of a dry run.

Promises: `preview` writes nothing; the error of a failed run is one line that names every job that failed.
Does not: run anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.errors import EXIT_INTERRUPTED, PartialError, StorageError, TutelageError, UsageError
from tutelage.recipe.estimate import time_left
from tutelage.recipe.load import Recipe
from tutelage.recipe.manifest import fingerprint, finished, input_hashes, open_manifest
from tutelage.recipe.plan import Job


class Interrupted(TutelageError):
    """Ctrl-C or a polite kill: all finished work is kept and the same command continues."""

    exit_code = EXIT_INTERRUPTED


@dataclass(frozen=True)
class JobResult:
    """`state`: `done` (ran now), `kept` (finished earlier), or in a dry run `to run`. `seconds` measured,
    or expected in a dry run."""

    id: str
    stage: str
    kind: str
    seed: int | None
    state: str
    seconds: float
    outputs: dict[str, str]
    metrics: dict[str, Any]


@dataclass(frozen=True)
class RunResult:
    """What a run left. `wall_s` adds up all attempts (for a dry run: the estimate of what is left)."""

    run_dir: Path
    name: str
    dry_run: bool
    wall_s: float
    jobs: tuple[JobResult, ...]

    def to_json(self) -> dict[str, Any]:
        """As one JSON document."""
        jobs = [{**vars(job)} for job in self.jobs]
        return {
            "name": self.name,
            "run_dir": str(self.run_dir),
            "dry_run": self.dry_run,
            "wall_s": self.wall_s,
            "jobs": jobs,
        }


def job_result(job: Job, state: str, entry: Mapping[str, Any]) -> JobResult:
    """The result of `job` from its manifest entry."""
    return JobResult(
        job.id,
        job.stage,
        job.kind.name,
        job.seed,
        state,
        float(entry["seconds"]),
        dict(job.outputs),
        entry["metrics"],
    )


def summed_up(
    failures: Sequence[tuple[str, Mapping[str, Any]]], blocked: int, saved: bool, run_dir: Path
) -> TutelageError:
    """The error for all `failures` (job id, what the worker said); `blocked` jobs could not run because of
    them; `saved`: some work is in the run folder."""
    parts = [f"{name}: {error['message'].removeprefix(name + ': ')}" for name, error in failures]
    kinds = {error["kind"] for _, error in failures}
    text = parts[0] if len(parts) == 1 else f"{len(parts)} jobs failed: " + "; ".join(parts)
    if kinds & {"defect", "died"}:
        text += f" (details in {run_dir / 'log.txt'})"
    if blocked:
        text += f"; {blocked} that need it did not run" if len(parts) == 1 else f"; {blocked} did not run"
    if "storage" in kinds:
        return StorageError(text)
    if kinds == {"usage"} and not saved:
        return UsageError(text)
    return PartialError(text)


def seen_mark(recipe: Recipe, marks: dict[str, tuple[str, dict[str, str | None]]], job: Job) -> Any:
    """What the fingerprint of a job that sees the run covers besides its inputs."""
    others = {name: marks[name][0] for name in sorted(job.others)}
    return [recipe.name, recipe.title, recipe.about, list(recipe.seeds), others]


def preview(recipe: Recipe, jobs: tuple[Job, ...], run_dir: Path, again: Sequence[str]) -> RunResult:
    """What a run would do: `kept` where everything before it stands too, else `to run`."""
    manifest = open_manifest(run_dir, recipe.name)
    marks: dict[str, tuple[str, dict[str, str | None]]] = {}
    results = []
    for job in jobs:
        entry = manifest.jobs.get(job.id)
        kept = False
        if job.stage not in again and all(name in marks for name in job.after):
            inputs = input_hashes(job, run_dir)
            mark = fingerprint(job, inputs, seen_mark(recipe, marks, job))
            kept = finished(entry, job, mark, run_dir)
            if kept:
                marks[job.id] = (mark, inputs)
        measured = entry if kept and entry else {"seconds": job.expected_s, "metrics": {}}
        results.append(job_result(job, "kept" if kept else "to run", measured))
    unfinished = {job.id: job.seconds for job in results if job.state == "to run"}
    left = time_left(jobs, unfinished, {}, recipe.workers)
    return RunResult(run_dir, recipe.name, True, round(left, 1), tuple(results))
