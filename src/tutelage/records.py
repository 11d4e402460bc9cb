"""The three records that flow through the house: Problem, Trace, Verdict.

Promises: frozen; every field has a meaning written here; `write_records` then `read_records` gives back equal
records (Parquet, one Arrow schema per record); a file that is not of the expected kind is refused by name.
Does not: judge, filter or repair. Truncated and wrong traces are records too.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from tutelage.errors import StorageError, UsageError

Status = Literal["correct", "incorrect", "undecided"]
ClosedBy = Literal["model", "budget", "grace", "eos", "room", "none", "unknown"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One question. `gold` is the reference answer (None: unknown); `checker` names how an answer is
    judged: `exact`, `number`, `math`, `choice`, `code`, `gym:TASK`, or a user's function as
    `path/to/file.py:function` or `package.module:function`. `parents` are ids of problems this one was
    derived from; `metadata` is JSON-serialisable and holds the checker's options (`tolerance`, `choices`)."""

    id: str
    question: str
    gold: str | None = None
    checker: str = "number"
    domain: str = ""
    source: str = ""
    licence: str = ""
    parents: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Trace:
    """One attempt at a problem.

    `sample` counts attempts at the same problem by the same maker from 0. `request_key` is the ledger's key
    ("" when nothing was bought). Token counts are exact counts of token ids, sampled and forced (written by
    the thinking policy) apart; None means that the maker does not tell. `forced_spans` are half-open
    character ranges of `thinking` that were forced. `closed_by` says who ended the thinking: the `model`
    by its marker or (`eos`) by an end of text for which the marker was written, the policy's `budget`, its
    `grace` (at a good place soon after the budget), the `room` left, `none` (never closed), or `unknown`.
    `cost` is in US dollars, None when the price is unknown. `supersedes` is the id of the trace this one
    replaces after a retry.
    """

    id: str
    problem_id: str
    sample: int
    maker: str
    answer: str
    thinking: str = ""
    request_key: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    prompt_tokens: int | None = None
    thinking_sampled: int | None = None
    thinking_forced: int | None = None
    answer_sampled: int | None = None
    answer_forced: int | None = None
    forced_spans: tuple[tuple[int, int], ...] = ()
    finish_reason: str = "stop"
    closed_by: ClosedBy = "unknown"
    cost: Decimal | None = None
    supersedes: str | None = None

    @property
    def thinking_tokens(self) -> int | None:
        """Sampled plus forced thinking tokens; None when unknown."""
        if self.thinking_sampled is None:
            return None
        return self.thinking_sampled + (self.thinking_forced or 0)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgement of one trace: `status`, why (`reason`), the `method` that decided (`exact`, `number`,
    `math`, `choice`, `code (bubblewrap)`, `gym`, `user`, `judge`, `judge-second-look`), the answer as
    `extracted` (None when none was found), and the `seconds` it took."""

    trace_id: str
    problem_id: str
    status: Status
    reason: str
    method: str
    extracted: str | None = None
    seconds: float = 0.0


_SURROGATE = re.compile("[\ud800-\udfff]")
Record = TypeVar("Record", Problem, Trace, Verdict)

_COST = pa.decimal128(24, 12)
_SPANS = pa.list_(pa.list_(pa.int64(), 2))
SCHEMAS: dict[type, pa.Schema] = {
    Problem: pa.schema(
        [
            ("id", pa.string()),
            ("question", pa.string()),
            ("gold", pa.string()),
            ("checker", pa.string()),
            ("domain", pa.string()),
            ("source", pa.string()),
            ("licence", pa.string()),
            ("parents", pa.list_(pa.string())),
            ("metadata", pa.string()),
        ],
        metadata={"tutelage.record": "Problem", "tutelage.version": "1"},
    ),
    Trace: pa.schema(
        [
            ("id", pa.string()),
            ("problem_id", pa.string()),
            ("sample", pa.int64()),
            ("maker", pa.string()),
            ("answer", pa.string()),
            ("thinking", pa.string()),
            ("request_key", pa.string()),
            ("settings", pa.string()),
            ("prompt_tokens", pa.int64()),
            ("thinking_sampled", pa.int64()),
            ("thinking_forced", pa.int64()),
            ("answer_sampled", pa.int64()),
            ("answer_forced", pa.int64()),
            ("forced_spans", _SPANS),
            ("finish_reason", pa.string()),
            ("closed_by", pa.string()),
            ("cost", _COST),
            ("supersedes", pa.string()),
        ],
        metadata={"tutelage.record": "Trace", "tutelage.version": "1"},
    ),
    Verdict: pa.schema(
        [
            ("trace_id", pa.string()),
            ("problem_id", pa.string()),
            ("status", pa.string()),
            ("reason", pa.string()),
            ("method", pa.string()),
            ("extracted", pa.string()),
            ("seconds", pa.float64()),
        ],
        metadata={"tutelage.record": "Verdict", "tutelage.version": "1"},
    ),
}
_JSON_FIELDS = frozenset({"metadata", "settings"})
# A row group: what is in memory at once while writing, and the least that a reader of single groups reads.
GROUP_ROWS = 1000
GROUP_CHARACTERS = 32_000_000


def stable_hash(*parts: Any) -> str:
    """SHA-256 (first 16 hex digits) of the canonical JSON of `parts`: the house's short id."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def clean_text(text: str) -> str:
    """`text` without lone surrogates (replaced by U+FFFD), so that it can be written as UTF-8."""
    if text.isascii():
        return text
    return _SURROGATE.sub("\ufffd", text)


def _cell(name: str, value: Any) -> Any:
    if name in _JSON_FIELDS:
        return json.dumps(dict(value), sort_keys=True)
    if isinstance(value, str):
        return clean_text(value)
    if name == "forced_spans":
        return [list(span) for span in value]
    if name == "cost" and value is not None:
        return value.quantize(Decimal("1e-12"))
    return value


def to_table(records: Iterable[Record], kind: type[Record]) -> pa.Table:
    """The records as one Arrow table with the schema of `kind`."""
    rows = [{f.name: _cell(f.name, getattr(r, f.name)) for f in fields(r)} for r in records]
    return pa.Table.from_pylist(rows, schema=SCHEMAS[kind])


def from_table(table: pa.Table, kind: type[Record]) -> list[Record]:
    """The records of a table made by `to_table`."""
    records = []
    for row in table.to_pylist():
        for name in _JSON_FIELDS & row.keys():
            row[name] = json.loads(row[name])
        if "parents" in row:
            row["parents"] = tuple(row["parents"])
        if "forced_spans" in row:
            row["forced_spans"] = tuple((a, b) for a, b in row["forced_spans"])
        if row.get("cost") is not None:
            row["cost"] = row["cost"].normalize()
        records.append(kind(**row))
    return records


def write_records(path: Path, records: Iterable[Record], kind: type[Record]) -> None:
    """Write Parquet at `path`, whole or not at all, a row group at a time: `records` may be larger than
    memory.

    Raises StorageError when the disk refuses, and whatever `records` raises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with pq.ParquetWriter(partial, SCHEMAS[kind], compression="zstd") as writer:
            for group in _groups(records):
                writer.write_table(to_table(group, kind))
        os.replace(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise StorageError(f"{path}: cannot write ({error.strerror or error})") from error
        raise


def _groups(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Pieces of at most GROUP_ROWS records that hold some GROUP_CHARACTERS of text."""
    group: list[Record] = []
    size = 0
    for record in records:
        group.append(record)
        size += sum(len(value) for f in fields(record) if isinstance(value := getattr(record, f.name), str))
        if len(group) == GROUP_ROWS or size >= GROUP_CHARACTERS:
            yield group
            group, size = [], 0
    if group:
        yield group


def read_records(path: Path, kind: type[Record]) -> list[Record]:
    """Read what `write_records` wrote.

    Raises UsageError when the file is missing, is not Parquet, or holds another kind of record."""
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UsageError(f"{path}: not a readable Parquet file ({error})") from error
    missing = [name for name in SCHEMAS[kind].names if name not in table.column_names]
    if missing:
        raise UsageError(f"{path}: not a table of {kind.__name__} records (no column {missing[0]!r})")
    return from_table(table.select(SCHEMAS[kind].names), kind)


def iter_records(path: Path, kind: type[Record], rows: int = 100) -> Iterator[Record]:
    """Like `read_records`, `rows` records at a time: for files that are larger than memory."""
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    names = SCHEMAS[kind].names
    try:
        with pq.ParquetFile(path) as file:
            missing = [name for name in names if name not in file.schema_arrow.names]
            if missing:
                raise UsageError(f"{path}: not a table of {kind.__name__} records (no column {missing[0]!r})")
            for batch in file.iter_batches(rows, columns=names):
                yield from from_table(pa.Table.from_batches([batch]), kind)
    except (pa.ArrowInvalid, OSError) as error:
        raise UsageError(f"{path}: not a readable Parquet file ({error})") from error


def by_id(problems: Sequence[Problem]) -> dict[str, Problem]:
    """Problems by id. Raises UsageError when two share one."""
    found: dict[str, Problem] = {}
    for problem in problems:
        if problem.id in found:
            raise UsageError(f"two problems share the id {problem.id!r}; ids must be unique")
        found[problem.id] = problem
    return found
