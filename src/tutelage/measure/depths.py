"""What passes of the core are worth: accuracy by problem depth and passes, beside models of fixed depth, and
where tokens leave by themselves.

Promises: every model answers the same problems, greedily; differences are paired by problem, intervals are
those of `statistics`, and every row says its n; a problem is right when the reply is its reference answer,
token for token, and then ends.
Does not: sample, judge other spellings of an answer (`evaluate` does), or draw (see `report.depths`).

Replies are read off one pass over question and reference answer: where each token of the answer is the
likeliest one after those before it, greedy decoding writes just this reply.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tutelage.errors import UsageError
from tutelage.measure.statistics import accuracy, cluster_bootstrap, paired
from tutelage.records import Problem
from tutelage.students.pretrained import Student
from tutelage.students.recurrent.model import RecurrentDepthForCausalLM
from tutelage.students.template import render_completion, render_prompt
from tutelage.think.effort import Exit
from tutelage.think.trajectories import Trajectory, recurrent, trace_loops

Floats = NDArray[np.float64]
Row = dict[str, Any]
# Scores (tokens x vocabulary) that a model without loops makes at once: 256 MiB.
_SCORES = 2**26
# Positions in the question with fewer texts than this have no row of their own.
_FEW = 10


@dataclass(frozen=True, slots=True)
class Asked:
    """A problem as token ids: `ids` of question and reference reply, the answer's from `start` on; `depth`
    and `examples`: the metadata "difficulty" and "examples", where they are whole numbers."""

    problem_id: str
    ids: tuple[int, ...]
    start: int
    depth: int | None
    examples: int | None


@dataclass(frozen=True, slots=True)
class Answers:
    """Who was right: `right` (depths, problems) in {0, 1}; `passes` (problems,): mean passes behind the
    tokens of the answer; `traced`, where the model loops."""

    right: Floats
    passes: Floats
    traced: tuple[Trajectory, ...] = ()


def ask(student: Student, problems: Sequence[Problem]) -> list[Asked]:
    """Each of `problems` as `student` reads it; thinking, where its template has any, is closed at once.

    Raises UsageError for no problems, or one without a reference answer."""
    if not problems:
        raise UsageError("there is no problem to measure on")
    found = []
    for problem in problems:
        if not (problem.gold or "").strip():
            raise UsageError(
                f"problem {problem.id} has no reference answer to read replies off; leave it out"
            )
        prompt = render_prompt(student.tokenizer, student.template, problem.question)
        reply = render_completion(student.tokenizer, student.template, "", problem.gold or "")
        empty = render_completion(student.tokenizer, student.template, "", "")
        found.append(
            Asked(
                problem_id=problem.id,
                ids=(*prompt, *reply),
                start=len(prompt) + len(empty) - 1,
                depth=_whole(problem, "difficulty"),
                examples=_whole(problem, "examples"),
            )
        )
    return found


def _whole(problem: Problem, name: str) -> int | None:
    value = problem.metadata.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def answers(
    student: Student, asked: Sequence[Asked], steps: Sequence[int] = (), exit: Exit | None = None
) -> Answers:
    """What `student` answers after each of `steps` passes (none given: at its mean); with `exit` after those
    that each token takes, at most the last of `steps`. A model without loops answers once, whatever `steps`
    say."""
    model, rows = student.model, [each.ids for each in asked]
    if not isinstance(model, RecurrentDepthForCausalLM):
        right = [_same(best, each) for best, each in zip(_plain(model, rows), asked, strict=True)]
        return Answers(np.array([right]), np.full(len(asked), np.nan))
    depths = sorted(set(steps)) or [model.config.mean_recurrence]
    traced = trace_loops(
        model,
        rows,
        depths[-1],
        read=depths if exit is None else None,
        exit=exit,
        alone=[each.start - 1 for each in asked],
    )
    return Answers(
        np.array(
            [[_same(best, each) for best in run.predicted] for run, each in zip(traced, asked, strict=True)]
        ).T,
        np.array([run.steps[_at(each)].mean() for run, each in zip(traced, asked, strict=True)]),
        tuple(traced),
    )


def _at(each: Asked) -> slice:
    """Where the answer's tokens are decided: one before each of them, its end left out."""
    return slice(each.start - 1, max(each.start, len(each.ids) - 2))


def _same(best: NDArray[np.int64], each: Asked) -> float:
    return float(np.array_equal(best[each.start - 1 : -1], each.ids[each.start :]))


@torch.inference_mode()
def _plain(model: Any, rows: Sequence[Sequence[int]]) -> Iterator[NDArray[np.int64]]:
    """The likeliest token after each, for each of `rows`."""
    size = max(1, _SCORES // int(model.config.vocab_size) // max(map(len, rows)))
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        longest = max(map(len, part))
        # Padded at their ends, where causal attention does not look.
        ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in part], device=model.device)
        best = model(ids).logits.argmax(dim=-1).cpu().numpy()
        yield from (best[number, : len(row)] for number, row in enumerate(part))


def measure_depths(
    name: str,
    student: Student,
    baselines: Mapping[str, Student],
    problems: Sequence[Problem],
    *,
    steps: Sequence[int],
    at: int,
    exits: Sequence[Exit] = (),
    seed: int = 0,
) -> Row:
    """All tables about `student`, called `name`: `accuracy` by depth and passes, `baselines` and
    `differences` to them after `at` passes, `exits` and `positions`, `examples`.

    Raises UsageError for a model without loops, depths that it does not have, or `at` not among `steps`."""
    model = recurrent(student.model, name)
    steps = sorted(set(steps))
    if at not in steps:
        raise UsageError(f"depths: at is {at}, which is not among steps {steps}")
    asked = ask(student, problems)
    fixed = answers(student, asked, steps)
    groups = by_depth(asked)
    after = fixed.right[steps.index(at)]
    told: Row = {
        "name": name,
        "steps": steps,
        "at": at,
        "n": len(asked),
        "trained_mean": model.config.mean_recurrence,
        "parameters": model.num_parameters(),
        "accuracy": [],
        "examples": [],
        "baselines": [],
        "differences": [],
        "exits": [],
        "positions": [],
    }
    for depth, members in groups.items():
        told["accuracy"] += _by_steps(steps, fixed.right[:, members], {"depth": depth}, seed)
    for count, members in _by_examples(asked).items():
        told["examples"] += _by_steps(steps, fixed.right[:, members], {"examples": count}, seed)
    for other, baseline in baselines.items():
        right = answers(baseline, ask(baseline, problems)).right[0]
        size = {"name": other, "parameters": baseline.model.num_parameters()}
        for depth, members in groups.items():
            told["baselines"].append({**size, "depth": depth, **_share(right[members], seed)})
            gap = _gap(after[members], right[members], seed)
            told["differences"].append({"a": name, "b": other, "depth": depth, "steps": at, **gap})
    for number, exit in enumerate(exits):
        left = answers(student, asked, [at], exit)
        for depth, members in groups.items():
            told["exits"].append(
                {
                    "exit": str(exit),
                    "depth": depth,
                    "bound": at,
                    **_passes(left.passes[members], seed),
                    **_share(left.right[0][members], seed),
                    "fixed": float(after[members].mean()),
                    **_gap(left.right[0][members], after[members], seed),
                }
            )
        if number == 0:
            told["positions"] = _by_position(str(exit), asked, left.traced, seed)
    return told


def by_depth(asked: Sequence[Asked]) -> dict[int | None, list[int]]:
    """Numbers of the problems of each depth, in order; all of them under None."""
    found: dict[int | None, list[int]] = {
        depth: [number for number, each in enumerate(asked) if each.depth == depth]
        for depth in sorted({each.depth for each in asked if each.depth is not None})
    }
    return {**found, None: list(range(len(asked)))}


def _by_examples(asked: Sequence[Asked]) -> dict[int, list[int]]:
    """The same for numbers of worked examples; none where all problems have as many."""
    counts = sorted({each.examples for each in asked if each.examples is not None})
    if len(counts) < 2:
        return {}
    return {
        count: [number for number, each in enumerate(asked) if each.examples == count] for count in counts
    }


def _by_steps(steps: Sequence[int], right: Floats, place: Row, seed: int) -> list[Row]:
    """A row for each number of passes; `enough` marks the fewest that the most are not shown to be better
    than (the interval of the paired difference holds zero)."""
    gaps = [paired(right[-1], row, seed=seed) for row in right]
    enough = next(number for number, gap in enumerate(gaps) if gap.lo <= 0)
    return [
        {**place, "steps": step, "enough": number == enough, **_share(row, seed)}
        for number, (step, row) in enumerate(zip(steps, right, strict=True))
    ]


def _share(right: Floats, seed: int) -> Row:
    found = accuracy(right, seed=seed)
    return {"accuracy": found.mean, "ci95": [found.lo, found.hi], "n": found.n}


def _gap(a: Floats, b: Floats, seed: int) -> Row:
    found = paired(a, b, seed=seed)
    ends = [found.lo, found.hi]
    return {"difference": found.mean, "difference_ci95": ends, "p": found.p, "n": found.n}


def _passes(values: Floats, seed: int) -> Row:
    found = cluster_bootstrap(values, seed=seed, bounds=None)
    return {"passes": found.mean, "passes_ci95": [found.lo, found.hi]}


def _by_position(exit: str, asked: Sequence[Asked], traced: Sequence[Trajectory], seed: int) -> list[Row]:
    """Mean passes of the tokens at each position of the question."""
    found = []
    for position in range(max(each.start for each in asked)):
        values = [
            float(run.steps[position])
            for each, run in zip(asked, traced, strict=True)
            if position < each.start
        ]
        if len(values) >= _FEW:
            found.append(
                {"exit": exit, "position": position, **_passes(np.array(values), seed), "n": len(values)}
            )
    return found
