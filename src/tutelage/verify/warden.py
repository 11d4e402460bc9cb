"""The process inside the sandbox that starts the judged program, watches it, and reports.

It is sent into the sandbox as compiled code (`sandbox` does that), followed by one job, and imports nothing
but the standard library. Under bubblewrap it is process 1 of the sandbox's own pid namespace: the program can
neither signal nor trace it, and when it ends the kernel ends everything else.
Promises: every run of the program gets one report, in order; CPU time, memory, processes and files are those
of the program and all that it started, looked at every TICK seconds, beside the kernel's own limits for each
process; output is bounded while it is read; what the program left running is killed before the report is
written, and its files are removed before the next run; when the caller is gone, it ends.
Does not: know the expected output (that stays outside), or decide whether the program is right.
"""
# pathlib takes longer to import than most programs take to judge
# ruff: noqa: PTH101, PTH104, PTH106, PTH108, PTH123, PTH208

from __future__ import annotations

import gc
import marshal
import os
import resource
import select
import time
from typing import IO

from tutelage.verify.judged import Failure, Job, become_program, protect

TICK = 0.01
"""Seconds between looks."""
FILES = 20_000
"""Files and folders in the scratch folder: each costs 1 KB of kernel memory that no size limit counts."""
MEASURE_SECONDS = 0.25
"""Between looks at what is in a scratch folder on the disk (one in memory has a size)."""
SWEEP_SECONDS = 10.0
_ADDRESS_SPACE = 4
"""All processes together may reserve this many times the memory limit: shared memory that was given back to
the kernel page by page (MADV_DONTNEED) still exists, but counts only as reserved."""
_KEPT = 4096
# the modules signal and contextlib take 6 ms to import
_SIGKILL, _SIGXCPU = 9, 24
_PAGE = resource.getpagesize()
_TICKS = os.sysconf("SC_CLK_TCK")


class Run:
    """One run of the program while it lasts."""

    def __init__(self, job: Job, control: int) -> None:
        self.job = job
        self.limits = job["limits"]
        self.control = control
        self.limit = ""
        self.status: int | None = None
        self.outputs = {"stdout": bytearray(), "stderr": bytearray(), "channel": bytearray()}
        self.cpu = 0.0
        self.peak = 0
        self.measured = 0.0
        self.before = waited_seconds()

    def attend(self, pid: int, given: int, text: bytes, pipes: dict[int, str]) -> None:
        """Feed and read until the program ends or meets a limit; then kill what is left."""
        self.pid = pid
        start = time.monotonic()
        handle = os.pidfd_open(pid)
        poll = select.poll()
        poll.register(self.control, select.POLLHUP)
        poll.register(handle, select.POLLIN)
        for pipe in (given, *pipes):
            os.set_blocking(pipe, False)
            poll.register(pipe, select.POLLOUT if pipe == given else select.POLLIN)
        left = memoryview(text)
        looked = start
        ended = False
        while not ended and not self.limit:
            for descriptor, _ in poll.poll(TICK * 1000):
                if descriptor == handle:
                    ended = True
                elif descriptor == self.control:
                    sweep(self.job)
                    os._exit(0)
                elif descriptor == given:
                    left = feed(given, left)
                    if not left:
                        poll.unregister(given)
                        os.close(given)
                        given = -1
                elif not self.read(descriptor, pipes[descriptor]):
                    poll.unregister(descriptor)
            now = time.monotonic()
            if now - looked >= TICK and not ended:
                looked = now
                self.look(now - start)
        reap(self)
        sweep(self.job, self)
        self.cpu = max(self.cpu, waited_seconds() - self.before)
        for descriptor, name in pipes.items():
            self.read(descriptor, name)
        for descriptor in (given, handle, *pipes):
            if descriptor >= 0:
                os.close(descriptor)
        self.wall = time.monotonic() - start
        if self.status is not None and not self.limit:
            if os.WIFSIGNALED(self.status) and os.WTERMSIG(self.status) == _SIGXCPU:
                self.limit = "cpu"
            elif b"M" in self.outputs["channel"][:3]:
                self.limit = "memory"

    def read(self, descriptor: int, name: str) -> bool:
        """Read what is there, up to the limit on output. False at the end."""
        most = _KEPT if name == "channel" else self.limits["output"]
        kept = self.outputs[name]
        while True:
            try:
                data = os.read(descriptor, 2**16)
            except BlockingIOError:
                return True
            if not data:
                return False
            room = most - len(kept)
            kept += data[:room]
            if len(data) > room:
                if name != "channel":
                    self.limit = self.limit or "output"
                return False

    def look(self, seconds: float) -> None:
        """Add up what the program and all that it started use now; set `limit` when it is too much."""
        limits = self.limits
        if seconds > limits["wall"]:
            self.limit = "wall"
        cpu, threads, reserved, resident = waited_seconds() - self.before, 0, 0, 0
        pids = others(self.job)
        for pid in pids:
            fields = status_fields(pid)
            if fields is not None:
                cpu += sum(int(field) for field in fields[11:15]) / _TICKS
                threads += int(fields[17])
                reserved += int(fields[20])
                resident += int(fields[21]) * _PAGE
        self.cpu = max(self.cpu, cpu)
        if cpu > limits["cpu"]:
            self.limit = "cpu"
        if threads >= limits["processes"]:
            self.limit = "processes"
        if resident > limits["memory"]:  # counts shared pages once per process: look closer
            resident = sum(map(proportional, pids))
        self.peak = max(self.peak, resident)
        if resident > limits["memory"] or reserved > _ADDRESS_SPACE * limits["memory"]:
            self.limit = "memory"
        if self.job["namespaces"]:
            for folder in self.job["watched"]:
                state = os.statvfs(folder)
                if state.f_files - state.f_ffree > FILES:
                    self.limit = "files"
        elif seconds > self.measured + MEASURE_SECONDS:
            self.measured = seconds
            entries, size = content(self.job["scratch"])
            if entries > FILES or size > limits["scratch"]:
                self.limit = "files"


def feed(descriptor: int, left: memoryview) -> memoryview:
    """Write to the program's input what fits; nothing is left when it has closed it."""
    try:
        return left[os.write(descriptor, left[: 2**16]) :] if left else left
    except BlockingIOError:
        return left
    except BrokenPipeError:
        return left[:0]


def waited_seconds() -> float:
    """CPU time of all children that have been reaped, with their own reaped children."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def status_fields(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the third on; None for a process that is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].decode().split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return fields if fields[0] not in "XZ" else None


def proportional(pid: int) -> int:
    """Memory of a process, shared pages divided among those that share them."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        return 0
    except OSError:  # it has made itself unreadable: then all its pages count
        fields = status_fields(pid)
        return 0 if fields is None else int(fields[21]) * _PAGE
    return 0


def others(job: Job) -> list[int]:
    """Everything the program started: all that the namespace holds, or all descendants of this process."""
    if job["namespaces"]:
        return [int(name) for name in os.listdir("/proc") if name.isdigit() and name != "1"]
    found: list[int] = []
    waiting = [os.getpid()]
    while waiting:
        pid = waiting.pop()
        try:
            for task in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{task}/children", "rb") as file:
                    children = [int(word) for word in file.read().split()]
                waiting += children
                found += children
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile
    return found


def reap(run: Run | None = None) -> None:
    """Collect ended children, keeping the status of the program."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        if run is not None and pid == run.pid:
            run.status = status


def kill(pid: int) -> None:
    """SIGKILL, unless it is gone."""
    try:
        os.kill(pid, _SIGKILL)
    except ProcessLookupError:
        return


def sweep(job: Job, run: Run | None = None) -> None:
    """Kill everything that the program started, however often it forks meanwhile."""
    deadline = time.monotonic() + SWEEP_SECONDS
    while pids := others(job):
        if job["namespaces"]:
            kill(-1)
        for pid in pids:
            kill(pid)
        reap(run)
        if time.monotonic() > deadline:
            raise Failure(f"{len(pids)} processes could not be ended")
        time.sleep(0.0005)
    reap(run)


def clear(folder: str) -> None:
    """Remove everything in a scratch folder, when nothing of the program runs any more.

    Folders in folders are first moved up: a tree may be deeper than a path may be long. A folder may be
    closed; a symbolic link is removed, never followed."""
    number, mark = 0, os.urandom(8).hex()
    while entries := list(os.scandir(folder)):
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)
                continue
            os.chmod(entry.path, 0o700)
            for inner in list(os.scandir(entry.path)):
                number += 1
                if inner.is_dir(follow_symlinks=False):
                    os.chmod(inner.path, 0o700)  # its entry `..` changes, which a closed folder forbids
                    os.rename(inner.path, f"{folder}/{mark}-{number}")
                else:
                    os.unlink(inner.path)
            os.rmdir(entry.path)


def content(folder: str) -> tuple[int, int]:
    """Entries below a scratch folder on the disk and their bytes, counted no further than FILES entries."""
    entries, size, waiting = 0, 0, [folder]
    while waiting and entries <= FILES:
        try:
            for entry in os.scandir(waiting.pop()):
                entries += 1
                size += entry.stat(follow_symlinks=False).st_blocks * 512
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
        except (FileNotFoundError, PermissionError):
            continue  # gone meanwhile, or closed: then nothing grows in it
        except OSError:  # a path that is too long: deep enough to end it
            return FILES + 1, size
    return entries, size


def main(source: IO[bytes]) -> None:
    """Read the job, run the program once for each of its inputs, report each run."""
    control, reports = 0, os.dup(1)
    gc.disable()
    job = marshal.load(source)
    gc.freeze()  # a collection in the forked process would copy every page that it looks at
    try:
        protect(job)
        os.umask(0o077)
        os.chdir(job["scratch"])
        os.write(reports, b"ready\n")
        for text in job["stdins"]:
            once(job, text, control, reports)
    except (Failure, OSError) as error:
        os.write(reports, f"failed {type(error).__name__}: {error}".replace("\n", " ").encode() + b"\n")
        os._exit(1)
    os._exit(0)


def once(job: Job, text: bytes, control: int, reports: int) -> None:
    """One run and its report."""
    for name, content in job["files"].items():
        with open(f"{job['scratch']}/{name}", "wb") as file:
            file.write(content)
    run = Run(job, control)
    given, out, errors, channel = (os.pipe() for _ in range(4))
    token = os.urandom(16).hex().encode()
    pid = os.fork()
    if pid == 0:
        try:
            become_program(job, (given[0], out[1], errors[1], channel[1]), token)
        finally:
            os._exit(1)  # nothing of the watching process may run on in this one
    for descriptor in (given[0], out[1], errors[1], channel[1]):
        os.close(descriptor)
    run.attend(pid, given[1], text, {out[0]: "stdout", errors[0]: "stderr", channel[0]: "channel"})
    report(run, token, reports)
    for folder in job["watched"]:
        try:
            clear(folder)
        except OSError:
            os._exit(0)  # the caller starts a fresh sandbox for the runs that are left


def report(run: Run, token: bytes, reports: int) -> None:
    """One line of figures, then stdout and stderr."""
    said = bytes(run.outputs["channel"])
    if said.startswith(b"F"):
        raise Failure(said[1:].decode(errors="replace"))
    phase = {b"G": "gold", b"S": "text"}.get(said[:1], "tests" if said[1:2] == b"T" else "program")
    if token in said and run.status == 0:
        phase = "passed"
    status = -1 if run.status is None else run.status
    stdout, stderr = run.outputs["stdout"], run.outputs["stderr"]
    line = (
        f"run {status} {run.limit or '-'} {phase} {run.cpu:.3f} {run.wall:.3f} {run.peak} "
        f"{len(stdout)} {len(stderr)}\n"
    )
    data = memoryview(line.encode() + stdout + stderr)
    while data:
        data = data[os.write(reports, data) :]
