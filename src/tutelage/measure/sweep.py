"""Accuracy against thinking: one model, the same problems, many policies, and the controls.

Promises: every point is over the same problems and, where it is sampled, the same random numbers; a budget's
point equals a fresh run with that maximum, although one natural trace is re-closed at every budget instead of
being decoded again (the traces are the same up to the budget, because nothing before it depends on it), and
so do the points that refuse closes, which go on from the first close of that trace; the tokens of a vote are
those of all its attempts together; every point says who closed the thinking.
Does not: choose the points, compare arms, or draw.

Methods: `natural` (greedy and sampled), `budget` (s1's maximum with a forced close), `wait` (s1's minimum:
the first N closes become a wait string; other strings are controls), `suppress` (the first N closes are
masked and nothing is written: the control for the string itself), `vote` (majority of k, unbiased over the
samples).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tutelage.errors import UsageError
from tutelage.measure.at_k import majority_at_k
from tutelage.measure.evaluate import Check, Evaluation, summed_up
from tutelage.measure.statistics import cluster_bootstrap
from tutelage.records import Problem, Trace, Verdict
from tutelage.teachers.local import LocalTeacher, decode, to_traces
from tutelage.think.engine import Completion
from tutelage.think.policy import ThinkingPolicy
from tutelage.think.sampling import Sampling

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Grid:
    """Which points to measure. `policy` is the natural one (its maximum bounds everything); `waits` numbers
    of refused closes with `wait` and with each of `other_waits`; `suppress` numbers of masked closes; `votes`
    sizes of majority votes out of `vote_samples` replies at `temperature`."""

    policy: ThinkingPolicy
    budgets: tuple[int, ...] = ()
    waits: tuple[int, ...] = ()
    wait: str = "Wait"
    other_waits: tuple[str, ...] = ()
    suppress: tuple[int, ...] = ()
    votes: tuple[int, ...] = ()
    vote_samples: int = 8
    temperature: float = 0.7

    def __post_init__(self) -> None:
        if self.votes and max(self.votes) > self.vote_samples:
            raise UsageError(f"votes: {max(self.votes)} is more than vote_samples {self.vote_samples}")
        if self.votes and min(self.votes) < 1:
            raise UsageError(f"votes: {min(self.votes)} is no number of voters; write 1 or more")
        # Impossible points are refused here, not after hours of decoding the possible ones.
        for budget in self.budgets:
            self.capped(budget)
        for count in (*self.waits, *self.suppress):
            self.masked(count)
        for word in (self.wait, *self.other_waits) if self.waits else ():
            self.waiting(1, word)

    def capped(self, budget: int) -> ThinkingPolicy:
        """The policy of a budget's point."""
        return replace(self.policy, max_tokens=budget)

    def waiting(self, waits: int, word: str) -> ThinkingPolicy:
        """The policy of a point with the first closes turned into `word`."""
        return replace(self.policy, refuse_closes=waits, wait=word)

    def masked(self, refused: int) -> ThinkingPolicy:
        """The policy of the same number of refused closes with nothing written."""
        return replace(self.policy, refuse_closes=refused, wait=None, max_waits=None)

    @property
    def steps(self) -> int:
        """How many decoding passes the grid takes."""
        passes = 1 + len(self.budgets) + len(self.waits) * (1 + len(self.other_waits)) + len(self.suppress)
        return passes + bool(self.votes)


@dataclass(frozen=True, slots=True)
class Point:
    """One point of the curve: its row for `curve` in summary.json, a label for people, and what it is made
    of (nothing is kept of sampled replies and votes: there are many of them)."""

    row: dict[str, Any]
    label: str
    traces: list[Trace]
    verdicts: list[Verdict]


def sweep(
    arm: str,
    teacher: LocalTeacher,
    problems: Sequence[Problem],
    check: Check,
    grid: Grid,
    progress: Progress | None = None,
) -> list[Point]:
    """The points of `grid` for the model of `teacher` (its sampling and samples are set by the grid)."""
    greedy = replace(teacher, sampling=Sampling(), samples=1)
    done = 0

    def measure(
        label: str,
        policy: ThinkingPolicy,
        method: str,
        replay: list[Completion] | None = None,
        **row: Any,
    ) -> tuple[Point, list[Completion]]:
        nonlocal done
        replies = decode(greedy, problems, policy)
        traces = list(to_traces(greedy, problems, policy, replies))
        verdicts = check(problems, traces)
        done += 1
        if progress:
            progress(done, grid.steps, label)
        found = summed_up(problems, traces, verdicts)
        return Point(_row(arm, method, found, sampling="greedy", **row), label, traces, verdicts), replies

    natural, replies = measure(f"{arm}, greedy", grid.policy, "natural")
    points = [natural]
    for budget in grid.budgets:
        label = f"{arm}, at most {budget} tokens"
        points.append(measure(label, grid.capped(budget), "budget", replies, budget=budget)[0])
    for word in (grid.wait, *grid.other_waits):
        for waits in grid.waits:
            label = f"{arm}, {waits} x {word.strip()!r}"
            policy = grid.waiting(waits, word)
            points.append(measure(label, policy, "wait", replies, waits=waits, wait=word)[0])
    for refused in grid.suppress:
        label = f"{arm}, {refused} closes masked"
        points.append(measure(label, grid.masked(refused), "suppress", replies, waits=refused)[0])
    if grid.votes:
        points += _votes(arm, teacher, problems, check, grid)
        if progress:
            progress(grid.steps, grid.steps, f"{arm}, votes")
    return points


def _votes(
    arm: str, teacher: LocalTeacher, problems: Sequence[Problem], check: Check, grid: Grid
) -> list[Point]:
    """Sampled replies: their mean accuracy (`natural`, sampled), and majority votes among them."""
    many = replace(teacher, sampling=Sampling(temperature=grid.temperature), samples=grid.vote_samples)
    replies = decode(many, problems, grid.policy)
    traces = list(to_traces(many, problems, grid.policy, replies))
    verdicts = check(problems, traces)
    found = summed_up(problems, traces, verdicts)
    warmth = f"T = {grid.temperature:g}"
    sampled = {"sampling": warmth}
    points = [Point(_row(arm, "natural", found, **sampled), f"{arm}, sampled", [], [])]
    answers: dict[str, list[str | None]] = {}
    right: dict[str, list[bool]] = {}
    for trace, verdict in zip(traces, verdicts, strict=True):
        answers.setdefault(trace.problem_id, []).append(canonical(verdict))
        right.setdefault(trace.problem_id, []).append(verdict.status == "correct")
    for size in grid.votes:
        scores = np.array([majority_at_k(answers[p.id], right[p.id], size) for p in problems])
        estimate = cluster_bootstrap(scores)
        row = _row(arm, "vote", found, votes=size, **sampled)
        row |= {"accuracy": estimate.mean, "ci95": [estimate.lo, estimate.hi], "samples": grid.vote_samples}
        if found.thinking_tokens_mean is not None:
            row["thinking_tokens_mean"] = size * found.thinking_tokens_mean
        points.append(Point(row, f"{arm}, vote of {size}", [], []))
    return points


def canonical(verdict: Verdict) -> str | None:
    """The answer as it is counted in a vote. All right answers are one, however they were written."""
    if verdict.status == "correct":
        return "right"
    return None if verdict.extracted is None else f"wrong: {verdict.extracted}"


def _row(arm: str, method: str, found: Evaluation, **more: Any) -> dict[str, Any]:
    base: dict[str, Any] = {"budget": None, "waits": None, "wait": None, "votes": None}
    return {
        "arm": arm,
        "method": method,
        **base,
        **more,
        "accuracy": found.accuracy,
        "ci95": list(found.ci95),
        "n": found.n,
        "samples": found.samples,
        "thinking_tokens_mean": found.thinking_tokens_mean,
        "closed_by": found.closed_by,
    }
