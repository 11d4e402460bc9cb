"""The pilot of a collection: bought and judged before the rest.

Promises: a checker that cannot work is refused before the first reply is paid for; what the pilot bought is
in the ledger and is not bought again with the rest.
Does not: hold a room's logic: buying, judging and statistics are called here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from tutelage.errors import UsageError
from tutelage.measure import statistics
from tutelage.records import Problem, by_id
from tutelage.teachers.collect import CollectResult
from tutelage.teachers.pilot import Intervals, Pilot, measure, spread
from tutelage.teachers.teacher import Teacher
from tutelage.verify.cascade import CHECKERS, judge


def run_pilot(
    problems: Sequence[Problem],
    teacher: Teacher,
    *,
    rows: int,
    missing: int,
    gather: Callable[[Sequence[Problem], Teacher], CollectResult],
    workers: int,
) -> tuple[Pilot, CollectResult] | None:
    """Buy and judge one reply to each of `rows` problems, and say on stderr what came of it.

    None, and nothing bought, when no more than `rows` replies are `missing` in all. `gather` buys one sample
    of each problem. Raises UsageError."""
    if missing <= rows:
        return None
    chosen = by_id(spread(problems, rows))
    try:
        list(judge(chosen, ()))
    except UsageError as error:
        raise UsageError(f"{error} (the pilot judges what it buys; with pilot 0 there is none)") from error
    found = gather(list(chosen.values()), teacher)
    traces = list(found.traces)
    judged = [trace for trace in traces if _can_be_judged(chosen[trace.problem_id])]
    statuses = [verdict.status for verdict in judge(chosen, judged, workers=workers)]
    made = measure(
        traces,
        found.completion_tokens,
        statuses,
        missing - found.bought,
        Intervals(share=_share, mean=_mean),
    )
    if not found.error:
        for line in made.lines():
            sys.stderr.write(f"pilot: {line}\n")
    return made, found


def _can_be_judged(problem: Problem) -> bool:
    return problem.gold is not None or problem.checker not in CHECKERS


def _share(successes: int, n: int) -> tuple[float, float]:
    found = statistics.wilson(successes, n)
    return found.lo, found.hi


def _mean(values: Sequence[float]) -> tuple[float, float]:
    found = statistics.cluster_bootstrap(list(values), bounds=None)
    return found.lo, found.hi
