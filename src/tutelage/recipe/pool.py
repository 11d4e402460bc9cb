"""Worker processes as seen from the parent.

Promises: a worker is a session of its own, so that Ctrl-C reaches only the parent, and stopping it stops
what it started; a worker that dies says by which signal.
Does not: choose what a worker does.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tutelage.recipe.load import Recipe
from tutelage.recipe.plan import Job

# One thread in each library that would start a pool of its own; quiet libraries; same set order in every
# process.
_FIXED = {
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PYTHONHASHSEED": "0",
    "PYTHONUNBUFFERED": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
}
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass
class Worker:
    """A running worker; `job` is the id of the job it works on, "" when it is idle."""

    process: subprocess.Popen[bytes]
    job: str = ""
    _rest: bytearray = field(default_factory=bytearray)

    def fileno(self) -> int:
        """Where its messages arrive, for select."""
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    def send(self, message: dict[str, Any]) -> None:
        """Hand over a job. A worker that has just died is noticed at the next `receive`."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()

    def receive(self) -> list[dict[str, Any]] | None:
        """The messages that have arrived; None when the worker is gone."""
        chunk = os.read(self.fileno(), 1 << 16)
        if not chunk:
            return None
        self._rest += chunk
        *lines, rest = self._rest.split(b"\n")
        self._rest = bytearray(rest)
        return [json.loads(line) for line in lines]

    def stop(self) -> int:
        """End the worker and everything it started; gives its exit status (negative: the signal)."""
        if self.process.poll() is None and not self.job:
            assert self.process.stdin is not None
            with contextlib.suppress(OSError):
                self.process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(2)
        # All that a job writes survives a kill, so there is nothing to wait for.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        status = self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        return status


def start_worker(log: IO[bytes], threads: int, lock: int) -> Worker:
    """Start a worker that writes its log to `log` and keeps the run folder locked (file descriptor
    `lock`)."""
    environment = {**os.environ, **_FIXED, **dict.fromkeys(_THREADS, str(threads))}
    process = subprocess.Popen(
        [sys.executable, "-m", "tutelage.recipe.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        env=environment,
        start_new_session=True,
        pass_fds=(lock,),
    )
    return Worker(process)


def cause(status: int) -> str:
    """`killed by signal SIGKILL (...)` or `ended with status 1`."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = str(-status)
    hint = "; the machine may be out of memory" if -status == signal.SIGKILL else ""
    return f"was killed by signal {name}{hint}"


def job_message(recipe: Recipe, job: Job, run_dir: Path, seen: Mapping[str, Any]) -> dict[str, Any]:
    """The job as a worker gets it; `seen` is what a kind that `sees_run` is shown."""
    config_class = type(job.config)
    return {
        "id": job.id,
        "stage": job.stage,
        "seed": job.seed,
        "run": job.kind.run,
        "config_class": f"{config_class.__module__}:{config_class.__qualname__}",
        "config": job.config.model_dump(mode="json"),
        "needs": [
            {
                "field": need.field,
                "key": need.key,
                "stage": need.stage,
                "output": need.output,
                "seed": need.seed,
                "path": str(run_dir / need.path),
            }
            for need in job.needs
        ],
        "outputs": {name: str(run_dir / path) for name, path in job.outputs},
        "run_dir": str(run_dir),
        "ledger": str(run_dir / "ledger.sqlite"),
        "threads": recipe.threads,
        "seen": dict(seen),
    }
