"""Which process is this, and does that one still run: for claims that must end with their owner.

Promises: a process id that was given out again is not mistaken for its former owner (Linux: the start time is
compared), and a zombie counts as dead.
Does not: look into other machines or containers; their `space` differs, and the caller decides by age.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path


def process_space() -> str:
    """Names the set of processes whose ids mean the same: this boot's pid namespace, else the host's name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()


def process_start(pid: int) -> str | None:
    """When process `pid` was started ("" where the system does not tell), None when it does not run.

    The id and the start together name a process for good."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/stat").exists():
            return None
    except OSError:
        return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        return ""
    return ""
