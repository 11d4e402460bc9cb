"""scripted: a function as a teacher, bought once like any other."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from threading import Thread

import pytest
from endpoint_server import problems

from tutelage.ledger import Ledger
from tutelage.records import Problem, Trace, read_records, write_records
from tutelage.teachers.collect import CollectResult, collect
from tutelage.teachers.money import price
from tutelage.teachers.scripted import BATCH, ScriptedTeacher


@dataclass
class Said:
    thinking: str
    answer: str
    prompt_tokens: int = 7
    thinking_tokens: int = 3
    answer_tokens: int = 2


CALLS: list[tuple[str, int]] = []


def oracle(problem: Problem, sample: int) -> Said:
    CALLS.append((problem.id, sample))
    return Said(f"thinking <think> about {problem.id}", f"{problem.gold} ({sample})")


TEACHER = ScriptedTeacher("oracle", oracle, {"version": 1}, price(1, 10))


def run(
    tmp_path: Path, teacher: ScriptedTeacher = TEACHER, count: int = 3, samples: int = 2
) -> CollectResult:
    CALLS.clear()
    result = collect(problems(count), teacher, samples=samples, ledger_path=tmp_path / "l.sqlite")
    return replace(result, traces=list(result.traces))


def test_traces_hold_what_the_function_said(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert [(t.problem_id, t.sample) for t in result.traces] == [
        (f"p{p}", s) for p in range(3) for s in (0, 1)
    ]
    trace = result.traces[3]
    assert (trace.thinking, trace.answer) == ("thinking <think> about p1", "1 (1)")
    assert (trace.prompt_tokens, trace.thinking_tokens, trace.answer_sampled) == (7, 3, 2)
    assert (trace.maker, trace.closed_by, trace.settings) == ("oracle", "model", {"version": 1})
    assert trace.cost == Decimal("0.000057")
    assert (result.bought, result.reused, result.failed) == (6, 0, [])
    assert (result.cost, result.spent) == (Decimal("0.000342"), Decimal("0.000342"))
    assert (result.prompt_tokens, result.completion_tokens) == (42, 30)


def test_running_again_buys_nothing_and_gives_the_same_traces(tmp_path: Path) -> None:
    first, second = run(tmp_path), run(tmp_path)
    assert CALLS == []
    assert (second.bought, second.reused, second.spent) == (0, 6, 0)
    assert second.cost == first.cost
    assert second.traces == first.traces
    for name, result in (("a", first), ("b", second)):
        write_records(tmp_path / name, result.traces, Trace)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert read_records(tmp_path / "a", Trace) == first.traces


def test_more_samples_or_problems_buy_only_what_is_new(tmp_path: Path) -> None:
    run(tmp_path)
    assert run(tmp_path, samples=3).bought == 3
    assert CALLS == [("p0", 2), ("p1", 2), ("p2", 2)]
    assert run(tmp_path, count=4, samples=1).bought == 1


def test_other_settings_are_another_teacher(tmp_path: Path) -> None:
    run(tmp_path)
    assert run(tmp_path, replace(TEACHER, settings={"version": 2})).bought == 6
    assert run(tmp_path, replace(TEACHER, name="careless")).bought == 6


def test_an_unknown_price_is_an_unknown_cost(tmp_path: Path) -> None:
    result = run(tmp_path, replace(TEACHER, price=price(1, None)))
    assert (result.cost, result.spent, result.traces[0].cost) == (None, None, None)


def test_a_function_that_raises_keeps_the_batches_before(tmp_path: Path) -> None:
    def late(problem: Problem, sample: int) -> Said:
        if problem.id == f"p{BATCH}":
            raise ZeroDivisionError
        return oracle(problem, sample)

    with pytest.raises(ZeroDivisionError):
        run(tmp_path, replace(TEACHER, answer=late), count=BATCH + 2, samples=1)
    assert run(tmp_path, count=BATCH + 2, samples=1).bought == 2


def test_without_buying_only_stored_replies_are_given(tmp_path: Path) -> None:
    run(tmp_path, count=1)
    result = collect(problems(2), TEACHER, samples=2, ledger_path=tmp_path / "l.sqlite", buy=False)
    assert (len(result.traces), result.bought, result.failed) == (2, 0, [("p1", "not bought")] * 2)


def test_progress_tells_done_and_total(tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    for _ in range(2):
        collect(
            problems(BATCH + 1),
            TEACHER,
            samples=1,
            ledger_path=tmp_path / "l",
            progress=lambda *each: seen.append(each),
        )
    told = [each[:2] for each in seen]  # on a slow machine more often in between
    again = told.index((0, 501), 1)
    for run in (told[:again], told[again:]):
        assert (run[0], run[-1]) == ((0, 501), (501, 501))
        assert run == sorted(run)


def test_a_claim_of_another_process_is_waited_for(tmp_path: Path) -> None:
    """Two collects share the work; neither buys what the other one has claimed."""
    results: list[CollectResult] = []
    calls: list[tuple[str, int]] = []

    def slow(problem: Problem, sample: int) -> Said:
        calls.append((problem.id, sample))
        time.sleep(0.01)
        return Said("t", "a")

    teacher = replace(TEACHER, answer=slow)
    Ledger(tmp_path / "l").__exit__(None, None, None)

    def work() -> None:
        results.append(collect(problems(30), teacher, samples=1, ledger_path=tmp_path / "l"))

    threads = [Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(calls) == sorted((f"p{number}", 0) for number in range(30))
    assert sum(result.bought for result in results) == 30
    assert list(results[0].traces) == list(results[1].traces)


def test_eight_thousand_replies_take_seconds(tmp_path: Path) -> None:
    start = time.perf_counter()
    assert run(tmp_path, count=2000, samples=4).bought == 8000
    assert time.perf_counter() - start < 4  # 0.6 s on one free core
