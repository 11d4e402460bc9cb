"""The numbers of a run as the page needs them: `summary.json` read into typed rows.

Promises: a missing section is an empty one; a present but broken entry is refused with its path
(`arms[3].accuracy`); every string comes out free of control characters and lone surrogates (`visible`).
Does not: compute accuracies or intervals; those come from `measure`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tutelage.errors import UsageError
from tutelage.plain import visible

METHODS = ("natural", "budget", "wait", "suppress", "vote")
"""The methods that have a place of their own in plots and texts; there may be others."""
# What prolongs or multiplies thinking; everything else is in the part of thinking cut short.
_EXTENDED = {"wait", "suppress", "vote"}


@dataclass(frozen=True, slots=True)
class Arm:
    """One trained (or untouched) student: its accuracy with interval, and what it took."""

    name: str
    seed: str
    accuracy: float
    lo: float
    hi: float
    n: int
    samples: int | None
    thinking_tokens: float | None
    tokens_seen: float | None
    teacher_calls: float | None
    train_steps: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """a minus b on the same problems."""

    a: str
    b: str
    seed: str
    difference: float
    lo: float
    hi: float
    n: int
    p: float | None
    p_holm: float | None

    @property
    def direction(self) -> int:
        """1: a is better, −1: a is worse, 0: the interval holds zero, so neither is shown."""
        return int(self.lo > 0) - int(self.hi < 0)


@dataclass(frozen=True, slots=True)
class Point:
    """One setting of the thinking controls, on the line of that name. `part` is "natural" (unforced),
    "capped" (thinking cut short, or asked to be short) or "extended" (prolonged, or several attempts);
    `setting` says it in words. Tokens are per problem and sample; `closed_by`, `finished` and `empty` count
    `replies`, of which a method may stand by none."""

    arm: str
    method: str
    part: str
    setting: str
    line: str
    seed: str
    budget: float | None
    minimum: float | None
    waits: float | None
    wait: str
    sampling: str
    votes: float | None
    accuracy: float
    lo: float
    hi: float
    n: int
    samples: int | None
    tokens: float | None
    tokens_sampled: float | None
    tokens_forced: float | None
    closed_by: Mapping[str, float]
    finished: Mapping[str, float]
    empty: float | None
    replies: float

    @property
    def series(self) -> tuple[str, str, str]:
        """Points that one line joins: same arm, method, and wait string, way of sampling or size of vote."""
        detail = self.sampling if self.method in METHODS else self.line
        if self.method == "wait":
            detail = f"{self.wait}, at least" if self.minimum is not None else self.wait
        elif self.method == "vote":
            detail = f" of {self.votes:g}" if self.budget is not None else ""
        return self.arm, self.method, detail

    @property
    def order(self) -> float:
        """Where it stands on its line."""
        settings = (self.waits, self.minimum, self.budget, self.votes)
        return next((setting for setting in settings if setting is not None), 0.0)


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the funnel."""

    stage: str
    kept: int
    dropped: int
    reasons: Mapping[str, float]


def read_arms(summary: Mapping[str, Any]) -> list[Arm]:
    """`arms`, in file order."""
    return [
        Arm(
            name=_text(row, "name", where),
            seed=visible(row.get("seed", "")),
            accuracy=number_at(row, "accuracy", where),
            lo=ci[0],
            hi=ci[1],
            n=int(number_at(row, "n", where)),
            samples=_count(row, "samples", where),
            thinking_tokens=_maybe(row, "thinking_tokens_mean", where),
            tokens_seen=_maybe(row, "tokens_seen", where),
            teacher_calls=_maybe(row, "teacher_calls", where),
            train_steps=_maybe(row, "train_steps", where),
        )
        for where, row, ci in _measured(summary, "arms")
    ]


def read_comparisons(summary: Mapping[str, Any]) -> list[Comparison]:
    """`comparisons`, in file order."""
    return [
        Comparison(
            a=_text(row, "a", where),
            b=_text(row, "b", where),
            seed=visible(row.get("seed", "")),
            difference=number_at(row, "difference", where),
            lo=ci[0],
            hi=ci[1],
            n=int(number_at(row, "n", where)),
            p=_maybe(row, "p", where),
            p_holm=_maybe(row, "p_holm", where),
        )
        for where, row, ci in _measured(summary, "comparisons")
    ]


def read_curve(summary: Mapping[str, Any]) -> list[Point]:
    """`curve`, in file order. Files of before the parts were told apart are read too."""
    points = []
    for where, row, ci in _measured(summary, "curve"):
        closed_by = _counts(row, "closed_by", where)
        replies = _maybe(row, "replies", where)
        method = _text(row, "method", where)
        usual = "natural" if method == "natural" else "extended" if method in _EXTENDED else "capped"
        points.append(
            Point(
                arm=_text(row, "arm", where),
                method=method,
                part=visible(row.get("part") or usual),
                setting=visible(row.get("setting") or ""),
                line=visible(row.get("line") or ""),
                seed=visible(row.get("seed", "")),
                budget=_maybe(row, "budget", where),
                minimum=_maybe(row, "min_tokens", where),
                waits=_maybe(row, "waits", where),
                wait=_strings(row.get("wait")),
                sampling=visible(row.get("sampling") or ""),
                votes=_maybe(row, "votes", where),
                accuracy=number_at(row, "accuracy", where),
                lo=ci[0],
                hi=ci[1],
                n=int(number_at(row, "n", where)),
                samples=_count(row, "samples", where),
                tokens=_maybe(row, "thinking_tokens_mean", where),
                tokens_sampled=_maybe(row, "thinking_sampled_mean", where),
                tokens_forced=_maybe(row, "thinking_forced_mean", where),
                closed_by=closed_by,
                finished=_counts(row, "finished", where),
                empty=_maybe(row, "empty", where),
                replies=sum(closed_by.values()) if replies is None else replies,
            )
        )
    return points


def read_funnel(summary: Mapping[str, Any]) -> list[Step]:
    """`funnel`, in file order."""
    return [
        Step(
            stage=_text(row, "stage", where),
            kept=int(number_at(row, "kept", where)),
            dropped=int(number_at(row, "dropped", where)),
            reasons=_counts(row, "reasons", where),
        )
        for where, row in _entries(summary, "funnel")
    ]


def _strings(wait: object) -> str:
    """One wait string, or several in rotation."""
    several = [wait] if isinstance(wait, str) else wait if isinstance(wait, Sequence) else ()
    return " / ".join(visible(each).strip() for each in several)


def _entries(summary: Mapping[str, Any], section: str) -> list[tuple[str, Mapping[str, Any]]]:
    rows = summary.get(section) or []
    if not isinstance(rows, Sequence) or isinstance(rows, str):
        raise UsageError(f"summary: {section} must be a list")
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise UsageError(f"summary: {section}[{index}] must be an object")
    return [(f"{section}[{index}]", row) for index, row in enumerate(rows)]


def _measured(
    summary: Mapping[str, Any], section: str
) -> list[tuple[str, Mapping[str, Any], tuple[float, float]]]:
    """The entries of a section whose numbers carry `ci95`."""
    found = []
    for where, row in _entries(summary, section):
        ci = row.get("ci95")
        if not isinstance(ci, Sequence) or len(ci) != 2 or not all(map(_is_number, ci)):
            raise UsageError(f"summary: {where}.ci95 must be [lo, hi]: no number without an interval")
        found.append((where, row, (float(ci[0]), float(ci[1]))))
    return found


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise UsageError(f"summary: {where}.{key} must be text, not {value!r:.60}")
    return visible(value)


def number_at(row: Mapping[str, Any], key: str, where: str) -> float:
    """`row[key]`, a finite number. Raises UsageError that names `where` it should be."""
    value = row.get(key)
    if not _is_number(value):
        raise UsageError(f"summary: {where}.{key} must be a number, not {value!r:.60}")
    return float(value)  # type: ignore[arg-type]


def _maybe(row: Mapping[str, Any], key: str, where: str) -> float | None:
    return None if row.get(key) is None else number_at(row, key, where)


def _count(row: Mapping[str, Any], key: str, where: str) -> int | None:
    value = _maybe(row, key, where)
    return None if value is None else int(value)


def _counts(row: Mapping[str, Any], key: str, where: str) -> dict[str, float]:
    counts = row.get(key) or {}
    if not isinstance(counts, Mapping):
        raise UsageError(f"summary: {where}.{key} must map names to counts")
    return {visible(name): number_at(counts, name, f"{where}.{key}") for name in counts}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
