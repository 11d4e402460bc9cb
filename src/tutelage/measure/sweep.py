"""Accuracy against thinking: one model, the same problems, many ways to think, and the controls.

Promises: every point is over the same problems, samples and random numbers; everything is decoded in one go,
in which the engine computes once what several points write alike, so that a curve of budgets costs one long
trace per sample and an answer per budget (the trace is the same up to the budget, because nothing before it
depends on it), and equals separate runs; the tokens of a point are those of all its attempts, thrown away or
not, and so are its FLOPs and its passes through a core (see `flops`); every point counts who closed the
thinking and how many answers were empty or cut.
Does not: choose the points (see `grid`), describe whole lines (see `lines`), compare arms, or draw.

Intervals are over problems: Wilson where each problem has one reply, which is its one score of 0 or 1, else
the bootstrap that keeps the replies to a problem together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import UsageError
from tutelage.measure.at_k import majority_at_k
from tutelage.measure.flops import (
    Arithmetic,
    Spent,
    known_arithmetic,
    per_problem,
    spent,
    together,
    with_interval,
)
from tutelage.measure.grid import FREE, Grid, Planned, drawn, fields
from tutelage.measure.replies import Judged, solver_of
from tutelage.measure.scaling import Bound
from tutelage.measure.statistics import accuracy, cluster_bootstrap, item_means
from tutelage.records import Problem, Trace, Verdict, stable_hash
from tutelage.think.control import Natural
from tutelage.think.methods import Decoder, Method, Outcome, Solver, solve

Progress = Callable[[int, int, str], None]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Reply:
    """What one sample of one problem came to at a point. `trace` and `verdict` are those of the reply that
    the method stands by, `answer` its canonical answer, None where there is none; the counts are of all its
    attempts, and so is `spent` (None: nobody can tell the FLOPs of the model)."""

    problem_id: str
    sample: int
    answer: str | None
    trace: Trace | None
    verdict: Verdict | None
    thinking_sampled: int
    thinking_forced: int
    tokens: int
    attempts: int
    spent: Spent | None

    @property
    def correct(self) -> bool:
        """Whether it is right; no reply is not."""
        return self.verdict is not None and self.verdict.status == "correct"


@dataclass(frozen=True, slots=True)
class Point:
    """One point: its row for `curve` in summary.json, a label for people, the line that it lies on and its
    bound there, each problem's mean score and thinking tokens (n,), and the replies (none for a vote, which
    is an expectation over the replies of another point). `flops` and `loops` (n,): each problem's mean FLOPs
    per sample and mean passes of the core per token of its replies, None where there are none to tell."""

    row: dict[str, Any]
    label: str
    line: str
    bound: Bound
    scores: Floats
    tokens: Floats
    replies: list[Reply]
    flops: Floats | None = None
    loops: Floats | None = None


def sweep(
    arm: str,
    engine: Decoder,
    judged: Judged,
    problems: Sequence[Problem],
    grid: Grid,
    *,
    seed: int,
    max_answer: int,
    progress: Progress | None = None,
) -> list[Point]:
    """The points of `grid` in its order, then the votes. Answers have at most `max_answer` sampled tokens.

    Raises UsageError, before anything is decoded, when there are no problems, or a point cannot be had of
    this model."""
    if not problems:
        raise UsageError("there is no problem to sweep over")

    def solver(sampling: Any, samples: int) -> Solver:
        return solver_of(
            engine,
            judged,
            grid.policy,
            sampling=sampling,
            samples=samples,
            seed=seed,
            max_answer=max_answer,
        )

    cost = known_arithmetic(judged.student.model)
    own = solver(grid.sampling, grid.samples)
    planned = grid.planned()
    tasks: list[tuple[Solver, Method]] = [(own, point.method) for point in planned]
    if grid.votes and not grid.own_votes:
        tasks.append((solver(*grid.ballot), Natural()))
    outcomes = solve(tasks, problems, progress)
    points = [
        _point(arm, judged, plan, found, drawn(grid.sampling), cost)
        for plan, found in zip(planned, outcomes, strict=False)
    ]
    if not grid.votes:
        return points
    if grid.own_votes:
        points += [_vote(points[0], size, "majority vote") for size in sorted(grid.votes)]
        size = max(grid.votes)
        capped = [point for point in points if point.row["method"] == "budget"]
        return points + [_vote(point, size, f"majority vote of {size}, cut short") for point in capped]
    sampled = replace(planned[0], setting=drawn(grid.ballot[0]))
    base = _point(arm, judged, sampled, outcomes[-1], drawn(grid.ballot[0]), cost)
    return [*points, base, *(_vote(base, size, "majority vote") for size in sorted(grid.votes))]


def _point(
    arm: str,
    judged: Judged,
    planned: Planned,
    outcomes: Sequence[Outcome],
    sampling: str,
    cost: Arithmetic | None,
) -> Point:
    """A point from its outcomes, which come problem by problem, sample by sample."""
    replies = _replies(judged, planned, outcomes, cost)
    n = len({reply.problem_id for reply in replies})
    right = np.array([reply.correct for reply in replies], float).reshape(n, -1)
    used = np.array([r.thinking_sampled + r.thinking_forced for r in replies], float).reshape(n, -1)
    found, spent = accuracy(right), cluster_bootstrap(used, bounds=None)
    flops, loops = per_problem([reply.spent for reply in replies], len(replies) // n)
    kept = [reply for reply in replies if reply.trace is not None and reply.verdict is not None]
    row = {
        "arm": arm,
        **fields(planned),
        "sampling": sampling,
        "accuracy": found.mean,
        "ci95": [found.lo, found.hi],
        "n": n,
        "samples": right.shape[1],
        "replies": len(replies),
        "thinking_tokens_mean": spent.mean,
        "thinking_tokens_ci95": [spent.lo, spent.hi],
        "thinking_sampled_mean": float(np.mean([reply.thinking_sampled for reply in replies])),
        "thinking_forced_mean": float(np.mean([reply.thinking_forced for reply in replies])),
        "tokens_mean": float(np.mean([reply.tokens for reply in replies])),
        **with_interval("flops", flops),
        **with_interval("loops", loops),
        "closed_by": _counts(reply.trace.closed_by for reply in kept if reply.trace),
        "finished": _counts(reply.trace.finish_reason for reply in kept if reply.trace),
        "empty": len(replies) - sum(bool(reply.trace and reply.trace.answer.strip()) for reply in kept),
        "undecided": sum(bool(r.verdict and r.verdict.status == "undecided") for r in kept),
    }
    label = f"{arm}, {planned.setting}"
    scores, tokens = item_means(right)[0], item_means(used)[0]
    return Point(row, label, planned.line, planned.bound, scores, tokens, replies, flops, loops)


def _spent(outcome: Outcome, cost: Arithmetic | None) -> Spent | None:
    if cost is None:
        return None
    return together(
        [
            spent(cost, len(one.asked.prompt_ids), one.completion, one.asked.policy.effort)
            for one in outcome.attempts
        ]
    )


def _replies(
    judged: Judged, planned: Planned, outcomes: Sequence[Outcome], cost: Arithmetic | None
) -> list[Reply]:
    chosen = [(outcome.problem, outcome.chosen) for outcome in outcomes]
    looked = iter(
        judged.look(
            [problem for problem, reply in chosen if reply is not None],
            [reply for _, reply in chosen if reply is not None],
        )
    )
    replies = []
    for outcome in outcomes:
        trace, verdict = next(looked) if outcome.chosen is not None else (None, None)
        if trace is not None and verdict is not None:
            # One reply may stand for several samples and points: here each has its own name.
            name = stable_hash(trace.id, planned.setting, outcome.sample)
            trace = replace(trace, id=name, sample=outcome.sample)
            verdict = replace(verdict, trace_id=name)
        sampled, forced = outcome.thinking
        replies.append(
            Reply(
                outcome.problem.id,
                outcome.sample,
                outcome.answer,
                trace,
                verdict,
                sampled,
                forced,
                outcome.tokens,
                len(outcome.attempts),
                _spent(outcome, cost),
            )
        )
    return replies


def _vote(base: Point, size: int, line: str) -> Point:
    """What a majority of `size` of the replies of `base` is worth, in expectation over all subsets; it costs
    the tokens of `size` replies. Answers that read the same but were judged apart (by a checker that looks at
    more than the answer) vote apart."""
    answers: dict[str, list[str | None]] = {}
    right: dict[str, list[bool]] = {}
    for reply in base.replies:
        ballot = None if reply.answer is None else f"{reply.correct}: {reply.answer}"
        answers.setdefault(reply.problem_id, []).append(ballot)
        right.setdefault(reply.problem_id, []).append(reply.correct)
    scores = np.array([majority_at_k(answers[name], right[name], size) for name in answers])
    found = cluster_bootstrap(scores)
    row = {
        **base.row,
        "method": "vote",
        "part": "capped" if base.row["budget"] is not None else "extended",
        "setting": f"majority of {size}, {base.row['setting']}",
        "line": line,
        "votes": size,
        "accuracy": found.mean,
        "ci95": [found.lo, found.hi],
    }
    for name in ("thinking_tokens_mean", "thinking_sampled_mean", "thinking_forced_mean", "tokens_mean"):
        row[name] = size * base.row[name]
    row["thinking_tokens_ci95"] = [size * end for end in base.row["thinking_tokens_ci95"]]
    flops = None if base.flops is None else size * base.flops
    row |= with_interval("flops", flops)
    label = f"{base.row['arm']}, {row['setting']}"
    return Point(row, label, line, FREE, scores, size * base.tokens, [], flops, base.loops)


def _counts(names: Any) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))
