"""Verdicts on a file of traces, a row group at a time; on a cluster: see the tests of collecting."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tutelage.errors import UsageError
from tutelage.records import Problem, Trace, Verdict, by_id, write_records
from tutelage.verify import batches
from tutelage.verify.batches import judge_sharded
from tutelage.verify.cascade import judge

PROBLEMS = by_id([Problem(f"p{n}", "?", str(n), checker="number" if n % 2 else "exact") for n in range(20)])


def traces(count: int) -> list[Trace]:
    return [Trace(f"t{n}", f"p{n % 20}", n // 20, "m", f"it is {n % 20 + n % 3 // 2}") for n in range(count)]


def plain(verdicts: object) -> list[Verdict]:
    return [dataclasses.replace(each, seconds=0.0) for each in verdicts]  # type: ignore[attr-defined]


def test_verdicts_are_those_of_judge_in_the_order_of_the_traces(tmp_path: Path) -> None:
    path = tmp_path / "traces.parquet"
    write_records(path, traces(2500), Trace)
    told: list[tuple[int, int, str]] = []
    found = judge_sharded(PROBLEMS, path, workers=2, engine="local", progress=lambda *at: told.append(at))
    assert plain(found) == plain(judge(PROBLEMS, traces(2500)))
    assert [(done, total) for done, total, _ in told] == [(n, 2500) for n in range(1, 2501)]


def test_one_row_group_is_read_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "traces.parquet"
    write_records(path, traces(2500), Trace)
    groups, total = batches._row_groups(path)
    assert len(groups) >= 3 and total == 2500
    settings = batches._Settings(PROBLEMS, 5.0, False)
    with batches._judging(settings) as judge_group:
        assert judge_group(groups[1])[0].trace_id != "t0"
        assert len(judge_group(groups[1])) <= 1000


def test_no_traces_are_no_verdicts(tmp_path: Path) -> None:
    path = tmp_path / "traces.parquet"
    write_records(path, [], Trace)
    assert list(judge_sharded(PROBLEMS, path, workers=2, engine="local")) == []


def test_an_unknown_checker_is_refused_before_the_first_trace(tmp_path: Path) -> None:
    path = tmp_path / "traces.parquet"
    write_records(path, traces(3), Trace)
    odd = {**PROBLEMS, "odd": Problem("odd", "?", "1", checker="astrology")}
    with pytest.raises(UsageError, match="unknown checker 'astrology'"):
        next(judge_sharded(odd, path, workers=2, engine="ray"))


def test_a_trace_without_its_problem_is_named(tmp_path: Path) -> None:
    path = tmp_path / "traces.parquet"
    write_records(path, [Trace("t", "nobody", 0, "m", "1")], Trace)
    with pytest.raises(UsageError, match="trace 't' answers problem 'nobody'"):
        list(judge_sharded(PROBLEMS, path, workers=1, engine="local"))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.write_bytes(b"PAR1 not really"), "not a readable Parquet file"),
        (lambda path: write_records(path, [], Problem), "not a table of Trace records"),
    ],
)
def test_a_file_that_holds_no_traces_is_refused(tmp_path: Path, make: object, match: str) -> None:
    path = tmp_path / "traces.parquet"
    make(path)  # type: ignore[operator]
    with pytest.raises(UsageError, match=match):
        list(judge_sharded(PROBLEMS, path, workers=1, engine="local"))
    with pytest.raises(UsageError, match="workers is 0"):
        list(judge_sharded(PROBLEMS, path, workers=0, engine="local"))
