"""Programs that attack the machine. Each prints what it achieved; a harmless end is named by its test.

All of them are bounded, should the sandbox be broken: forks are counted and end by themselves, floods stop.
Names in capitals are replaced by `attack(...)`.
"""

from __future__ import annotations

ENDLESS_LOOP = """
import signal
signal.alarm(30)
signal.signal(signal.SIGXCPU, signal.SIG_IGN)
while True: pass
"""

FORK_BOMB = """
import os, signal, time
signal.alarm(20)
made = 0
while made < 2000:
    try:
        pid = os.fork()
    except OSError:
        time.sleep(0.001)
        made += 1
        continue
    if pid == 0:
        signal.alarm(20)
    made += 1
time.sleep(15)
"""

# every process forks and its parent ends: nobody stays to be killed
RUNNING_FORKS = """
import os, signal, sys
signal.alarm(20)
for _ in range(20000):
    if os.fork():
        os._exit(0)
    signal.alarm(20)
"""

THREADS = """
import threading, time
for _ in range(500): threading.Thread(target=time.sleep, args=(20,), daemon=True).start()
"""

MEMORY_OF_ONE = """
held = []
for _ in range(64): held.append(b"x" * (64 << 20))
print("held", len(held))
"""

MEMORY_BY_FORKS = """
import os, signal, time
for _ in range(20):
    if os.fork() == 0:
        signal.alarm(20)
        held = bytearray(b"x") * (100 << 20)
        time.sleep(20)
        os._exit(0)
time.sleep(20)
"""

# the pages are given back, the shared memory behind them is not: no process seems to hold it
MEMORY_SHARED = """
import mmap, os, signal, time
for _ in range(24):
    if os.fork() == 0:
        signal.alarm(20)
        space = mmap.mmap(-1, 100 << 20)
        for at in range(0, len(space), 4 << 20):
            space[at : at + (4 << 20)] = b"x" * (4 << 20)
            space.madvise(mmap.MADV_DONTNEED, at, 4 << 20)
        time.sleep(20)
        os._exit(0)
time.sleep(20)
"""

MEMORY_HIDDEN = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
try:
    os.memfd_create("x"); print("memfd")
except OSError: pass
calls = {"shmget": (0, 1 << 20, 0o1600), "msgget": (0, 0o1600), "semget": (0, 1, 0o1600)}
for name, arguments in calls.items():
    if getattr(libc, name)(*arguments) >= 0: print(name)
print("end")
"""

OUTPUT = """
import sys
for _ in range(64 << 10): sys.STREAM.write("x" * 1024)
"""

HUGE_FILE = """
import os
written = 0
try:
    for number in range(64):
        with open(f"big{number}", "wb") as file:
            for _ in range(64): written += file.write(b"x" * (1 << 20))
except OSError as error:
    print(error.strerror)
print(written >> 20)
"""

MANY_FILES = """
import os
for number in range(200_000): os.mkdir(f"d{number}")
print("made them")
"""

READ = """
import os
for path in PATHS:
    try: print("read", path, open(path, "rb").read()[:40])
    except OSError: pass
    try:
        if SECRET in os.listdir(os.path.dirname(path)): print("listed", path)
    except OSError: pass
for folder in ("/home", "/root", "/work", "/etc", "/var", "/run", "/sys", "/mnt", "/media", "/opt", "/boot"):
    try: print(folder, sorted(os.listdir(folder)))
    except OSError: pass
"""

ENVIRONMENT = """
import os
seen = repr(dict(os.environ))
try: names = os.listdir("/proc")
except OSError: names = ()
for name in names:
    for file in ("environ", "cmdline"):
        try: seen += open(f"/proc/{name}/{file}").read()
        except OSError: pass
print("SECRET" in seen)
print(sorted(os.environ))
"""

WRITE_ANYWHERE = """
import os
tried = 0
def attempt(path):
    global tried
    tried += 1
    try:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
        os.unlink(path)
        print("wrote", path)
    except OSError: pass
for top in ("/", *PATHS):
    for folder, folders, _ in os.walk(top):
        if folder == "/": folders[:] = [name for name in folders if name not in ("proc", "usr", "nix")]
        attempt(os.path.join(folder, "attack"))
for folder in ("/usr", "/usr/bin", "/usr/lib", "/usr/local", "/proc", "/proc/sys/kernel"):
    attempt(folder + "/attack")
for path in PATHS:
    for act in (lambda: open(path, "ab").write(b"x"), lambda: os.truncate(path, 0), lambda: os.unlink(path),
                lambda: os.rename(path, path + "x"), lambda: os.chmod(path, 0o777),
                lambda: os.utime(path, (1, 1)),
                lambda: os.link(path, "link"), lambda: os.chown(path, os.getuid(), -1),
                lambda: os.setxattr(path, "user.x", b"x")):
        try: act(); print("changed", path)
        except OSError: pass
for path in ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/sys/vm/drop_caches"):
    try: open(path, "w").write("x"); print("wrote", path)
    except OSError: pass
print("tried", tried > 5)
"""

CONNECT = """
import socket
def attempt(name, act):
    try: act(); print("reached", name)
    except OSError: pass
def tcp(host): socket.create_connection((host, TCP_PORT), timeout=1)
def udp(host):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(b"attack", (host, UDP_PORT))
def unix(path, kind=socket.SOCK_STREAM): socket.socket(socket.AF_UNIX, kind).connect(path)
for host in ("127.0.0.1", HOST_NAME): attempt("tcp " + host, lambda: tcp(host))
for host in ("127.0.0.1", HOST_NAME):
    try: udp(host)
    except OSError: pass
attempt("unix", lambda: unix(SOCKET_PATH))
attempt("abstract", lambda: unix("\\0" + ABSTRACT_NAME))
attempt("dns", lambda: socket.getaddrinfo("example.com", 80))
for family in range(3, 46):
    if family != socket.AF_INET6:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET):
            attempt(f"family {family}", lambda: socket.socket(family, kind))
attempt("raw", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
print("end")
"""

SIGNALS = """
import os, signal
own = os.getpid()
for pid in [os.getppid(), PID, 1, -1, 0, *range(2, 300)]:
    if pid in (0, -1): continue
    if pid != own:
        try:
            os.kill(pid, signal.SIGKILL)
            if pid != os.getppid() or pid != 1: print("signalled", pid)
        except OSError: pass
print("end", flush=True)
os.kill(-1, signal.SIGKILL) if ALL else None
"""

OTHER_PROCESSES = """
import ctypes, os, resource
libc = ctypes.CDLL(None, use_errno=True)
def attempt(name, act):
    try:
        result = act()
        if not isinstance(result, int) or result >= 0: print("did", name)
    except OSError: pass
for pid in (PID, os.getppid(), 1):
    attempt("ptrace", lambda: libc.ptrace(16, pid, 0, 0))
    for name in ("root", "cwd", "mem", "environ", "fd", "maps", "fd/0"):
        path = f"/proc/{pid}/{name}"
        attempt("open " + path, lambda: os.close(os.open(path, os.O_RDONLY)))
    attempt("list", lambda: os.listdir(f"/proc/{pid}/root/"))
    attempt("prlimit", lambda: resource.prlimit(pid, resource.RLIMIT_NOFILE, (1, 1)))
    attempt("affinity", lambda: os.sched_setaffinity(pid, {0})) if pid != os.getppid() else None
    buffer = ctypes.create_string_buffer(64)
    attempt("vm_readv", lambda: libc.process_vm_readv(pid, buffer, 1, buffer, 1, 0))
    attempt("pidfd", lambda: libc.syscall(438, os.pidfd_open(pid), 0, 0))
print("end")
"""

PRIVILEGES = """
import ctypes, os, subprocess
libc = ctypes.CDLL(None, use_errno=True)
def attempt(name, result):
    if result >= 0: print("did", name)
attempt("mount", libc.mount(b"none", b"/tmp", b"tmpfs", 0, None))
attempt("bind", libc.mount(b"/", b"/tmp", None, 4096, None))
attempt("umount", libc.umount2(b"/proc", 2))
attempt("chroot", libc.chroot(b"/"))
for flag in (0x10000000, 0x00020000, 0x40000000, 0x20000000, 0x10020000):
    attempt("unshare", libc.unshare(flag))
    attempt("clone", libc.syscall(56, flag | 17, 0, 0, 0, 0)) if os.uname().machine == "x86_64" else None
for kind in ("user", "mnt", "net", "pid"):
    try: attempt("setns", libc.setns(os.open(f"/proc/1/ns/{kind}", os.O_RDONLY), 0))
    except OSError: pass
attempt("setuid", libc.setuid(0)) if os.getuid() else None
attempt("bpf", libc.syscall(321, 0, 0, 0))
attempt("io_uring", libc.syscall(425, 1, ctypes.create_string_buffer(200)))
attempt("keyctl", libc.syscall(250, 0, -3, 1))
attempt("add_key", libc.syscall(248, b"user", b"tutelage-attack", b"x", 1, -3))
attempt("reboot", libc.syscall(169, 0xfee1dead, 0x28121969, 0, 0))
attempt("hostname", libc.sethostname(b"attack", 6))
try: status = open("/proc/self/status").read()
except OSError: status = ""
names = ("CapEff", "CapPrm", "CapBnd", "NoNew")
print([line.split()[1] for line in status.splitlines() if line.startswith(names)])
for command in (["su", "-c", "id -u"], ["sudo", "-n", "id", "-u"], ["mount"], ["newgrp"], ["passwd", "-S"]):
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, stdin=subprocess.DEVNULL)
        if done.stdout.strip() == "0": print("did", command)
    except OSError: pass
print("end")
"""

DAEMON = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(60)
        print("late")
    os._exit(0)
print("done", flush=True)
"""

SYMLINKS = """
import os
print(sorted(os.listdir(".")))
victim = VICTIM
for name in ("program.py", "other", "tests"):
    try: os.unlink(name)
    except OSError: pass
    os.symlink(victim, name)
try: os.symlink(os.path.dirname(victim), "folder")
except OSError: pass
try: print("read", open("other").read())
except OSError: pass
try: open("program.py", "w").write("attack"); print("wrote")
except OSError: pass
"""

# a tree that cannot be walked by its path, closed behind itself
UNCLEARABLE = """
import os
os.mkdir("deep"); os.chdir("deep")
for _ in range(1500):
    os.mkdir("x" * 100)
    os.chdir("x" * 100)
os.chdir("/tmp") if os.access("/tmp", os.W_OK) else None
print("made")
"""

CLOSED_FOLDERS = """
import os
os.makedirs("a/b/c"); open("a/b/c/file", "w").write("x")
os.chmod("a/b/c", 0) if CHMOD else None
os.chmod("a/b", 0) if CHMOD else None
print(sorted(os.listdir(".")))
"""

DELETE_ITSELF = """
import os, shutil, sys
os.unlink(__file__)
for name in os.listdir("."): shutil.rmtree(name, ignore_errors=True)
try: os.rmdir(os.getcwd())
except OSError: pass
sys.modules.clear()
print("gone")
"""

FORGE = """
import os
lines = b"run 0 - passed 0.0 0.0 0 0 0\\nready\\nT" + b"0" * 64
for descriptor in range(3, 256):
    try: os.write(descriptor, lines)
    except OSError: pass
os._exit(0)
"""


def attack(program: str, **values: object) -> bytes:
    """The program with its names in capitals replaced."""
    for name, value in values.items():
        program = program.replace(name, value if name == "STREAM" else repr(value))  # type: ignore[arg-type]
    return program.encode()
