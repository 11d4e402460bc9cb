"""Killable workers: time, memory, death, threads, orphans. Real processes, really killed."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tutelage.errors import UsageError
from tutelage.records import Problem, Trace, Verdict
from tutelage.verify import WorkerPool, check_trace, judge, require_checkers
from tutelage.verify.user import load_request

CHECKER = """
import os, sys, time
from pathlib import Path
from tutelage.records import Verdict

print("printed at import")

def check(problem, trace):
    do = trace.answer
    print("printed while checking", do)
    if do == "hang": time.sleep(1000)
    if do == "spin": 9 ** 9 ** 9 ** 9  # one C call that never lets go of the interpreter
    if do == "die": os._exit(7)
    if do == "segv": os.kill(os.getpid(), 11)
    if do == "exit": sys.exit(3)
    if do == "eat": return len("x" * (10 << 30)) > 0
    if do == "raise": raise ValueError("bad\\nluck")
    if do == "deep":
        def f(): return f()
        return f()
    if do == "child":
        import subprocess
        child = subprocess.Popen(["sleep", "1000"])
        Path(problem.question).write_text(str(child.pid))
        time.sleep(1000)
    if do == "pid": Path(problem.question).write_text(str(os.getpid())); time.sleep(1000)
    if do == "verdict": return Verdict("other", "other", "incorrect", "my reason", "mine", "7")
    if do == "odd": return Verdict("", "", "maybe", "", "mine")
    values = {"half": 0.5, "one": 1, "zero": 0.0, "true": True, "false": False, "nan": float("nan"),
              "two": 2.0, "none": None, "text": "correct"}
    if do in values: return values[do]
    return do == problem.gold
"""


@pytest.fixture
def checker(tmp_path: Path) -> str:
    path = tmp_path / "my_checker.py"
    path.write_text(CHECKER)
    return f"{path}:check"


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    with WorkerPool(seconds=10) as pool:
        yield pool


def run(pool: WorkerPool, checker: str, answer: str, question: str = "q") -> Verdict:
    problem = Problem("p", question, gold="x" * 100, checker=checker)
    return check_trace(problem, Trace("t", "p", 0, "m", answer), pool)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def is_gone(pid: int, patience: float) -> bool:
    deadline = time.monotonic() + patience
    while is_alive(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_results_of_a_user_function(pool: WorkerPool, checker: str) -> None:
    expected = {
        "x" * 100: "correct",
        "other": "incorrect",
        "one": "correct",
        "true": "correct",
        "zero": "incorrect",
        "false": "incorrect",
        "half": "undecided",
        "nan": "undecided",
        "two": "undecided",
        "none": "undecided",
        "text": "undecided",
        "odd": "undecided",
        "\ud800<script>\x00": "incorrect",
    }
    assert {answer: run(pool, checker, answer).status for answer in expected} == expected
    assert "0.5" in run(pool, checker, "half").reason
    assert "NoneType" in run(pool, checker, "none").reason


def test_a_users_verdict_keeps_its_reason_and_gets_the_right_ids(pool: WorkerPool, checker: str) -> None:
    verdict = run(pool, checker, "verdict")
    assert (verdict.status, verdict.reason, verdict.method) == ("incorrect", "my reason", "mine")
    assert (verdict.trace_id, verdict.problem_id, verdict.extracted) == ("t", "p", "7")


@pytest.mark.slow
def test_failures_are_undecided_with_the_reason_and_the_pool_goes_on(pool: WorkerPool, checker: str) -> None:
    pool.load(load_request(checker))
    assert pool.memory_limited is (sys.platform != "darwin")
    pool.seconds = 0.5
    reasons = {
        "raise": "ValueError: bad luck (my_checker.py line",
        "hang": "timeout after 0.5 s",
        "spin": "timeout after 0.5 s",
        "die": "exit code 7",
        "segv": "SIGSEGV",
        "exit": "exit code 3",
        "eat": "MemoryError",
        "deep": "RecursionError",
    }
    for answer, reason in reasons.items():
        verdict = run(pool, checker, answer)
        assert verdict.status == "undecided", answer
        assert reason in verdict.reason and "\n" not in verdict.reason
        assert run(pool, checker, "true").status == "correct"


def test_what_a_worker_started_dies_with_it(checker: str, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    with WorkerPool(seconds=1) as pool:
        assert "timeout" in run(pool, checker, "child", str(note)).reason
        assert is_gone(int(note.read_text()), 2)


def test_closing_leaves_no_process(checker: str, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    pool = WorkerPool(seconds=60)
    thread = threading.Thread(target=lambda: run(pool, checker, "pid", str(note)))
    thread.start()
    deadline = time.monotonic() + 30
    while not (note.exists() and note.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    pid = int(note.read_text())
    pool.close()
    thread.join(5)
    assert not thread.is_alive() and is_gone(pid, 2)
    with pytest.raises(RuntimeError, match="closed"):
        run(pool, checker, "true")


@pytest.mark.slow
def test_the_parents_death_ends_a_busy_worker(checker: str, tmp_path: Path) -> None:
    note, script = tmp_path / "pid", tmp_path / "parent.py"
    script.write_text(
        "import sys\n"
        "from tutelage.records import Problem, Trace\n"
        "from tutelage.verify import WorkerPool, check_trace\n"
        "with WorkerPool(seconds=1) as pool:\n"
        "    problem = Problem('p', sys.argv[2], checker=sys.argv[1])\n"
        "    check_trace(problem, Trace('t', 'p', 0, 'm', 'pid'), pool)\n"
    )
    parent = subprocess.Popen([sys.executable, str(script), checker, str(note)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not (note.exists() and note.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert is_gone(int(note.read_text()), 10)


def test_an_idle_worker_that_died_is_replaced(pool: WorkerPool, checker: str) -> None:
    assert run(pool, checker, "true").status == "correct"
    (worker,) = pool._idle
    os.kill(worker.process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, worker.process.pid, os.WEXITED | os.WNOWAIT)
    assert run(pool, checker, "true").status == "correct"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.py:check", "no file"),
        ("broken.py:check", "SyntaxError"),
        ("raises.py:check", "ZeroDivisionError"),
        ("exits.py:check", "SystemExit"),
        ("empty.py:check", "no function 'check'"),
        ("no_such_module:check", "ModuleNotFoundError"),
        ("numbr", "unknown checker 'numbr'"),
    ],
)
def test_a_missing_checker_is_a_usage_error_before_any_trace_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.py").write_text("def check(:")
    Path("raises.py").write_text("1 / 0")
    Path("exits.py").write_text("raise SystemExit(1)")
    Path("empty.py").write_text("")
    read: list[int] = []

    def traces() -> Iterator[Trace]:
        read.append(1)
        yield Trace("t", "p", 0, "m", "18")

    with pytest.raises(UsageError, match=message) as caught:
        list(judge({"p": Problem("p", "q", "18", checker=name)}, traces()))
    assert not read and "\n" not in str(caught.value)


def test_a_module_of_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here.py").write_text("def check(problem, trace): return trace.answer == 'yes'")
    Path("numbers.py").write_text("raise RuntimeError('a stray file stood in for a library')")
    with WorkerPool(seconds=5) as pool:
        require_checkers([Problem("p", "q", checker="here:check")], pool)
        assert run(pool, "here:check", "yes").status == "correct"


@pytest.mark.slow
def test_a_script_without_a_main_guard_runs_once(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "print('started')\nfrom tutelage.verify import verify\n"
        "print(verify(answer='$x+1$', gold='1+x', kind='math', seconds=30).status)\n"
    )
    out = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=90, check=True
    )
    assert out.stdout.split() == ["started", "correct"]


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"seconds": 0.0}])
def test_settings_that_cannot_work_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="must be"):
        WorkerPool(**wrong)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_caller_that_holds_much_memory_does_not_wear_out_its_workers() -> None:
    # Linux hands the largest size of a process on to what it starts.
    text = (
        "held = bytearray(900 * 2**20)\n"
        "held[:: 4096] = bytes(len(held[:: 4096]))\n"
        "from tutelage.verify import cascade, verify\n"
        "for _ in range(2):\n"
        "    print(verify(answer='$x+1$', gold='1+x', kind='math', seconds=60).status)\n"
        "    print([worker.process.pid for worker in cascade._shared_pool()._all])\n"
    )
    said = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True).stdout
    first, pids, second, again = said.splitlines()
    assert (first, second) == ("correct", "correct") and pids == again != "[]"
