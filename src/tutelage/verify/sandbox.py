"""Run a program that nobody has read, such that the machine is safe from it.

There are two levels, named in every outcome and never exchanged silently: `bubblewrap` (namespaces, see
`tutelage.verify.bubblewrap`), and `landlock`, weaker, only where the caller allows it (its GAPS are listed
there). Where neither can run, nothing is run.
Promises: no network, no file outside the scratch folder written, none outside the system's and Python's
folders read, nothing left behind; CPU time, wall time, memory, processes and output are limited, and the
outcome says which limit ended a run; `failure` is set when the sandbox went wrong, and then nothing else in
the outcome is about the program; usable from any thread.
Does not: judge; run anything but a Python program with the interpreter that runs this; protect from a hole in
the kernel.
"""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from tutelage.errors import UsageError
from tutelage.verify import bubblewrap, landlock, seccomp
from tutelage.verify.started import PYTHON, SandboxError, Started
from tutelage.verify.visible import python_paths

Level = Literal["bubblewrap", "landlock", "none"]
Limit = Literal["", "cpu", "wall", "memory", "output", "processes", "files"]
Phase = Literal["gold", "text", "program", "tests", "passed"]
START_SECONDS = 60.0
"""A sandbox may take this long to start, and as long beyond the wall limit to report: machines are busy."""
_TRIAL_FORKS = 8
_TRIAL = f"""
import os, time
made = 0
try:
    for _ in range(3 * {_TRIAL_FORKS}):
        if os.fork() == 0:
            time.sleep(1)
            os._exit(0)
        made += 1
except BlockingIOError:
    print("limited after", made)
"""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one run may use: seconds of CPU time of all its processes together, and of wall time; bytes of
    memory (of each process and of all together), of the scratch folder, and of stdout and of stderr;
    processes and threads at once."""

    cpu_seconds: float = 10.0
    wall_seconds: float = 20.0
    memory_bytes: int = 512 * 2**20
    scratch_bytes: int = 64 * 2**20
    output_bytes: int = 2**20
    processes: int = 64


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run. `exit_code` is None when a signal or a limit ended it; `limit` is the limit, "" for none.

    `phase` is how far it came: the tests (`gold`) or the `text` did not compile, the `program` ran, the
    `tests` began, the tests `passed` (ran to their end). `failure` is "" unless the sandbox failed."""

    exit_code: int | None = None
    signal: int | None = None
    limit: Limit = ""
    phase: Phase = "program"
    stdout: bytes = b""
    stderr: bytes = b""
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    peak_bytes: int = 0
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A level that has been tried on this machine. `reason` says why it is not a better one."""

    level: Level
    program: str = ""
    as_root: bool = False
    reason: str = ""

    @property
    def gaps(self) -> tuple[str, ...]:
        """What this level does not stop."""
        return landlock.GAPS if self.level == "landlock" else ()


@cache
def find_sandbox(allow_weaker: bool = False) -> Sandbox:
    """The best level that works here, found by running a small program in it (once for each process)."""
    reasons = []
    if sys.platform != "linux":
        return Sandbox("none", reason=f"there is no sandbox for {sys.platform}; use Linux")
    if not seccomp.supported():
        return Sandbox("none", reason=f"no filter of system calls for {os.uname().machine}")
    programs = bubblewrap.candidates()
    if not programs:
        reasons.append("bubblewrap is not installed")
    for program in programs:
        for as_root in (True, False) if os.geteuid() == 0 else (False,):
            found = Sandbox("bubblewrap", program, as_root)
            why = _trial(found)
            if not why:
                return found
            reasons.append(f"{program}{' as root' if as_root else ''}: {why}")
    remedy = bubblewrap.INSTALL if not programs else "allow user namespaces for it"
    offered = landlock.version()
    if offered < landlock.LEAST:
        reasons.append(f"Landlock version {offered}, and {landlock.LEAST} is needed")
    elif allow_weaker:
        found = Sandbox("landlock", as_root=os.geteuid() == 0, reason="; ".join(reasons))
        why = _trial(found)
        if not why:
            return found
        reasons.append(f"Landlock: {why}")
    else:
        remedy += ", or allow the weaker sandbox (Landlock)"
    return Sandbox("none", reason=f"{'; '.join(reasons)}; {remedy}")


def _trial(sandbox: Sandbox) -> str:
    """Why this level does not work here, "" when it does. Forks must be limited by the kernel, too."""
    limits = Limits(wall_seconds=30.0, processes=_TRIAL_FORKS)
    job = {"trial.py": _TRIAL.encode()}
    outcome = next(_runs(sandbox, job, ("trial.py",), (b"",), limits, None, looked_at=1000))
    if outcome.failure:
        return outcome.failure
    if not outcome.stdout.startswith(b"limited"):
        return "the number of processes is not limited here"
    return ""


def run(
    files: Mapping[str, bytes],
    argv: Sequence[str],
    stdin: bytes = b"",
    limits: Limits | None = None,
    *,
    after: str | None = None,
    sandbox: Sandbox | None = None,
) -> Outcome:
    """Run the Python program `argv[0]`, one of `files` (plain names), once. See `run_each`."""
    return next(run_each(files, argv, (stdin,), limits, after=after, sandbox=sandbox))


def run_each(
    files: Mapping[str, bytes],
    argv: Sequence[str],
    stdins: Sequence[bytes],
    limits: Limits | None = None,
    *,
    after: str | None = None,
    sandbox: Sandbox | None = None,
) -> Generator[Outcome]:
    """Run the program once for each of `stdins`: one start of the sandbox, each run with fresh files.

    `after` is Python text that runs after the program in its namespace (tests); the program then is the
    module `program`, not `__main__`. Close the iterator to stop early. An outcome with `failure` is the last.
    Raises UsageError when there is no sandbox, or for a file name that is a path."""
    sandbox = sandbox or find_sandbox()
    if sandbox.level == "none":
        raise UsageError(f"sandbox unavailable: {sandbox.reason}")
    for name in files:
        if not name or "/" in name or name in (".", ".."):
            raise UsageError(f"file name {name!r}: use a plain name")
    if argv[0] not in files:
        raise UsageError(f"program {argv[0]!r} is not among the files")
    return _runs(sandbox, files, argv, stdins, limits or Limits(), after)


def _runs(
    sandbox: Sandbox,
    files: Mapping[str, bytes],
    argv: Sequence[str],
    stdins: Sequence[bytes],
    limits: Limits,
    after: str | None,
    looked_at: int | None = None,
) -> Generator[Outcome]:
    left = list(stdins)
    while left:
        job = {
            "files": dict(files),
            "argv": list(argv),
            "stdins": left,
            "after": after,
            "limits": {
                "cpu": limits.cpu_seconds,
                "wall": limits.wall_seconds,
                "memory": limits.memory_bytes,
                "scratch": limits.scratch_bytes,
                "output": limits.output_bytes,
                "processes": limits.processes if looked_at is None else looked_at,
                "nproc": limits.processes + 2,  # the program and the warden
            },
        }
        before = len(left)
        try:
            with _start(sandbox, job, limits) as started:
                if started.line(START_SECONDS) != b"ready":
                    raise SandboxError("what it reports is no report")
                while left:
                    outcome = _report(started, limits)
                    left.pop(0)
                    yield outcome
        except SandboxError as error:
            if len(left) == before:  # else the warden asked for a fresh one
                yield Outcome(failure=str(error))
                return
        except OSError as error:
            yield Outcome(failure=f"{type(error).__name__}: {error}")
            return


def _start(sandbox: Sandbox, job: dict[str, Any], limits: Limits) -> Started:
    # a user id of its own, so that the limit on processes counts this sandbox alone
    user = 2**30 + secrets.randbelow(2**29) if sandbox.as_root else None
    shared = {"user": user, "reads_all": False}
    if sandbox.level == "bubblewrap":
        job |= {
            **shared,
            "namespaces": True,
            "scratch": bubblewrap.SCRATCH,
            "watched": [bubblewrap.SCRATCH, bubblewrap.SHARED_MEMORY],
            "filter": seccomp.filter_program(namespaces=True),
        }
        command = bubblewrap.command(
            sandbox.program, PYTHON, as_root=sandbox.as_root, scratch_bytes=limits.scratch_bytes
        )
        return Started(command, {}, job)
    scratch = tempfile.TemporaryDirectory(prefix="tutelage-sandbox-", ignore_cleanup_errors=True)
    if user is not None:
        os.chown(scratch.name, user, user)
    offered = landlock.version()
    job |= {
        **shared,
        "reads_all": user is not None and not _open_to_all(),
        "namespaces": False,
        "scratch": scratch.name,
        "watched": [scratch.name],
        "ruleset": landlock.ruleset(offered),
        "rules": landlock.rules(offered, scratch.name),
        "filter": seccomp.filter_program(namespaces=False, signals_scoped=offered >= 6),
    }
    job["limits"]["nproc"] += 0 if user is not None else landlock.tasks_of(os.getuid())
    return Started(PYTHON, bubblewrap.environment(scratch.name), job, scratch)


def _open_to_all() -> bool:
    """Whether every folder above this Python may be passed by any user."""
    above = {parent for path in python_paths() for parent in Path(path).parents}
    return all(folder.stat().st_mode & 0o001 for folder in above)


def _report(started: Started, limits: Limits) -> Outcome:
    """The next outcome. SandboxError when there is none in time, or the warden could not do its work."""
    line = started.line(limits.wall_seconds + START_SECONDS)
    kind, _, rest = line.decode("utf-8", "replace").partition(" ")
    if kind == "failed":
        raise SandboxError(rest)
    try:
        status, limit, phase, cpu, wall, peak, out, errors = rest.split(" ")
        lengths = int(out), int(errors)
        if kind != "run" or not all(0 <= length <= limits.output_bytes for length in lengths):
            raise ValueError(rest)
        code = int(status)
        stdout, stderr = (started.exactly(length, START_SECONDS) for length in lengths)
        ended = code >= 0 and limit == "-"
        return Outcome(
            exit_code=os.WEXITSTATUS(code) if ended and os.WIFEXITED(code) else None,
            signal=os.WTERMSIG(code) if ended and os.WIFSIGNALED(code) else None,
            limit=limit if limit != "-" else "",  # type: ignore[arg-type]
            phase=phase,  # type: ignore[arg-type]
            stdout=stdout,
            stderr=stderr,
            cpu_seconds=float(cpu),
            wall_seconds=float(wall),
            peak_bytes=int(peak),
        )
    except ValueError as error:
        raise SandboxError("what it reports is no report") from error
