"""A pool of worker processes that can be killed.

Promises: a request is answered or fails within its seconds of wall time (plus the start of a fresh worker);
a worker that hangs, dies or runs out of memory is killed with everything it started and replaced on the next
request; usable from any thread; never forks or re-imports the caller's main module (`python -m`); closing
leaves no process behind. A process forked from this one starts workers of its own.
Does not: judge, retry, or queue beyond the number of workers (callers wait).
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self
from weakref import WeakSet

from tutelage.errors import UsageError

START_SECONDS = 60.0
"""A fresh worker may take this long to start and to import what it needs (busy machines are slow)."""
SECONDS = 4.0
"""Wall time for one request: with the start of a fresh worker (0.6 s, 1.1 s on a busy machine) a verdict
stays under 6 s."""
MEMORY_BYTES = 4 * 2**30
"""Address space of a worker that runs a user's function: torch alone takes more than 1 GiB of it."""
LIBRARY_BYTES: Mapping[str, int] = {"load-math": 2**30}
"""Address space of a worker that runs a library we know, by its load request. math-verify's import takes
0.37 GiB of it (0.1 GiB resident), so that 1 GiB keeps the worker's memory well under 1 GiB."""
_TIMED_OUT = "timeout after {:g} s"


@dataclass(slots=True)
class _Worker:
    process: subprocess.Popen[bytes]
    memory_bytes: int
    loaded: set[str] = field(default_factory=set)
    pending: bytes = b""


class WorkerPool:
    """Use as a context manager. `seconds` is the wall time for one request, `memory_bytes` the address space
    of one worker (less for `LIBRARY_BYTES`). Workers start when first needed; `memory_limited` then tells
    whether this system can limit memory (macOS cannot). `allow_weaker_sandbox` is the consent that checker
    `code` asks for where only Landlock protects this machine from a program."""

    def __init__(
        self,
        workers: int = 1,
        seconds: float = SECONDS,
        memory_bytes: int = MEMORY_BYTES,
        *,
        allow_weaker_sandbox: bool = False,
    ) -> None:
        if workers < 1:
            raise UsageError(f"workers is {workers}; it must be at least 1")
        if not seconds > 0:
            raise UsageError(f"seconds is {seconds}; it must be more than 0")
        self.seconds = seconds
        self.memory_bytes = memory_bytes
        self.allow_weaker_sandbox = allow_weaker_sandbox
        self.memory_limited: bool | None = None
        self._workers = workers
        self._closed = threading.Event()
        self._idle: list[_Worker] = []
        self._all: list[_Worker] = []
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(workers)
        _POOLS.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def within(self, seconds: float, *, allow_weaker_sandbox: bool = False) -> WorkerPool:
        """This pool, the same workers, with another wall time for one request and another consent."""
        if not seconds > 0:
            raise UsageError(f"seconds is {seconds}; it must be more than 0")
        view = copy.copy(self)  # shares the lists, the lock and the slots
        view.seconds = seconds
        view.allow_weaker_sandbox = allow_weaker_sandbox
        return view

    def _forget(self) -> None:
        """In a forked child: the workers are the parent's. Close our copies of their pipes, so that they
        still end with the parent, and start afresh."""
        for worker in self._all:
            for pipe in (worker.process.stdin, worker.process.stdout):
                if pipe is not None:
                    pipe.close()
            worker.process.returncode = 0  # not our child: nothing to wait for
        self._idle.clear()
        self._all.clear()
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(self._workers)

    def close(self) -> None:
        """Kill every worker. Requests in flight fail at once; later ones raise RuntimeError."""
        with self._lock:
            self._closed.set()
            idle, busy = list(self._idle), [worker for worker in self._all if worker not in self._idle]
            self._all.clear()
            self._idle.clear()
        for worker in idle:
            _kill(worker)
        for worker in busy:  # the thread that waits for it sees its end, and closes the pipes
            _kill_group(worker)

    def ask(self, request: Mapping[str, Any], load: Mapping[str, Any]) -> dict[str, Any]:
        """The reply to `request`, or `{"failed": reason}`.

        `load` is sent first to a worker that has not had it, with START_SECONDS of its own, so that slow
        imports are not charged to the first answer. Raises UsageError when the load request says so."""
        with self._slots:
            worker = self._take(load)
            try:
                key = json.dumps(load, sort_keys=True)
                if key not in worker.loaded:
                    reply = self._exchange(worker, load, START_SECONDS)
                    if "failed" in reply:
                        return {"failed": f"loading the checker: {reply['failed']}"}
                    worker.loaded.add(key)
                return self._exchange(worker, request, self.seconds)
            except BaseException:
                _kill(worker)
                raise
            finally:
                self._give(worker)

    def load(self, load: Mapping[str, Any]) -> None:
        """Send only a load request. Raises UsageError when it fails for any reason."""
        with self._slots:
            worker = self._take(load)
            try:
                reply = self._exchange(worker, load, START_SECONDS)
                if "failed" in reply:
                    raise UsageError(f"checker {load.get('checker', load['op'])!r}: {reply['failed']}")
                worker.loaded.add(json.dumps(load, sort_keys=True))
            finally:
                self._give(worker)

    def _take(self, load: Mapping[str, Any]) -> _Worker:
        memory = min(self.memory_bytes, LIBRARY_BYTES.get(str(load["op"]), self.memory_bytes))
        with self._lock:
            if self._closed.is_set():
                raise RuntimeError("the worker pool is closed")
            fitting = [worker for worker in self._idle if worker.memory_bytes == memory]
            worker = fitting[-1] if fitting else None
            if worker is not None:
                self._idle.remove(worker)
        if worker is not None:
            if not _has_ended(worker, 0):
                return worker
            _kill(worker)
            self._give(worker)
        worker = _start(memory)
        with self._lock:
            self._all.append(worker)
        reply = self._exchange(worker, None, START_SECONDS)
        if "failed" in reply:
            raise UsageError(f"the checking worker does not start: {reply['failed']}")
        self.memory_limited = reply["memory_limited"]
        return worker

    def _give(self, worker: _Worker) -> None:
        with self._lock:
            alive = worker.process.returncode is None  # `_kill` is the only one to reap
            if alive and not self._closed.is_set():
                self._idle.append(worker)
                return
            if worker in self._all:
                self._all.remove(worker)
        if alive:
            _kill(worker)

    def _exchange(self, worker: _Worker, request: Mapping[str, Any] | None, seconds: float) -> dict[str, Any]:
        """Write one line (none when `request` is None) and read one, both before the deadline."""
        deadline = time.monotonic() + seconds
        data = b"" if request is None else (json.dumps({**request, "seconds": seconds}) + "\n").encode()
        line = _talk(worker, memoryview(data), deadline)
        if line is None and time.monotonic() >= deadline:
            _kill(worker)
            return {"failed": _TIMED_OUT.format(seconds)}
        if line is None:
            _has_ended(worker, 1.0)  # let it end by itself: its own exit code tells more than our signal
            code = _kill(worker)
            return {"failed": f"the worker died ({_exit_words(code)})"}
        reply: dict[str, Any] = json.loads(line)
        if reply.get("retire"):
            _kill(worker)
        if "usage" in reply:
            raise UsageError(reply["usage"])
        return reply


_POOLS: WeakSet[WorkerPool] = WeakSet()


def _forget_all() -> None:
    for pool in list(_POOLS):
        pool._forget()


os.register_at_fork(after_in_child=_forget_all)


def _start(memory_bytes: int) -> _Worker:
    # -P and the parent's own search path: the worker imports what the caller would import, and a stray
    # `numbers.py` in the current directory cannot stand in for a library.
    paths = os.pathsep.join(path for path in sys.path if path)
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "tutelage.verify.worker_main", str(memory_bytes)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **os.environ, "PYTHONPATH": paths},
        start_new_session=True,
        bufsize=0,
    )
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        os.set_blocking(pipe.fileno(), False)
    return _Worker(process, memory_bytes)


def _talk(worker: _Worker, data: memoryview, deadline: float) -> bytes | None:
    """Send `data`, return the next reply line; None when the deadline passes or the worker is gone."""
    stdin, stdout = worker.process.stdin, worker.process.stdout
    assert stdin is not None and stdout is not None
    chunks = [worker.pending]
    with selectors.DefaultSelector() as selector:
        selector.register(stdout, selectors.EVENT_READ)
        if data:
            selector.register(stdin, selectors.EVENT_WRITE)
        while (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                if key.fileobj is stdin:
                    try:
                        data = data[os.write(stdin.fileno(), data[: 2**20]) :]
                    except BrokenPipeError:
                        return None
                    if not data:
                        selector.unregister(stdin)
                    continue
                chunk = os.read(stdout.fileno(), 2**16)
                if not chunk:
                    return None
                chunks.append(chunk)
                if b"\n" in chunk:
                    line, _, worker.pending = b"".join(chunks).partition(b"\n")
                    return line
    return None


def _has_ended(worker: _Worker, patience: float) -> bool:
    """Whether the process has ended, without reaping it; waits up to `patience` seconds for that."""
    deadline = time.monotonic() + patience
    while True:
        if os.waitid(os.P_PID, worker.process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None:
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.01)


def _kill_group(worker: _Worker) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # already gone: nothing to kill
        os.killpg(worker.process.pid, signal.SIGKILL)


def _kill(worker: _Worker) -> int:
    """Kill the worker and everything it started, reap it, close its pipes; its exit code."""
    if worker.process.returncode is None:
        _kill_group(worker)  # before reaping, so that the process id is still ours
    code = worker.process.wait()
    for pipe in (worker.process.stdin, worker.process.stdout):
        if pipe is not None:
            pipe.close()
    return code


def _exit_words(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"
