"""Rejection sampling: which traces to learn from.

Promises: deterministic (problems in the order of their first trace, samples by their number); with `correct`
only traces with the verdict `correct` stay, and a trace without a verdict is an error, not a guess; every
trace that does not stay has a drop with its reason; a trace that another one supersedes never stays.
Does not: judge, or prefer short or long traces: the first sample that passes is taken, which leaves the
teacher's distribution given "correct" as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from tutelage.errors import UsageError
from tutelage.records import Trace, Verdict

Keep = Literal["all", "correct"]
TraceRule = Literal["incorrect", "undecided", "superseded", "surplus"]


@dataclass(frozen=True, slots=True)
class TraceDrop:
    """Why a trace is not learned from. `rule`: its verdict (`incorrect`, `undecided`), `superseded` by a
    retry, or `surplus` (its problem has enough traces already). `reason` is one line for people."""

    trace_id: str
    problem_id: str
    rule: TraceRule
    reason: str


def reject(
    traces: Sequence[Trace], verdicts: Iterable[Verdict], *, keep: Keep, per_problem: int = 1
) -> tuple[list[Trace], list[TraceDrop]]:
    """The first `per_problem` traces of each problem that pass, and a drop for every other trace.

    With `keep="all"` right and wrong pass alike (verdicts are not looked at).
    Raises UsageError for an unknown `keep`, `per_problem` below 1, two verdicts on one trace, and, with
    `correct`, a trace without a verdict."""
    if keep not in ("all", "correct"):
        raise UsageError(f"keep is {keep!r}; use all or correct")
    if per_problem < 1:
        raise UsageError(f"per_problem is {per_problem}; it must be at least 1")
    judged: dict[str, Verdict] = {}
    for verdict in verdicts:
        if verdict.trace_id in judged:
            raise UsageError(f"trace {verdict.trace_id!r} has two verdicts")
        judged[verdict.trace_id] = verdict
    superseded = {trace.supersedes: trace.id for trace in traces if trace.supersedes is not None}
    by_problem: dict[str, list[Trace]] = {}
    for trace in traces:
        by_problem.setdefault(trace.problem_id, []).append(trace)

    kept: list[Trace] = []
    drops: list[TraceDrop] = []
    for problem_id, attempts in by_problem.items():
        taken = 0
        for trace in sorted(attempts, key=lambda trace: trace.sample):
            why = _why_not(trace, judged, superseded, keep)
            if why is None and taken >= per_problem:
                why = ("surplus", f"the problem has {per_problem} already")
            if why is None:
                kept.append(trace)
                taken += 1
            else:
                drops.append(TraceDrop(trace.id, problem_id, *why))
    return kept, drops


def _why_not(
    trace: Trace, judged: dict[str, Verdict], superseded: dict[str, str], keep: Keep
) -> tuple[TraceRule, str] | None:
    if trace.id in superseded:
        return "superseded", f"superseded by {superseded[trace.id]}"
    if keep == "all":
        return None
    verdict = judged.get(trace.id)
    if verdict is None:
        raise UsageError(f"trace {trace.id!r} has no verdict; verify the traces first")
    if verdict.status == "correct":
        return None
    return verdict.status, verdict.reason
