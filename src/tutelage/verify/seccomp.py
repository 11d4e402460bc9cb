"""The system calls that a judged program may not make, as a filter program for the kernel (seccomp BPF).

It closes what namespaces and Landlock leave open: memory that no limit sees (memfd, System V), kernel keys
that are inherited from the caller, sockets of families that a network namespace does not isolate (vsock, and
AF_ALG as attack surface), new namespaces, mounts, ptrace, limits of other processes, io_uring and bpf.
Promises: denied calls fail with an error number, they do not kill; calls newer than this table, calls of
another architecture (32 bit on 64) and clone3, whose flags a filter cannot see, fail as unknown.
Does not: install the filter (`warden` does, in the judged process only); know architectures other than
x86-64 and arm64 (`supported` says so, and without a filter there is no sandbox).
"""

from __future__ import annotations

import errno
import platform
import struct

_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_NEWEST = 470
"""Calls above this number are newer than the table."""
_NEW_NAMESPACES = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET among the flags of clone."""
_UNIX, _INET, _INET6 = 1, 2, 10

_NONE = -1
_DENIED: dict[str, tuple[int, int]] = {
    # memory that is in no process's address space
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "semget": (64, 190),
    "mq_open": (240, 180),
    # large interfaces of the kernel that no answer to a question needs
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "userfaultfd": (323, 282),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "modify_ldt": (154, _NONE),
    "iopl": (172, _NONE),
    "ioperm": (173, _NONE),
    # namespaces and mounts
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "open_tree_attr": (467, 467),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    "fanotify_init": (300, 262),
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    # the machine itself
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "acct": (163, 89),
    "syslog": (103, 116),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
}
_DENIED_WITHOUT_NAMESPACES: dict[str, tuple[int, int]] = {
    # Landlock says nothing about modes, owners, times and attributes of files that cannot be opened
    "chmod": (90, _NONE),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, _NONE),
    "fchown": (93, 55),
    "lchown": (94, _NONE),
    "fchownat": (260, 54),
    "utime": (132, _NONE),
    "utimes": (235, _NONE),
    "futimesat": (261, _NONE),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463, 463),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "removexattrat": (466, 466),
    "file_setattr": (469, 469),
    "inotify_add_watch": (254, 27),
    # and nothing about other processes of the same user, signals apart
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
    # its network rules know TCP only: no socket at all
    "socket": (41, 198),
}
_SIGNALS: dict[str, tuple[int, int]] = {
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
}
_CLONE, _CLONE3, _SOCKET = (56, 220), (435, 435), (41, 198)
_PRLIMIT, _SETRLIMIT = (302, 261), (160, 164)
_RLIMIT_CORE = 4
"""Set to 1 by `judged`, which also stops dumps that are piped to a program of the machine (0 would not)."""

_LOAD, _AND, _EQUAL, _GREATER, _RETURN = 0x20, 0x54, 0x15, 0x25, 0x06
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000
_AT_NUMBER, _AT_ARCHITECTURE, _ARGUMENTS = 0, 4, 16


def supported() -> bool:
    """Whether the table knows this machine's architecture."""
    return platform.machine() in _ARCHITECTURES


def filter_program(*, namespaces: bool, signals_scoped: bool = True) -> bytes:
    """The filter as an array of `struct sock_filter`. Without `namespaces` (the Landlock level) more is
    denied: all sockets, changes to files' metadata, and, where Landlock does not scope them, signals."""
    column, architecture = _ARCHITECTURES[platform.machine()]
    denied = dict(_DENIED)
    if not namespaces:
        denied |= _DENIED_WITHOUT_NAMESPACES
        if not signals_scoped:
            denied |= _SIGNALS
    program = [
        _one(_LOAD, _AT_ARCHITECTURE),
        _one(_EQUAL, architecture, 1, 0),
        _fail(errno.ENOSYS),
        _one(_LOAD, _AT_NUMBER),
        _one(_GREATER, _NEWEST, 0, 1),  # x32 calls have bit 30 set: they are above it too
        _fail(errno.ENOSYS),
        _one(_EQUAL, _CLONE3[column], 0, 1),  # the C library then uses clone, whose flags are in a register
        _fail(errno.ENOSYS),
    ]
    for numbers in denied.values():
        if numbers[column] != _NONE:
            program += [_one(_EQUAL, numbers[column], 0, 1), _fail(errno.EPERM)]
    program += _when(
        _CLONE[column],
        [_one(_LOAD, _ARGUMENTS), _one(_AND, _NEW_NAMESPACES), _one(_EQUAL, 0, 1, 0), _fail(errno.EPERM)],
    )
    program += _when(
        _SOCKET[column],
        [
            _one(_LOAD, _ARGUMENTS),
            *(_one(_EQUAL, family, left, 0) for family, left in ((_UNIX, 3), (_INET, 2), (_INET6, 1))),
            _fail(errno.EAFNOSUPPORT),
        ],
    )
    program += _when(
        _PRLIMIT[column],
        [
            _one(_LOAD, _ARGUMENTS),
            _one(_EQUAL, 0, 1, 0),  # 0 is the caller itself
            _fail(errno.EPERM),
            _one(_LOAD, _ARGUMENTS + 8),
            _one(_EQUAL, _RLIMIT_CORE, 0, 1),
            _fail(errno.EPERM),
        ],
    )
    program += _when(
        _SETRLIMIT[column],
        [_one(_LOAD, _ARGUMENTS), _one(_EQUAL, _RLIMIT_CORE, 0, 1), _fail(errno.EPERM)],
    )
    return b"".join([*program, _one(_RETURN, _ALLOW)])


def _when(number: int, checks: list[bytes]) -> list[bytes]:
    """Instructions that are skipped for other calls; a call that passes them is allowed."""
    return [_one(_EQUAL, number, 0, len(checks) + 1), *checks, _one(_RETURN, _ALLOW)]


def _one(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _fail(number: int) -> bytes:
    return _one(_RETURN, _ERROR | number)
