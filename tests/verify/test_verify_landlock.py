"""The same attacks under the weaker level: each is stopped, or is what GAPS says."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import attacks
import pytest
from sandboxes import ROOMY, SMALL, attacked, listening, said, works

from tutelage.verify import landlock
from tutelage.verify.sandbox import Outcome, Sandbox, _trial, find_sandbox

SANDBOX = Sandbox("landlock", as_root=os.geteuid() == 0)
WHY = _trial(SANDBOX) if landlock.version() >= landlock.LEAST else f"Landlock version {landlock.version()}"
pytestmark = [pytest.mark.skipif(WHY != "", reason=f"no Landlock here: {WHY}"), pytest.mark.slow]


@pytest.fixture(autouse=True)
def the_next_program_is_fine() -> Iterator[None]:
    yield
    assert works(SANDBOX)


def attack_once(program: str, **values: object) -> Outcome:
    return attacked(SANDBOX, program, **values)[0]


def reachable(path: Path) -> None:
    """Open to every user: only the sandbox is in the way."""
    path.chmod(0o777)
    for folder in path.parents[: len(path.parents) - 2]:
        folder.chmod(0o755)


def test_it_is_only_used_where_the_caller_allows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tutelage.verify.bubblewrap.candidates", lambda: [])
    find_sandbox.cache_clear()
    try:
        refused, allowed = find_sandbox(), find_sandbox(allow_weaker=True)
    finally:
        find_sandbox.cache_clear()
    assert refused.level == "none" and "apt-get install bubblewrap" in refused.reason
    assert allowed.level == "landlock" and allowed.reason == "bubblewrap is not installed"
    assert allowed.gaps == landlock.GAPS


def test_the_documentation_lists_every_gap() -> None:
    page = Path(__file__, "../../../docs/sandbox.md").resolve().read_text(encoding="utf-8")
    assert [gap for gap in landlock.GAPS if f"- {gap}\n" not in page] == []


def test_gap_names_and_sizes_of_files_can_be_seen(tmp_path: Path) -> None:
    (tmp_path / "seen").write_text("12345")
    reachable(tmp_path / "seen")
    printed = said(attack_once("import os; print(os.stat(PATH).st_size)", PATH=str(tmp_path / "seen")))
    assert printed == "5\n" and "sizes" in landlock.GAPS[0]


def test_an_endless_loop_ends_at_the_limit_on_cpu_time() -> None:
    assert attack_once(attacks.ENDLESS_LOOP).limit == "cpu"


@pytest.mark.parametrize("program", [attacks.FORK_BOMB, attacks.RUNNING_FORKS, attacks.THREADS])
def test_forks_and_threads_are_limited(program: str) -> None:
    outcome = attack_once(program)
    assert outcome.limit in ("processes", "cpu", "") and outcome.wall_seconds < 20


@pytest.mark.parametrize(
    "program", [attacks.MEMORY_OF_ONE, attacks.MEMORY_BY_FORKS, attacks.MEMORY_SHARED], ids=range(3)
)
def test_memory_bombs_are_stopped(program: str) -> None:
    outcome = attack_once(program)
    assert outcome.limit == "memory" and outcome.peak_bytes < 4 * SMALL.memory_bytes


def test_memory_outside_every_address_space_cannot_be_had() -> None:
    assert said(attack_once(attacks.MEMORY_HIDDEN)) == "end\n"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_an_output_flood_is_cut(stream: str) -> None:
    assert attack_once(attacks.OUTPUT, STREAM=stream).limit == "output"


def test_files_on_the_disk_are_limited_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    reachable(tmp_path)
    for program in (attacks.HUGE_FILE, attacks.MANY_FILES, attacks.UNCLEARABLE, attacks.DELETE_ITSELF):
        outcome = attack_once(program.replace("/tmp", str(tmp_path)))
        assert outcome.limit in ("files", ""), outcome
        assert list(tmp_path.iterdir()) == []


def test_the_home_and_the_data_cannot_be_read(tmp_path: Path) -> None:
    secret = tmp_path / "tutelage-secret"
    secret.write_text("the secret")
    reachable(secret)
    paths = [str(secret), "/etc/passwd", "/proc/self/root/etc/passwd", "/proc/1/environ"]
    assert said(attack_once(attacks.READ, PATHS=paths, SECRET=secret.name)) == ""


def test_the_environment_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUTELAGE_TEST_KEY", "sk-SECRET")
    printed = said(attack_once(attacks.ENVIRONMENT.replace("SECRET", "sk-SECRET")))
    assert printed.startswith("False\n") and "KEY" not in printed


def test_nothing_outside_the_scratch_folder_can_be_written(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("whole")
    reachable(victim)
    before = victim.stat()
    assert said(attack_once(attacks.WRITE_ANYWHERE, limits=ROOMY, PATHS=[str(victim)])) == "tried True\n"
    assert victim.read_text() == "whole" and victim.stat() == before


def test_no_socket_can_be_made(tmp_path: Path) -> None:
    reachable(tmp_path)
    with listening(tmp_path) as listeners:
        assert said(attack_once(attacks.CONNECT, **listeners.names)) == "end\n"
        assert listeners.reached() == set()


@pytest.mark.parametrize("version", [3, 4, 5, 6, 7])
def test_other_processes_cannot_be_signalled(version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before version 6 Landlock does not scope signals: the filter of system calls stops them."""
    offered = min(version, landlock.version())
    monkeypatch.setattr("tutelage.verify.landlock.version", lambda: offered)
    user = 65534 if os.geteuid() == 0 else None
    with subprocess.Popen(["sleep", "60"], user=user) as other:
        # -1 would be every process of this user, should the sandbox be broken
        assert said(attack_once(attacks.SIGNALS, PID=other.pid, ALL=False)) == "end\n"
        assert other.poll() is None
        other.kill()


def test_other_processes_cannot_be_traced_opened_or_limited() -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        assert said(attack_once(attacks.OTHER_PROCESSES, PID=other.pid)) == "end\n"
        other.kill()


def test_no_mount_no_namespace_no_privilege_can_be_had() -> None:
    assert said(attack_once(attacks.PRIVILEGES)) == "[]\nend\n"


def test_a_daemon_that_holds_stdout_does_not_hold_the_verdict() -> None:
    outcomes = attacked(SANDBOX, attacks.DAEMON, times=2)
    assert [outcome.stdout for outcome in outcomes] == [b"done\n"] * 2


def test_symbolic_links_lead_nowhere(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("whole")
    reachable(victim)
    outcomes = attacked(SANDBOX, attacks.SYMLINKS, times=3, VICTIM=str(victim))
    assert [said(outcome) for outcome in outcomes] == ["['program.py']\n"] * 3
    assert victim.read_text() == "whole"


def test_closed_folders_are_removed() -> None:
    first, second = attacked(SANDBOX, attacks.CLOSED_FOLDERS, times=2, CHMOD=False)
    assert said(first) == said(second)


def test_the_interpreter_is_found_wherever_it_lies() -> None:
    printed = said(attack_once("import json, sys, sqlite3; print(sys.version_info[:2])"))
    assert printed == f"{sys.version_info[:2]}\n"
