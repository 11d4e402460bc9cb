"""Programs: the gold answer is tests, and the verdict is what the program does in the sandbox.

`Problem.metadata` may hold `entry_point` (for tests that define `check(candidate)`), `prelude` (Python text
before the program, such as imports that the question gives), and limits: `cpu_seconds`, `wall_seconds`,
`memory_mb`, `scratch_mb`, `output_mb`, `processes` for each test, `total_seconds` for all of them.
Promises: a wrong program is `incorrect` with the test that shows it; a sandbox that failed, a starved machine
and a gold answer that is no tests are `undecided`; the method names the level of the sandbox. Output is
compared outside the sandbox, by lines without the white space at their ends.
Does not: run anything unprotected; see through a program that searches its interpreter to fake tests written
in Python (tests over stdin and stdout cannot be faked).
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from contextlib import closing
from typing import Any

from tutelage.errors import UsageError
from tutelage.records import Problem, Status
from tutelage.verify.decision import Decision, before_judging
from tutelage.verify.programs import LONGEST, IoTests, NotTests, PythonTests, programs_in, read_tests
from tutelage.verify.sandbox import Limits, Outcome, Sandbox, find_sandbox, run, run_each
from tutelage.verify.workers import WorkerPool

TOTAL_SECONDS = 120.0
_FILE = "program.py"
_EXTRACTED = 4000
_SHOWN = 160
_MEGABYTES = {"memory_mb": "memory_bytes", "scratch_mb": "scratch_bytes", "output_mb": "output_bytes"}
_TEST_LINE = re.compile(r'File "tests", line (\d+)')


def require(problem: Problem, pool: WorkerPool) -> None:
    """Raise UsageError when no program can be judged on this machine."""
    found = find_sandbox(pool.allow_weaker_sandbox)
    if found.level == "none":
        raise UsageError(f"problem {problem.id!r}: checker 'code': sandbox unavailable: {found.reason}")


def decide(problem: Problem, answer: str, pool: WorkerPool, /) -> Decision:
    """The checker `code`."""
    early = before_judging(problem, answer, "code")
    if early is not None:
        return early
    try:
        tests = read_tests(problem.gold or "", problem.metadata)
        limits, total = _limits(problem.metadata)
        prelude = problem.metadata.get("prelude", "")
        if not isinstance(prelude, str):
            raise NotTests("metadata prelude must be Python text")
    except NotTests as error:
        return "undecided", str(error), "code", None
    found = find_sandbox(pool.allow_weaker_sandbox)
    if found.level == "none":
        return "undecided", f"sandbox unavailable: {found.reason}", "code", None
    method = f"code ({found.level})"
    block, why = None, "no program in the answer"
    for program in programs_in(answer):
        if len(program) > LONGEST:
            reason = f"the program has {len(program):,} characters; more than {LONGEST:,} are not judged"
            return "undecided", reason, method, program[:_EXTRACTED]
        source = f"{prelude}\n{program}" if prelude else program
        files = {_FILE: source.encode("utf-8", "surrogatepass")}
        if isinstance(tests, IoTests):
            status, reason = _by_output(files, tests, limits, total, found)
        else:
            status, reason = _by_asserts(files, tests, limits, found)
        if status is not None:
            return status, reason, method, program[:_EXTRACTED]
        if program is not answer:
            block, why = program[:_EXTRACTED], f"the program does not compile: {reason}"
    return "incorrect", why, method, block


def _limits(metadata: Mapping[str, Any]) -> tuple[Limits, float]:
    """The limits of one test, and the seconds for all. Raises NotTests for a value that is none."""
    given: dict[str, Any] = {}
    for name in ("cpu_seconds", "wall_seconds", "total_seconds", *_MEGABYTES, "processes"):
        value = metadata.get(name)
        if value is None:
            continue
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or value <= 0:
            raise NotTests(f"metadata {name} is {value!r}; it must be a number above 0")
        if name in _MEGABYTES:
            given[_MEGABYTES[name]] = max(int(value * 2**20), 1)
        else:
            given[name] = max(int(value), 1) if name == "processes" else float(value)
    total = given.pop("total_seconds", TOTAL_SECONDS)
    if "cpu_seconds" in given:
        given.setdefault("wall_seconds", 2 * given["cpu_seconds"])
    return Limits(**given), total


def _by_output(
    files: Mapping[str, bytes], tests: IoTests, limits: Limits, total: float, sandbox: Sandbox
) -> tuple[Status | None, str]:
    """The first test that fails decides; no status when the program does not compile."""
    count = len(tests.pairs)
    wanted = [_comparable(output.encode("utf-8", "surrogatepass")) for _, output in tests.pairs]
    for number, lines in enumerate(wanted, 1):
        if sum(map(len, lines)) + len(lines) > limits.output_bytes:
            return "undecided", f"the output wanted in test {number} is longer than the limit on output"
    inputs = [text.encode("utf-8", "surrogatepass") for text, _ in tests.pairs]
    start = time.monotonic()
    with closing(run_each(files, (_FILE,), inputs, limits, sandbox=sandbox)) as outcomes:
        for number, (outcome, lines) in enumerate(zip(outcomes, wanted, strict=False), 1):
            if outcome.phase == "text" and not outcome.failure:
                return None, _last_words(outcome)
            failed = _failed(outcome, limits)
            if failed is None and outcome.exit_code != 0:
                failed = "incorrect", f"exit code {outcome.exit_code}: {_last_words(outcome)}"
            if failed is None and (found := _comparable(outcome.stdout)) != lines:
                failed = "incorrect", _difference(found, lines)
            if failed is not None:
                return failed[0], f"test {number} of {count}: {failed[1]}"
            if time.monotonic() - start > total and number < count:
                return "undecided", f"timeout: {number} of {count} tests took more than {total:g} s"
    return "correct", f"{count} of {count} tests passed"


def _by_asserts(
    files: Mapping[str, bytes], tests: PythonTests, limits: Limits, sandbox: Sandbox
) -> tuple[Status | None, str]:
    """The tests run after the program; no status when the program does not compile."""
    outcome = run(files, (_FILE,), b"", limits, after=tests.text, sandbox=sandbox)
    where = {"program": "the program", "tests": "the tests"}.get(outcome.phase, "")
    failed = _failed(outcome, limits)
    if failed is not None:
        return failed[0], f"{where}: {failed[1]}" if where and not outcome.failure else failed[1]
    if outcome.phase == "passed":
        return "correct", "the tests passed"
    if outcome.phase == "gold":
        return "undecided", f"the gold answer's tests are no Python: {_last_words(outcome)}"
    if outcome.phase == "text":
        return None, _last_words(outcome)
    if outcome.exit_code == 0 or not outcome.stderr.strip():
        return "incorrect", f"{where} ended before the tests were through (exit code {outcome.exit_code})"
    line = _test_line(outcome, tests) if outcome.phase == "tests" else ""
    return "incorrect", f"{where}{line}: {_last_words(outcome)}"


def _failed(outcome: Outcome, limits: Limits) -> tuple[Status, str] | None:
    """What a failure of the sandbox, a limit or a signal means; None when there was none of them."""
    used = f"{outcome.cpu_seconds:.1f} s of CPU time used"
    megabytes = f"{limits.memory_bytes / 2**20:g} MB"
    words = {
        "cpu": f"more than {limits.cpu_seconds:g} s of CPU time",
        "memory": f"more than {megabytes} of memory",
        "output": f"more than {limits.output_bytes / 2**20:g} MB of output",
        "processes": f"{limits.processes} processes at once",
        "files": "too many files",
    }
    if outcome.failure:
        return "undecided", f"sandbox failed: {outcome.failure}"
    if outcome.limit == "wall":  # with all its CPU time used it would have met that limit first
        return "undecided", f"timeout: {limits.wall_seconds:g} s of wall time, {used}"
    if outcome.limit:
        return "incorrect", words[outcome.limit]
    if outcome.signal is not None:
        return "incorrect", f"ended by signal {outcome.signal}"
    return None


def _comparable(output: bytes) -> list[bytes]:
    return [line.rstrip() for line in output.rstrip().split(b"\n")]


def _difference(found: list[bytes], wanted: list[bytes]) -> str:
    for number, (is_line, line) in enumerate(zip(found, wanted, strict=False), 1):
        if is_line != line:
            return f"line {number} is {_shown(is_line)}, not {_shown(line)}"
    return f"{len(found)} lines of output, not {len(wanted)}"


def _shown(line: bytes) -> str:
    return repr(line[:_SHOWN].decode("utf-8", "replace"))


def _last_words(outcome: Outcome) -> str:
    """The last line of stderr, fit for a reason: it is the program's text."""
    lines = outcome.stderr[-4000:].decode("utf-8", "replace").rstrip().splitlines()
    text = "".join(sign if sign.isprintable() else " " for sign in lines[-1][: 2 * _SHOWN]) if lines else ""
    return text.strip() or "no message"


def _test_line(outcome: Outcome, tests: PythonTests) -> str:
    """Which line of the tests failed, as the program's own stderr says it."""
    numbers = _TEST_LINE.findall(outcome.stderr.decode("utf-8", "replace"))
    lines = tests.text.splitlines()
    if not numbers or len(numbers[-1]) > 9 or not 0 < int(numbers[-1]) <= len(lines):
        return ""
    return f", line {numbers[-1]} ({lines[int(numbers[-1]) - 1].strip()[:_SHOWN]})"
