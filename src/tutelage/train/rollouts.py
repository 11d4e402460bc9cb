"""Rollouts: replies of the student in training, by the project's own engine, as ids.

Promises: the ids are those that were drawn, with a mark at each that the policy wrote instead of the model;
nothing is ever tokenised again, also not through a file; the random numbers of a rollout depend on (seed,
problem, sample) alone, those of a continuation on its prefix too; each call reads the weights as they are
then.
Does not: judge, choose among rollouts, or train.

The model's distribution and what is drawn from differ in one respect: padding, and rows of the embedding that
the tokenizer does not have, are never drawn. `logprobs` are the model's, before that, before temperature and
before top-k or top-p.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tutelage.errors import StorageError, UsageError
from tutelage.records import SCHEMAS, Problem, Status, Trace, from_table, stable_hash, to_table
from tutelage.students.pretrained import Student
from tutelage.students.template import render_prompt
from tutelage.teachers.local import LocalTeacher, decode, decode_settings, to_trace
from tutelage.think.engine import Completion, Engine, Request
from tutelage.think.policy import ThinkingPolicy
from tutelage.think.sampling import Sampling

Progress = Callable[[int, int, str], None]
Start = tuple[Problem, tuple[int, ...]]
"""A problem, and the ids of a reply to it that are there already."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One reply. `ids` with their `free` (True: the model drew it, a loss may fall there; False: the policy
    wrote it) and, where asked for, `logprobs` (the model's natural-log probability of each) run in step;
    `prompt_ids` come before them. `status` is the verdict, where there is one."""

    trace: Trace
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    free: tuple[bool, ...]
    logprobs: tuple[float, ...] | None = None
    status: Status | None = None


def sample(
    student: Student,
    problems: Sequence[Problem],
    *,
    samples: int,
    policy: ThinkingPolicy,
    sampling: Sampling,
    seed: int,
    max_answer: int,
    max_batch: int = 64,
    logprobs: bool = False,
    maker: str = "student",
    progress: Progress | None = None,
    each: Callable[[int, Rollout], None] | None = None,
) -> list[Rollout]:
    """`samples` replies to each of `problems`, problem by problem, sample by sample. `each` is told every
    rollout, with its number among them, as soon as it is there and while others are being decoded.

    Raises UsageError for a policy, a prompt or a model that cannot be run."""
    teacher = LocalTeacher(student, maker, sampling, samples, seed, max_answer, max_batch)
    settings = decode_settings(teacher, policy)
    prompts = [_prompt(student, problem) for problem in problems]
    found: dict[int, Rollout] = {}

    def note(index: int, reply: Completion) -> None:
        place, number = divmod(index, samples)
        trace = to_trace(teacher, problems[place], settings, number, len(prompts[place]), reply)
        found[index] = _rollout(trace, prompts[place], reply)
        if each is not None:
            each(index, found[index])

    decode(teacher, problems, policy, progress, logprobs=logprobs, each=note)
    return [found[index] for index in range(len(problems) * samples)]


def continue_(
    student: Student,
    starts: Sequence[Start],
    *,
    n: int,
    policy: ThinkingPolicy,
    sampling: Sampling,
    seed: int,
    max_answer: int,
    max_batch: int = 64,
    maker: str = "student",
    progress: Progress | None = None,
) -> list[list[Rollout]]:
    """`n` continuations of each of `starts`, as whole replies that begin with its ids; `free` is True for
    those of them that the model drew.

    A start may end anywhere: in the thinking, inside a closing marker, in the answer. Budgets count what is
    there. One that is a whole reply comes back `n` times as it is. Raises UsageError for ids that `policy`
    could not have written, and for policies under which this cannot be told (see `think.begun`)."""
    requests: list[Request] = []
    for problem, ids in starts:
        first = Request(_prompt(student, problem), policy, sampling, max_answer=max_answer, begun=ids)
        for number in range(n):
            own = int(stable_hash(seed, problem.id, ids, number), 16)
            requests.append(replace(first, seed=own))
    replies = Engine(student, max_batch=max_batch).generate(requests, progress)
    teacher = LocalTeacher(student, maker, sampling, n, seed, max_answer, max_batch)
    settings = decode_settings(teacher, policy)
    found = []
    for index, (request, reply) in enumerate(zip(requests, replies, strict=True)):
        place, number = divmod(index, n)
        after = {**settings, "begun": stable_hash(request.begun)}
        trace = to_trace(teacher, starts[place][0], after, number, len(request.prompt_ids), reply)
        found.append(_rollout(trace, request.prompt_ids, reply))
    return [found[first : first + n] for first in range(0, len(found), n)]


def _prompt(student: Student, problem: Problem) -> tuple[int, ...]:
    return tuple(render_prompt(student.tokenizer, student.template, problem.question))


def _rollout(trace: Trace, prompt: tuple[int, ...], reply: Completion) -> Rollout:
    told = tuple(each.logprob for each in reply.logprobs) if reply.logprobs else None
    return Rollout(trace, prompt, reply.ids, tuple(not forced for forced in reply.forced), told)


_COLUMNS = [
    ("prompt_ids", pa.list_(pa.int32())),
    ("ids", pa.list_(pa.int32())),
    ("free", pa.list_(pa.bool_())),
    ("logprobs", pa.list_(pa.float32())),
    ("status", pa.string()),
]
_SCHEMA = pa.schema(
    [*SCHEMAS[Trace], *_COLUMNS], metadata={"tutelage.record": "Rollout", "tutelage.version": "1"}
)


def write_rollouts(path: Path, rollouts: Sequence[Rollout]) -> None:
    """Write Parquet at `path`, whole or not at all: the columns of the traces, and the ids beside them.

    Raises StorageError when the disk refuses."""
    table = to_table([each.trace for each in rollouts], Trace)
    for name, kind in _COLUMNS:
        column = pa.array([getattr(each, name) for each in rollouts], type=kind)
        table = table.append_column(pa.field(name, kind), column)
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.cast(_SCHEMA), partial, compression="zstd")
        os.replace(partial, path)
    except OSError as error:
        if partial.exists():
            partial.unlink()
        raise StorageError(f"{path}: cannot write ({error.strerror or error})") from error


def read_rollouts(path: Path) -> list[Rollout]:
    """What `write_rollouts` wrote (log-probabilities as float32).

    Raises UsageError when the file is missing, is not Parquet, or holds something else."""
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UsageError(f"{path}: not a readable Parquet file ({error})") from error
    missing = [name for name in _SCHEMA.names if name not in table.column_names]
    if missing:
        raise UsageError(f"{path}: not a table of rollouts (no column {missing[0]!r})")
    traces = from_table(table.select(SCHEMAS[Trace].names), Trace)
    return [
        Rollout(
            trace,
            tuple(row["prompt_ids"]),
            tuple(row["ids"]),
            tuple(row["free"]),
            None if row["logprobs"] is None else tuple(row["logprobs"]),
            row["status"],
        )
        for trace, row in zip(traces, table.select([name for name, _ in _COLUMNS]).to_pylist(), strict=True)
    ]
