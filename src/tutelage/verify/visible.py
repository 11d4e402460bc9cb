"""What a judged program may read: the system's programs and libraries, and the Python that runs it.

Promises: never a home, a working or a data folder; of the interpreter's own folder (a venv, pyenv or conda
prefix, which may lie in a home) only `bin` and `lib` and what marks a venv; only paths that exist.
Does not: hide what others put into those folders: a secret in site-packages is readable.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/nix/store")
_SETTINGS = ("/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime")
_OF_PREFIX = ("bin", "lib", "lib64", "pyvenv.cfg")


def system_paths() -> list[str]:
    """Folders and files of the system; symbolic links among them (`/lib` to `usr/lib`) are left as links."""
    return [path for path in (*_SYSTEM, *_SETTINGS) if os.path.lexists(path)]


def python_paths() -> list[str]:
    """Folders and files of this interpreter that lie outside the system's, links followed."""
    prefixes = {sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix}
    program = Path(sys.executable)
    while program.is_symlink():  # a venv's python may be a link to a link
        program = program.parent / program.readlink()
        prefixes.add(str(program.parent.parent))
    prefixes.add(str(program.resolve().parent.parent))
    found: dict[str, None] = {}
    for prefix in sorted(prefixes):
        for name in _OF_PREFIX:
            for path in (Path(prefix, name), Path(prefix, name).resolve()):
                if path.exists() and not _in_system(path):
                    found[str(path)] = None
    return list(found)


def _in_system(path: Path) -> bool:
    return any(path.is_relative_to(folder) for folder in _SYSTEM)
