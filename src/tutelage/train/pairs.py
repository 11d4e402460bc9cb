"""Preference pairs: of two replies to one prompt, which is better and why; and pairs from judged rollouts.

Promises: a pair holds token ids as they were drawn, which are never made from text again; of two rollouts
of one problem the correct one is chosen and the incorrect one rejected, so never two of one verdict; an
undecided rollout is neither; no pair occurs twice; at most `per_problem` of one problem, the same for the
same seed whatever other problems there are, spread over its rollouts; what was left out is counted by reason;
the lengths of both sides are told (longer or shorter is what DPO learns first).
Does not: sample or judge (see `rollouts` and `verify`), ask a judge (see `judged`), search for single tokens
(see `pivotal`), or train (see `preferences`).
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from tutelage.errors import StorageError, UsageError
from tutelage.records import Problem, clean_text, stable_hash
from tutelage.students.template import render_prompt
from tutelage.teachers.replies import is_truncated

if TYPE_CHECKING:
    from tutelage.students.pretrained import Student
    from tutelage.train.rollouts import Rollout

Ids = tuple[int, ...]
Method = Literal["rollout", "judge", "pivotal"]
Truncated = Literal["drop", "rejected"]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two replies to one prompt. `chosen_free` and `rejected_free` run in step with the ids: True where the
    model drew the id, False where the thinking policy wrote it (no loss there). `chosen_trace` and
    `rejected_trace` are the traces they are from (one and the same for a pivotal token). `evidence` is what
    says that chosen is better, as JSON: the verdicts, a judge's scores, or probabilities of success."""

    problem_id: str
    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]
    chosen_free: tuple[bool, ...]
    rejected_free: tuple[bool, ...]
    method: Method
    chosen_trace: str = ""
    rejected_trace: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Tokens of the prompt and the longer side."""
        return len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids))


@dataclass(frozen=True, slots=True)
class PairSet:
    """Pairs, what was left out by reason, and, from a file, the problems (question, source and licence of
    each, by id)."""

    pairs: list[Pair]
    left_out: Mapping[str, int] = field(default_factory=dict)
    problems: Mapping[str, Problem] = field(default_factory=dict)


def rollout_pairs(
    rollouts: Sequence[Rollout],
    *,
    per_problem: int = 4,
    seed: int = 0,
    truncated: Truncated = "drop",
    length_ratio: float | None = None,
) -> PairSet:
    """Pairs of a correct and an incorrect rollout of one problem, problem by problem as they first occur.

    Replies with equal ids count once. `truncated: drop` leaves out rollouts that the token limit cut off,
    `rejected` takes those without a correct answer as incorrect (it teaches to come to an end, and to be
    short). With `length_ratio` the longer side of a pair has at most so many times the tokens of the shorter
    one. The third stage of Phi-4-Mini-Reasoning (arXiv 2504.21233), with a model's own rollouts.

    Raises UsageError when a rollout has no verdict, or for settings that cannot be met."""
    if per_problem < 1:
        raise UsageError(f"per_problem is {per_problem}; it must be at least 1")
    if length_ratio is not None and length_ratio < 1:
        raise UsageError(f"length_ratio is {length_ratio:g}; it must be at least 1 (equal lengths)")
    left_out: Counter[str] = Counter()
    sides: dict[str, dict[str, list[Rollout]]] = defaultdict(lambda: {"correct": [], "incorrect": []})
    seen: set[tuple[str, tuple[int, ...]]] = set()
    for each in rollouts:
        status = _side(each, truncated)
        both = sides[each.trace.problem_id]
        key = (each.trace.problem_id, each.ids)
        if status not in both:
            left_out[status] += 1
        elif key in seen:
            left_out["the same reply again"] += 1
        else:
            seen.add(key)
            both[status].append(each)
    pairs: list[Pair] = []
    for problem, both in sides.items():
        right, wrong = both["correct"], both["incorrect"]
        if not right or not wrong:
            left_out["problems with correct rollouts only" if right else "problems with none correct"] += 1
            continue
        drawn = random.Random(stable_hash(seed, problem))
        chosen = list(_spread(right, wrong, per_problem, length_ratio, drawn))
        if not chosen:
            left_out["problems whose replies differ too much in length"] += 1
        pairs += [
            paired(
                good,
                bad,
                "rollout",
                {"chosen": "correct", "rejected": "incorrect", "rejected_finish": bad.trace.finish_reason},
            )
            for good, bad in chosen
        ]
    return PairSet(pairs, left_out=dict(left_out))


def _side(each: Rollout, truncated: Truncated) -> str:
    """`correct`, `incorrect`, or why it is neither."""
    if each.status is None:
        raise UsageError(f"rollout {each.trace.id} has no verdict; judge the rollouts first")
    if is_truncated(each.trace.finish_reason):  # never chosen: it does not come to an end
        return "incorrect" if truncated == "rejected" and each.status != "correct" else "cut off"
    return each.status


def _spread(
    right: Sequence[Rollout],
    wrong: Sequence[Rollout],
    most: int,
    length_ratio: float | None,
    drawn: random.Random,
) -> Iterator[tuple[Rollout, Rollout]]:
    """At most `most` different pairs, those first whose rollouts were used least; chance among equals."""
    possible = [
        (good, bad)
        for good, bad in product(right, wrong)
        if length_ratio is None or _ratio(len(good.ids), len(bad.ids)) <= length_ratio
    ]
    drawn.shuffle(possible)
    used: Counter[str] = Counter()
    for _ in range(min(most, len(possible))):
        at = min(range(len(possible)), key=lambda k: sum(used[one.trace.id] for one in possible[k]))
        pair = possible.pop(at)
        used.update(one.trace.id for one in pair)
        yield pair


def _ratio(one: int, other: int) -> float:
    return max(one, other) / max(1, min(one, other))


def paired(good: Rollout, bad: Rollout, method: Method, evidence: Mapping[str, Any]) -> Pair:
    """The pair of a better and a worse rollout of one problem.

    Raises UsageError when they answer it under two prompts."""
    if good.prompt_ids != bad.prompt_ids:
        raise UsageError(
            f"rollouts {good.trace.id} and {bad.trace.id} answer one problem under two prompts; "
            "draw the rollouts of one model and template together"
        )
    return Pair(
        problem_id=good.trace.problem_id,
        prompt_ids=good.prompt_ids,
        chosen_ids=good.ids,
        rejected_ids=bad.ids,
        chosen_free=good.free,
        rejected_free=bad.free,
        method=method,
        chosen_trace=good.trace.id,
        rejected_trace=bad.trace.id,
        evidence=evidence,
    )


def lengths(pairs: Sequence[Pair]) -> dict[str, Any]:
    """How long both sides are, in tokens that the model drew: the means, and the share of pairs whose chosen
    side is the longer and the shorter one. Far from each other, DPO learns a length (None: no pair)."""
    chosen = [sum(pair.chosen_free) for pair in pairs]
    rejected = [sum(pair.rejected_free) for pair in pairs]
    n = len(pairs)
    return {
        "chosen_tokens_mean": round(sum(chosen) / n, 3) if n else None,
        "rejected_tokens_mean": round(sum(rejected) / n, 3) if n else None,
        "chosen_longer": sum(a > b for a, b in zip(chosen, rejected, strict=True)) / n if n else None,
        "chosen_shorter": sum(a < b for a, b in zip(chosen, rejected, strict=True)) / n if n else None,
    }


_IDS, _FLAGS = pa.list_(pa.int32()), pa.list_(pa.bool_())
_OF_PROBLEM = ("question", "source", "licence")
_SCHEMA = pa.schema(
    [
        ("problem_id", pa.string()),
        ("prompt_ids", _IDS),
        ("chosen_ids", _IDS),
        ("rejected_ids", _IDS),
        ("chosen_free", _FLAGS),
        ("rejected_free", _FLAGS),
        ("method", pa.string()),
        ("chosen_trace", pa.string()),
        ("rejected_trace", pa.string()),
        ("evidence", pa.string()),
        *((name, pa.string()) for name in _OF_PROBLEM),
    ],
    metadata={"tutelage.record": "Pair", "tutelage.version": "1"},
)


def write_pairs(path: Path, pairs: Iterable[Pair], problems: Mapping[str, Problem]) -> None:
    """Write Parquet at `path`, whole or not at all. `problems` are those of the pairs, by id: what learns
    from the file can tell which questions it has seen, and whether the ids are those of its own tokenizer and
    template (see `misfit`). Raises StorageError when the disk refuses."""
    rows = [_row(pair, problems[pair.problem_id]) for pair in pairs]
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), partial, compression="zstd")
        os.replace(partial, path)
    except OSError as error:
        raise StorageError(f"{path}: cannot write ({error.strerror or error})") from error
    finally:
        partial.unlink(missing_ok=True)


def read_pairs(path: Path) -> PairSet:
    """Read what `write_pairs` wrote. Raises UsageError when the file is missing or holds something else."""
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UsageError(f"{path}: not a readable Parquet file ({error})") from error
    if missing := [name for name in _SCHEMA.names if name not in table.column_names]:
        raise UsageError(f"{path}: not a table of preference pairs (no column {missing[0]!r})")
    rows = table.select(_SCHEMA.names).to_pylist()
    problems = {
        row["problem_id"]: Problem(row["problem_id"], **{name: row[name] for name in _OF_PROBLEM})
        for row in rows
    }
    return PairSet([_read(row) for row in rows], problems=problems)


def misfit(student: Student, found: PairSet) -> str:
    """The id of the first problem whose pairs do not begin with the prompt that `student` would see (another
    tokenizer, chat template or system message made them), "" where all do."""
    prompts: dict[str, Ids] = {}
    for pair in found.pairs:
        name = pair.problem_id
        if name not in prompts:
            question = found.problems[name].question
            prompts[name] = tuple(render_prompt(student.tokenizer, student.template, question))
        # A pivotal pair's prompt is the problem's and a part of the reply.
        seen = pair.prompt_ids[: len(prompts[name])] if pair.method == "pivotal" else pair.prompt_ids
        if seen != prompts[name]:
            return name
    return ""


def _row(pair: Pair, problem: Problem) -> dict[str, Any]:
    row = {each.name: getattr(pair, each.name) for each in fields(pair)}
    row["evidence"] = json.dumps(dict(pair.evidence), sort_keys=True)
    return row | {name: clean_text(getattr(problem, name)) for name in _OF_PROBLEM}


def _read(row: Mapping[str, Any]) -> Pair:
    found = {each.name: row[each.name] for each in fields(Pair)}
    found = {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
    return Pair(**{**found, "evidence": json.loads(row["evidence"])})
