"""One process at a time on a run folder.

Promises: the second process is refused with the id of the first and since when it runs; the lock ends with
the process that holds it and its workers, also after `kill -9`, so a lock is never left behind.
Does not: work between machines that share a folder over a network file system without locks.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from tutelage.errors import UsageError, storage_error


@contextlib.contextmanager
def run_lock(run_dir: Path, *, wait_s: float = 3.0) -> Iterator[int]:
    """Hold the folder for the length of the block; gives the file descriptor of the lock.

    Workers inherit it: an orphan that still writes keeps the folder locked. `wait_s` is for the workers of
    a killed predecessor, which need a moment to end. Raises UsageError when another process holds the
    folder."""
    path = run_dir / ".lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        stored = storage_error(error, str(run_dir))
        raise stored or UsageError(
            f"{run_dir}: cannot write in this folder ({error.strerror or error})"
        ) from error
    try:
        _acquire(descriptor, run_dir, wait_s)
        holder = {"pid": os.getpid(), "since": datetime.now().astimezone().isoformat(timespec="seconds")}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, run_dir: Path, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            pid, since = _holder(descriptor)
            # A holder that is alive will not go away in seconds; a dead one's workers will.
            if time.monotonic() > deadline or (pid is not None and pid != os.getpid() and _alive(pid)):
                raise UsageError(
                    f"{run_dir}: another tutelage process holds this run folder "
                    f"(pid {pid or 'unknown'}, since {since or 'unknown'}); wait for it, or stop it first"
                ) from None
            time.sleep(0.05)
        except OSError as error:
            raise UsageError(
                f"{run_dir}: this file system cannot lock files ({error.strerror}); use a local folder"
            ) from error


def _holder(descriptor: int) -> tuple[int | None, str | None]:
    try:
        holder = json.loads(os.pread(descriptor, 1000, 0))
        return int(holder["pid"]), str(holder["since"])
    except (ValueError, KeyError, TypeError):
        return None, None  # the holder is just writing its name


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return not Path("/proc/self").exists()
    return state not in "ZX"  # a killed process whose parent has not collected it yet
