"""records: files larger than memory are written a row group at a time, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tutelage import records
from tutelage.errors import StorageError
from tutelage.records import Trace, read_records, write_records


def traces(count: int, text: str = "x") -> Iterator[Trace]:
    return (Trace(f"t{n}", f"p{n}", 0, "m", answer=text, thinking="hm") for n in range(count))


def test_row_groups_hold_a_thousand_rows_or_some_megabytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_records(tmp_path / "a", traces(2500), Trace)
    file = pq.ParquetFile(tmp_path / "a")
    assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [1000, 1000, 500]
    assert read_records(tmp_path / "a", Trace) == list(traces(2500))
    monkeypatch.setattr(records, "GROUP_CHARACTERS", 1000)
    write_records(tmp_path / "b", traces(10, "x" * 400), Trace)
    assert pq.ParquetFile(tmp_path / "b").num_row_groups == 4
    assert read_records(tmp_path / "b", Trace) == list(traces(10, "x" * 400))


def test_nothing_is_a_table_without_rows(tmp_path: Path) -> None:
    write_records(tmp_path / "a", [], Trace)
    assert read_records(tmp_path / "a", Trace) == []


def test_records_that_break_off_leave_the_old_file(tmp_path: Path) -> None:
    def broken() -> Iterator[Trace]:
        yield from traces(1500)
        raise StorageError("ledger.sqlite: cannot use the ledger")

    write_records(tmp_path / "a", traces(1), Trace)
    with pytest.raises(StorageError, match=r"ledger\.sqlite"):
        write_records(tmp_path / "a", broken(), Trace)
    assert len(read_records(tmp_path / "a", Trace)) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["a"]
