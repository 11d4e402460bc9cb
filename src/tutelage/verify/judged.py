"""The judged process: give up rights, set the limits, then run the program and the tests that follow it.

Sent into the sandbox as compiled code before `warden`, which forks this process for each run; imports
nothing but the standard library. What it reports goes over a pipe of its own: `S` the text is no Python, `G`
the tests are none, `T` the tests begin, `M` out of memory, `F` the limits could not be set, and the token
when the tests ran to their end.
Promises: nothing of the program runs before every limit holds; the end of the process, by whatever exit code,
is not taken for a passed test.
Does not: hide the pipe and the token from a program that searches its own memory and file descriptors for
them. Tests in the program's own interpreter can be faked by it; tests over stdin and stdout cannot.
"""
# the standard streams stay open
# ruff: noqa: SIM115

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import os
import resource
import signal
import sys
import traceback
import types
from collections.abc import Mapping
from typing import Any

_SET_PDEATHSIG, _SET_DUMPABLE, _KEEP_CAPS, _SET_SECCOMP = 1, 4, 8, 22
_SET_SUBREAPER, _SET_NO_NEW_PRIVS, _CAP_AMBIENT = 36, 38, 47
_CAP_DAC_READ_SEARCH = 2

Job = Mapping[str, Any]
libc = ctypes.CDLL(None, use_errno=True)


class Failure(Exception):
    """The sandbox, not the program, went wrong."""


def check(result: int, what: str) -> int:
    """The result of a C call, unless it is an error."""
    if result < 0:
        raise Failure(f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def prctl(option: int, *arguments: Any) -> None:
    """The system call, with the argument types that a variadic C function needs."""
    words = [ctypes.c_ulong(word) if isinstance(word, int) else word for word in (*arguments, 0, 0, 0, 0)[:4]]
    check(libc.prctl(option, *words), f"prctl {option}")


def protect(job: Job) -> None:
    """Give up root, and become a process that the program cannot look into."""
    user = job["user"]
    if user is not None:
        if job["reads_all"]:
            prctl(_KEEP_CAPS, 1)
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        if job["reads_all"]:  # the interpreter's folder is closed to everyone but root; Landlock still holds
            header = (ctypes.c_uint32 * 2)(0x20080522, 0)
            bit = 1 << _CAP_DAC_READ_SEARCH
            check(libc.capset(header, (ctypes.c_uint32 * 6)(bit, bit, bit, 0, 0, 0)), "capset")
            prctl(_CAP_AMBIENT, 2, _CAP_DAC_READ_SEARCH)
    prctl(_SET_DUMPABLE, 0)
    if job["namespaces"]:
        prctl(_SET_PDEATHSIG, signal.SIGKILL)  # giving up root has cleared bubblewrap's
    else:
        prctl(_SET_SUBREAPER, 1)


def confine(job: Job) -> None:
    """The limits of each process, then Landlock (at that level), then the filter of system calls."""
    limits = job["limits"]
    seconds = int(limits["cpu"]) + 1
    for name, value in (
        ("CPU", seconds),
        ("AS", limits["memory"]),
        ("FSIZE", limits["scratch"]),
        ("NPROC", limits["nproc"]),
        ("NOFILE", 64),
        ("CORE", 0),
        ("MEMLOCK", 0),
        ("MSGQUEUE", 0),
        ("STACK", 2**26),
    ):
        kind = getattr(resource, f"RLIMIT_{name}", None)
        if kind is None:
            continue
        hard = resource.getrlimit(kind)[1]
        wanted = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (wanted, wanted + 1 if name == "CPU" and wanted == value else wanted))
    os.nice(5)  # the watching process comes first
    prctl(_SET_NO_NEW_PRIVS, 1)
    if not job["namespaces"]:
        landlock(job)
    array = ctypes.create_string_buffer(job["filter"], len(job["filter"]))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    program = Program(len(job["filter"]) // 8, ctypes.addressof(array))
    prctl(_SET_SECCOMP, 2, ctypes.byref(program))


def landlock(job: Job) -> None:
    """Enforce the rules that `tutelage.verify.landlock` made. 444 to 446 on every architecture."""
    attributes = job["ruleset"]
    ruleset = check(libc.syscall(444, attributes, ctypes.c_size_t(len(attributes)), 0), "landlock ruleset")
    for path, access in job["rules"]:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = access.to_bytes(8, sys.byteorder) + descriptor.to_bytes(4, sys.byteorder)
        check(libc.syscall(445, ruleset, 1, rule, 0), f"landlock rule for {path}")
        os.close(descriptor)
    check(libc.syscall(446, ruleset, 0), "landlock")
    os.close(ruleset)


def become_program(job: Job, pipes: tuple[int, int, int, int], token: bytes) -> int:
    """In the forked process: run the program as `__main__`, or as module `program` when tests follow.

    Returns the exit code; the caller lets the interpreter end as usual, so that threads and atexit functions
    run."""
    os.setsid()
    moved = [fcntl.fcntl(pipe, fcntl.F_DUPFD, 64) for pipe in pipes]  # clear of 0 to 3
    for target, pipe in enumerate(moved):
        os.dup2(pipe, target, inheritable=target < 3)
    os.closerange(4, 1024)
    try:
        confine(job)
    except (Failure, OSError, ValueError) as error:
        os.write(3, b"F" + str(error).encode(errors="replace")[:1000])
        os._exit(1)
    prctl(_SET_DUMPABLE, 1)  # so that /dev/stdin and /proc/self are its own
    sys.stdin = open(0, encoding="utf-8", errors="surrogateescape")
    sys.stdout = open(1, "w", encoding="utf-8", errors="surrogateescape")
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1)
    name, *arguments = job["argv"]
    path = f"{job['scratch']}/{name}"
    main = types.ModuleType("__main__" if job["after"] is None else "program")
    main.__dict__.update(__file__=path, __builtins__=__builtins__)
    sys.modules[main.__name__] = main
    sys.argv = [name, *arguments]
    sys.path.insert(0, job["scratch"])
    gc.enable()
    tests = None
    if job["after"] is not None:
        # under a name of its own, that no file has
        tests = compiled(job["after"], "tests", b"G")
        if tests is None:
            return 1
    code = compiled(job["files"][name], path, b"S")
    if code is None:
        return 1
    if not execute(code, main):
        return 1
    if tests is None:
        return 0
    os.write(3, b"T")
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    passed = execute(tests, main)
    if passed:
        os.write(3, token)
    os._exit(0 if passed else 1)  # what the program left for its end is none of the tests' business


def compiled(text: bytes | str, name: str, or_else: bytes) -> types.CodeType | None:
    """The text as code; None, reported as `or_else`, when it is no Python."""
    try:
        return compile(text, name, "exec", dont_inherit=True)
    except BaseException as error:  # noqa: BLE001 - SyntaxError, ValueError (NUL), MemoryError, RecursionError
        os.write(3, or_else)
        traceback.print_exception(type(error), error, None)
        return None


def execute(code: types.CodeType, module: types.ModuleType) -> bool:
    """Run `code`; an exception is printed without the frames of this file. False when there was one."""
    try:
        exec(code, module.__dict__)
    except SystemExit:
        raise
    except BaseException as error:  # noqa: BLE001 - the program's own, shown as Python shows it
        if isinstance(error, MemoryError):
            os.write(3, b"M")
        frames = error.__traceback__.tb_next if error.__traceback__ is not None else None
        with contextlib.suppress(OSError, ValueError, RecursionError, MemoryError):
            traceback.print_exception(type(error), error, frames, limit=-20)
        return False
    return True
