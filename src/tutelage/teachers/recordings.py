"""Rows of a recording: JSON lines, a JSON list, Parquet, or a data set on the Hub, one mapping at a time.

Promises: a broken row is refused with file and line; only one batch of rows is in memory (a JSON list: all).
Does not: know what the columns mean (see `replay`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tutelage.errors import UsageError
from tutelage.problems.files import HUB, hub_rows

BATCH = 1000


def read_rows(source: Path | str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, row) for each row of a file, or of `hub:owner/name` (its split `train`); `where` is "file:line"
    or "file, row n", for messages.

    Raises UsageError for a missing file, another ending, a row that is not a JSON object in UTF-8, and a data
    set that cannot be read."""
    if str(source).startswith(HUB):
        for where, row in hub_rows(str(source), "train", None):
            yield f"{source} {where}", dict(row)
        return
    path = Path(source)
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    readers = {".jsonl": _json_lines, ".ndjson": _json_lines, ".json": _json_list, ".parquet": _parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UsageError(f"{path}: recordings are .jsonl, .json or .parquet files")
    for where, row in reader(path):
        if not isinstance(row, dict):
            raise UsageError(f"{where}: not a JSON object")
        yield where, row


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield f"{path}:{number}", _json(line, f"{path}:{number}")


def _json_list(path: Path) -> Iterator[tuple[str, Any]]:
    whole = _json(path.read_bytes(), str(path))
    if not isinstance(whole, list):
        raise UsageError(f"{path}: not a JSON list of objects")
    for number, row in enumerate(whole):
        yield f"{path}, row {number}", row


def _json(raw: bytes, where: str) -> Any:
    try:
        return json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UsageError(f"{where}: not UTF-8 text (byte {error.start})") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: not JSON ({error})") from error


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH):
                for row in batch.to_pylist():
                    yield f"{path}, row {number}", row
                    number += 1
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise UsageError(f"{path}: not a readable Parquet file ({error})") from error
