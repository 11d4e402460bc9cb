"""Verdicts on programs: right, wrong and why, and what is undecided."""

import json

import pytest

from tutelage.errors import UsageError
from tutelage.records import Problem, Trace
from tutelage.verify import WorkerPool, code, judge
from tutelage.verify.gold import check_gold
from tutelage.verify.sandbox import Outcome, Sandbox, find_sandbox

SANDBOX = find_sandbox()
needs_one = pytest.mark.skipif(SANDBOX.level != "bubblewrap", reason=f"no bubblewrap here: {SANDBOX.reason}")
SUMS = json.dumps([{"input": "1 2\n", "output": "3\n"}, {"input": "5 6", "output": "11"}])
ADD = "assert add(1, 2) == 3\nassert add(2, 2) == 4"


def block(program: str) -> str:
    return f"<|im_end|> Here it is:\n```python\n{program}\n```\nDone."


def decide(answer: str, gold: str = SUMS, **metadata: object) -> tuple[str, str, str, str | None]:
    problem = Problem("p", "q", gold=gold, checker="code", metadata=metadata)
    with WorkerPool() as pool:
        return code.decide(problem, answer, pool)


@needs_one
def test_a_right_program_is_correct_and_the_method_names_the_level() -> None:
    program = "print(sum(map(int, input().split())))"
    assert decide(block(program)) == ("correct", "2 of 2 tests passed", "code (bubblewrap)", program + "\n")
    assert decide(program)[0] == "correct"
    assert decide(f"I think:\n```\n{program}\n```")[0] == "correct"


@needs_one
@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("a, b = map(int, input().split())\nprint(a * b + 1)", "test 2 of 2: line 1 is '31', not '11'"),
        ("print(3)\nprint(4)", "test 1 of 2: 2 lines of output, not 1"),
        ("print()", "test 1 of 2: line 1 is '', not '3'"),
        ("1 / 0", "test 1 of 2: exit code 1: ZeroDivisionError: division by zero"),
        ("print(3)\nraise SystemExit(2)", "test 1 of 2: exit code 2: no message"),
        ("print(3)\nimport os\nos.kill(os.getpid(), 6)", "test 1 of 2: ended by signal 6"),
        ("import sys\nsys.exit(0)", "test 1 of 2: line 1 is '', not '3'"),
        ("print('\\x1b[31m<b>')", "test 1 of 2: line 1 is '\\x1b[31m<b>', not '3'"),
        ("while True: pass", "test 1 of 2: more than 1 s of CPU time"),
        ("x = [0] * 10**10", "test 1 of 2: more than 512 MB of memory"),
        ("while True: print('x' * 1000)", "test 1 of 2: more than 1 MB of output"),
        ("print(", "the program does not compile: SyntaxError: '(' was never closed"),
    ],
)
def test_a_wrong_program_is_incorrect_with_the_test_that_shows_it(program: str, reason: str) -> None:
    assert decide(block(program), cpu_seconds=1, wall_seconds=60)[:2] == ("incorrect", reason)


@needs_one
def test_white_space_at_the_ends_of_lines_does_not_count_and_at_their_beginning_does() -> None:
    gold = json.dumps([{"input": "", "output": "a  \r\n b\n\n"}])
    assert decide("print('a\\n b \\n\\n')", gold)[0] == "correct"
    assert decide("print('a\\nb')", gold)[0] == "incorrect"


@needs_one
@pytest.mark.parametrize("answer", ["The answer is 42.", "```cpp\nint x;\n```", "I could not find a program"])
def test_no_program_in_the_answer_is_incorrect(answer: str) -> None:
    assert decide(answer) == ("incorrect", "no program in the answer", "code (bubblewrap)", None)


@needs_one
def test_asserts_after_the_program() -> None:
    assert decide(block("def add(a, b): return a + b"), ADD)[:2] == ("correct", "the tests passed")
    reason = "the tests, line 2 (assert add(2, 2) == 4): AssertionError"
    assert decide(block("def add(a, b): return 3"), ADD)[:2] == ("incorrect", reason)
    assert decide(block("def sub(a, b): return 3"), ADD)[1].endswith("NameError: name 'add' is not defined")
    assert decide(block("1 / 0"), ADD)[1] == "the program: ZeroDivisionError: division by zero"


@needs_one
def test_check_of_a_candidate_and_a_prelude() -> None:
    check = "def check(candidate):\n    assert candidate([1, 2]) == 3\n"
    answer = block("def total(values: List[int]) -> int:\n    return sum(values)")
    prelude = "from typing import List"
    assert decide(answer, check, entry_point="total", prelude=prelude)[0] == "correct"
    assert "NameError" in decide(answer, check, entry_point="total")[1]


@needs_one
@pytest.mark.parametrize("trick", ["import os; os._exit(0)", "raise SystemExit(0)", "exit()", "quit(0)"])
def test_ending_early_with_code_0_does_not_pass(trick: str) -> None:
    for program in (f"def add(a, b): return 0\n{trick}", f"def add(a, b): {trick}"):
        status, reason, *_ = decide(block(program), ADD)
        assert status == "incorrect" and "ended before the tests were through (exit code 0)" in reason


@needs_one
def test_a_sleeper_is_undecided_because_the_machine_may_be_slow() -> None:
    status, reason, *_ = decide(block("import time\ntime.sleep(60)"), wall_seconds=0.5)
    assert status == "undecided" and reason.startswith("test 1 of 2: timeout: 0.5 s of wall time")


@needs_one
def test_all_tests_together_have_a_limit() -> None:
    gold = json.dumps([{"input": "", "output": "1"}] * 50)
    status, reason, *_ = decide(block("import time\ntime.sleep(0.3)\nprint(1)"), gold, total_seconds=0.5)
    assert status == "undecided" and "of 50 tests took more than 0.5 s" in reason


def test_a_gold_answer_that_is_no_tests_is_undecided() -> None:
    assert decide("print(1)", "42")[0] == "undecided"
    assert decide("print(1)", " ") == ("undecided", "no gold answer", "code", None)
    assert decide(" ", SUMS) == ("incorrect", "no answer", "code", None)


@needs_one
def test_a_gold_answer_that_does_not_compile_is_undecided() -> None:
    status, reason, *_ = decide("x = 1", "assert (")
    assert status == "undecided" and "the gold answer's tests are no Python: SyntaxError" in reason
    long = json.dumps([{"input": "", "output": "x" * 2**21}])
    assert "longer than the limit on output" in decide("x = 1", long)[1]


@pytest.mark.parametrize("name", ["cpu_seconds", "wall_seconds", "memory_mb", "processes", "total_seconds"])
@pytest.mark.parametrize("value", [0, -1, "10", True, float("nan"), float("inf")])
def test_a_limit_that_is_none_is_undecided(name: str, value: object) -> None:
    status, reason, *_ = decide("print(1)", **{name: value})
    assert status == "undecided" and reason == f"metadata {name} is {value!r}; it must be a number above 0"


@needs_one
def test_limits_of_a_problem_hold() -> None:
    program = "print(len(bytearray(200 << 20)) >> 20)"
    gold = json.dumps([{"input": "", "output": "200"}])
    assert decide(program, gold)[0] == "correct"
    assert decide(program, gold, memory_mb=100)[1] == "test 1 of 1: more than 100 MB of memory"


@needs_one
@pytest.mark.parametrize("text", ["\ud800", "\0", "(" * 10_000, "```python\n\ud800 = 1\n```", "-" * 200_000])
def test_hostile_text_has_a_verdict(text: str) -> None:
    assert decide(text)[0] == "incorrect"


def test_a_program_of_a_megabyte_is_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code, "find_sandbox", lambda _: Sandbox("bubblewrap", "/nowhere"))
    status, reason, _, extracted = decide("x" * 10_000_000)
    assert status == "undecided" and "10,000,000 characters" in reason and len(extracted or "") < 5000


def test_a_sandbox_that_fails_is_undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code, "find_sandbox", lambda _: Sandbox("bubblewrap", "/nowhere/bwrap"))
    for gold in (SUMS, ADD):
        status, reason, *_ = decide("print(1)", gold)
        assert status == "undecided" and "sandbox failed: FileNotFoundError" in reason


def test_without_a_sandbox_nothing_runs_and_the_first_check_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code, "find_sandbox", lambda _: Sandbox("none", reason="install bubblewrap"))
    assert decide("print(1)")[:2] == ("undecided", "sandbox unavailable: install bubblewrap")
    problem = Problem("p", "q", SUMS, "code")
    message = "problem 'p': checker 'code': sandbox unavailable: install bubblewrap"
    with pytest.raises(UsageError, match=message):
        next(judge({"p": problem}, [Trace("t", "p", 0, "m", "print(1)")]))


def test_the_weaker_sandbox_is_asked_for_by_the_pool_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def find(allowed: bool) -> Sandbox:
        asked.append(allowed)
        return Sandbox("none", reason="")

    monkeypatch.setattr(code, "find_sandbox", find)
    problem = Problem("p", "q", SUMS, "code", metadata={"allow_weaker_sandbox": True})
    for allowed in (False, True):
        with WorkerPool(allow_weaker_sandbox=allowed) as pool:
            code.decide(problem, "print(1)", pool)
    assert asked == [False, True]


def test_what_a_program_says_is_one_printable_line_in_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code, "find_sandbox", lambda _: Sandbox("bubblewrap", ""))
    said = b"first\n" + "a\x1b[31m\u202e\x85b".encode() + b"x" * 10_000
    monkeypatch.setattr(code, "run", lambda *_, **__: Outcome(exit_code=1, stderr=said))
    reason = decide("x = 1", ADD)[1]
    assert reason.isprintable() and len(reason) < 500


@needs_one
def test_judge_runs_several_programs_at_once_and_keeps_the_order() -> None:
    problem = Problem("p", "q", SUMS, "code")
    right, wrong = block("print(sum(map(int, input().split())))"), block("print(0)")
    traces = [Trace(f"t{n}", "p", n, "m", right if n % 2 else wrong) for n in range(8)]
    verdicts = list(judge({"p": problem}, traces, workers=4))
    assert [verdict.status for verdict in verdicts] == ["incorrect", "correct"] * 4
    assert [verdict.trace_id for verdict in verdicts] == [f"t{n}" for n in range(8)]


@pytest.mark.parametrize("gold", [None, "", " \n"])
def test_a_gold_answer_without_tests_is_found_before_any_program_runs(gold: str | None) -> None:
    (failure,) = check_gold([Problem("p", "q", gold, "code")])
    assert (failure.test, failure.reason) == ("empty", "no gold answer")
