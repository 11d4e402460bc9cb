"""The job that judges traces.

Promises: outputs are whole or absent; the metrics hold every count that the report shows.
Does not: hold a room's logic.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from tutelage.recipe import stages
from tutelage.recipe.stage import JobContext
from tutelage.records import Problem, Trace, Verdict, by_id, read_records, write_records
from tutelage.verify.cascade import judge


def verify_traces(ctx: JobContext[stages.Verify]) -> dict[str, Any]:
    """A verdict on every trace."""
    problems = by_id(read_records(ctx.path("problems"), Problem))
    traces = read_records(ctx.path("traces"), Trace)
    verdicts = list(
        judge(problems, traces, seconds=ctx.config.seconds, workers=ctx.threads, progress=ctx.progress)
    )
    write_records(ctx.outputs["verdicts"], verdicts, Verdict)
    statuses = Counter(verdict.status for verdict in verdicts)
    methods = Counter(verdict.method for verdict in verdicts)
    return {
        "traces": len(traces),
        **{status: statuses.get(status, 0) for status in ("correct", "incorrect", "undecided")},
        "methods": dict(sorted(methods.items())),
    }
