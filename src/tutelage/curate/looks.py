"""One look at every record of a pool: what the funnel has to know of it, and nothing more.

Promises: texts are read a row group at a time, on any engine, and are gone when the look is taken; what is
kept is small (some hundred bytes a record), so that a pool may be far larger than memory; the looks come in
the order of the records, and are the same on every engine, and for row groups of any size (the `row` of a hit
or a fault is 0: it is that of the look).
Does not: decide what stays (see `funnel`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tutelage.curate.detectors import Hit, hits
from tutelage.curate.duplicates import Sketches
from tutelage.curate.hashed import hashed
from tutelage.curate.limo import Features, features
from tutelage.curate.quality import Fault, Settings, faults
from tutelage.curate.watch import Watch, by_runs
from tutelage.engines import Engine, spread
from tutelage.errors import UsageError
from tutelage.records import SCHEMAS, Problem, Trace

Progress = Callable[[int, int, str], None]
_OF_TRACES = (
    "id", "problem_id", "sample", "supersedes", "thinking", "answer", "finish_reason", "thinking_sampled",
    "thinking_forced",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ProblemLook:
    """Of a problem: `hits` are those of its question."""

    id: str
    domain: str
    source: str
    words: int
    hits: tuple[Hit, ...]


@dataclass(frozen=True, slots=True)
class TraceLook:
    """Of a trace. `tokens` of thinking (None: unknown), `words` of it, the first quality rule that it breaks,
    the best hit in its thinking (`in_answer`: in its answer), and the word counts that LIMO's score takes."""

    id: str
    problem_id: str
    sample: int
    supersedes: str | None
    tokens: int | None
    words: int
    fault: Fault | None
    hit: Hit | None
    in_answer: bool
    counts: Features | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What is looked at. `problems` are the files of the traces' problems; `against` None: no benchmark."""

    problems: tuple[Path, ...]
    quality: Settings
    against: Watch | None
    limo: bool = False
    sketches: bool = True


@dataclass(frozen=True, slots=True)
class _Group:
    """A row group of a file of records."""

    path: Path
    number: int


def look_at_problems(
    plan: Plan, *, engine: Engine, workers: int, progress: Progress | None = None
) -> tuple[list[ProblemLook], Sketches | None]:
    """A look at each problem, and the sketches of all questions. Raises UsageError for a broken file."""
    groups = [group for path in plan.problems for group in _groups(path, Problem)]
    seen: list[ProblemLook] = []
    sketches: list[Sketches] = []
    for done, (looks, own) in enumerate(
        spread(partial(_opened_problems, plan), groups, engine=engine, workers=workers), 1
    ):
        seen += looks
        if own is not None:
            sketches.append(own)
        if progress:
            progress(done, len(groups), "questions")
    return seen, Sketches.join(sketches) if sketches else None


def look_at_traces(
    plan: Plan, traces: Sequence[Path], *, engine: Engine, workers: int, progress: Progress | None = None
) -> Iterator[TraceLook]:
    """A look at each trace of the files, in their order. Raises UsageError for a broken file, and for a trace
    whose problem is not known."""
    groups = [group for path in traces for group in _groups(path, Trace)]
    for done, looks in enumerate(
        spread(partial(_opened_traces, plan), groups, engine=engine, workers=workers), 1
    ):
        yield from looks
        if progress:
            progress(done, len(groups), "traces")


def _groups(path: Path, kind: type) -> list[_Group]:
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    try:
        with pq.ParquetFile(path) as file:
            names, count = file.schema_arrow.names, file.num_row_groups
    except (pa.ArrowInvalid, OSError) as error:
        raise UsageError(f"{path}: not a readable Parquet file ({error})") from error
    missing = [name for name in SCHEMAS[kind].names if name not in names]
    if missing:
        raise UsageError(f"{path}: not a table of {kind.__name__} records (no column {missing[0]!r})")
    return [_Group(path.absolute(), number) for number in range(count)]


def _read(group: _Group, columns: Sequence[str]) -> pa.Table:
    with pq.ParquetFile(group.path) as file:
        return file.read_row_group(group.number, columns=list(columns)).combine_chunks()


# --- in the worker ---


@contextmanager
def _opened_problems(plan: Plan) -> Iterator[Callable[[_Group], tuple[list[ProblemLook], Sketches | None]]]:
    yield partial(_look_at_problems, plan)


def _look_at_problems(plan: Plan, group: _Group) -> tuple[list[ProblemLook], Sketches | None]:
    table = _read(group, ("id", "question", "domain", "source"))
    questions = _column(table, "question")
    known = hashed(questions)
    found: dict[int, list[Hit]] = {}
    if plan.against is not None:
        for hit in hits(questions, known, plan.against):
            found.setdefault(hit.row, []).append(replace(hit, row=0))
    sizes = known.sizes.tolist()
    looks = [
        ProblemLook(key, domain or "", source or "", sizes[row], tuple(found.get(row, ())))
        for row, (key, domain, source) in enumerate(
            zip(*(table.column(name).to_pylist() for name in ("id", "domain", "source")), strict=True)
        )
    ]
    return looks, Sketches.of(questions, known) if plan.sketches else None


@contextmanager
def _opened_traces(plan: Plan) -> Iterator[Callable[[_Group], list[TraceLook]]]:
    yield partial(_look_at_traces, plan, _questions(plan.problems))


_lock = threading.Lock()
_read_last: dict[Any, dict[str, tuple[str, str, str]]] = {}


def _questions(paths: Sequence[Path]) -> dict[str, tuple[str, str, str]]:
    """Question, gold answer and source by id; read once in a process, for all of its threads."""
    states = [path.stat() for path in paths]
    key = tuple(
        (str(path), state.st_mtime_ns, state.st_size) for path, state in zip(paths, states, strict=True)
    )
    with _lock:
        if key not in _read_last:
            found: dict[str, tuple[str, str, str]] = {}
            for path in paths:
                table = pq.read_table(path, columns=["id", "question", "gold", "source"])
                columns = [table.column(name).to_pylist() for name in ("id", "question", "gold", "source")]
                for name, *told in zip(*columns, strict=True):
                    found[name] = (told[0] or "", told[1] or "", told[2] or "")
            _read_last.clear()
            _read_last[key] = found
        return _read_last[key]


def _look_at_traces(plan: Plan, problems: dict[str, tuple[str, str, str]], group: _Group) -> list[TraceLook]:
    table = _read(group, _OF_TRACES)
    ids, of = table.column("id").to_pylist(), table.column("problem_id").to_pylist()
    for name, problem in zip(ids, of, strict=True):
        if problem not in problems:
            raise UsageError(
                f"{group.path}: trace {name!r} is of problem {problem!r}, which {plan.problems} lacks"
            )
    told = list(zip(*(problems[problem] for problem in of), strict=True)) or [(), (), ()]
    thinking, answers = _column(table, "thinking"), _column(table, "answer")
    batch = pa.table(
        {
            "question": pa.array(told[0], pa.string()),
            "gold": pa.array(told[1], pa.string()),
            "source": pa.array(told[2], pa.string()),
            "thinking": thinking,
            "answer": answers,
            "finish_reason": table.column("finish_reason"),
        }
    )
    broken = {fault.row: fault for fault in faults(batch, plan.quality)}
    # What is too large for the rules is not looked into here either, whichever rule threw it out.
    if "too-long" not in plan.quality.off:
        most = plan.quality.most_characters
        thinking, answers = (
            pc.if_else(pc.greater(pc.utf8_length(texts), most), None, texts) for texts in (thinking, answers)
        )
    words = hashed(thinking)
    found: dict[int, tuple[Hit, bool]] = {}
    if plan.against is not None:
        only = [each for each in plan.against.detectors if by_runs(each)]
        for texts, known, in_answer in ((thinking, words, False), (answers, hashed(answers), True)):
            for hit in hits(texts, known, plan.against, only):
                if not hit.partial:
                    found.setdefault(hit.row, (replace(hit, row=0), in_answer))
    sizes = words.sizes.tolist()
    sampled, forced = (table.column(f"thinking_{how}").to_pylist() for how in ("sampled", "forced"))
    return [
        TraceLook(
            name,
            of[row],
            sample,
            supersedes,
            None if sampled[row] is None else sampled[row] + (forced[row] or 0),
            sizes[row],
            replace(broken[row], row=0) if row in broken else None,
            found[row][0] if row in found else None,
            row in found and found[row][1],
            features(thinking[row].as_py() or "") if plan.limo and row not in broken else None,
        )
        for row, (name, sample, supersedes) in enumerate(
            zip(ids, table.column("sample").to_pylist(), table.column("supersedes").to_pylist(), strict=True)
        )
    ]


def _column(table: pa.Table, name: str) -> pa.Array:
    column = table.column(name)
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
