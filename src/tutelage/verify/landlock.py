"""The weaker level: Landlock rules for files, a filter of system calls, and limits, without namespaces.

Only for machines where bubblewrap cannot run, and only when the user asks for it.
Promises: files outside the system's folders and this Python cannot be opened, written, made or removed,
except in the scratch folder; no socket of any kind; no signal to other processes (by Landlock from version 6
on, else by the filter); what it cannot stop is in GAPS.
Does not: hide names and sizes of files, or count processes and memory as tightly as bubblewrap's level.
"""

from __future__ import annotations

import contextlib
import ctypes
import struct
import sys
from pathlib import Path

from tutelage.verify.visible import python_paths, system_paths

LEAST = 3
"""Landlock before version 3 (Linux 6.2) cannot stop a file from being truncated."""
GAPS = (
    "names, sizes and times of all files can be seen (not their contents)",
    "the number of forks is limited per user: other processes of the same user count, and use up the limit",
    "memory of all processes together is only looked at every 10 ms",
    "the scratch folder lies on the disk; its size is only looked at four times a second",
    "the caller's working state that needs no file is visible: user id, load, time since start",
    "a caller that is killed may leave the scratch folder behind in the temporary folder",
)
_READ = 1 << 0 | 1 << 2 | 1 << 3
"""Execute, read a file, read a folder."""
_READ_FILE = 1 << 0 | 1 << 2
_USE_DEVICE = 1 << 1 | 1 << 2
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_CREATE_RULESET, _VERSION = 444, 1


def version() -> int:
    """The version of Landlock that the kernel offers, 0 for none."""
    if sys.platform != "linux":
        return 0
    return max(int(ctypes.CDLL(None).syscall(_CREATE_RULESET, None, 0, _VERSION)), 0)


def ruleset(offered: int) -> bytes:
    """Everything that this version can forbid: `struct landlock_ruleset_attr`."""
    files = (1 << 16) - 1 if offered >= 5 else (1 << 15) - 1
    words = [files]
    if offered >= 4:
        words.append(0b11)  # bind and connect TCP
    if offered >= 6:
        words.append(0b11)  # abstract unix sockets and signals stay within
    return struct.pack(f"={len(words)}Q", *words)


def rules(offered: int, scratch: str) -> list[tuple[str, int]]:
    """Paths and what is allowed below them."""
    allowed = []
    for path in (*system_paths(), *python_paths()):
        if Path(path).exists():
            allowed.append((path, _READ if Path(path).is_dir() else _READ_FILE))
    allowed += [(path, _USE_DEVICE) for path in _DEVICES if Path(path).exists()]
    everything = struct.unpack_from("=Q", ruleset(offered))[0]
    return [*allowed, (scratch, everything)]


def tasks_of(user: int) -> int:
    """How many processes and threads `user` has now: the kernel's limit counts them all."""
    tasks = 0
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                if folder.stat().st_uid == user:
                    tasks += sum(1 for _ in (folder / "task").iterdir())
    return tasks
