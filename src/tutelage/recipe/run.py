"""Run a recipe in a run folder, and continue one.

Promises: the same recipe on the same folder runs only what is missing or has changed, also after Ctrl-C or
`kill -9`; the results do not depend on the number of workers or the order of jobs; a job that fails keeps
the work of all others, and jobs that do not need it go on; the folder has one owner at a time.
Does not: know what a stage does. Workers do the work (see `worker`).
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from rich.console import Console

from tutelage.errors import UsageError, storage_error
from tutelage.recipe.display import Display, duration
from tutelage.recipe.estimate import ranks, remaining, scale, time_left
from tutelage.recipe.files import write_text
from tutelage.recipe.load import Recipe
from tutelage.recipe.lock import run_lock
from tutelage.recipe.manifest import (
    Manifest,
    fingerprint,
    finished,
    input_hashes,
    now,
    open_manifest,
    versions,
)
from tutelage.recipe.plan import Job, plan_jobs
from tutelage.recipe.pool import Worker, cause, job_message, start_worker
from tutelage.recipe.result import Interrupted, RunResult, job_result, preview, seen_mark, summed_up

State = Literal["waiting", "ready", "running", "done", "kept", "failed"]
HEARTBEAT_S = 1.0


def run_recipe(
    recipe: Recipe,
    run_dir: Path,
    *,
    console: Console | None = None,
    dry_run: bool = False,
    only: Sequence[str] | None = None,
    again: Sequence[str] = (),
) -> RunResult:
    """Run what is not finished. `only` limits the run to these stages and what they need; stages in
    `again` run even if they are finished; `dry_run` says what would run and touches nothing.

    Raises UsageError (nothing saved), PartialError (some work is saved), StorageError, or Interrupted."""
    jobs = plan_jobs(recipe, only)
    run_dir = run_dir.absolute()
    if dry_run:
        return preview(recipe, jobs, run_dir, again)
    open_manifest(run_dir, recipe.name)  # refuse a foreign folder before anything is written into it
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        stored = storage_error(error, str(run_dir))
        raise stored or UsageError(f"{run_dir}: cannot be made ({error.strerror or error})") from error
    with run_lock(run_dir) as lock:
        manifest = open_manifest(run_dir, recipe.name)
        write_text(run_dir / "recipe.yaml", recipe.to_yaml())
        manifest.begin()
        head = f"=== attempt {len(manifest.attempts)}, {now()}, pid {os.getpid()}\n"
        with _log(run_dir, head) as log, Display(console, len(jobs)) as display, _signals() as stop:
            run = _Run(recipe, jobs, manifest, display, log, lock, stop, set(again))
            return run.to_the_end()


@contextlib.contextmanager
def _log(run_dir: Path, head: str) -> Iterator[IO[bytes]]:
    path = run_dir / "log.txt"
    try:
        file = path.open("ab", buffering=0)
        file.write(head.encode())
    except OSError as error:
        stored = storage_error(error, str(path))
        raise stored or UsageError(f"{path}: cannot write ({error.strerror})") from error
    with file:
        yield file


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """A list that fills when the process is asked to stop. A second request ends it at once, which is safe
    too."""
    received: list[int] = []

    def note(number: int, _frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    before: dict[signal.Signals, Any] = {}
    with contextlib.suppress(ValueError):  # not in the main thread: the caller handles signals
        for each in (signal.SIGINT, signal.SIGTERM):
            before[each] = signal.signal(each, note)
    try:
        yield received
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@dataclass
class _Run:
    """The state of one attempt."""

    recipe: Recipe
    jobs: tuple[Job, ...]
    manifest: Manifest
    display: Display
    log: IO[bytes]
    lock: int
    stop: list[int]
    again: set[str]
    workers: list[Worker] = field(default_factory=list)
    states: dict[str, State] = field(default_factory=dict)
    marks: dict[str, tuple[str, dict[str, str | None]]] = field(default_factory=dict)
    failures: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    took: dict[str, float] = field(default_factory=dict)
    _beat: float = 0.0

    def to_the_end(self) -> RunResult:
        """Run until nothing is left that can run; raise what went wrong."""
        self.states = {job.id: "waiting" for job in self.jobs}
        how: Literal["done", "failed", "interrupted"] = "failed"
        try:
            self._loop()
            how = "interrupted" if self.stop else "failed" if self.failures else "done"
        except KeyboardInterrupt:
            how = "interrupted"
        finally:
            for worker in self.workers:
                worker.stop()
            self.manifest.end(how)
        if how == "interrupted":
            kept = sum(state in ("done", "kept") for state in self.states.values())
            raise Interrupted(
                f"interrupted: {kept} of {len(self.jobs)} jobs are finished and kept; "
                f"run the same command again to continue in {self.manifest.run_dir}"
            )
        if self.failures:
            blocked = sum(state in ("waiting", "ready") for state in self.states.values())
            raise summed_up(self.failures, blocked, bool(self.manifest.jobs), self.manifest.run_dir)
        entries = self.manifest.jobs
        results = tuple(job_result(job, self.states[job.id], entries[job.id]) for job in self.jobs)
        return RunResult(self.manifest.run_dir, self.recipe.name, False, self.manifest.wall_s, results)

    def _loop(self) -> None:
        rank = ranks(self.jobs)
        with selectors.DefaultSelector() as selector:
            while not self.stop:
                self._look_for_ready()
                ready = [job for job in self.jobs if self.states[job.id] == "ready"]
                for job in sorted(ready, key=lambda job: -rank[job.id]):
                    worker = self._idle(selector)
                    if worker is None:
                        break
                    self._start(job, worker)
                if not any(worker.job for worker in self.workers):
                    return
                for key, _ in selector.select(timeout=0.2):
                    self._hear(key.fileobj, selector)
                self.display.tick(self._time_left())
                if time.monotonic() - self._beat >= HEARTBEAT_S:
                    self.manifest.beat()
                    self._beat = time.monotonic()

    def _look_for_ready(self) -> None:
        """Waiting jobs whose inputs are all there become `kept` or `ready`. One pass is enough: plan
        order."""
        if any(failure["kind"] == "storage" for _, failure in self.failures):
            return  # nothing more can be saved
        for job in self.jobs:
            if self.states[job.id] != "waiting":
                continue
            if all(self.states[needed] in ("done", "kept") for needed in job.after):
                mark = self.marks[job.id] = self._mark(job)
                stands = finished(self.manifest.jobs.get(job.id), job, mark[0], self.manifest.run_dir)
                if stands and job.stage not in self.again:
                    self.states[job.id] = "kept"
                    self.display.done += 1
                else:
                    self.states[job.id] = "ready"

    def _mark(self, job: Job) -> tuple[str, dict[str, str | None]]:
        inputs = input_hashes(job, self.manifest.run_dir)
        return fingerprint(job, inputs, seen_mark(self.recipe, self.marks, job)), inputs

    def _idle(self, selector: selectors.BaseSelector) -> Worker | None:
        worker = next((each for each in self.workers if not each.job), None)
        if worker is None and len(self.workers) < self.recipe.workers:
            worker = start_worker(self.log, self.recipe.threads, self.lock)
            self.workers.append(worker)
            selector.register(worker, selectors.EVENT_READ)
        return worker

    def _start(self, job: Job, worker: Worker) -> None:
        self.manifest.forget(job.id)
        self.states[job.id] = "running"
        worker.job = job.id
        message = job_message(self.recipe, job, self.manifest.run_dir, self._seen(job))
        worker.send({"job": message})
        self.display.started(job.id)

    def _seen(self, job: Job) -> dict[str, Any]:
        """The manifest as a kind that `sees_run` is shown it: jobs of this plan only, and the recipe."""
        if not job.kind.sees_run:
            return {}
        planned = {each.id for each in self.jobs}
        content = self.manifest.plain()
        content["jobs"] = {name: entry for name, entry in content["jobs"].items() if name in planned}
        return {**content, "recipe": self.recipe.resolved()}

    def _hear(self, source: Any, selector: selectors.BaseSelector) -> None:
        worker: Worker = source
        messages = worker.receive()
        if messages is None:
            selector.unregister(worker)
            self.workers.remove(worker)
            name, worker.job = worker.job, worker.job or "?"
            status = worker.stop()
            if name:
                self._failed(name, {"kind": "died", "message": f"its worker {cause(status)}"})
            return
        for message in messages:
            if "progress" in message:
                self.display.progress(worker.job, *message["progress"])
                continue
            name, worker.job = worker.job, ""
            if "error" in message:
                self._failed(name, message["error"])
            else:
                self._finished(name, message["done"])

    def _finished(self, name: str, result: dict[str, Any]) -> None:
        job = next(job for job in self.jobs if job.id == name)
        mark, inputs = self.marks[name]
        outputs = {
            output: {"path": path, "sha256": result["outputs"][output]} for output, path in job.outputs
        }
        self.manifest.record(
            name,
            {
                "stage": job.stage,
                "kind": job.kind.name,
                "seed": job.seed,
                "fingerprint": mark,
                "settings": job.config.model_dump(mode="json"),
                "inputs": inputs,
                "outputs": outputs,
                "metrics": result["metrics"],
                "versions": versions(),
                "started": self.display.running[name].stamp,
                "seconds": result["seconds"],
            },
        )
        self.states[name] = "done"
        self.took[name] = float(result["seconds"])
        self.display.done += 1
        self.display.ended(name, f"done in {duration(self.took[name])}")

    def _failed(self, name: str, error: dict[str, Any]) -> None:
        self.states[name] = "failed"
        self.failures.append((name, error))
        self.display.ended(name, f"failed: {error['message']}")

    def _time_left(self) -> float | None:
        seconds = scale(self.jobs, self.took)
        busy = {}
        for name, each in self.display.running.items():
            busy[name] = remaining(seconds[name], time.monotonic() - each.began, each.fraction)
        unfinished = {name: seconds[name] for name, state in self.states.items() if state in _OPEN}
        return time_left(self.jobs, unfinished, busy, self.recipe.workers)


_OPEN = ("waiting", "ready", "running")
