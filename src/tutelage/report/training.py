"""How training went: one small picture per stage and quantity, and what each stage took.

Promises: every seed is a line of its own, in one picture with the others; a validation stands with its
interval; quantities that a stage did not log are left out, not drawn as zero.
Does not: smooth, average, or read logs (see `recipe.jobs.reporting`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from tutelage.errors import UsageError
from tutelage.plain import visible
from tutelage.report import svg
from tutelage.report.fields import entries, is_number, number_at, number_or_none, text_at
from tutelage.report.words import amount, interval, percent

QUANTITIES = {
    "loss": "training loss",
    "mean_depth": "mean loops",
    "loss_r1": "loss after one loop",
    "loss_mean": "loss at the mean of loops",
    "state_cosine": "likeness of states (cosine)",
    "rewards/accuracies": "pairs ranked right",
    "drawn/reward": "mean reward, as drawn",
    "drawn/right": "right replies, as drawn",
    "drawn/discarded": "problems left out",
    "drawn/tokens": "tokens per reply",
    "validation": "validation accuracy",
}
"""What is drawn of a stage, by its name in the log, in this order; validations have a list of their own."""
_SHARES = {"rewards/accuracies", "drawn/right", "drawn/discarded", "validation"}
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 330, 196, 46, 32, 152


@dataclass(frozen=True, slots=True)
class Look:
    """One validation: accuracy with its 95 % interval over `n` problems."""

    step: float
    accuracy: float
    lo: float
    hi: float
    n: int


@dataclass(frozen=True, slots=True)
class Run:
    """One stage of one seed. `series` are (step, value) by the name in the log; `packing` is the share of
    positions that hold a real token; `chosen_step` is where the weights are from, when the best validation
    was kept."""

    stage: str
    kind: str
    seed: str
    steps: float | None
    examples: float | None
    tokens_seen: float | None
    tokens_learned: float | None
    packing: float | None
    stopped: str
    chosen_step: float | None
    looks: tuple[Look, ...]
    series: Mapping[str, tuple[tuple[float, float], ...]]

    @property
    def best(self) -> Look | None:
        """The first of the best validations."""
        return max(self.looks, key=lambda look: (look.accuracy, -look.step), default=None)

    @property
    def validations(self) -> str:
        """How often it was validated, and the best of them."""
        best = self.best
        if best is None:
            return ""
        chosen = " (kept)" if self.chosen_step == best.step else ""
        return (
            f"{len(self.looks)}; best {percent(best.accuracy)} {interval(best.lo, best.hi)} "
            f"at step {amount(best.step)}{chosen}, n {best.n}"
        )


def read_training(summary: Mapping[str, Any]) -> list[Run]:
    """`training`, in file order. Raises UsageError that names a broken entry."""
    return [
        Run(
            stage=text_at(row, "stage", where),
            kind=visible(row.get("kind") or ""),
            seed=visible(row.get("seed", "")),
            steps=number_or_none(row, "steps", where),
            examples=number_or_none(row, "examples", where),
            tokens_seen=number_or_none(row, "tokens_seen", where),
            tokens_learned=number_or_none(row, "tokens_learned", where),
            packing=number_or_none(row, "packing", where),
            stopped=visible(row.get("stopped") or ""),
            chosen_step=number_or_none(row, "chosen_step", where),
            looks=tuple(_look(look, f"{where}.validations") for look in row.get("validations") or ()),
            series={
                name: tuple(_pair(pair, f"{where}.series.{name}") for pair in pairs)
                for name, pairs in (row.get("series") or {}).items()
                if name in QUANTITIES
            },
        )
        for where, row in entries(summary, "training")
    ]


def _look(row: Any, where: str) -> Look:
    if not isinstance(row, Mapping) or not isinstance(ci := row.get("ci95"), Sequence) or len(ci) != 2:
        raise UsageError(f"summary: {where} must be objects with ci95: no number without an interval")
    return Look(
        step=number_at(row, "step", where),
        accuracy=number_at(row, "accuracy", where),
        lo=number_at({"lo": ci[0]}, "lo", where),
        hi=number_at({"hi": ci[1]}, "hi", where),
        n=int(number_at(row, "n", where)),
    )


def _pair(pair: Any, where: str) -> tuple[float, float]:
    if not isinstance(pair, Sequence) or len(pair) != 2 or not all(map(is_number, pair)):
        raise UsageError(f"summary: {where} must hold pairs (step, value)")
    return float(pair[0]), float(pair[1])


def multiples(runs: Sequence[Run]) -> list[tuple[str, list[Markup]]]:
    """For each stage (in file order) its name and its pictures, one per quantity that some seed has."""
    seeds = list(dict.fromkeys(run.seed for run in runs))
    stages: dict[str, list[Run]] = {}
    for run in runs:
        stages.setdefault(run.stage, []).append(run)
    found = []
    for stage, mine in stages.items():
        known = [name for name in QUANTITIES if any(_points(run, name) for run in mine)]
        drawn = [_picture(stage, name, mine, seeds) for name in known]
        if drawn:
            found.append((f"{stage} ({mine[0].kind})" if mine[0].kind not in {"", stage} else stage, drawn))
    return found


def _points(run: Run, name: str) -> Sequence[tuple[float, float]]:
    if name == "validation":
        return [(look.step, look.accuracy) for look in run.looks]
    return run.series.get(name, ())


def _picture(stage: str, name: str, runs: Sequence[Run], seeds: Sequence[str]) -> Markup:
    every = [point for run in runs for point in _points(run, name)]
    looks = [look for run in runs for look in run.looks] if name == "validation" else []
    lows = [value for _, value in every] + [look.lo for look in looks]
    highs = [value for _, value in every] + [look.hi for look in looks]
    last = max(step for step, _ in every)
    x_marks = [mark for mark in svg.ticks(0, last, 4) if mark <= last and mark == int(mark)]
    y_marks = svg.ticks(*_around(min(lows), max(highs), name in _SHARES), 3)
    x = svg.linear(0, last, _LEFT + 6, _WIDTH - 12)
    y = svg.linear(y_marks[0], y_marks[-1], _BOTTOM, _TOP)
    body = [svg.text(0, 14, QUANTITIES[name], "strong")]
    for mark in y_marks:
        shown = f"{100 * mark:.0f} %" if name in _SHARES else f"{mark:g}"
        body.append(svg.line(_LEFT, y(mark), _WIDTH - 6, y(mark), "grid"))
        body.append(svg.text(_LEFT - 6, y(mark) + 4, shown, "soft", "end"))
    for mark in x_marks:
        body.append(svg.line(x(mark), _BOTTOM, x(mark), _BOTTOM + 4, "tick"))
        body.append(svg.text(x(mark), _BOTTOM + 18, amount(mark), "soft", "middle"))
    body.append(svg.text((_LEFT + _WIDTH) / 2, _BOTTOM + 36, "step", "head", "middle"))
    for run in runs:
        kind = f"seed{seeds.index(run.seed) % 4}"
        spots = [(x(step), y(value)) for step, value in _points(run, name)]
        if len(spots) > 1:
            body.append(svg.path(spots, f"series {kind}"))
        if name == "validation":
            body += _marks(run, x, y, kind)
        elif len(spots) == 1:
            body.append(svg.marker("circle", *spots[0], f"dot {kind}", "", 3))
    told = f"{stage}: {QUANTITIES[name]} against steps"
    return svg.picture(_WIDTH, _HEIGHT, told, body, "plot multiple")


def _around(lo: float, hi: float, share: bool) -> tuple[float, float]:
    """The range drawn: what never changes lies in the middle of some room, not on a line without a scale."""
    if hi - lo > 1e-9 * max(1.0, abs(lo)):
        return lo, hi
    room = abs(lo) / 2 or 0.5
    return (max(0.0, lo - room), min(1.0, hi + room)) if share else (lo - room, hi + room)


def _marks(run: Run, x: svg.Scale, y: svg.Scale, kind: str) -> list[str]:
    """Validations as dots with intervals; the one whose weights were kept stands out."""
    body = []
    for look in run.looks:
        kept = run.chosen_step == look.step
        tip = (
            f"{run.stage}, seed {run.seed}, step {amount(look.step)}: {percent(look.accuracy)} "
            f"{interval(look.lo, look.hi)}, n {look.n}{', kept' if kept else ''}"
        )
        body.append(svg.line(x(look.step), y(look.lo), x(look.step), y(look.hi), f"bar95 {kind}"))
        shape = "diamond" if kept else "circle"
        body.append(svg.marker(shape, x(look.step), y(look.accuracy), f"dot {kind}", tip, 5 if kept else 3))
    return body
