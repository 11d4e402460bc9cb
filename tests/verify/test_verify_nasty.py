"""Inputs made to hurt, as in `benchmarks/nasty.py`: judged in time and in memory, and none of them wrong."""

import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from nasty import NASTY, Nasty

from tutelage.records import Problem, Trace, Verdict
from tutelage.verify import WorkerPool, check_trace

HANGING = {
    "10^{10^9}",
    "power tower, boxed",
    "power tower = itself",
    "factorial of factorial",
    "(10^7)!",
    "binomial of 10^7",
    "sum to 10^9",
    "integral",
    "trig identity, 30 terms",
    r"nested \frac, 2,000 deep",
    "polynomial to the 3,000th",
    "carets, 4 kB",
}


def check(case: Nasty, pool: WorkerPool) -> Verdict:
    problem = Problem("p", "", case.gold, case.kind)
    return check_trace(problem, Trace("t", "p", 0, "", case.answer), pool)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["number", "math"])
def test_the_quick_ones(kind: str) -> None:
    with WorkerPool(seconds=20) as pool:
        for case in NASTY:
            if case.kind == kind and case.name not in HANGING:
                start = time.process_time()
                verdict = check(case, pool)
                assert verdict.status in case.allowed, (case.name, verdict.reason)
                assert "\n" not in verdict.reason and len(verdict.reason) < 500
                assert time.process_time() - start < 2, case.name  # here; the worker has its own clock


@pytest.mark.slow
def test_the_hanging_ones_end_in_time_and_the_pool_lives() -> None:
    with WorkerPool(seconds=2) as pool:
        pool.load({"op": "load-math"})
        for case in NASTY:
            if case.kind == "math" and case.name in HANGING:
                start = time.monotonic()
                verdict = check(case, pool)
                assert verdict.status in case.allowed, (case.name, verdict.reason)
                assert time.monotonic() - start < 20, case.name
        assert check(Nasty("", "math", "$x+1$", "1+x", frozenset()), pool).status == "correct"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "darwin", reason="macOS cannot limit the address space")
def test_a_worker_stays_under_one_gigabyte() -> None:
    with WorkerPool(seconds=5) as pool:
        pool.load({"op": "load-math"})
        (worker,) = pool._all
        limits = Path(f"/proc/{worker.process.pid}/limits").read_text()
        (line,) = [line for line in limits.splitlines() if line.startswith("Max address space")]
        assert int(line.split()[3]) <= 2**30
        verdict = check(Nasty("", "math", "((9!)!)!", "18", frozenset()), pool)
        assert verdict.status == "undecided"
