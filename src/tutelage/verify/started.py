"""One started sandbox, seen from outside: the job goes in, reports come out.

Promises: never waits longer than it is told; reads no more than a report announces, and no report larger than
the limits allow; closing ends everything inside, and leaves no process and no scratch folder.
Does not: trust the order of what comes: what is not a report is a failure of the sandbox.
"""

from __future__ import annotations

import contextlib
import importlib.util
import marshal
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Self

from tutelage.verify.warden import clear

_INSIDE = ("tutelage.verify.judged", "tutelage.verify.warden")
_BOOT = (
    "import marshal,sys,types\n"
    "source=open(0,'rb',closefd=False)\n"
    "for name,code in marshal.load(source):\n"
    "    module=sys.modules[name]=types.ModuleType(name)\n"
    "    exec(code,module.__dict__)\n"
    "module.main(source)\n"
)
PYTHON = (sys.executable, "-P", "-s", "-B", "-c", _BOOT)
"""Starts the interpreter inside; the code comes over its standard input: no file of ours is needed there."""
_LINE = 2000
_SHOWN = 500
_END_SECONDS = 15.0
"""Longer than the warden may take to kill a fork bomb."""


class SandboxError(Exception):
    """The sandbox did not start, or did not report."""


@cache
def _code() -> bytes:
    """What runs inside, compiled: about 10 ms less for each start."""
    parts = []
    for name in _INSIDE:
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None
        path = Path(spec.origin)
        parts.append((name, compile(path.read_bytes(), path.name, "exec", dont_inherit=True)))
    return marshal.dumps(parts)


class Started:
    """Use as a context manager. `environment` is all that the process gets; `scratch` is a folder to remove
    at the end, if any."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        job: Mapping[str, Any],
        scratch: tempfile.TemporaryDirectory[str] | None = None,
    ) -> None:
        self._scratch = scratch
        self._unsent = memoryview(_code() + marshal.dumps(dict(job)))
        self._read = bytearray()
        self._said = bytearray()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(environment),
            cwd="/",
            start_new_session=True,
            bufsize=0,
        )
        self._selector = selectors.DefaultSelector()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
            is_input = pipe is self._process.stdin
            self._selector.register(pipe, selectors.EVENT_WRITE if is_input else selectors.EVENT_READ)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End everything inside. The end of its input tells the warden to kill and leave; SIGKILL follows."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(_END_SECONDS if self._process.poll() is None else 0)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._selector.close()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()
        if self._scratch is not None:
            with contextlib.suppress(OSError):
                clear(self._scratch.name)
            self._scratch.cleanup()

    def line(self, seconds: float) -> bytes:
        """The next line of the report."""
        deadline = time.monotonic() + seconds
        while (at := self._read.find(b"\n")) < 0:
            if len(self._read) > _LINE:
                raise SandboxError("what it reports is no report")
            self._more(deadline)
        return self._take(at + 1)[:-1]

    def exactly(self, length: int, seconds: float) -> bytes:
        """The next `length` bytes of the report."""
        deadline = time.monotonic() + seconds
        while len(self._read) < length:
            self._more(deadline)
        return self._take(length)

    def _take(self, length: int) -> bytes:
        taken = bytes(self._read[:length])
        del self._read[:length]
        return taken

    def _more(self, deadline: float) -> None:
        """Wait for something to happen, and read or write. SandboxError when the time or the output ends."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise SandboxError("no report in time")
        for key, _ in self._selector.select(left):
            descriptor = key.fd
            if key.fileobj is self._process.stdin:
                try:
                    self._unsent = self._unsent[os.write(descriptor, self._unsent[: 2**16]) :]
                except BrokenPipeError:
                    self._unsent = self._unsent[:0]
                if not self._unsent:  # stays open: its end would tell the warden to stop
                    self._selector.unregister(key.fileobj)
                continue
            data = os.read(descriptor, 2**16)
            if key.fileobj is self._process.stdout:
                if not data:
                    raise SandboxError(self._why())
                self._read += data
            elif data:
                self._said = (self._said + data)[-_LINE:]
            else:
                self._selector.unregister(key.fileobj)

    def _why(self) -> str:
        """Why it ended: its last words, or its exit code."""
        assert self._process.stderr is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2.0)
        with contextlib.suppress(BlockingIOError):
            self._said += os.read(self._process.stderr.fileno(), 2**16)
        lines = self._said.decode(errors="replace").strip().splitlines()
        return lines[-1][:_SHOWN] if lines else f"it ended with code {self._process.returncode}"
