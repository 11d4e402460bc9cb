"""From an answer to a verdict."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.errors import UsageError
from tutelage.records import Problem, Trace, Verdict
from tutelage.verify import WorkerPool, cascade, check_trace, judge, verify


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with WorkerPool(seconds=20) as pool:
        yield pool


def math(pool: WorkerPool, answer: str, gold: str) -> Verdict:
    return check_trace(Problem("p", "q", gold, "math"), Trace("t", "p", 0, "m", answer), pool)


@pytest.mark.parametrize(
    ("answer", "gold", "status"),
    [
        ("She has 18 left.", "18", "correct"),
        ("16 - 3 - 4 = 9, 9 * 2 = 18\n#### 18", "18", "correct"),
        (r"It is \boxed{18}, not 19.", "18", "correct"),
        ("The answer is 18. I used 3 steps.", "18", "correct"),
        ("The answer is 3 + 4 = 7.", "7", "correct"),
        ("90,000 dollars", "90000", "correct"),
        ("0.50", "1/2", "correct"),
        ("17", "18", "incorrect"),
        ("18.0000001", "18", "incorrect"),
        ("four thirty, 4:30 p.m.", "30", "incorrect"),
        ("", "18", "incorrect"),
        (" \n\t", "18", "incorrect"),
        ("I do not know", "18", "incorrect"),
        (r"\boxed{\sqrt{3}}", "3", "undecided"),
        (r"\boxed{5x}", "5", "undecided"),
        ("2^5", "5", "undecided"),
        ("18", "eighteen", "undecided"),
        ("eighteen", "eighteen", "undecided"),
        ("nan", "nan", "undecided"),
        ("inf", "inf", "undecided"),
        ("0/0", "0/0", "undecided"),
        ("18", None, "undecided"),
        ("18", "", "undecided"),
        ("\u202e81", "18", "incorrect"),
        ("18\ud800", "18", "correct"),
        ("<b>18</b><script>alert(1)</script>\n18", "18", "correct"),
    ],
)
def test_number(answer: str, gold: str | None, status: str) -> None:
    verdict = verify(answer=answer, gold=gold)
    assert verdict.status == status, verdict
    assert verdict.reason and "\n" not in verdict.reason and verdict.method == "number"


def test_an_empty_answer_is_incorrect_with_that_reason_and_the_thinking_is_not_searched() -> None:
    problem = Problem("p", "q", "18")
    (verdict,) = judge({"p": problem}, [Trace("t", "p", 0, "m", "", thinking="The answer is 18")])
    assert (verdict.status, verdict.reason, verdict.extracted) == ("incorrect", "no answer", None)
    assert verify(answer="18", gold=None).reason == "no gold answer"


@pytest.mark.parametrize(
    ("answer", "gold", "status"),
    [
        (" XIV ", "XIV", "correct"),
        ("The answer is XIV.", "XIV", "correct"),
        ("So:\n**XIV**", "XIV", "correct"),
        ("cafe\u0301", "café", "correct"),
        ("xiv", "XIV", "incorrect"),
        ("not XIV", "XIV", "incorrect"),
        (r"\boxed{\text{B}}", "B", "correct"),
        ("B", None, "undecided"),
    ],
)
def test_exact(answer: str, gold: str | None, status: str) -> None:
    assert verify(answer=answer, gold=gold, kind="exact").status == status


MATH = [
    (r"$\frac{1}{2}$", "0.5", "correct"),
    (r"The area is $\frac{1}{2}$ square.", r"\frac12", "correct"),
    ("$x^2+1$", "1+x^2", "correct"),
    (r"\boxed{x \in [0,1)}", "[0,1)", "correct"),
    (r"\boxed{1,2}", "2,1", "correct"),
    ("x=5", "5", "correct"),
    (r"50\%", "0.5", "correct"),
    ("0.333333", "1/3", "correct"),
    (r"\boxed{18", "18", "correct"),
    (r"\infty", r"\infty", "correct"),
    ("(" * 20_000 + "1" + ")" * 20_000, "1", "correct"),
    (r"\text{Tuesday}", "Tuesday", "correct"),
    # a lenient comparison says yes to these
    ("$1/2006!$", "1/2004!", "incorrect"),
    ("$2^{-98}$", "2^{-99}", "incorrect"),
    ("3x+4y+14=0", "3*x-1*y+13=0", "incorrect"),
    (r"1+\frac{1}{\mathrm{e}}", "1-1/e", "incorrect"),
    ("pots", "stop", "undecided"),
    ("nan", "nan", "undecided"),
    ("0/0", "0/0", "undecided"),
    # nothing to compare is never a silent no
    (r"\boxed{\frac{}", "18", "undecided"),
    ("I do not know", "18", "undecided"),
    ("18", r"\frac{", "undecided"),
    ("1" * 10_000_000, "18", "undecided"),
    (r"\boxed{" + "1+" * 100_000 + "1}", "100001", "undecided"),
    ("17", "18", "incorrect"),
    ("", "18", "incorrect"),
    ("18", None, "undecided"),
]


@pytest.mark.parametrize(("answer", "gold", "status"), MATH, ids=range(len(MATH)))
def test_math(pool: WorkerPool, answer: str, gold: str, status: str) -> None:
    verdict = math(pool, answer, gold)
    assert verdict.status == status, verdict.reason
    assert verdict.reason and len(verdict.reason) < 500 and len(verdict.extracted or "") <= 1000


def test_gold_goes_first(pool: WorkerPool) -> None:
    assert math(pool, r"\boxed{(1,2)}", "1 < x < 2").status == "correct"
    assert math(pool, r"\boxed{1 < x < 2}", "(1,2)").status != "correct"  # the library is not symmetric


def test_model_text_is_not_executed(pool: WorkerPool, tmp_path_factory: pytest.TempPathFactory) -> None:
    mark = tmp_path_factory.mktemp("x") / "mark"
    for answer in (f"__import__('os').system('touch {mark}')", f"$open('{mark}','w')$"):
        assert math(pool, answer, "18").status != "correct"
    assert not mark.exists()


HANGS = ["9^{9^{9^{9}}}", "((9!)!)!"]


@pytest.mark.parametrize(
    "answer",
    [HANGS[0], *(pytest.param(answer, marks=pytest.mark.slow) for answer in HANGS[1:])],
    ids=["tower", "factorials"],
)
def test_what_hangs_math_verify_is_undecided_in_time(answer: str) -> None:
    with WorkerPool(seconds=1) as pool:
        pool.load({"op": "load-math"})
        start = time.monotonic()
        verdict = math(pool, answer, "18")
        assert time.monotonic() - start < 4
        assert verdict.status == "undecided" and "timeout after 1 s" in verdict.reason
        assert math(pool, "$x+1$", "1+x").status == "correct"


def test_a_right_answer_after_ten_megabytes(pool: WorkerPool) -> None:
    prose = "word " * 2_000_000
    start = time.process_time()
    assert verify(answer=prose + "\nThe total is 18.", gold="18").status == "correct"
    assert math(pool, prose + "\nA: 18", "18").status == "correct"
    cut = math(pool, prose + "so it is $x^2+1$", "1+x^2")
    assert cut.status == "correct" and "cut" in cut.reason
    assert math(pool, prose + "so it is $x^2+2$", "1+x^2").status == "undecided"
    assert time.process_time() - start < 4


def test_threads_other_than_the_main_one(pool: WorkerPool) -> None:
    found: list[Verdict] = []
    threads = [threading.Thread(target=lambda: found.append(math(pool, "$x+1$", "1+x"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [verdict.status for verdict in found] == ["correct"] * 4


def test_verify_shares_its_workers_between_threads_and_async_code() -> None:
    async def both() -> list[str]:
        inside = verify(answer="$x+1$", gold="1+x", kind="math")  # blocks, but works, in a running loop
        other = await asyncio.to_thread(verify, answer="$x+2$", gold="1+x", kind="math")
        return [inside.status, other.status]

    assert asyncio.run(both()) == ["correct", "incorrect"]
    pool = cascade._shared_pool()
    before = [worker.process.pid for worker in pool._all]
    assert verify(answer="$x+3$", gold="1+x", kind="math", seconds=20).status == "incorrect"
    assert before and [worker.process.pid for worker in pool._all] == before
    with pytest.raises(UsageError, match="seconds"):
        verify(answer="1", gold="1", seconds=0)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_starts_workers_of_its_own() -> None:
    code = (
        "import os\nfrom tutelage.verify import verify\nfrom tutelage.verify import cascade\n"
        "ask = lambda: verify(answer='$x+1$', gold='1+x', kind='math', seconds=30).status\n"
        "assert ask() == 'correct'\nmine = cascade._shared_pool()._all[0].process.pid\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    good = ask() == 'correct' and cascade._shared_pool()._all[0].process.pid != mine\n"
        "    cascade._shared_pool().close()\n"
        "    os._exit(0 if good else 1)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "assert ask() == 'correct' and cascade._shared_pool()._all[0].process.pid == mine\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_options_of_verify_reach_the_checker() -> None:
    assert verify(answer="99.5", gold="100", tolerance=0.01).status == "correct"
    assert verify(answer="99.5", gold="100", metadata={"tolerance": "0.01"}).status == "correct"
    assert verify(answer="Paris", gold="B", kind="choice", choices=["Rome", "Paris"]).status == "correct"
    for unknown in ("numbr", "gym", "x.py", "no such"):
        with pytest.raises(UsageError, match="unknown checker"):
            verify(answer="1", gold="1", kind=unknown)


def test_a_function_by_its_dotted_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dotted_checker.py").write_text("def check(problem, trace): return trace.answer == 'yes'")
    monkeypatch.chdir(tmp_path)
    for kind in ("dotted_checker.check", "dotted_checker:check"):
        assert verify(answer="yes", gold="", kind=kind).status == "correct"
        assert verify(answer="no", gold="", kind=kind).status == "incorrect"
    with pytest.raises(UsageError, match="no function 'missing'"):
        verify(answer="yes", gold="", kind="dotted_checker.missing")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_pool_that_is_handed_in_stays_open(pool: WorkerPool, workers: int) -> None:
    problems = {"p": Problem("p", "q", "1+x", "math")}
    traces = [Trace(str(i), "p", i, "m", f"$x+{i}$") for i in range(3)]
    for _ in range(2):
        found = [each.status for each in judge(problems, traces, pool=pool, workers=workers)]
        assert found == ["incorrect", "correct", "incorrect"]
    stream = judge(problems, traces, pool=pool, workers=workers)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert math(pool, "$x+1$", "1+x").status == "correct"


@pytest.mark.parametrize("workers", [1, 2])
def test_judge_keeps_the_order_and_reports_progress(workers: int) -> None:
    problems = {str(i): Problem(str(i), "q", f"{i}+x" if i % 2 else str(i), "math") for i in range(10)}
    traces = [
        Trace(f"{i}-{k}", str(i), k, "m", f"$x+{i}$" if i % 2 else f"{i + k}")
        for i in range(10)
        for k in (0, 1)
    ]
    seen: list[tuple[int, int, str]] = []
    verdicts = list(judge(problems, traces, workers=workers, progress=lambda *step: seen.append(step)))
    assert [verdict.trace_id for verdict in verdicts] == [trace.id for trace in traces]
    assert all(verdict.seconds > 0 for verdict in verdicts)
    assert [verdict.status for verdict in verdicts[:4]] == ["correct", "incorrect", "correct", "correct"]
    assert [step[:2] for step in seen] == [(n, 20) for n in range(1, 21)]


def test_a_caller_that_stops_early_does_not_wait() -> None:
    problems = {"p": Problem("p", "q", "18", "math")}
    traces = [Trace(str(i), "p", i, "m", "18" if i < 16 else "9^{9^{9^{9}}}") for i in range(32)]
    stream = judge(problems, traces, workers=2, seconds=60)
    assert next(stream).status == "correct"
    start = time.monotonic()
    stream.close()  # type: ignore[attr-defined]
    assert time.monotonic() - start < 5


def test_a_trace_of_an_unknown_problem_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="'nowhere'"):
        list(judge({}, [Trace("t", "nowhere", 0, "m", "18")]))


@given(st.text(), st.text() | st.none())
def test_no_text_raises_and_no_gold_is_never_right(answer: str, gold: str | None) -> None:
    for kind in ("number", "exact"):
        verdict = verify(answer=answer, gold=gold, kind=kind)
        assert gold is not None or verdict.status == "undecided"


@given(st.integers(-(10**9), 10**9), st.integers(-(10**9), 10**9))
def test_two_whole_numbers_are_right_only_when_equal(answer: int, gold: int) -> None:
    assert (verify(answer=f"So it is {answer}.", gold=str(gold)).status == "correct") == (answer == gold)
    assert verify(answer=f"So it is {gold}.", gold=str(gold)).status == "correct"
