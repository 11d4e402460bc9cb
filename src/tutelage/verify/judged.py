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

import atexit
import builtins
import ctypes
import fcntl
import gc
import os
import resource
import sys
import types
from collections.abc import Mapping
from typing import Any, NoReturn

_SET_PDEATHSIG, _SET_DUMPABLE, _KEEP_CAPS, _SET_SECCOMP = 1, 4, 8, 22
_SET_SUBREAPER, _SET_NO_NEW_PRIVS, _CAP_AMBIENT = 36, 38, 47
_CAP_DAC_READ_SEARCH = 2
_SIGKILL = 9  # the module signal takes 3 ms to import

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
        prctl(_SET_PDEATHSIG, _SIGKILL)  # giving up root has cleared bubblewrap's
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
        ("CORE", 1),  # 0 would still allow a dump that is piped to a program of the machine
        ("RTPRIO", 0),
        ("MEMLOCK", 0),
        ("MSGQUEUE", 0),
        ("STACK", 2**26),
    ):
        kind = getattr(resource, f"RLIMIT_{name}")
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


def become_program(job: Job, pipes: tuple[int, int, int, int], token: bytes) -> NoReturn:
    """In the forked process: run the program as `__main__`, or as module `program` when tests follow."""
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
    # not closed with the objects: a program may replace them, and still use 0 to 2
    sys.stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)
    sys.stdout = open(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False)
    sys.stderr = open(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)
    name, *arguments = job["argv"]
    path = f"{job['scratch']}/{name}"
    main = types.ModuleType("__main__" if job["after"] is None else "program")
    main.__dict__.update(__file__=path, __builtins__=builtins)
    sys.modules[main.__name__] = main
    sys.argv = [name, *arguments]
    sys.path.insert(0, job["scratch"])
    gc.enable()
    tests = None
    if job["after"] is not None:
        tests = compiled(job["after"], "tests", b"G")
    code = compiled(job["files"][name], path, b"S")
    os.write(3, b"P")  # from here on the program may write there, too: what came before is sure
    exit_code = execute(code, main)
    if tests is None:
        end(exit_code, main)
    if exit_code is None:
        os.write(3, b"T")
        exit_code = execute(tests, main)
        if exit_code is None:
            os.write(3, token)
            os._exit(0)  # what the program left for its end is none of the tests' business
    os._exit(exit_code & 0xFF)


def compiled(text: bytes | str, name: str, or_else: bytes) -> types.CodeType:
    """The text as code. When it is no Python, that is reported as `or_else`, and this process ends."""
    try:
        return compile(text, name, "exec", dont_inherit=True)
    except BaseException as error:  # noqa: BLE001 - SyntaxError, ValueError (NUL), MemoryError, RecursionError
        os.write(3, or_else)
        sys.excepthook(type(error), error, None)
        os._exit(1)


def execute(code: types.CodeType, module: types.ModuleType) -> int | None:
    """Run `code`. None when it ran to its end, else the exit code; an exception is printed as Python does,
    without the frames of this file."""
    try:
        exec(code, module.__dict__)
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        try:  # noqa: SIM105 - contextlib takes 3 ms to import
            print(error.code, file=sys.stderr)
        except BaseException:  # noqa: BLE001 - its text is the program's own
            pass
        return 1
    except BaseException as error:  # noqa: BLE001 - the program's own
        if isinstance(error, MemoryError):
            os.write(3, b"M")
        try:
            shown = error.with_traceback(error.__traceback__ and error.__traceback__.tb_next)
            sys.excepthook(type(error), shown, shown.__traceback__)
        except BaseException:  # noqa: BLE001 - the program may have replaced it
            pass
        return 1
    return None


def end(exit_code: int | None, main: types.ModuleType) -> NoReturn:
    """What the interpreter does at its end, but for the parts that only free memory: 8 of the 10 ms that a
    small program takes in a forked interpreter."""
    streams = sys.stdout, sys.stderr, sys.__stdout__
    try:
        if "threading" in sys.modules:
            sys.modules["threading"]._shutdown()
        atexit._run_exitfuncs()
        main.__dict__.clear()  # closes, and so writes out, the files that the program left open
        for stream in (sys.stdout, sys.stderr, *streams):
            if stream is not None and not stream.closed:
                stream.flush()
    except BaseException as error:  # noqa: BLE001 - of the program's own functions
        os.write(2, f"{type(error).__name__} at the end of the program\n".encode())
        exit_code = exit_code or 120  # as Python does when stdout cannot be flushed
    os._exit((exit_code or 0) & 0xFF)
