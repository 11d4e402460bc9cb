"""The job that sweeps over thinking: points, whole lines, replies, and a page of its own.

Promises: the folder holds the points (`curve.json`, `points.parquet`), what was computed about lines
(`analysis.json`), every reply in short (`replies.parquet`), some traces of the controls for a run's report,
and one self-contained page.
Does not: hold a room's logic.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tutelage.errors import UsageError
from tutelage.measure.grid import Grid
from tutelage.measure.lines import analyse
from tutelage.measure.replies import Judged
from tutelage.measure.selection import judged
from tutelage.measure.sweep import Point, sweep
from tutelage.measure.ways import method_of
from tutelage.recipe import stages
from tutelage.recipe.files import replace_folder, write_text
from tutelage.recipe.jobs.measuring import TRACES, VERDICTS, allowed, device_of, load
from tutelage.recipe.jobs.showing import choose_shown, reader_rows
from tutelage.recipe.stage import JobContext
from tutelage.records import Problem, Trace, Verdict, by_id, read_records, stable_hash, write_records
from tutelage.report import render
from tutelage.think.engine import Engine
from tutelage.think.policy import ThinkingPolicy

CURVE, ANALYSIS, SHOWN, PAGE = "curve.json", "analysis.json", "shown", "page.html"
POINTS, REPLIES = "points.parquet", "replies.parquet"
# Traces of a point that are kept for the reader: enough to see what a control does, not all of them.
KEPT = 200
# Problems in the reader of the sweep's own page, where every point is an arm.
_SHOWN_PROBLEMS = 12


def sweep_arm(ctx: JobContext[stages.Sweep]) -> dict[str, Any]:
    """Accuracy against thinking of one arm for one seed."""
    config, seed = ctx.config, ctx.seed or 0
    grid = grid_of(config)
    problems = read_records(ctx.path("problems"), Problem)
    known = allowed(ctx, problems, config.allow_chosen_on)
    student = load(ctx.path("model"), config.bf16, ctx.threads)
    if not student.template.thinking and (grid.thinks or not (grid.num_steps or grid.exits)):
        raise UsageError(
            f"stage {ctx.stage}: its model has thinking switched off; there is nothing to sweep but the "
            "loops of a recurrent-depth model (num_steps, exits)"
        )
    engine = Engine(student, max_batch=config.max_batch)
    points = sweep(
        config.arm,
        engine,
        Judged(student, config.arm, judged),
        problems,
        grid,
        seed=seed,
        max_answer=config.max_answer_tokens,
        progress=ctx.progress,
    )
    asked = stable_hash(sorted(problem.id for problem in problems))
    rows = [{**point.row, **known.to_json(), "problem_set": asked} for point in points]
    analysis = {
        "arm": config.arm,
        "device": device_of(student),
        **analyse(points, [problem.id for problem in problems], seed, config.targets),
    }
    with replace_folder(ctx.outputs["curve"]) as folder:
        write_text(folder / CURVE, json.dumps(rows, indent=1))
        write_text(folder / ANALYSIS, json.dumps(analysis, indent=1))
        pq.write_table(_points_table(rows), folder / POINTS, compression="zstd")
        pq.write_table(_replies_table(config.arm, points), folder / REPLIES, compression="zstd")
        _write_shown(folder / SHOWN, points)
        summary = {
            "title": f"{config.arm}: accuracy against thinking",
            "curve": [{**row, "seed": seed} for row in rows],
            "analysis": [{**analysis, "seed": seed}],
            "settings": config.model_dump(mode="json", exclude={"kind", "model", "problems", "expected_s"}),
        }
        render(summary, list(_reader(points, problems, seed)), folder / PAGE)
    highest = max(rows, key=lambda row: row["accuracy"])
    told = ("setting", "accuracy", "ci95", "thinking_tokens_mean", "flops", "loops")
    return {
        "arm": config.arm,
        "points": len(rows),
        "problems": len(problems),
        "unforced": {key: rows[0][key] for key in told},
        "highest": {key: highest[key] for key in told},
        "prefilled": engine.stats.prefilled,
        "decoded": engine.stats.decoded,
    }


def grid_of(config: stages.Sweep) -> Grid:
    """The grid that the settings ask for. Raises UsageError where it cannot be measured."""
    return Grid(
        policy=ThinkingPolicy(
            max_tokens=config.max_thinking,
            close=config.close,
            grace_tokens=config.grace_tokens,
            close_text=config.close_text,
            answer_reserve=config.max_answer_tokens,
            num_steps=config.depth,
        ),
        strings=config.wait_strings,
        methods=tuple(method_of(name) for name in config.methods),
        budgets=config.budgets,
        waits=config.waits,
        minimums=config.minimums,
        samples=config.samples,
        temperature=config.temperature,
        votes=config.votes,
        vote_samples=config.vote_samples,
        vote_temperature=config.vote_temperature,
        num_steps=config.num_steps,
        exits=config.exits,
        continuous=config.continuous,
    )


def _points_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """One row per point. A column that is not of one plain type (lists, or names beside numbers) is JSON
    text."""
    columns = {name: [row.get(name) for row in rows] for row in rows for name in row}
    for name, values in columns.items():
        kinds = {float if isinstance(value, int) else type(value) for value in values if value is not None}
        if len(kinds) > 1 or kinds - {float, str}:
            columns[name] = [json.dumps(value) for value in values]
    return pa.table(columns)


def _replies_table(arm: str, points: Sequence[Point]) -> pa.Table:
    """One row per point, problem and sample. A vote has none of its own: it is an expectation over others."""
    schema = pa.schema(
        [
            ("arm", pa.string()),
            ("point", pa.int64()),
            ("setting", pa.string()),
            ("problem_id", pa.string()),
            ("sample", pa.int64()),
            ("status", pa.string()),
            ("correct", pa.bool_()),
            ("answer", pa.string()),
            ("answer_text", pa.string()),
            ("thinking_sampled", pa.int64()),
            ("thinking_forced", pa.int64()),
            ("tokens", pa.int64()),
            ("attempts", pa.int64()),
            ("flops", pa.float64()),
            ("loops", pa.float64()),
            ("closed_by", pa.string()),
            ("finish_reason", pa.string()),
        ]
    )
    rows = [
        {
            "arm": arm,
            "point": number,
            "setting": point.row["setting"],
            "problem_id": reply.problem_id,
            "sample": reply.sample,
            "status": None if reply.verdict is None else reply.verdict.status,
            "correct": reply.correct,
            "answer": reply.answer,
            "answer_text": None if reply.trace is None else reply.trace.answer,
            "thinking_sampled": reply.thinking_sampled,
            "thinking_forced": reply.thinking_forced,
            "tokens": reply.tokens,
            "attempts": reply.attempts,
            "flops": None if reply.spent is None else reply.spent.flops,
            "loops": None if reply.spent is None else reply.spent.loops,
            "closed_by": None if reply.trace is None else reply.trace.closed_by,
            "finish_reason": None if reply.trace is None else reply.trace.finish_reason,
        }
        for number, point in enumerate(points)
        for reply in point.replies
    ]
    return pa.Table.from_pylist(rows, schema=schema)


def _kept(point: Point) -> Iterator[tuple[Trace, Verdict]]:
    for reply in point.replies:
        if reply.trace is not None and reply.verdict is not None:
            yield reply.trace, reply.verdict


def _write_shown(folder: Path, points: Sequence[Point]) -> None:
    """Traces of the points that prolong thinking, for the report of a run."""
    for index, point in enumerate(points):
        if point.row["method"] in ("wait", "suppress"):
            pairs = list(_kept(point))[:KEPT]
            shown = folder / f"{index:02d}-{re.sub('[^a-z0-9]+', '-', point.label.lower())[:60]}"
            shown.mkdir(parents=True)
            write_text(shown / "label.txt", point.label)
            write_records(shown / TRACES, [trace for trace, _ in pairs], Trace)
            write_records(shown / VERDICTS, [verdict for _, verdict in pairs], Verdict)


def _reader(points: Sequence[Point], problems: Sequence[Problem], seed: int) -> Iterator[dict[str, Any]]:
    """The first sample of some problems at every point."""
    wanted, known = set(choose_shown(problems, _SHOWN_PROBLEMS)), by_id(problems)
    for point in points:
        first = [(trace, verdict) for trace, verdict in _kept(point) if trace.sample == 0]
        yield from reader_rows(point.row["setting"], seed, first, known, wanted)
