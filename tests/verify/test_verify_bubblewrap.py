"""Attacks under bubblewrap. Each is stopped, and the machine and the next program are fine afterwards."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import attacks
import pytest
from sandboxes import ROOMY, SMALL, attacked, listening, said, works

from tutelage.verify import bubblewrap
from tutelage.verify.sandbox import Outcome, Sandbox, _trial, find_sandbox, run

SANDBOX = find_sandbox()
pytestmark = pytest.mark.skipif(SANDBOX.level != "bubblewrap", reason=f"no bubblewrap here: {SANDBOX.reason}")


@pytest.fixture(autouse=True)
def the_next_program_is_fine() -> Iterator[None]:
    yield
    assert works(SANDBOX)


def attack_once(program: str, **values: object) -> Outcome:
    return attacked(SANDBOX, program, **values)[0]


@pytest.mark.parametrize("program", bubblewrap.candidates())
def test_every_bubblewrap_of_this_machine_works(program: str) -> None:
    ways = [Sandbox("bubblewrap", program, as_root) for as_root in {os.geteuid() == 0, False}]
    assert "" in [_trial(way) for way in ways]


def test_an_endless_loop_ends_at_the_limit_on_cpu_time() -> None:
    outcome = attack_once(attacks.ENDLESS_LOOP)
    assert outcome.limit == "cpu"
    assert SMALL.cpu_seconds <= outcome.cpu_seconds < 3 * SMALL.cpu_seconds


def test_a_fork_bomb_is_stopped() -> None:
    outcome = attack_once(attacks.FORK_BOMB)
    assert outcome.limit in ("processes", "cpu")


def test_forks_that_run_away_are_killed() -> None:
    outcome = attack_once(attacks.RUNNING_FORKS)
    assert outcome.wall_seconds < 20


def test_the_kernel_limits_forks_even_when_nobody_looks() -> None:
    assert _trial(SANDBOX) == ""


def test_threads_are_limited_as_processes_are() -> None:
    outcome = attack_once(attacks.THREADS)
    assert outcome.limit == "processes" or b"can't start new thread" in outcome.stderr


def test_a_memory_bomb_of_one_process_is_stopped() -> None:
    outcome = attack_once(attacks.MEMORY_OF_ONE)
    assert outcome.limit == "memory"
    assert outcome.peak_bytes <= SMALL.memory_bytes


def test_a_memory_bomb_by_forks_is_stopped() -> None:
    outcome = attack_once(attacks.MEMORY_BY_FORKS)
    assert outcome.limit == "memory"
    assert outcome.peak_bytes < 4 * SMALL.memory_bytes


def test_shared_memory_that_no_process_seems_to_hold_is_counted() -> None:
    assert attack_once(attacks.MEMORY_SHARED).limit == "memory"


def test_memory_outside_every_address_space_cannot_be_had() -> None:
    assert said(attack_once(attacks.MEMORY_HIDDEN)) == "end\n"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_an_output_flood_is_cut(stream: str) -> None:
    outcome = attack_once(attacks.OUTPUT, STREAM=stream)
    assert outcome.limit == "output"
    assert len(getattr(outcome, stream)) == SMALL.output_bytes


def test_a_huge_file_meets_the_size_of_the_scratch_folder() -> None:
    lines = said(attack_once(attacks.HUGE_FILE)).splitlines()
    assert int(lines[-1]) <= SMALL.scratch_bytes >> 20


def test_many_empty_files_are_a_limit_too() -> None:
    assert attack_once(attacks.MANY_FILES).limit == "files"


def test_the_home_and_the_data_cannot_be_read(tmp_path: Path) -> None:
    secret = tmp_path / "tutelage-secret"
    secret.write_text("the secret")
    secret.chmod(0o666)
    home = Path.home() / f".tutelage-test-{os.getpid()}"
    home.write_text("the secret")
    try:
        paths = [
            str(secret),
            str(home),
            "/etc/passwd",
            "/etc/shadow",
            "/proc/1/root/etc/passwd",
            "/proc/kcore",
        ]
        printed = said(attack_once(attacks.READ, PATHS=paths, SECRET=home.name))
    finally:
        home.unlink()
    assert "read" not in printed and "listed" not in printed, printed
    assert "secret" not in printed


def test_the_environment_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUTELAGE_TEST_KEY", "sk-SECRET")
    printed = said(attack_once(attacks.ENVIRONMENT.replace("SECRET", "sk-SECRET")))
    assert printed.startswith("False\n") and "KEY" not in printed


@pytest.mark.slow
def test_nothing_outside_the_scratch_folder_can_be_written(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("whole")
    for path in (victim, tmp_path):
        path.chmod(0o777)
    outcome = attack_once(attacks.WRITE_ANYWHERE, limits=ROOMY, PATHS=[str(victim), sys.executable])
    lines = said(outcome).splitlines()
    assert lines == [f"wrote {bubblewrap.SCRATCH}/attack", "wrote /dev/shm/attack", "tried True"]
    assert victim.read_text() == "whole"


def test_no_socket_reaches_the_machine_or_the_network(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with listening(tmp_path) as listeners:
        assert said(attack_once(attacks.CONNECT, **listeners.names)) == "end\n"
        assert listeners.reached() == set()


def test_the_attack_on_sockets_would_reach_them_without_a_sandbox(tmp_path: Path) -> None:
    with listening(tmp_path) as listeners:
        program = attacks.attack(attacks.CONNECT.replace("range(3, 46)", "()"), **listeners.names)
        subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=True)
        assert listeners.reached() == {"tcp", "udp", "unix", "abstract"}


def test_the_parent_and_other_processes_cannot_be_killed() -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        outcome = attack_once(attacks.SIGNALS, PID=other.pid, ALL=True)
        assert outcome.stdout == b"end\n"
        assert other.poll() is None
        other.kill()


def test_other_processes_cannot_be_traced_opened_or_limited() -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        assert said(attack_once(attacks.OTHER_PROCESSES, PID=other.pid)) == "end\n"
        other.kill()


def test_no_mount_no_namespace_no_privilege_can_be_had() -> None:
    lines = said(attack_once(attacks.PRIVILEGES)).splitlines()
    assert lines[-1] == "end" and len(lines) == 2, lines
    effective, permitted, _, no_new = eval(lines[0])  # noqa: S307 - printed by our own attack
    assert int(effective, 16) == int(permitted, 16) == 0 and no_new == "1"


def test_a_daemon_that_holds_stdout_does_not_hold_the_verdict() -> None:
    first, second = attacked(SANDBOX, attacks.DAEMON, times=2)
    assert first.stdout == second.stdout == b"done\n"
    assert first.wall_seconds < 20


def test_symbolic_links_lead_nowhere(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("whole")
    for path in (victim, tmp_path):
        path.chmod(0o777)
    outcomes = attacked(SANDBOX, attacks.SYMLINKS, times=3, VICTIM=str(victim))
    # the second run finds its own files again, not the links of the first
    assert [said(outcome) for outcome in outcomes] == ["['program.py']\n"] * 3
    assert victim.read_text() == "whole"


@pytest.mark.parametrize("program", [attacks.UNCLEARABLE, attacks.CLOSED_FOLDERS, attacks.DELETE_ITSELF])
def test_what_a_run_leaves_is_gone_before_the_next(program: str) -> None:
    first, second = attacked(SANDBOX, program, times=2, CHMOD=True)
    assert said(first) == said(second)


def test_a_report_cannot_be_forged() -> None:
    files = {"program.py": attacks.attack(attacks.FORGE)}
    outcome = run(files, ("program.py",), b"", SMALL, after="assert False", sandbox=SANDBOX)
    assert outcome.failure == "" and outcome.phase != "passed"
    assert outcome.exit_code == 0


def test_all_ends_when_the_caller_is_killed() -> None:
    # a length of sleep that nothing else on this machine has
    seconds = 100_000 + os.getpid()
    program = f"import os; os.execv('/bin/sleep', ['sleep', '{seconds}'])"
    caller = (
        "from tutelage.verify.sandbox import Limits, run\n"
        f"run({{'p.py': {program.encode()!r}}}, ['p.py'], b'', Limits(wall_seconds=600))\n"
    )
    with subprocess.Popen([sys.executable, "-c", caller]) as process:
        _wait(lambda: _running(str(seconds)), "the program started")
        process.kill()
    _wait(lambda: not _running(str(seconds)), "the program ended")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_caller_who_is_not_root_has_the_same_protection() -> None:
    """In an outer sandbox that gives user 65534 a way to this interpreter, which may lie in /root."""
    code = (
        "import sys\n"
        "from tutelage.verify.sandbox import find_sandbox, run\n"
        "found = find_sandbox()\n"
        "outcome = run({'p.py': sys.argv[1].encode()}, ['p.py'])\n"
        "print(found.level, found.as_root, outcome.stdout.decode())\n"
    )
    program = "import os; print(os.getuid(), os.listdir())"
    outer = [SANDBOX.program, "--dev-bind", "/", "/"]
    if sys.base_prefix.startswith("/root/"):
        way = str(Path(*Path(sys.base_prefix).parts[:3]))
        outer += ["--perms", "0755", "--tmpfs", "/root", "--ro-bind", way, way]
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"]
    command = [*outer, *user, sys.executable, "-c", code, program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split("\n")[0] == "bubblewrap False 1000 ['p.py']", done.stderr


def _running(word: str) -> bool:
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if (folder / "cmdline").read_bytes().split(b"\0")[:2] == [b"sleep", word.encode()]:
                    return True
            except OSError:
                continue
    return False


def _wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.05)
