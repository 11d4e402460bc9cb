"""Running a program: outcomes, limits, several runs, threads, and a sandbox that fails."""

import os
import stat
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from tutelage.errors import UsageError
from tutelage.verify import sandbox as module
from tutelage.verify.bubblewrap import environment
from tutelage.verify.sandbox import Limits, Outcome, Sandbox, find_sandbox, run, run_each
from tutelage.verify.seccomp import filter_program, supported
from tutelage.verify.visible import python_paths, system_paths

FOUND = find_sandbox(allow_weaker=True)
needs_one = pytest.mark.skipif(FOUND.level == "none", reason=f"no sandbox here: {FOUND.reason}")


def program(text: str, stdin: bytes = b"", limits: Limits | None = None, after: str | None = None) -> Outcome:
    return run({"program.py": text.encode()}, ("program.py",), stdin, limits, after=after, sandbox=FOUND)


@needs_one
def test_a_program_reads_writes_and_ends_as_a_script_does() -> None:
    outcome = program(
        "import sys\nassert __name__ == '__main__' and sys.argv == ['program.py']\n"
        "print(input(), sys.stdin.read(), file=sys.stderr)\nprint('é\\udc80')\nsys.exit(3)",
        b"one\ntwo",
    )
    assert (outcome.exit_code, outcome.stdout, outcome.stderr) == (3, b"\xc3\xa9\x80\n", b"one two\n")
    assert outcome.limit == "" and outcome.failure == "" and outcome.phase == "program"


@needs_one
@pytest.mark.parametrize(
    ("text", "printed", "code"),
    [
        ("import threading\nthreading.Thread(target=lambda: print('thread')).start()", "thread\n", 0),
        ("import atexit\natexit.register(print, 'end')\nprint('start')", "start\nend\n", 0),
        ("out = open(1, 'w', closefd=False)\nout.write('never closed')", "never closed", 0),
        ("import sys, io\nsys.stdout = io.TextIOWrapper(open(1, 'wb', closefd=False))\n"
         "print('own')", "own\n", 0),
        ("import sys\nprint('kept', file=sys.__stdout__)", "kept\n", 0),
        ("raise SystemExit('no')", "", 1),
        ("1/0", "", 1),
        ("import os\nos._exit(7)", "", 7),
        ("import dataclasses, pickle\n@dataclasses.dataclass\nclass A: x: int\n"
         "print(pickle.loads(pickle.dumps(A(1))))", "A(x=1)\n", 0),
        ("import subprocess, sys\nprint(subprocess.run([sys.executable, '-c', 'print(5)'], "
         "capture_output=True, text=True).stdout)", "5\n\n", 0),
        ("from multiprocessing import Pool\ndef f(x): return x * x\n"
         "if __name__ == '__main__':\n    with Pool(2) as p: print(p.map(f, [1, 2, 3]))", "[1, 4, 9]\n", 0),
        ("import sys\nsys.setrecursionlimit(10**6)\ndef f(n): return n and 1 + f(n - 1)\nprint(f(50000))",
         "50000\n", 0),
    ],
)  # fmt: skip
def test_the_end_of_a_program_is_that_of_a_script(text: str, printed: str, code: int) -> None:
    if FOUND.level == "landlock" and "multiprocessing" in text:
        return  # semaphores need /dev/shm, which that level does not open
    outcome = program(text)
    assert (outcome.stdout.decode(), outcome.exit_code) == (printed, code), outcome


@needs_one
def test_a_traceback_shows_the_program_and_nothing_of_ours() -> None:
    outcome = program("def f():\n    return 1 / 0\nf()")
    lines = outcome.stderr.decode().splitlines()
    assert lines[0] == "Traceback (most recent call last):" and lines[-1].startswith("ZeroDivisionError")
    assert "    return 1 / 0" in lines and "judged" not in outcome.stderr.decode()


@needs_one
def test_a_text_that_does_not_compile_is_told_from_a_program_that_fails() -> None:
    assert program("print(").phase == "text"
    assert program("\0").phase == "text"
    assert program("(" * 100_000).phase == "text"
    assert program("raise SyntaxError").phase == "program"


@needs_one
def test_a_killed_program_has_a_signal_and_no_exit_code() -> None:
    outcome = program("import os\nos.kill(os.getpid(), 11)")
    assert (outcome.exit_code, outcome.signal) == (None, 11)


@needs_one
def test_a_sleeper_meets_the_wall_limit_with_little_time_used() -> None:
    outcome = program("import time\ntime.sleep(60)", limits=Limits(wall_seconds=0.5))
    assert outcome.limit == "wall" and outcome.cpu_seconds < 0.5


@needs_one
def test_the_time_of_all_processes_counts() -> None:
    text = "import os\nfor _ in range(3): os.fork()\nwhile True: pass"
    assert program(text, limits=Limits(cpu_seconds=1, wall_seconds=60)).limit == "cpu"


@needs_one
def test_input_that_is_never_read_does_not_block() -> None:
    assert program("print('done')", b"x" * 10_000_000).stdout == b"done\n"


@needs_one
def test_long_input_and_output_pass_through() -> None:
    limits = Limits(output_bytes=4 * 2**20)
    text = bytes(range(256)) * 8000
    outcome = program("import sys\nsys.stdout.buffer.write(sys.stdin.buffer.read())", text, limits)
    assert outcome.stdout == text


@needs_one
def test_each_run_has_its_own_input_and_fresh_files() -> None:
    text = "import os\nprint(input(), sorted(os.listdir('.')))\nopen('left', 'w').write('x')"
    files = {"program.py": text.encode(), "data.txt": b"d"}
    with closing(run_each(files, ("program.py",), [b"a", b"b", b"c"], sandbox=FOUND)) as outcomes:
        printed = [outcome.stdout.decode() for outcome in outcomes]
    assert printed == [f"{name} ['data.txt', 'program.py']\n" for name in "abc"]


@needs_one
def test_stopping_early_ends_what_runs() -> None:
    text = "import time\nif input() == 'sleep': time.sleep(1000)"
    outcomes = run_each(
        {"p.py": text.encode()}, ("p.py",), [b"go", b"sleep"], Limits(wall_seconds=1000), sandbox=FOUND
    )
    assert next(outcomes).exit_code == 0
    outcomes.close()  # would hang if it waited for the sleeper


@needs_one
def test_tests_pass_only_when_they_ran_to_their_end() -> None:
    passing = "assert f() == 1"
    assert program("def f(): return 1", after=passing).phase == "passed"
    assert program("def f(): return 2", after=passing).phase == "tests"
    for trick in ("import os; os._exit(0)", "raise SystemExit(0)", "import sys; sys.exit()"):
        outcome = program(f"def f(): return 2\n{trick}", after=passing)
        assert (outcome.phase, outcome.exit_code) == ("program", 0)
        outcome = program(f"def f(): {trick}", after=passing)
        assert (outcome.phase, outcome.exit_code) == ("tests", 0)
    assert program("def f(): return 1", after="assert (").phase == "gold"
    # whatever the program writes to the pipe of reports, it cannot turn a wrong program into a gold defect
    assert program("import os; os.write(3, b'G' * 99)\nos._exit(0)", after=passing).phase == "program"


@needs_one
def test_the_main_block_of_a_program_does_not_run_before_tests() -> None:
    text = "def f(): return 1\nif __name__ == '__main__': raise SystemExit(input())"
    assert program(text, after="assert f() == 1").phase == "passed"


@needs_one
def test_several_threads_judge_at_once() -> None:
    with ThreadPoolExecutor(4) as pool:
        numbers = list(pool.map(lambda n: program(f"print({n})").stdout, range(12)))
    assert numbers == [f"{n}\n".encode() for n in range(12)]
    assert threading.active_count() < 50


def test_without_a_sandbox_nothing_is_run() -> None:
    with pytest.raises(UsageError, match="sandbox unavailable: there is none"):
        run({"p.py": b"print(1)"}, ("p.py",), sandbox=Sandbox("none", reason="there is none"))


def test_file_names_are_plain_names() -> None:
    for name in ("../p.py", "a/b.py", "", ".."):
        with pytest.raises(UsageError, match="plain name"):
            run({name: b""}, (name,), sandbox=Sandbox("bubblewrap", "bwrap"))
    with pytest.raises(UsageError, match="not among the files"):
        run({"a.py": b""}, ("b.py",), sandbox=Sandbox("bubblewrap", "bwrap"))


def fake(folder: Path, script: str) -> Sandbox:
    """A bubblewrap that is none."""
    path = folder / "bwrap"
    path.write_text(f"#!{sys.executable}\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return Sandbox("bubblewrap", str(path))


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("import sys; sys.exit('bwrap: no namespaces')", "bwrap: no namespaces"),
        ("import sys; sys.exit(4)", "it ended with code 4"),
        ("import os; os.kill(os.getpid(), 9)", "it ended with code -9"),
        ("print('hello', flush=True); import time; time.sleep(100)", "what it reports is no report"),
        ("print('x' * 100000, flush=True); import time; time.sleep(100)", "what it reports is no report"),
        ("print('ready\\nrun 0 - passed 0 0 0 99999999999 0', flush=True)",
         "what it reports is no report"),
        ("print('ready\\nrun zero', flush=True)", "what it reports is no report"),
        ("print('ready\\nfailed the warden is ill', flush=True)", "the warden is ill"),
        ("import time; time.sleep(100)", "no report in time"),
    ],
)  # fmt: skip
def test_a_sandbox_that_fails_is_no_verdict_on_the_program(
    script: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "START_SECONDS", 0.5 if "no report in time" in reason else 60.0)
    monkeypatch.setattr("tutelage.verify.started._END_SECONDS", 0.2)
    outcome = run({"p.py": b"print(1)"}, ("p.py",), sandbox=fake(tmp_path, script))
    assert outcome.failure == reason


def test_a_bubblewrap_that_is_not_there_is_a_failure() -> None:
    outcome = run({"p.py": b""}, ("p.py",), sandbox=Sandbox("bubblewrap", "/nowhere/bwrap"))
    assert "FileNotFoundError" in outcome.failure


def test_a_machine_without_anything_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tutelage.verify.bubblewrap.candidates", lambda: [])
    monkeypatch.setattr("tutelage.verify.landlock.version", lambda: 0)
    find_sandbox.cache_clear()
    try:
        for allowed in (False, True):
            found = find_sandbox(allow_weaker=allowed)
            assert found.level == "none"
            assert "bubblewrap is not installed; Landlock version 0, and 3 is needed" in found.reason
            assert "apt-get install bubblewrap" in found.reason
    finally:
        find_sandbox.cache_clear()


def test_programs_see_the_system_and_this_python_only() -> None:
    for path in (*system_paths(), *python_paths()):
        assert Path(path).exists() or Path(path).is_symlink()
        assert not Path.home().is_relative_to(path) and not Path.cwd().is_relative_to(path)
        assert path.split("/")[1] in ("usr", "lib", "lib32", "lib64", "bin", "sbin", "nix", "etc") or any(
            part in path for part in ("/bin", "/lib", "pyvenv.cfg")
        )
    assert not set(environment("/tmp")) & set(os.environ) - {"PATH", "HOME", "LANG", "TMPDIR"} - {
        name for name in os.environ if name.startswith(("PYTHON", "OMP", "OPENBLAS", "MALLOC"))
    }


@pytest.mark.skipif(not supported(), reason="no filter for this architecture")
def test_the_filter_is_a_valid_program() -> None:
    for namespaces in (True, False):
        for scoped in (True, False):
            code = filter_program(namespaces=namespaces, signals_scoped=scoped)
            count = len(code) // 8
            assert len(code) % 8 == 0 and 20 < count < 4096
            for at in range(count):
                operation = int.from_bytes(code[8 * at : 8 * at + 2], sys.byteorder)
                if operation & 0x07 == 0x05:  # every jump stays inside
                    assert at + 1 + max(code[8 * at + 2], code[8 * at + 3]) < count


@needs_one
def test_a_crash_leaves_no_core_and_the_limit_on_it_stays() -> None:
    text = (
        "import resource\n"
        "for limit in ((0, 0), (0, 1)):\n"
        "    try: resource.setrlimit(resource.RLIMIT_CORE, limit); print('set')\n"
        "    except (OSError, ValueError): pass\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (10, 10))\nprint('end')"
    )
    assert program(text).stdout == b"end\n"
