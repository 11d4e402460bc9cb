"""Rows from files and the Hub, and problems from rows.

`read_problems` takes a `.jsonl`, `.json` (a list of objects) or `.parquet` file, `hub:owner/name` (with
`@config` where the data set has several), or `gym:TASK` (see `gym`), and gives Problems.
Promises: the order of the source; ids that do not change between runs (the id column, else a hash of source
and question; a repeated question gets an id of its own, dropping it is curation); every error is one
UsageError that names file, line and what is wrong; a file of Problem records written by us comes back as it
was.
Does not: skip a bad row, filter, or load `datasets` unless a Hub name is given.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tutelage.errors import UsageError
from tutelage.problems import gym
from tutelage.problems.columns import Mapped, map_columns, problem_from_row
from tutelage.records import Problem, read_records, stable_hash

HUB = "hub:"
Row = tuple[str, Mapping[str, Any]]
"""Where the row stands ("line 17"), and its fields."""


def read_problems(
    path_or_hub_name: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    checker: str = "number",
    source: str = "",
    licence: str = "",
    limit: int | None = None,
    split: str | None = None,
    answer_pattern: str | None = None,
) -> list[Problem]:
    """All problems of a file or Hub data set, or the first `limit`.

    `columns` names the source's column for any of our fields: `id`, `question`, `gold` ("" for none),
    `domain`, `solution`; what it leaves out is guessed (see `columns`). `checker`, `source` (default: the
    file's or data set's name) and `licence` are written into every problem. `split` is for the Hub and
    reasoning-gym (default `train`). `answer_pattern` is a regular expression whose first group, in its last
    match, is the gold answer. Columns that are not used are kept in `metadata`.

    Raises UsageError for a missing file, a broken line, a missing column, a question that is not text, two
    equal ids, and an empty data set."""
    name = str(path_or_hub_name)
    if limit is not None and limit < 1:
        raise UsageError(f"{name}: limit is {limit}; it must be at least 1")
    if name.startswith(gym.PREFIX):
        return _gym(name, columns, limit, split, licence)
    if name.startswith(HUB):
        rows, source = hub_rows(name, split or "train", limit), source or name.removeprefix(HUB)
    else:
        path = Path(name)
        if split is not None:
            raise UsageError(f"{name}: split {split!r} is for Hub data sets ({HUB}owner/name), not for files")
        if not path.is_file():
            on_hub = name.count("/") == 1 and not path.suffix
            hint = f"; for a Hub data set write {HUB}{name}" if on_hub else ""
            raise UsageError(f"{name}: no such file{hint}")
        if _is_our_own(path):
            return _our_own(path, columns, limit)
        rows, source = file_rows(path), source or path.name
    return _problems(name, islice(rows, limit), columns, checker, source, licence, answer_pattern)


def _gym(
    name: str, columns: Mapping[str, str] | None, limit: int | None, split: str | None, licence: str
) -> list[Problem]:
    if columns:
        raise UsageError(f"{name}: reasoning-gym makes problems; it takes no column mapping")
    if limit is None:
        raise UsageError(f"{name}: say how many problems to make with a limit")
    return gym.gym_problems(name, size=limit, split=split or "train", licence=licence)


def _problems(
    name: str,
    rows: Iterator[Row],
    columns: Mapping[str, str] | None,
    checker: str,
    source: str,
    licence: str,
    answer_pattern: str | None,
) -> list[Problem]:
    problems: list[Problem] = []
    seen: dict[str, str] = {}
    repeats: dict[str, int] = {}
    mapped: Mapped | None = None
    for where, row in rows:
        if mapped is None:
            mapped = map_columns(name, row.keys(), columns, checker, answer_pattern)
        problem = problem_from_row(f"{name} {where}", row, mapped)
        problem_id = problem.id
        if not problem_id:
            problem_id = stable_hash(source, problem.question)
            again = repeats[problem_id] = repeats.get(problem_id, 0) + 1
            if again > 1:
                problem_id = stable_hash(source, problem.question, again)
        if problem_id in seen:
            taken = seen[problem_id]
            raise UsageError(f"{name} {where}: id {problem_id!r} is taken by {taken}; ids must differ")
        seen[problem_id] = where
        problems.append(
            dataclasses.replace(
                problem, id=problem_id, checker=checker, source=source, licence=problem.licence or licence
            )
        )
    if not problems:
        raise UsageError(f"{name}: the data set is empty")
    return problems


def file_rows(path: Path) -> Iterator[Row]:
    """The rows of a .jsonl, .json or .parquet file. Raises UsageError, while reading, with the line."""
    match path.suffix:
        case ".jsonl" | ".ndjson":
            return _jsonl_rows(path)
        case ".json":
            with path.open("rb") as file:
                start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
            return _json_rows(path) if start.startswith(b"[") else _jsonl_rows(path)
        case ".parquet":
            return _parquet_rows(path)
        case other:
            said = other or "a file without suffix"
            raise UsageError(f"{path}: cannot read {said}; use .jsonl, .json or .parquet")


def _text(where: str, raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        said = f"byte {error.start + 1} is 0x{raw[error.start]:02x}"
        raise UsageError(f"{where}: not UTF-8 ({said})") from error


def _object(where: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"{where}: a row must be an object, not {type(value).__name__}")
    return value


def _jsonl_rows(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            line = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
            if not line.strip():
                continue
            where = f"{path} line {number}"
            text = _text(where, line)
            try:
                value = json.loads(text)
            except json.JSONDecodeError as error:
                raise UsageError(f"{where}: not JSON ({error.msg} at column {error.colno})") from error
            except (ValueError, RecursionError) as error:
                raise UsageError(f"{where}: cannot be read as JSON ({str(error)[:100]})") from error
            yield f"line {number}", _object(where, value)


def _json_rows(path: Path) -> Iterator[Row]:
    raw = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    try:
        rows = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{path} line {line}: not UTF-8 (byte 0x{raw[error.start]:02x})") from error
    except json.JSONDecodeError as error:
        said = f"{error.msg} at column {error.colno}"
        raise UsageError(f"{path} line {error.lineno}: not JSON ({said})") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: cannot be read as JSON ({str(error)[:100]})") from error
    for number, row in enumerate(rows, start=1):
        yield f"row {number}", _object(f"{path} row {number}", row)


def _parquet_rows(path: Path) -> Iterator[Row]:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=4096):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, UnicodeDecodeError) as error:
        said = " ".join(str(error).split())[:200]
        raise UsageError(f"{path}: not readable as Parquet after row {number} ({said})") from error


def _is_our_own(path: Path) -> bool:
    if path.suffix != ".parquet":
        return False
    try:
        kind = (pq.read_schema(path).metadata or {}).get(b"tutelage.record")
    except (pa.ArrowInvalid, OSError):
        return False  # reading the rows says what is wrong
    if kind not in (None, b"Problem"):
        raise UsageError(f"{path}: holds {kind.decode()} records, not problems")
    return kind is not None


def _our_own(path: Path, columns: Mapping[str, str] | None, limit: int | None) -> list[Problem]:
    if columns:
        raise UsageError(f"{path}: holds problems already; it takes no column mapping")
    problems = read_records(path, Problem)[:limit]
    if not problems:
        raise UsageError(f"{path}: the data set is empty")
    return problems


def hub_rows(name: str, split: str, limit: int | None) -> Iterator[Row]:
    """The rows of one split of `hub:owner/name` (or `@config` of it), at least its first `limit`.

    Raises UsageError, while reading, when it cannot be read."""
    try:
        import datasets
    except ImportError as error:
        raise UsageError(f"{name}: reading the Hub needs `pip install 'tutelage[train]'`") from error
    repository, _, config = name.removeprefix(HUB).partition("@")
    try:
        # Streaming fetches no more than the rows that are asked for.
        rows = datasets.load_dataset(repository, config or None, split=split, streaming=limit is not None)
        for number, row in enumerate(rows, start=1):
            yield f"row {number}", row
    except (OSError, ValueError, RuntimeError) as error:
        # `datasets` and the network below it raise many kinds of these; the first line says what is wrong.
        said = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise UsageError(f"{name} (split {split}): cannot be read from the Hub: {said}") from error
