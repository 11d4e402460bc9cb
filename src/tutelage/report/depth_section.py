"""The section "Thinking in the state" of a run's page, and its tables in Markdown.

Promises: nothing where a run looked at no loops; texts of models and users are escaped by the template; the
same summary gives the same text.
Does not: compute, or draw (see `depth_plots`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from tutelage.plain import table
from tutelage.report import depth_plots as plots
from tutelage.report import words
from tutelage.report.depths import Heat, Loops, Value, by_name, groups_of, mean, named, read_depths

_TOLD = {
    "settles": "it stands still at the end",
    "orbits": "it moves on and comes back",
    "drifts": "it moves on and away",
}
# Steps of the colour scale of the heat map, as the style sheet has them.
_LEVELS = 8


def section(summary: Mapping[str, Any]) -> Markup:
    """The section as HTML, "" where there is none. Raises UsageError for a broken entry."""
    loops = read_depths(summary)
    if not loops:
        return Markup("")
    template = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(files("tutelage.report").joinpath("depths.html").read_text(encoding="utf-8"))
    seeds = list(dict.fromkeys(each.seed for each in loops))
    students = [_student(name, runs, seeds) for name, runs in by_name(loops).items()]
    return Markup(template.render(students=students, seeds=seeds, words=words, named=named))


def _student(name: str, runs: Sequence[Loops], seeds: Sequence[str]) -> dict[str, Any]:
    baselines = list(dict.fromkeys(each.name for run in runs for each in run.baselines))
    first = runs[0]
    sizes = {name: first.parameters} | {each.name: each.parameters for each in first.baselines}
    exits = list(dict.fromkeys(each.exit for run in runs for each in run.left))
    graded = any(each.group is not None for run in runs for each in run.left)
    drawings = [plots.exits(runs, seeds, exit) for exit in exits] if graded else []
    if any(run.places for run in runs):
        drawings.append(plots.positions(runs, seeds))
    return {
        "name": name,
        "runs": runs,
        "notes": list(dict.fromkeys(f"seed {run.seed}: {run.note}" for run in runs if run.note)),
        "steps": first.steps,
        "baselines": baselines,
        "grid": _grid(runs, baselines),
        "sizes": words.listing([f"{each} {words.amount(size)}" for each, size in sizes.items()]),
        "curves": plots.curves(runs, seeds),
        "examples": plots.curves(runs, seeds, examples=True),
        "exits": drawings,
        "heat": [_shown(each) for each in first.heat],
        "heat_seed": first.seed if len(runs) > 1 else "",
        "scale": _scale(first.heat[0].bound) if first.heat else (),
        "paths": plots.paths(first.paths) if first.paths and first.paths.drawn else "",
        "path_steps": first.paths.steps if first.paths else 0,
        "kinds": [
            {
                "name": kind,
                "style": plots.KIND_STYLES.get(kind, "m-other3"),
                "told": _TOLD.get(kind, ""),
                "share": f"{words.percent(value.mean)} {words.interval(value.lo, value.hi)} of "
                f"{value.n:,} tokens",
            }
            for kind, value in (first.paths.kinds.items() if first.paths else ())
        ],
        "restarts": any(run.restarts for run in runs),
    }


def _grid(runs: Sequence[Loops], baselines: Sequence[str]) -> list[dict[str, Any]]:
    """Means over seeds: a row per depth."""
    rows = []
    for group in groups_of(cell for run in runs for cell in run.cells):
        cells = [
            [cell.value.mean for run in runs if (cell := run.cell(group, step))] for step in runs[0].steps
        ]
        fixed = [
            [
                each.value.mean
                for run in runs
                for each in run.baselines
                if (each.name, each.group) == (name, group)
            ]
            for name in baselines
        ]
        any_cell = runs[0].cell(group, runs[0].steps[0])
        rows.append(
            {
                "group": named(group),
                "cells": [words.percent(mean(values)) if values else "" for values in cells],
                "fixed": [words.percent(mean(values)) if values else "" for values in fixed],
                "n": words.amount(any_cell.value.n) if any_cell else "",
            }
        )
    return rows


def _level(passes: int, bound: int) -> int:
    return 0 if bound < 2 else round((passes - 1) / (bound - 1) * (_LEVELS - 1))


def _scale(bound: int) -> list[str]:
    """Which passes have each colour."""
    found = [[passes for passes in range(1, bound + 1) if _level(passes, bound) == n] for n in range(_LEVELS)]
    return ["" if not each else f"{each[0]}" if len(each) == 1 else f"{each[0]}-{each[-1]}" for each in found]


def _shown(example: Heat) -> dict[str, Any]:
    depth = "" if example.group is None else f"depth {example.group}, "
    return {
        "title": f"{depth}exit {example.exit}, at most {example.bound} passes; problem {example.problem}",
        "tokens": [
            {
                "text": text.replace("\n", "⏎") if text.strip() else "␣" if text else "∅",
                "passes": passes,
                "level": min(_LEVELS - 1, _level(passes, example.bound)),
                "tip": f"left after {passes} passes; predicts {word!r} next",
                "answer": position == example.start,
            }
            for position, (text, passes, word) in enumerate(example.tokens)
        ],
    }


def tables(summary: Mapping[str, Any]) -> list[str]:
    """The section's numbers as Markdown tables: accuracy by depth and passes, fixed depth, exits, examples,
    paths and restarts."""
    found = []
    for name, runs in by_name(read_depths(summary)).items():
        found.append(_accuracy_table(name, runs))
        if any(run.baselines for run in runs):
            found.append(_baseline_table(name, runs))
        if any(run.examples for run in runs):
            found.append(_examples_table(name, runs))
        if any(run.left for run in runs):
            found.append(_exit_table(runs))
        if any(run.paths or run.restarts for run in runs):
            found.append(_path_table(runs))
    return found


def _accuracy_table(name: str, runs: Sequence[Loops]) -> str:
    """Depth by passes, one line per seed."""
    steps = runs[0].steps
    head = (f"{name}: depth", "seed", *map(_passes, steps), "n")
    rows = [
        (
            named(group),
            run.seed,
            *(_share(cell.value) if (cell := run.cell(group, step)) else "" for step in steps),
            next(str(cell.value.n) for cell in run.cells if cell.group == group),
        )
        for group in groups_of(cell for run in runs for cell in run.cells)
        for run in runs
        if any(cell.group == group for cell in run.cells)
    ]
    return table(head, rows)


def _baseline_table(name: str, runs: Sequence[Loops]) -> str:
    head = (
        "fixed depth",
        "depth",
        "seed",
        "accuracy, 95 % interval",
        f"{name} minus it, 95 % interval",
        "passes",
        "n",
    )
    rows = [
        (
            f"{each.name} ({each.parameters / 1e6:.2f} M parameters)",
            *(named(each.group), run.seed, _share(each.value), _points(each.gap)),
            *(str(each.steps), str(each.value.n)),
        )
        for run in runs
        for each in run.baselines
    ]
    return table(head, rows)


def _examples_table(name: str, runs: Sequence[Loops]) -> str:
    steps = runs[0].steps
    head = (f"{name}: worked examples", "seed", *map(_passes, steps), "enough", "n")
    rows = []
    for run in runs:
        for group in groups_of(run.examples):
            mine = {cell.steps: cell for cell in run.examples if cell.group == group}
            enough = next((str(step) for step, cell in mine.items() if cell.enough), "")
            shares = (_share(mine[step].value) for step in steps)
            rows.append((named(group), run.seed, *shares, enough, str(mine[steps[0]].value.n)))
    return table(head, rows)


def _exit_table(runs: Sequence[Loops]) -> str:
    head = ("exit", "depth", "seed", "mean passes, 95 % interval", "accuracy, 95 % interval")
    rows = [
        (
            *(f"{each.exit}, at most {each.bound}", named(each.group), run.seed),
            f"{each.passes.mean:.2f} [{each.passes.lo:.2f}, {each.passes.hi:.2f}]",
            *(_share(each.value), _points(each.gap), str(each.value.n)),
        )
        for run in runs
        for each in run.left
    ]
    return table((*head, "minus without exit, 95 % interval", "n"), rows)


def _path_table(runs: Sequence[Loops]) -> str:
    head = ("states", "seed", "value, 95 % interval", "n")
    rows = []
    for run in runs:
        for kind, value in run.paths.kinds.items() if run.paths else ():
            rows.append((f"path {kind}: {_TOLD.get(kind, '')}", run.seed, _share(value), f"{value.n} tokens"))
        for each in run.restarts:
            told = f"{each.distance.mean:.3f} [{each.distance.lo:.3f}, {each.distance.hi:.3f}]"
            same = f"{told}; same prediction {100 * each.same:.1f} %"
            what = f"relative distance from another start after {_passes(each.steps)}"
            rows.append((what, run.seed, same, f"{each.distance.n} texts"))
    return table(head, rows)


def _passes(steps: int) -> str:
    return "1 pass" if steps == 1 else f"{steps} passes"


def _share(value: Value) -> str:
    return f"{100 * value.mean:.1f} % [{100 * value.lo:.1f}, {100 * value.hi:.1f}]"


def _points(value: Value) -> str:
    return f"{100 * value.mean:+.1f} [{100 * value.lo:+.1f}, {100 * value.hi:+.1f}]"
