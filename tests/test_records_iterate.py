"""Records read a few at a time are those read at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tutelage.errors import UsageError
from tutelage.records import Problem, Trace, iter_records, read_records, write_records


def test_records_read_a_few_at_a_time_are_those_read_at_once(tmp_path: Path) -> None:
    problems = [Problem(f"p{n}", "?" * n, None, parents=("a",), metadata={"n": n}) for n in range(25)]
    write_records(tmp_path / "p.parquet", problems, Problem)
    assert list(iter_records(tmp_path / "p.parquet", Problem, rows=7)) == problems
    assert read_records(tmp_path / "p.parquet", Problem) == problems
    write_records(tmp_path / "none.parquet", [], Problem)
    assert list(iter_records(tmp_path / "none.parquet", Problem)) == []


def test_a_file_of_another_kind_is_refused_by_name(tmp_path: Path) -> None:
    write_records(tmp_path / "p.parquet", [Problem("p", "?", None)], Problem)
    with pytest.raises(UsageError, match=r"not a table of Trace records \(no column 'problem_id'"):
        list(iter_records(tmp_path / "p.parquet", Trace))
    (tmp_path / "x.parquet").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"x\.parquet: not a readable Parquet file"):
        list(iter_records(tmp_path / "x.parquet", Trace))
    with pytest.raises(UsageError, match=r"gone\.parquet: no such file"):
        list(iter_records(tmp_path / "gone.parquet", Trace))
