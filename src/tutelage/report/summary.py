"""The numbers of a run as the page needs them: `summary.json` read into typed rows.

Promises: a missing section is an empty one; a present but broken entry is refused with its path
(`arms[3].accuracy`); every string comes out free of control characters and lone surrogates (`visible`).
Does not: compute accuracies or intervals; those come from `measure`. How a field is read: see `fields`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tutelage.plain import visible
from tutelage.report.fields import count_at, counts_at, entries, measured, number_at, number_or_none, text_at

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
    chosen_on: float = 0
    trained_on: float = 0
    flops: float | None = None
    loops: float | None = None

    @property
    def note(self) -> str:
        """What has to be said beside its accuracy, "" when there is nothing."""
        return seen_note(self.chosen_on, self.trained_on)


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

    @property
    def by_chance(self) -> bool:
        """Whether p says, corrected for all comparisons of the run, that chance alone may do as much."""
        return self.p_holm is not None and self.p_holm >= 0.05


@dataclass(frozen=True, slots=True)
class Point:
    """One setting of the thinking controls, on the line of that name. `part` is "natural" (unforced),
    "capped" (thinking cut short, or asked to be short), "extended" (prolonged, or several attempts) or
    "loops" (another depth of a recurrent-depth model); `setting` says it in words. Tokens and `flops` are per
    problem and sample, `loops` per token of a reply; `closed_by`, `finished` and `empty` count `replies`, of
    which a method may stand by none. `problem_set` names the problems."""

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
    chosen_on: float = 0
    trained_on: float = 0
    num_steps: float | None = None
    flops: float | None = None
    loops: float | None = None
    problem_set: str = ""

    @property
    def note(self) -> str:
        """What has to be said beside its accuracy, "" when there is nothing."""
        return seen_note(self.chosen_on, self.trained_on)

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
        settings = (self.waits, self.minimum, self.budget, self.votes, self.num_steps)
        return next((setting for setting in settings if setting is not None), 0.0)


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the funnel."""

    stage: str
    kept: int
    dropped: int
    reasons: Mapping[str, float]


def seen_note(chosen_on: float, trained_on: float) -> str:
    """That an accuracy is over questions which the model was chosen on, or learned from."""
    parts = []
    if chosen_on:
        parts.append(f"chosen on {chosen_on:,.0f} of these questions")
    if trained_on:
        parts.append(f"trained on {trained_on:,.0f} of these questions")
    return " and ".join(parts)


def read_arms(summary: Mapping[str, Any]) -> list[Arm]:
    """`arms`, in file order."""
    return [
        Arm(
            name=text_at(row, "name", where),
            seed=visible(row.get("seed", "")),
            accuracy=number_at(row, "accuracy", where),
            lo=ci[0],
            hi=ci[1],
            n=int(number_at(row, "n", where)),
            samples=count_at(row, "samples", where),
            thinking_tokens=number_or_none(row, "thinking_tokens_mean", where),
            tokens_seen=number_or_none(row, "tokens_seen", where),
            teacher_calls=number_or_none(row, "teacher_calls", where),
            train_steps=number_or_none(row, "train_steps", where),
            chosen_on=number_or_none(row, "chosen_on", where) or 0,
            trained_on=number_or_none(row, "trained_on", where) or 0,
            flops=number_or_none(row, "flops", where),
            loops=number_or_none(row, "loops", where),
        )
        for where, row, ci in measured(summary, "arms")
    ]


def read_comparisons(summary: Mapping[str, Any]) -> list[Comparison]:
    """`comparisons`, in file order."""
    return [
        Comparison(
            a=text_at(row, "a", where),
            b=text_at(row, "b", where),
            seed=visible(row.get("seed", "")),
            difference=number_at(row, "difference", where),
            lo=ci[0],
            hi=ci[1],
            n=int(number_at(row, "n", where)),
            p=number_or_none(row, "p", where),
            p_holm=number_or_none(row, "p_holm", where),
        )
        for where, row, ci in measured(summary, "comparisons")
    ]


def read_curve(summary: Mapping[str, Any]) -> list[Point]:
    """`curve`, in file order. Files of before the parts were told apart are read too."""
    points = []
    for where, row, ci in measured(summary, "curve"):
        closed_by = counts_at(row, "closed_by", where)
        replies = number_or_none(row, "replies", where)
        method = text_at(row, "method", where)
        usual = "natural" if method == "natural" else "extended" if method in _EXTENDED else "capped"
        points.append(
            Point(
                arm=text_at(row, "arm", where),
                method=method,
                part=visible(row.get("part") or usual),
                setting=visible(row.get("setting") or ""),
                line=visible(row.get("line") or ""),
                seed=visible(row.get("seed", "")),
                budget=number_or_none(row, "budget", where),
                minimum=number_or_none(row, "min_tokens", where),
                waits=number_or_none(row, "waits", where),
                wait=_strings(row.get("wait")),
                sampling=visible(row.get("sampling") or ""),
                votes=number_or_none(row, "votes", where),
                accuracy=number_at(row, "accuracy", where),
                lo=ci[0],
                hi=ci[1],
                n=int(number_at(row, "n", where)),
                samples=count_at(row, "samples", where),
                tokens=number_or_none(row, "thinking_tokens_mean", where),
                tokens_sampled=number_or_none(row, "thinking_sampled_mean", where),
                tokens_forced=number_or_none(row, "thinking_forced_mean", where),
                closed_by=closed_by,
                finished=counts_at(row, "finished", where),
                empty=number_or_none(row, "empty", where),
                replies=sum(closed_by.values()) if replies is None else replies,
                chosen_on=number_or_none(row, "chosen_on", where) or 0,
                trained_on=number_or_none(row, "trained_on", where) or 0,
                num_steps=number_or_none(row, "num_steps", where),
                flops=number_or_none(row, "flops", where),
                loops=number_or_none(row, "loops", where),
                problem_set=visible(row.get("problem_set") or ""),
            )
        )
    return points


def read_funnel(summary: Mapping[str, Any]) -> list[Step]:
    """`funnel`, in file order."""
    return [
        Step(
            stage=text_at(row, "stage", where),
            kept=int(number_at(row, "kept", where)),
            dropped=int(number_at(row, "dropped", where)),
            reasons=counts_at(row, "reasons", where),
        )
        for where, row in entries(summary, "funnel")
    ]


def _strings(wait: object) -> str:
    """One wait string, or several in rotation."""
    several = [wait] if isinstance(wait, str) else wait if isinstance(wait, Sequence) else ()
    return " / ".join(visible(each).strip() for each in several)
