"""Files of a teacher's log-probabilities: at every place of a reply its best ids, and what all others share.

The format, version 1, is Parquet with one row per trace:

    trace_id, problem_id   text
    ids                    list<int32>: the prompt as the teacher saw it, and the reply
    start                  int32: where in `ids` the reply begins
    top_ids                list<int32>: the best `top_k` ids at each place of the reply, best first, place by
                           place (`top_k` × the length of the reply in all)
    top_logprobs           list<float32>: their natural-log probabilities at temperature 1
    tail                   list<float32>: for each place, the log of what all other ids share (at least -50)

and in the file's metadata, under `tutelage.scores`, the JSON of `Header`. The distribution at place i is that
of ids[start + i], given ids[: start + i], over the ids of the tokenizer alone (a model may have more rows).

Promises: a file is there whole or not at all; it is read a row group at a time (some megabytes); a file that
is damaged, of another kind, or made with another tokenizer is refused in one line.
Does not: run models (see `scoring`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tutelage.errors import StorageError, UsageError
from tutelage.train.examples import IGNORE, Example

VERSION = 1
GROUP_BYTES = 1 << 20  # of a row group: what has to be read for one row of a shuffled batch
CACHE_BYTES = 256 << 20  # of row groups that a reader remembers
_KEY = b"tutelage.scores"
_SCHEMA = pa.schema(
    [
        ("trace_id", pa.string()),
        ("problem_id", pa.string()),
        ("ids", pa.list_(pa.int32())),
        ("start", pa.int32()),
        ("top_ids", pa.list_(pa.int32())),
        ("top_logprobs", pa.list_(pa.float32())),
        ("tail", pa.list_(pa.float32())),
    ]
)


@dataclass(frozen=True, slots=True)
class Header:
    """What a file's numbers are: the `teacher`'s name, the fingerprint of its `tokenizer`, the ids that share
    a distribution (0 to `vocabulary` − 1), how many of them are kept (`top_k`), and the `dtype` it computed
    in."""

    teacher: str
    tokenizer: str
    vocabulary: int
    top_k: int
    dtype: str
    temperature: float = 1.0
    version: int = VERSION


@dataclass(frozen=True, slots=True)
class Scored:
    """One row. `top_ids` and `top_logprobs` have shape (places, top_k), `tail` (places,)."""

    trace_id: str
    problem_id: str
    ids: NDArray[np.int32]
    start: int
    top_ids: NDArray[np.int32]
    top_logprobs: NDArray[np.float32]
    tail: NDArray[np.float32]

    @property
    def nbytes(self) -> int:
        """Bytes of its numbers."""
        return self.ids.nbytes + self.top_ids.nbytes + self.top_logprobs.nbytes + self.tail.nbytes


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """A hash of which text each id is (vocabulary, added tokens) and of the merges: equal for tokenizers that
    mean the same by their ids, whatever their files are called."""
    merges: list[Any] = []
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        found = json.loads(backend.to_str())["model"].get("merges") or []
        merges = [pair.split(" ", 1) if isinstance(pair, str) else list(pair) for pair in found]
    parts = [sorted(tokenizer.get_vocab().items()), sorted(tokenizer.get_added_vocab().items()), merges]
    return hashlib.sha256(json.dumps(parts, ensure_ascii=True).encode()).hexdigest()[:32]


def vocabulary_size(tokenizer: Any) -> int:
    """How many ids the tokenizer knows, counted to its last one."""
    return int(max(tokenizer.get_vocab().values())) + 1


def write_scores(path: Path, header: Header, rows: Iterable[Scored]) -> None:
    """Write `rows` at `path`, whole or not at all, a row group at a time.

    Raises StorageError when the disk refuses."""
    write_groups(path, header, (_table(group) for group in _groups(rows)))


def write_groups(path: Path, header: Header, tables: Iterable[pa.Table]) -> None:
    """Write `tables` of rows, one row group each, as `write_scores` does."""
    schema = _SCHEMA.with_metadata({_KEY: json.dumps(asdict(header), sort_keys=True).encode()})
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with pq.ParquetWriter(partial, schema, compression="zstd", write_page_checksum=True) as writer:
            for table in tables:
                writer.write_table(table.cast(schema), row_group_size=max(1, len(table)))
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise StorageError(f"{path}: cannot write ({error.strerror or error})") from error
        raise


def _groups(rows: Iterable[Scored]) -> Iterator[list[Scored]]:
    group: list[Scored] = []
    size = 0
    for row in rows:
        group.append(row)
        size += row.nbytes
        if size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _table(rows: Sequence[Scored]) -> pa.Table:
    columns = {
        "trace_id": [row.trace_id for row in rows],
        "problem_id": [row.problem_id for row in rows],
        "ids": [row.ids for row in rows],
        "start": [row.start for row in rows],
        "top_ids": [row.top_ids.reshape(-1) for row in rows],
        "top_logprobs": [row.top_logprobs.reshape(-1) for row in rows],
        "tail": [row.tail for row in rows],
    }
    return pa.table({name: pa.array(columns[name], type=_SCHEMA.field(name).type) for name in _SCHEMA.names})


class ScoreFile:
    """A file of scores, opened for reading. `header` says what it holds; rows are found by trace id.

    Raises UsageError when the file is missing, damaged, or of another kind or version."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise UsageError(f"{path}: no such file")
        try:
            self._file = pq.ParquetFile(path, page_checksum_verification=True)
            self.header = _header(path, self._file.schema_arrow.metadata)
            missing = [name for name in _SCHEMA.names if name not in self._file.schema_arrow.names]
            if missing:
                raise UsageError(f"{path}: not a file of scores (no column {missing[0]!r})")
            self._places: dict[str, tuple[int, int]] = {}
            for group in range(self._file.num_row_groups):
                names = self._file.read_row_group(group, ["trace_id"]).column(0).to_pylist()
                self._places.update((name, (group, row)) for row, name in enumerate(names))
        except (pa.ArrowException, OSError) as error:
            raise _damaged(path, error) from error
        self._cache: OrderedDict[int, pa.Table] = OrderedDict()
        self._cached = 0

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, trace_id: str) -> bool:
        return trace_id in self._places

    def __iter__(self) -> Iterator[Scored]:
        """Every row, in the order of the file."""
        for table in self.tables():
            for row in range(len(table)):
                yield self._row(table, row)

    def __getitem__(self, trace_id: str) -> Scored:
        """The row of a trace. Raises UsageError when it is not there, or damaged."""
        place = self._places.get(trace_id)
        if place is None:
            raise UsageError(
                f"{self.path}: no scores of trace {trace_id}; score the traces that are trained on"
            )
        return self._row(self._group(place[0]), place[1])

    def names(self) -> list[str]:
        """The traces in it, in the order of the file."""
        return list(self._places)

    def tables(self) -> Iterator[pa.Table]:
        """The row groups, one after the other. Raises UsageError where one is damaged."""
        for group in range(self._file.num_row_groups):
            yield self._read(group)

    def match(self, tokenizer: Any, examples: Sequence[Example]) -> None:
        """Make sure that the scores are those of `examples` in the ids of `tokenizer`: the same replies, id
        for id (the prompts may differ). Raises UsageError that says what does not fit."""
        if self.header.tokenizer != tokenizer_fingerprint(tokenizer):
            raise UsageError(
                f"{self.path}: made by {self.header.teacher}, which has another tokenizer than the student; "
                "use a live teacher with aligned: true, or train on the teacher's texts (sft)"
            )
        wanted: dict[int, list[Example]] = {}
        for example in examples:
            place = self._places.get(example.trace_id)
            if place is None:
                self[example.trace_id]
            else:
                wanted.setdefault(place[0], []).append(example)
        for group, members in wanted.items():
            table = self._read(group, ["ids", "start"])
            for example in members:
                row = self._places[example.trace_id][1]
                reply = table["ids"][row].as_py()[table["start"][row].as_py() :]
                if reply != [label for label in example.labels if label != IGNORE]:
                    raise UsageError(
                        f"{self.path}: the scores of trace {example.trace_id} are of another reply than the "
                        "one trained on; score it with the student's template and target"
                    )

    def _group(self, group: int) -> pa.Table:
        if group in self._cache:
            self._cache.move_to_end(group)
            return self._cache[group]
        table = self._read(group)
        self._cache[group] = table
        self._cached += table.nbytes
        while self._cached > CACHE_BYTES and len(self._cache) > 1:
            self._cached -= self._cache.popitem(last=False)[1].nbytes
        return table

    def _read(self, group: int, columns: list[str] | None = None) -> pa.Table:
        try:
            return self._file.read_row_group(group, columns or _SCHEMA.names)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(self.path, error) from error

    def _row(self, table: pa.Table, row: int) -> Scored:
        cells = {name: table[name][row] for name in _SCHEMA.names}
        ids, top_ids, top_logprobs, tail = (
            cells[name].values.to_numpy(zero_copy_only=False)
            for name in ("ids", "top_ids", "top_logprobs", "tail")
        )
        name, start, k = cells["trace_id"].as_py(), cells["start"].as_py(), self.header.top_k
        if not (0 < start <= len(ids) and len(tail) == len(ids) - start):
            raise UsageError(f"{self.path}: the row of trace {name} is damaged; make the file again")
        if not len(top_ids) == len(top_logprobs) == k * len(tail):
            raise UsageError(f"{self.path}: the row of trace {name} is damaged; make the file again")
        return Scored(
            trace_id=name,
            problem_id=cells["problem_id"].as_py(),
            ids=ids,
            start=start,
            top_ids=top_ids.reshape(-1, k),
            top_logprobs=top_logprobs.reshape(-1, k),
            tail=tail,
        )


def _header(path: Path, metadata: dict[bytes, bytes] | None) -> Header:
    text = (metadata or {}).get(_KEY)
    if text is None:
        raise UsageError(f"{path}: not a file of scores; the stage score makes one")
    try:
        fields = json.loads(text)
        version = fields["version"]
        if version != VERSION:
            raise UsageError(
                f"{path}: scores of format {version}; this program reads {VERSION}: make them again"
            )
        return Header(**fields)
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(f"{path}: its header is damaged; make the file again") from error


def _damaged(path: Path, error: BaseException) -> UsageError:
    line = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UsageError(f"{path}: not a readable file of scores ({line}); make it again")
