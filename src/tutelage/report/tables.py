"""The numbers of a run as Markdown tables, and their place in a document.

Promises: every accuracy stands with its interval, n and samples; a document's text outside of the run's own
block is not touched; the same summary gives the same text.
Does not: read manifests or compute.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tutelage.errors import UsageError
from tutelage.plain import cell, table
from tutelage.report import depth_section
from tutelage.report.curve import describe
from tutelage.report.ladders import Against, Ladder, Rung, read_against, read_ladders
from tutelage.report.lines import LineRow, read_lines, read_neighbours, targets_of
from tutelage.report.summary import Arm, Comparison, Point, read_arms, read_comparisons, read_curve
from tutelage.report.training import Run, read_training
from tutelage.report.words import flops


def markdown(summary: Mapping[str, Any]) -> str:
    """Arms, stages, amounts, comparisons, the thinking curve and the training as Markdown."""
    parts = [_facts(summary)]
    arms, comparisons, curve = read_arms(summary), read_comparisons(summary), read_curve(summary)
    head: tuple[str, ...]
    if arms:
        head = (
            "arm",
            "seed",
            "accuracy, 95 % interval",
            "n",
            "samples",
            "thinking tokens",
            "tokens seen in training",
            "teacher calls",
        )
        parts.append(table(head, [_arm(arm) for arm in arms]))
    for climb in read_ladders(summary, arms):
        parts.append(_ladder(climb))
    for plot in read_against(summary, arms):
        parts.append(_against(plot))
    if comparisons:
        head = ("a minus b, paired", "seed", "difference, 95 % interval", "n", "p", "p (Holm)")
        parts.append(table(head, [_comparison(row) for row in comparisons]))
    if curve:
        head = ("arm", "method", "setting", "seed", "accuracy, 95 % interval", "n", "samples", "tokens")
        looped = any(point.loops is not None for point in curve)
        rows = [(*_point(point), *(_compute(point) if looped else ())) for point in curve]
        parts.append(table((*head, *(("loops", "FLOPs") if looped else ())), rows))
    if lines := read_lines(summary):
        reach = [f"tokens to {100 * target:g} %" for target in targets_of(summary)]
        head = ("arm", "seed", "line", "n", "area, 95 % interval", "over tokens", *reach)
        parts.append(table((*head, "control", "scaling", "performance"), [_line(line) for line in lines]))
    by_flops = read_lines(summary, "flops")
    if by_flops and any(point.loops is not None for point in curve):
        reach = [f"FLOPs to {100 * target:g} %" for target in targets_of(summary)]
        head = ("arm", "seed", "line", "n", "area, 95 % interval", "over FLOPs", *reach)
        parts.append(table((*head, "control", "scaling", "performance"), [_line(line) for line in by_flops]))
    if steps := read_neighbours(summary):
        head = ("a minus b, paired", "seed", "difference, 95 % interval", "n", "p", "p (Holm)")
        parts.append(table(head, [_comparison(row) for row in steps]))
    parts += depth_section.tables(summary)
    if runs := read_training(summary):
        head = ("stage", "kind", "seed", "steps", "examples", "tokens seen", "tokens learned", "packing")
        parts.append(table((*head, "validations", "stopped"), [_run(run) for run in runs]))
    return "\n\n".join(parts) + "\n"


def insert(document: str, name: str, block: str) -> str:
    """`document` with the block of the run `name` replaced, between `<!-- run NAME -->` and
    `<!-- end NAME -->`.

    Raises UsageError when the document has no such pair of lines, or more than one."""
    start, end = f"<!-- run {name} -->", f"<!-- end {name} -->"
    if document.count(start) != 1 or document.count(end) != 1 or document.index(start) > document.index(end):
        raise UsageError(f"the document needs one line {start!r} and, after it, one line {end!r}")
    before, _, rest = document.partition(start)
    _, _, after = rest.partition(end)
    return f"{before}{start}\n\n{block.strip()}\n\n{end}{after}"


def _facts(summary: Mapping[str, Any]) -> str:
    versions = summary.get("versions", {})
    named = ("tutelage", "torch", "transformers", "trl")
    shown = [f"{name} {versions[name]}" for name in named if name in versions]
    facts = [", ".join(shown)]
    devices = sorted({str(arm["device"]) for arm in summary.get("arms", ()) if arm.get("device")})
    if devices:
        facts.append(f"device: {'; '.join(devices)}")
    if summary.get("wall_s"):
        facts.append(f"{float(summary['wall_s']) / 60:.1f} minutes in all")
    return cell("; ".join(fact for fact in facts if fact) + ".")


def _arm(arm: Arm) -> tuple[str, ...]:
    return (
        arm.name,
        arm.seed,
        _percent(arm.accuracy, arm.lo, arm.hi, arm.note),
        str(arm.n),
        _whole(arm.samples),
        _decimal(arm.thinking_tokens),
        _whole(arm.tokens_seen),
        _whole(arm.teacher_calls),
    )


def _comparison(row: Comparison) -> tuple[str, ...]:
    return (
        f"{row.a} − {row.b}",
        row.seed,
        f"{100 * row.difference:+.1f} [{100 * row.lo:+.1f}, {100 * row.hi:+.1f}]",
        str(row.n),
        _p(row.p),
        _p(row.p_holm),
    )


def _point(point: Point) -> tuple[str, ...]:
    return (
        point.arm,
        point.method,
        describe(point),
        point.seed,
        _percent(point.accuracy, point.lo, point.hi, point.note),
        str(point.n),
        _whole(point.samples),
        _decimal(point.tokens),
    )


def _compute(point: Point) -> tuple[str, str]:
    return _decimal(point.loops), "" if point.flops is None else flops(point.flops)


def _line(line: LineRow) -> tuple[str, ...]:
    numbers = (line.n, line.area, line.span, *line.reached, line.control, line.scaling, line.performance)
    return (line.arm, line.seed, line.name, *numbers)


def _ladder(climb: Ladder) -> str:
    """Accuracy after each stage, seeds side by side."""
    seeds = climb.seeds
    return table((f"{climb.title}: after", *_seed_head(seeds)), [_rung(rung, seeds) for rung in climb.rungs])


def _against(plot: Against) -> str:
    """Accuracy against a number, seeds side by side."""
    seeds = list(
        dict.fromkeys(arm.seed for line in plot.lines.values() for rung in line for arm in rung.arms)
    )
    rows = [
        (line, f"{rung.x:,g}", *_rung(rung, seeds)) for line, rungs in plot.lines.items() for rung in rungs
    ]
    return table((plot.title, plot.axis, "arm", *_seed_head(seeds)), rows)


def _seed_head(seeds: Sequence[str]) -> tuple[str, ...]:
    return ("mean over seeds", "range over seeds", *(f"seed {seed}, 95 % interval" for seed in seeds), "n")


def _rung(rung: Rung, seeds: Sequence[str]) -> tuple[str, ...]:
    found = [rung.by_seed.get(seed) for seed in seeds]
    return (
        rung.name,
        f"{100 * rung.mean:.1f} %",
        f"{100 * rung.range[0]:.1f} to {100 * rung.range[1]:.1f}",
        *("" if arm is None else _percent(arm.accuracy, arm.lo, arm.hi, arm.note) for arm in found),
        str(rung.arms[0].n),
    )


def _run(run: Run) -> tuple[str, ...]:
    return (
        *(run.stage, run.kind, run.seed, _whole(run.steps), _whole(run.examples)),
        *(_whole(run.tokens_seen), _whole(run.tokens_learned)),
        "" if run.packing is None else f"{100 * run.packing:.1f} %",
        *(run.validations, run.stopped),
    )


def _percent(value: float, lo: float, hi: float, note: str = "") -> str:
    return f"{100 * value:.1f} % [{100 * lo:.1f}, {100 * hi:.1f}]{f' ({note})' if note else ''}"


def _whole(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _decimal(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}"


def _p(value: float | None) -> str:
    return "" if value is None else ("< 0.001" if value < 0.001 else f"{value:.3f}")
