"""The job that closes a run: summary.json and the page.

Promises: summary.json depends on what was measured alone (apart from `wall_s`), not on how often the run was
stopped.
Does not: compute an accuracy (see `measure`) or draw (see `report`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from tutelage.measure.statistics import wilson
from tutelage.recipe import stages
from tutelage.recipe.files import write_text
from tutelage.recipe.jobs.looping import DEPTHS
from tutelage.recipe.jobs.measuring import EVALUATION, TRACES, VERDICTS
from tutelage.recipe.jobs.showing import choose_shown, reader_rows
from tutelage.recipe.jobs.sweeping import ANALYSIS, CURVE, SHOWN
from tutelage.recipe.plan import job_id
from tutelage.recipe.stage import JobContext, Source
from tutelage.records import Problem, Trace, Verdict, by_id, read_records
from tutelage.report import render
from tutelage.report.training import QUANTITIES
from tutelage.train.journal import read_log

_TOOK = ("steps", "examples", "tokens_seen", "tokens_learned", "chosen_step")
_DRAWN = 300


def report(ctx: JobContext[stages.Report]) -> dict[str, Any]:
    """Write summary.json and report.html."""
    problems = read_records(ctx.path("problems"), Problem)
    summary = build_summary(ctx)
    write_text(ctx.outputs["summary"], json.dumps(summary, indent=1, sort_keys=True) + "\n")
    page = {
        **summary,
        "stages": [{"id": name, "seconds": entry["seconds"]} for name, entry in ctx.run["jobs"].items()],
        "attempts": len(ctx.run["attempts"]),
    }
    render(page, list(_shown(ctx, problems)), ctx.outputs["page"])
    return {"arms": len(summary["arms"]), "comparisons": len(summary["comparisons"])}


def build_summary(ctx: JobContext[stages.Report]) -> dict[str, Any]:
    """The content of summary.json."""
    run, jobs = ctx.run, ctx.run["jobs"]
    recipe = run["recipe"]
    arms = [_arm(ctx, source) for source in _sources(ctx, "evaluations")]
    curve = [
        {**point, "seed": source.seed}
        for source in ctx.inputs.get("sweeps", ())
        for point in json.loads((source.path / CURVE).read_text(encoding="utf-8"))
    ]
    analysis = [
        {**json.loads((source.path / ANALYSIS).read_text(encoding="utf-8")), "seed": source.seed}
        for source in ctx.inputs.get("sweeps", ())
    ]
    depths = [
        {**json.loads((source.path / DEPTHS).read_text(encoding="utf-8")), "seed": source.seed}
        for source in ctx.inputs.get("depths", ())
    ]
    comparisons = ctx.maybe("comparisons")
    return {
        "title": recipe["title"] or recipe["name"],
        "about": recipe["about"],
        "arms": arms,
        "comparisons": [] if comparisons is None else json.loads(comparisons.read_text(encoding="utf-8")),
        "curve": curve,
        "analysis": analysis,
        "depths": depths,
        "ladders": [{"title": title, "arms": list(arms)} for title, arms in ctx.config.ladders.items()],
        "against": [{"title": title, **plot.model_dump()} for title, plot in ctx.config.against.items()],
        "training": list(_training(ctx)),
        "funnel": list(_funnel(recipe, jobs)),
        "cost": _cost(recipe, jobs),
        "settings": {"seeds": recipe["seeds"], "stages": recipe["stages"]},
        "versions": run["versions"],
        "wall_s": round(float(run["wall_s"]), 1),
    }


def _sources(ctx: JobContext[Any], name: str) -> Sequence[Source]:
    return ctx.inputs.get(name, ())


def _arm(ctx: JobContext[stages.Report], source: Source) -> dict[str, Any]:
    """One arm of one seed, with what its training took: all stages from the start model on."""
    found = json.loads((source.path / EVALUATION).read_text(encoding="utf-8"))
    making = list(_making(ctx, source))
    # Two stages on the same traces did not ask a teacher twice.
    calls: dict[tuple[str, ...], int] = {}
    for config, metrics in making:
        traces = tuple(config.get("traces") or ())
        calls[traces] = max(calls.get(traces, 0), metrics.get("teacher_calls", 0))
    return {
        "name": source.key,
        "seed": source.seed,
        **{
            key: found[key]
            for key in (
                "accuracy",
                "ci95",
                "n",
                "samples",
                "thinking_tokens_mean",
                "closed_by",
                "finished",
                "undecided",
                "device",
            )
        },
        **{key: found.get(key, 0) for key in ("chosen_on", "trained_on")},
        **{key: found.get(key) for key in ("flops", "flops_ci95", "loops", "loops_ci95")},
        "tokens_seen": sum(metrics.get("tokens_seen", 0) for _, metrics in making),
        "tokens_learned": sum(metrics.get("tokens_learned", 0) for _, metrics in making),
        "teacher_calls": sum(calls.values()),
        "examples": sum(metrics.get("examples", 0) for _, metrics in making),
        "train_steps": sum(metrics.get("steps", 0) for _, metrics in making),
    }


def _making(
    ctx: JobContext[stages.Report], source: Source
) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Settings and metrics of each training stage behind an evaluation, the last one first."""
    stage = source.stage
    while True:
        stage = str(ctx.run["recipe"]["stages"].get(stage, {}).get("model") or "").split(".")[0]
        entry = ctx.run["jobs"].get(job_id(stage, source.seed)) or ctx.run["jobs"].get(stage)
        if entry is None:
            return
        if "steps" in entry["metrics"]:
            yield ctx.run["recipe"]["stages"][stage], entry["metrics"]


def _training(ctx: JobContext[stages.Report]) -> Iterator[dict[str, Any]]:
    """What each training stage of each seed took and logged, in the order of the recipe."""
    for stage, config in ctx.run["recipe"]["stages"].items():
        for seed in (None, *ctx.run["recipe"]["seeds"]):
            entry = ctx.run["jobs"].get(job_id(stage, seed))
            if entry is None or "log" not in entry["outputs"]:
                continue
            metrics = entry["metrics"]
            n = metrics.get("validation_problems", 0)
            yield {
                "stage": stage,
                "kind": config["kind"],
                "seed": seed,
                **{key: metrics.get(key) for key in _TOOK},
                "packing": (metrics.get("packing") or {}).get("filled"),
                "stopped": metrics.get("stopped"),
                "validations": [_look(step, share, n) for step, share in metrics.get("validations", ())],
                "series": _series(ctx.run_dir / entry["outputs"]["log"]["path"]),
            }


def _look(step: int, share: float, n: int) -> dict[str, Any]:
    """One validation, one reply a problem, with its interval."""
    found = wilson(round(share * n), n)
    return {"step": step, "accuracy": share, "ci95": [found.lo, found.hi], "n": n}


def _series(log: Path) -> dict[str, list[list[float]]]:
    """What the page draws of a stage's log: (step, value) by name, at most some hundred."""
    rows = read_log(log)
    found = {name: [[row["step"], row[name]] for row in rows if name in row] for name in QUANTITIES}
    return {name: pairs[:: -(-len(pairs) // _DRAWN)] for name, pairs in found.items() if pairs}


def _funnel(recipe: Mapping[str, Any], jobs: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What was kept and dropped at each stage, in the order of the recipe; arms once, for the first seed."""
    first = recipe["seeds"][0]
    for stage, config in recipe["stages"].items():
        entry = jobs.get(stage) or jobs.get(job_id(stage, first))
        if entry is None:
            continue
        metrics = entry["metrics"]
        if config["kind"] == "collect":
            failures = {f"no reply: {reason}": count for reason, count in metrics["failures"].items()}
            yield {
                "stage": f"{stage}: traces collected",
                "kept": metrics["traces"],
                "dropped": metrics["failed"],
                "reasons": failures,
            }
        elif config["kind"] == "verify":
            wrong = {name: metrics[name] for name in ("incorrect", "undecided") if metrics[name]}
            yield {
                "stage": f"{stage}: found correct",
                "kept": metrics["correct"],
                "dropped": sum(wrong.values()),
                "reasons": wrong,
            }
        else:
            yield from metrics.get("funnel", ())


def _cost(recipe: Mapping[str, Any], jobs: Mapping[str, Any]) -> dict[str, Any]:
    """What the teachers cost. Every request was bought, and is in the ledger, once, however often the run was
    stopped; how many of them an attempt found there is no property of the run, so it is not told."""
    rows = [
        {
            key: metrics[key]
            for key in ("teacher", "requests", "prompt_tokens", "completion_tokens", "dollars")
        }
        for stage, config in recipe["stages"].items()
        if config["kind"] == "collect" and stage in jobs
        for metrics in [jobs[stage]["metrics"]]
        if metrics["requests"]
    ]
    amounts = [row["dollars"] for row in rows]
    known = None if any(amount is None for amount in amounts) else sum(map(Decimal, amounts), Decimal(0))
    return {
        "requests": sum(row["requests"] for row in rows),
        "prompt_tokens": _total(row["prompt_tokens"] for row in rows),
        "completion_tokens": _total(row["completion_tokens"] for row in rows),
        "dollars": None if known is None else format(known.normalize(), "f"),
        "by_teacher": rows,
    }


def _total(counts: Any) -> int | None:
    found = list(counts)
    return None if any(count is None for count in found) else sum(found)


def _shown(ctx: JobContext[stages.Report], problems: Sequence[Problem]) -> Iterator[dict[str, Any]]:
    """Rows for the reader of traces: every arm, then the thinking controls."""
    wanted, known = set(choose_shown(problems, ctx.config.show)), by_id(problems)
    for source in _sources(ctx, "evaluations"):
        traces = read_records(source.path / TRACES, Trace)
        verdicts = read_records(source.path / VERDICTS, Verdict)
        pairs = _paired(traces, verdicts)
        yield from reader_rows(source.key, source.seed, pairs, known, wanted)
    for source in _sources(ctx, "sweeps"):
        for label, folder in _labels(source.path):
            traces = read_records(folder / TRACES, Trace)
            verdicts = read_records(folder / VERDICTS, Verdict)
            yield from reader_rows(label, source.seed, _paired(traces, verdicts), known, wanted)


def _labels(curve: Path) -> Iterator[tuple[str, Path]]:
    shown = curve / SHOWN
    for folder in sorted(shown.iterdir()) if shown.is_dir() else ():
        yield (folder / "label.txt").read_text(encoding="utf-8"), folder


def _paired(traces: Sequence[Trace], verdicts: Sequence[Verdict]) -> list[tuple[Trace, Verdict]]:
    judged = {verdict.trace_id: verdict for verdict in verdicts}
    return [(trace, judged[trace.id]) for trace in traces]
