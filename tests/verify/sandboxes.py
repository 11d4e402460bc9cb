"""What the tests of both levels of the sandbox share: how an attack is run, and what it may reach."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from attacks import attack

from tutelage.verify.sandbox import Limits, Outcome, Sandbox, run_each

SMALL = Limits(
    cpu_seconds=1.0,
    wall_seconds=30.0,
    memory_bytes=256 * 2**20,
    scratch_bytes=32 * 2**20,
    output_bytes=2**20,
    processes=32,
)
"""Wall time is no part of these tests: two cores may be busy with others."""

ROOMY = replace(SMALL, cpu_seconds=20.0)
"""For attacks that walk through all folders."""


def attacked(
    sandbox: Sandbox, program: str, times: int = 1, limits: Limits = SMALL, **values: object
) -> list[Outcome]:
    """The outcomes of an attack that is run `times` times in one sandbox. The sandbox itself never fails."""
    files = {"program.py": attack(program, **values)}
    with closing(run_each(files, ("program.py",), [b""] * times, limits, sandbox=sandbox)) as outcomes:
        found = list(outcomes)
    assert len(found) == times
    assert not any(outcome.failure for outcome in found), found
    return found


def said(outcome: Outcome) -> str:
    """What the attack printed; it must have come to its end."""
    assert outcome.limit == "" and outcome.exit_code == 0, outcome
    return outcome.stdout.decode()


def works(sandbox: Sandbox) -> bool:
    """Whether the next program in this sandbox is fine."""
    [outcome] = attacked(sandbox, "print(6 * 7)")
    return outcome.stdout == b"42\n" and outcome.exit_code == 0


@dataclass(frozen=True, slots=True)
class Listeners:
    """Real sockets of this machine."""

    sockets: dict[str, socket.socket]
    path: str
    abstract: str

    @property
    def names(self) -> dict[str, object]:
        """What the attack CONNECT is told."""
        return {
            "TCP_PORT": self.sockets["tcp"].getsockname()[1],
            "UDP_PORT": self.sockets["udp"].getsockname()[1],
            "HOST_NAME": socket.gethostbyname(socket.gethostname()),
            "SOCKET_PATH": self.path,
            "ABSTRACT_NAME": self.abstract,
        }

    def reached(self) -> set[str]:
        """Which of them something has come to."""
        found = set()
        for name, listener in self.sockets.items():
            with suppress(BlockingIOError):
                if name == "udp":
                    listener.recv(100)
                else:
                    listener.accept()[0].close()
                found.add(name)
        return found


@contextmanager
def listening(folder: Path) -> Iterator[Listeners]:
    """TCP and UDP on all addresses, a unix socket in `folder`, and an abstract one."""
    abstract = f"tutelage-test-{os.getpid()}"
    path = folder / "socket"
    with (
        socket.create_server(("0.0.0.0", 0)) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.socket(socket.AF_UNIX) as unix,
        socket.socket(socket.AF_UNIX) as hidden,
    ):
        udp.bind(("0.0.0.0", 0))
        unix.bind(str(path))
        path.chmod(0o777)
        hidden.bind("\0" + abstract)
        unix.listen()
        hidden.listen()
        sockets = {"tcp": tcp, "udp": udp, "unix": unix, "abstract": hidden}
        for each in sockets.values():
            each.setblocking(False)
        yield Listeners(sockets, str(path), abstract)
