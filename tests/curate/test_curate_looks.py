"""A look at every record: what is seen, in the order of the records, whatever the parts and the engine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tutelage.curate.benchmarks import Benchmark
from tutelage.curate.limo import features
from tutelage.curate.looks import Plan, ProblemLook, TraceLook, look_at_problems, look_at_traces
from tutelage.curate.quality import Settings
from tutelage.curate.watch import watch
from tutelage.errors import UsageError
from tutelage.records import Problem, Trace, to_table

ITEM = "A river runs past three old mills and every mill turns for six hours, how many hours in all?"
BENCH = Benchmark("bench", (("b0", ITEM),))
PROBLEMS = [
    Problem(
        "p0", "How many stones lie in the garden, if nine lie there twice?", "18", domain="sums", source="x"
    ),
    Problem("p1", ITEM.upper(), "18"),
    Problem("p2", "", None),
]
TRACES = [
    Trace("t0", "p0", 0, "m", "18", "Nine and nine.", thinking_sampled=5, thinking_forced=2),
    Trace("t1", "p1", 0, "m", "18", f"They ask: {ITEM} So 18."),
    Trace("t2", "p0", 1, "m", f"It is like {ITEM}", "Check it, perhaps.", supersedes="t0"),
    Trace("t3", "p0", 2, "m", "", "No answer comes of this.", thinking_sampled=4),
    Trace("t4", "p0", 3, "m", "18", "word " * 3000),
]


def write(path: Path, records: list[Any], kind: Any, rows: int = 1000) -> Path:
    pq.write_table(to_table(records, kind), path, row_group_size=rows)
    return path


def plan(*problems: Path, **more: Any) -> Plan:
    settings = Settings(off=("loop",), most_characters=10_000)
    return Plan(problems, **{"quality": settings, "against": watch([BENCH]), **more})


def traces_of(plan: Plan, *paths: Path, engine: Any = "local", workers: int = 1) -> list[TraceLook]:
    return list(look_at_traces(plan, paths, engine=engine, workers=workers))


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return write(tmp_path / "q.parquet", PROBLEMS, Problem)


def test_what_is_seen_of_a_problem(questions: Path) -> None:
    seen, sketches = look_at_problems(plan(questions), engine="local", workers=1)
    assert seen[0] == ProblemLook("p0", "sums", "x", 12, ())
    assert (seen[1].hits[0].detector, seen[1].hits[0].item_id) == ("exact", "b0")
    assert seen[2] == ProblemLook("p2", "", "", 0, ())
    assert sketches is not None and len(sketches.whole) == 3
    assert look_at_problems(plan(questions, sketches=False), engine="local", workers=1)[1] is None
    assert all(
        not each.hits
        for each in look_at_problems(plan(questions, against=None), engine="local", workers=1)[0]
    )


def test_what_is_seen_of_a_trace(questions: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", TRACES, Trace)
    t0, t1, t2, t3, t4 = traces_of(plan(questions, limo=True), path)
    assert (t0.tokens, t0.words, t0.fault, t0.hit, t0.sample) == (7, 3, None, None, 0)
    assert t0.counts == features("Nine and nine.")
    assert t1.tokens is None and t1.hit is not None and t1.hit.detector.startswith("ngram-")
    assert not t1.in_answer and t1.hit.benchmark == "bench"
    assert t2.in_answer and t2.hit is not None and t2.supersedes == "t0"
    assert t3.fault is not None and t3.fault.rule == "missing" and t3.counts is None
    assert t4.fault is not None and t4.fault.rule == "too-long" and t4.words == 0  # it was not searched
    assert [each.counts for each in traces_of(plan(questions), path)] == [None] * 5
    bare = traces_of(plan(questions, against=None), path)
    assert [each.hit for each in bare] == [None] * 5


@pytest.mark.parametrize(("rows", "workers"), [(1, 1), (1, 3), (2, 2), (3, 4)])
def test_parts_and_workers_change_nothing(questions: Path, tmp_path: Path, rows: int, workers: int) -> None:
    usual = plan(questions, limo=True)
    path = write(tmp_path / "t.parquet", TRACES, Trace)
    parts = write(tmp_path / "parts.parquet", TRACES, Trace, rows)
    assert traces_of(usual, parts, workers=workers) == traces_of(usual, path)
    small = plan(write(tmp_path / "small.parquet", PROBLEMS, Problem, rows))
    seen, sketches = look_at_problems(usual, engine="local", workers=1)
    again, other = look_at_problems(small, engine="local", workers=workers)
    assert seen == again and sketches is not None and other is not None
    assert np.array_equal(sketches.whole, other.whole) and np.array_equal(sketches.minima, other.minima)


def test_several_files_come_one_after_the_other(questions: Path, tmp_path: Path) -> None:
    one = write(tmp_path / "a.parquet", TRACES[3:], Trace, 1)
    two = write(tmp_path / "b.parquet", TRACES[:3], Trace, 1)
    told: list[tuple[int, int, str]] = []
    looks = look_at_traces(
        plan(questions), [one, two], engine="local", workers=2, progress=lambda *note: told.append(note)
    )
    assert [each.id for each in looks] == ["t3", "t4", "t0", "t1", "t2"]
    assert told == [(number, 5, "traces") for number in range(1, 6)]
    apart = [write(tmp_path / f"q{n}.parquet", [each], Problem) for n, each in enumerate(PROBLEMS)]
    seen, _ = look_at_problems(plan(*apart), engine="local", workers=2)
    assert [each.id for each in seen] == ["p0", "p1", "p2"]
    assert len(traces_of(plan(*apart), one, two)) == 5


def test_problems_that_changed_on_disk_are_read_again(questions: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", TRACES[:1], Trace)
    assert traces_of(plan(questions), path)[0].fault is None
    write(questions, [Problem("p0", "")], Problem)
    os.utime(questions, ns=(1, 1))  # however coarse the clock of the disk is
    fault = traces_of(plan(questions), path)[0].fault
    assert fault is not None and fault.reason == "no question"


def test_a_trace_of_an_unknown_problem_is_refused(questions: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", [*TRACES, Trace("t9", "p9", 0, "m", "1")], Trace)
    with pytest.raises(UsageError, match=r"t\.parquet: trace 't9' is of problem 'p9', which .*q\.parquet"):
        traces_of(plan(questions), path)


def test_a_file_that_is_none_is_one_line(questions: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"gone\.parquet: no such file"):
        traces_of(plan(questions), tmp_path / "gone.parquet")
    with pytest.raises(
        UsageError, match=r"q\.parquet: not a table of Trace records \(no column 'problem_id'\)"
    ):
        traces_of(plan(questions), questions)
    (tmp_path / "broken.parquet").write_bytes(b"nothing")
    with pytest.raises(UsageError, match=r"broken\.parquet: not a readable Parquet file"):
        look_at_problems(plan(tmp_path / "broken.parquet"), engine="local", workers=1)


def test_a_file_without_rows_has_no_looks(questions: Path, tmp_path: Path) -> None:
    assert traces_of(plan(questions), write(tmp_path / "t.parquet", [], Trace)) == []
