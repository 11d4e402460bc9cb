"""The job that judges traces.

Promises: outputs are whole or absent; the metrics hold every count that the report shows; what the judge is
asked goes through the run's ledger and the judge's own budget; a judge that stops early leaves the rest as
the rules left it, says why in each verdict, and the job ends with PartialError after the verdicts are
written.
Does not: hold a room's logic.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tutelage.errors import PartialError, UsageError
from tutelage.measure.statistics import wilson
from tutelage.recipe import stages
from tutelage.recipe.files import write_text
from tutelage.recipe.jobs.asking import JudgeDesk, judge_teacher
from tutelage.recipe.stage import JobContext
from tutelage.records import (
    Problem,
    Trace,
    Verdict,
    by_id,
    clean_text,
    iter_records,
    read_records,
    write_records,
)
from tutelage.verify import agreement
from tutelage.verify.batches import judge_sharded
from tutelage.verify.cascade import judge
from tutelage.verify.llm_judge import ask_judge, looks
from tutelage.verify.user import absolute
from tutelage.verify.workers import WorkerPool

LISTED = 50
"""Disagreements that the metrics keep in full."""
REASONS = 10
_PARTICULAR = re.compile(r"'[^']*'|\"[^\"]*\"|\d[\d,.]*")


def verify_traces(ctx: JobContext[stages.Verify]) -> dict[str, Any]:
    """A verdict on every trace.

    Raises UsageError before a verdict where the settings cannot work, and PartialError, after writing, when
    the judge stopped early."""
    config = ctx.config
    problems = _with_options(by_id(read_records(ctx.path("problems"), Problem)), config)
    traces = _Traces(ctx.path("traces"))
    count = _Count()
    desk = None
    found: dict[str, Any] = {}
    if config.second_look and config.judge is None:
        raise UsageError(f"stage {ctx.stage}: second_look needs a judge")
    if config.judge is not None:
        desk = JudgeDesk(judge_teacher(config.judge), ctx.ledger_path, ctx.progress)
    with WorkerPool(_workers(ctx), config.seconds, allow_weaker_sandbox=config.allow_weaker_sandbox) as pool:
        verdicts = _by_rule(ctx, problems, traces, pool)
        if desk is not None or config.agreement:
            verdicts, found = _second_opinions(ctx, problems, list(traces), list(verdicts), desk, pool)
        _write(ctx.outputs["verdicts"], count.each(verdicts))
    metrics = {**count.metrics(), **found}
    if desk is not None and desk.error is not None:
        raise PartialError(f"the judge stopped early: {desk.error}", done=metrics) from desk.error
    return metrics


def _workers(ctx: JobContext[stages.Verify]) -> int:
    return ctx.config.workers or ctx.threads


def _by_rule(
    ctx: JobContext[stages.Verify], problems: Mapping[str, Problem], traces: _Traces, pool: WorkerPool
) -> Iterable[Verdict]:
    """The verdicts of the problems' checkers, on the engine that the settings name."""
    config = ctx.config
    if config.engine == "local":
        return judge(problems, traces, workers=_workers(ctx), pool=pool, progress=ctx.progress)
    return judge_sharded(
        problems,
        traces.path,
        workers=_workers(ctx),
        engine=config.engine,
        seconds=config.seconds,
        allow_weaker_sandbox=config.allow_weaker_sandbox,
        progress=ctx.progress,
    )


def _with_options(problems: Mapping[str, Problem], config: stages.Verify) -> dict[str, Problem]:
    """The problems with the stage's options for checkers, where a problem's own come first; a user's checker
    by its absolute path, for workers that stand in another folder."""
    options = {} if config.tolerance is None else {"tolerance": config.tolerance}
    here = Path.cwd()
    return {
        key: replace(each, checker=absolute(each.checker, here), metadata={**options, **each.metadata})
        for key, each in problems.items()
    }


def _second_opinions(
    ctx: JobContext[stages.Verify],
    problems: Mapping[str, Problem],
    traces: Sequence[Trace],
    verdicts: Sequence[Verdict],
    desk: JudgeDesk | None,
    pool: WorkerPool,
) -> tuple[Sequence[Verdict], dict[str, Any]]:
    """The verdicts after the judge's looks, and what the metrics say of them."""
    config = ctx.config
    after, found = verdicts, {}
    if desk is not None:
        look = config.second_look
        after = ask_judge(problems, traces, verdicts, desk.ask, second_look=look, progress=ctx.progress)
        found["judge"] = {**looks(verdicts, after)}
    if config.agreement:
        opinions = {agreement.RULE: verdicts}
        opinions[agreement.SECOND] = list(agreement.second_opinions(problems, traces, pool))
        if desk is not None:
            # What was asked above comes from the ledger. "undecided" makes the judge look at everything.
            blank = [Verdict(t.id, t.problem_id, "undecided", "not asked", agreement.JUDGE) for t in traces]
            opinions[agreement.JUDGE] = ask_judge(problems, traces, blank, desk.ask, progress=ctx.progress)
        found["agreement"] = agreement.as_json(agreement.compare(opinions), _interval, LISTED)
    if desk is not None:
        found["judge"] |= desk.metrics()
    return after, found


def _interval(successes: int, n: int) -> tuple[float, float]:
    found = wilson(successes, n)
    return found.lo, found.hi


@dataclass
class _Count:
    """What the metrics say of verdicts that pass by."""

    statuses: Counter[str] = field(default_factory=Counter)
    methods: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)

    def each(self, verdicts: Iterable[Verdict]) -> Iterator[Verdict]:
        """The same verdicts, counted."""
        for verdict in verdicts:
            self.statuses[verdict.status] += 1
            self.methods[verdict.method] += 1
            if verdict.status == "undecided":
                self.reasons[_PARTICULAR.sub("…", verdict.reason)[:120]] += 1
            yield verdict

    def metrics(self) -> dict[str, Any]:
        """Counts of statuses and methods, and the most frequent reasons for undecided."""
        return {
            "traces": self.statuses.total(),
            **{status: self.statuses[status] for status in ("correct", "incorrect", "undecided")},
            "methods": dict(sorted(self.methods.items())),
            "undecided_reasons": dict(self.reasons.most_common(REASONS)),
        }


class _Traces:
    """The traces of a file, read a few at a time, as often as wanted."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __len__(self) -> int:
        return int(pq.read_metadata(self.path).num_rows)

    def __iter__(self) -> Iterator[Trace]:
        return iter_records(self.path, Trace)


def _write(path: Path, verdicts: Iterable[Verdict]) -> None:
    """Verdicts as Parquet, or as JSON lines where the name ends so."""
    if path.suffix != ".jsonl":
        write_records(path, verdicts, Verdict)
        return
    rows = (
        {k: clean_text(v) if isinstance(v, str) else v for k, v in asdict(each).items()} for each in verdicts
    )
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
