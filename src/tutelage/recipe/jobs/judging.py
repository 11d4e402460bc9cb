"""The job that judges traces, and the judge that is paid like any teacher.

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
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tutelage.errors import PartialError, TutelageError, UsageError
from tutelage.measure.statistics import wilson
from tutelage.recipe import stages
from tutelage.recipe.files import write_text
from tutelage.recipe.jobs.collecting import build_teacher
from tutelage.recipe.stage import JobContext, Progress
from tutelage.records import (
    Problem,
    Trace,
    Verdict,
    by_id,
    clean_text,
    iter_records,
    read_records,
    stable_hash,
    write_records,
)
from tutelage.teachers.collect import collect
from tutelage.teachers.endpoint import EndpointTeacher
from tutelage.teachers.replies import is_truncated
from tutelage.verify import agreement
from tutelage.verify.batches import judge_sharded
from tutelage.verify.cascade import judge
from tutelage.verify.llm_judge import NoReply, ask_judge, looks
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
        desk = _Desk(_judge_teacher(config.judge), ctx.ledger_path, ctx.progress)
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
    desk: _Desk | None,
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


def _judge_teacher(settings: Any) -> EndpointTeacher:
    teacher = build_teacher(settings, "judge")
    assert isinstance(teacher, EndpointTeacher)  # the settings of a judge are those of an endpoint
    teacher.check()
    return teacher


@dataclass
class _Desk:
    """Where the judge's questions are bought. After an error nothing more is bought; what the ledger holds
    is still used."""

    teacher: EndpointTeacher
    ledger: Path
    progress: Progress
    error: TutelageError | None = None
    costs: dict[str, Decimal | None] = field(default_factory=dict)

    def ask(self, prompts: Sequence[str]) -> list[str | NoReply | None]:
        """The judge's replies, in the order of `prompts`; equal prompts are one request."""
        keys = [stable_hash(prompt) for prompt in prompts]
        problems = {key: Problem(key, prompt) for key, prompt in zip(keys, prompts, strict=True)}
        found = collect(
            list(problems.values()),
            self.teacher,
            samples=1,
            ledger_path=self.ledger,
            progress=lambda done, total, note: self.progress(done, total, f"judge: {note}"),
            buy=self.error is None,
        )
        self.error = self.error or found.error
        failed = dict(found.failed)
        replies: dict[str, str | NoReply] = {}
        for trace in found.traces:
            self.costs[trace.problem_id] = trace.cost
            replies[trace.problem_id] = _reply(trace)
        if self.error is not None:
            failed = dict.fromkeys(failed, str(self.error))
        return [replies.get(key) or NoReply(failed.get(key, "no reply")) for key in keys]

    def metrics(self) -> dict[str, Any]:
        """The model, its replies behind the verdicts, and their cost (None: unknown)."""
        known = [cost for cost in self.costs.values() if cost is not None]
        dollars = format(sum(known, Decimal(0)).normalize(), "f") if len(known) == len(self.costs) else None
        return {"model": self.teacher.model, "replies": len(self.costs), "dollars": dollars}


def _reply(trace: Trace) -> str | NoReply:
    """The judge's words, unless they were cut: half a reply is no verdict."""
    if is_truncated(trace.finish_reason):
        return NoReply("its reply was cut at the token limit")
    return trace.answer if trace.answer.strip() else NoReply("its reply is empty")


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
