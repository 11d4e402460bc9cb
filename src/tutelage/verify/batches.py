"""Verdicts on a file of traces by many workers, on this machine or on a Ray cluster.

Promises
- The verdicts of `judge`, by `judge`, in the order of the traces.
- The traces are never all in memory: a worker reads one row group of the file (at most 1,000 traces as this
  project writes them) and gives back its verdicts; write them down as they come for a file of any size.
- A worker that dies is replaced, and its row group judged again; nothing is lost or doubled.
Does not: hold fewer than all problems in each worker, or judge with a language model (that is paid for, see
`judged`). Files, also a user's own checker, must be at the same path on all machines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tutelage.engines import Engine, spread
from tutelage.errors import UsageError
from tutelage.records import SCHEMAS, Problem, Trace, Verdict, from_table
from tutelage.verify.cascade import Progress, judge, require_checkers
from tutelage.verify.workers import SECONDS, WorkerPool


def judge_sharded(
    problems: Mapping[str, Problem],
    traces: Path,
    *,
    workers: int,
    engine: Engine = "ray",
    seconds: float = SECONDS,
    allow_weaker_sandbox: bool = False,
    progress: Progress | None = None,
) -> Iterator[Verdict]:
    """Verdicts on the traces in the Parquet file `traces`, in their order; the rest as in `judge`. Each
    worker judges one trace at a time.

    Raises what `judge` raises, before the first verdict where it is about the problems; UsageError for a file
    that holds no traces, and when there is no Ray."""
    if workers < 1:
        raise UsageError(f"workers is {workers}; it must be at least 1")
    groups, total = _row_groups(traces)
    settings = _Settings(problems, seconds, allow_weaker_sandbox)
    with settings.pool() as pool:
        require_checkers(problems.values(), pool)
    done = 0
    for verdicts in spread(partial(_judging, settings), groups, engine=engine, workers=workers):
        for verdict in verdicts:
            done += 1
            if progress is not None:
                progress(done, total, verdict.status)
            yield verdict


@dataclass(frozen=True, slots=True)
class _Settings:
    """What a worker needs to judge."""

    problems: Mapping[str, Problem]
    seconds: float
    allow_weaker_sandbox: bool

    def pool(self) -> WorkerPool:
        """A pool of one: the workers of the engine are what runs at once."""
        return WorkerPool(1, self.seconds, allow_weaker_sandbox=self.allow_weaker_sandbox)


@dataclass(frozen=True, slots=True)
class _Group:
    """A part of a file of traces."""

    path: Path
    number: int


@contextmanager
def _judging(settings: _Settings) -> Iterator[Callable[[_Group], list[Verdict]]]:
    """Keeps the pool, and with it a started checker, from one row group to the next."""
    with settings.pool() as pool:
        yield partial(_judge_group, settings, pool)


def _judge_group(settings: _Settings, pool: WorkerPool, group: _Group) -> list[Verdict]:
    with pq.ParquetFile(group.path) as file:
        table = file.read_row_group(group.number, columns=SCHEMAS[Trace].names)
    traces = from_table(table, Trace)
    # Only those asked about: `judge` looks at the checkers of all that it is given.
    found = {trace.problem_id: settings.problems.get(trace.problem_id) for trace in traces}
    known = {id_: problem for id_, problem in found.items() if problem is not None}
    return list(judge(known, traces, pool=pool))


def _row_groups(path: Path) -> tuple[list[_Group], int]:
    """The row groups of the file, and how many traces it has in all."""
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    try:
        with pq.ParquetFile(path) as file:
            names, groups, rows = file.schema_arrow.names, file.num_row_groups, file.metadata.num_rows
    except (pa.ArrowInvalid, OSError) as error:
        raise UsageError(f"{path}: not a readable Parquet file ({error})") from error
    missing = [name for name in SCHEMAS[Trace].names if name not in names]
    if missing:
        raise UsageError(f"{path}: not a table of Trace records (no column {missing[0]!r})")
    return [_Group(path.absolute(), number) for number in range(groups)], rows
