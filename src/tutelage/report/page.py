"""One self-contained HTML page for a run.

Promises: the page fetches nothing and is forbidden to (content policy by hash, no `unsafe-inline`); text of
models and users never becomes markup; a section without data is left out; everything but the trace reader
works without scripts; the file is written whole or not at all.
Does not: compute numbers (see `measure`), open a browser, or shorten a failure in its verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from tutelage.errors import UsageError
from tutelage.plain import visible
from tutelage.report import curve, depth_section, ladders, plots, training, words
from tutelage.report.lines import read_lines, read_neighbours, targets_of
from tutelage.report.parts import asset, digest, flat, mapping, write_page
from tutelage.report.reader import reader_data
from tutelage.report.summary import (
    Comparison,
    Point,
    read_arms,
    read_comparisons,
    read_curve,
    read_funnel,
)
from tutelage.report.verdict import three_sentences

METHOD_NOTES = {
    "natural": "unforced: the model ends its thinking when it wants to; the baseline.",
    "budget": "budget: thinking is closed after that many tokens and the model must answer.",
    "wait": "wait: each time the model wants to stop, the end is replaced by the string shown, n× at most.",
    "suppress": "end suppressed: as wait, with nothing put in its place; shows what the string adds.",
    "vote": "majority vote: of several independent attempts the most frequent answer wins; the tokens are "
    "those of all attempts together.",
    "token-conditional": "token-conditional: the question asks for so many tokens; with a forced end they "
    "are also a budget.",
    "step-conditional": "step-conditional: the question asks for so many steps, counted down.",
    "class-conditional": "class-conditional: the question asks to think briefly, or long.",
    "loops": "loops: every token passes so often through the core of the model; the unforced point has the "
    "model’s usual number.",
    "exit": "exit: a token leaves the loop as soon as what it predicts, or its state, has settled.",
    "rejection": "rejection: drawn again until the thinking is short enough; all tries count.",
}
CLOSERS = {
    "model": "model",
    "budget": "budget",
    "grace": "in the grace window",
    "eos": "end of text",
    "room": "out of room",
    "none": "no thinking",
    "unknown": "unknown",
}
"""Who closed the thinking, in the order of the table."""
_WIDTHS = (plots.WIDE, plots.NARROW)
_CURVES = (curve.WIDE, curve.NARROW)


def render(summary: Mapping[str, Any], traces: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the page of a run at `path`.

    `summary` is the content of `metrics/summary.json`; beyond arms, comparisons, curve, funnel, cost,
    ladders, against, training and wall_s it may hold `title`, `about` (plain text), `settings`, `versions`,
    `stages` ([{id, seconds}]) and `attempts`.
    `traces` are rows {problem_id, question, gold, difficulty, arm, seed, thinking, answer, status, reason,
    forced_spans, thinking_tokens, closed_by}; their order is the reader's order.
    Raises UsageError for a broken entry, naming it, and StorageError when the disk refuses."""
    html = page(summary, traces)
    write_page(path, html)


def page(summary: Mapping[str, Any], traces: Sequence[Mapping[str, Any]] = ()) -> str:
    """The HTML text that `render` writes."""
    arms, comparisons = read_arms(summary), read_comparisons(summary)
    points, steps = read_curve(summary), read_funnel(summary)
    tokens = [point for point in points if point.part != "loops"]
    climbs, families = ladders.read_ladders(summary, arms), ladders.read_against(summary, arms)
    trained = training.read_training(summary)
    notes = list(dict.fromkeys(f"“{row.name}”, seed {row.seed}: {row.note}" for row in arms if row.note))
    closers = [name for name in CLOSERS if any(name in point.closed_by for point in points)]
    style, script = asset("page.css"), asset("reader.js")
    cost = mapping(summary, "cost")
    bill = _bill(cost, summary)
    template = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(asset("page.html"))
    return template.render(
        policy=f"default-src 'none'; script-src '{digest(script)}'; style-src '{digest(style)}'; "
        "base-uri 'none'; form-action 'none'",
        style=Markup(style),
        script=Markup(script),
        words=words,
        title=visible(summary.get("title") or "A tutelage run"),
        about=visible(summary.get("about") or ""),
        sentences=three_sentences(arms, comparisons, points, bill),
        bill=bill,
        arms=arms,
        ladders=[plots.ladder(arms, width) for width in _WIDTHS] if arms else [],
        notes=notes,
        climbs=[(each, [ladders.steps(each, width) for width in _WIDTHS]) for each in climbs],
        against=[(each, [ladders.against(each, width) for width in _WIDTHS]) for each in families],
        state=depth_section.section(summary),
        trained=trained,
        training=training.multiples(trained),
        training_seeds=list(dict.fromkeys(run.seed for run in trained)),
        comparisons=comparisons,
        forests=[plots.forest(comparisons, width) for width in _WIDTHS] if comparisons else [],
        holm=any(row.p_holm is not None for row in comparisons),
        points=points,
        panels=list(zip(*(curve.panels(points, width) for width in _CURVES), strict=True)),
        loops=list(zip(*(curve.loop_panels(points, width) for width in _CURVES), strict=True)),
        compute=list(
            zip(*(curve.compute_panels(points, width) for width in (curve.ACROSS, curve.NARROW)), strict=True)
        ),
        looped=any(point.loops is not None for point in points),
        looping=any(arm.loops is not None for arm in arms),
        main_arm=curve.main_arm(tokens) if tokens else "",
        loop_arm=curve.main_arm(points) if points else "",
        other_arms=words.listing(curve.other_arms(points)),
        others=len({point.arm for point in points}) > 1,
        waited=any(point.method == "wait" for point in points),
        logarithmic=curve.is_logarithmic(points),
        unplaced=sum(point.tokens is None for point in points),
        method_notes=[note for name, note in METHOD_NOTES.items() if any(p.method == name for p in points)],
        describe=curve.describe,
        closers=[(name, CLOSERS[name]) for name in closers],
        replies=_replies,
        targets=[f"tokens to {words.percent(target)}" for target in targets_of(summary)],
        lines=read_lines(summary),
        lines_by_flops=read_lines(summary, "flops"),
        neighbours=read_neighbours(summary),
        funnels=[plots.funnel(steps, width) for width in _WIDTHS] if steps else [],
        cost=_cost_rows(cost),
        stages=_stages(summary),
        settings=flat(mapping(summary, "settings")),
        versions=flat(mapping(summary, "versions")),
        traces=len(traces),
        data=reader_data(traces, _first_pair(comparisons)) if traces else "",
    )


def _bill(cost: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """One sentence: what was asked of teachers, what it cost, how long the run took."""
    parts = []
    if cost:
        asked = words.amount(_number(cost, "requests"))
        parts.append(f"{asked} teacher requests, {words.dollars(_number(cost, 'dollars'))}")
    wall = _number(summary, "wall_s")
    if wall is not None:
        text = f"{words.duration(wall)} of wall time"
        attempts = summary.get("attempts")
        if isinstance(attempts, int) and attempts > 1:
            text += f" in {attempts} attempts"
        parts.append(text)
    return f"The run took {words.listing(parts)}." if parts else ""


def _cost_rows(cost: Mapping[str, Any]) -> list[dict[str, str]]:
    """The bill as table rows: each teacher, then the total."""
    if not cost:
        return []
    teachers = cost.get("by_teacher") or []
    rows = [(visible(row.get("teacher") or row.get("name") or "teacher"), row) for row in teachers]
    return [
        {
            "name": name,
            "requests": words.amount(_number(row, "requests")),
            "prompt": words.amount(_number(row, "prompt_tokens")),
            "completion": words.amount(_number(row, "completion_tokens")),
            "dollars": words.dollars(_number(row, "dollars")),
        }
        for name, row in [*rows, ("all teachers", cost)]
    ]


def _number(row: Mapping[str, Any], key: str) -> float | None:
    value = row.get(key)
    if value is None:
        return None
    try:
        return float(value)  # Decimal and numeric text (money) included
    except (TypeError, ValueError) as error:
        raise UsageError(f"summary: {key} must be a number, not {value!r:.60}") from error


def _stages(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (visible(row.get("id", "?")), words.duration(_number(row, "seconds")))
        for row in summary.get("stages") or []
    ]


def _replies(point: Point, count: float | None) -> str:
    """A count of replies and its share, "" where it was not told."""
    if count is None or not point.replies:
        return ""
    return f"{words.amount(count)} ({100 * count / point.replies:.0f} %)"


def _first_pair(comparisons: Sequence[Comparison]) -> list[tuple[str, str]]:
    first = comparisons[:1]
    return [(arm, row.seed) for row in first for arm in (row.a, row.b)]
