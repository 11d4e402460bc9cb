"""A pilot: a few rows are bought and judged first, and say what the rest will cost.

Promises: the rows are spread evenly over the problems (files are often sorted by topic or difficulty), the
same ones each time, so that a pilot that was bought once is free; a cost that is not known is projected by no
number; every share and projection comes with its interval and its n.
Does not: judge (verdicts are handed in), buy, or decide to go on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from tutelage.ledger import PICO
from tutelage.records import Problem, Status, Trace

Bounds = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Intervals:
    """The statistics that a pilot needs: 95 % intervals of a share (successes, n) and of a mean."""

    share: Callable[[int, int], Bounds]
    mean: Callable[[Sequence[float]], Bounds]


@dataclass(frozen=True, slots=True)
class Pilot:
    """What `rows` replies (of as many questions) say about the `left` that are still to be bought.

    `each` is the mean cost of a reply in US dollars, `each_ci` its 95 % interval, None when any cost is
    unknown or there is no reply; `tokens` is the mean number of completion tokens, None when unknown.
    `correct` of `judged` replies passed; undecided ones are judged, and not correct."""

    rows: int
    left: int
    cost: Decimal | None
    each: Decimal | None
    each_ci: Bounds | None
    tokens: float | None
    judged: int
    correct: int
    share_ci: Bounds | None

    @property
    def per_correct(self) -> Decimal | None:
        """US dollars per verified trace; None when the cost is unknown or no reply was correct."""
        return self.cost / self.correct if self.cost is not None and self.correct else None

    @property
    def projected(self) -> Decimal | None:
        """US dollars for the rest."""
        return None if self.each is None else self.each * self.left

    @property
    def projected_ci(self) -> Bounds | None:
        """95 % interval of `projected`."""
        return None if self.each_ci is None else (self.each_ci[0] * self.left, self.each_ci[1] * self.left)

    def to_json(self) -> dict[str, Any]:
        """The same as plain data; amounts are decimal text."""
        return {
            "rows": self.rows,
            "left": self.left,
            "cost": _exact(self.cost),
            "projected": _exact(self.projected),
            "projected_ci95": None if self.projected_ci is None else list(self.projected_ci),
            "completion_tokens_each": self.tokens,
            "judged": self.judged,
            "correct": self.correct,
            "share_correct": self.correct / self.judged if self.judged else None,
            "share_correct_ci95": None if self.share_ci is None else list(self.share_ci),
            "cost_per_correct": _exact(self.per_correct),
        }

    def lines(self) -> list[str]:
        """What a person reads before the rest is bought."""
        told = [self._cost_line()]
        if not self.judged:
            told.append("no reply of the pilot has a gold answer to be judged by")
            return told
        assert self.share_ci is not None
        lo, hi = self.share_ci
        share = (
            f"{self.correct} of {self.judged} correct "
            f"({self.correct / self.judged:.0%}; 95 % interval {lo:.0%} to {hi:.0%})"
        )
        if self.per_correct is not None:
            share += f", so {dollars(self.per_correct)} per verified trace"
        elif not self.correct:
            share += "; with none correct, look at the settings and the checker before you buy the rest"
        return [*told, share]

    def _cost_line(self) -> str:
        if self.each is not None and self.projected is not None and self.projected_ci is not None:
            lo, hi = self.projected_ci
            return (
                f"{self.rows} replies for {dollars(self.cost)}, {dollars(self.each)} each; the {self.left:,} "
                f"left will cost about {dollars(self.projected)} "
                f"(95 % interval {dollars(lo)} to {dollars(hi)})"
            )
        if self.tokens is None:
            return f"{self.rows} replies; the price is unknown, so nothing is projected"
        return (
            f"{self.rows} replies of {self.tokens:,.0f} completion tokens each; the price is unknown; about "
            f"{self.tokens * self.left:,.0f} completion tokens for the {self.left:,} left"
        )


def spread(problems: Sequence[Problem], rows: int) -> list[Problem]:
    """`rows` of the problems, evenly spread from the first on; all of them where there are no more."""
    if rows >= len(problems):
        return list(problems)
    return [problems[number * len(problems) // rows] for number in range(rows)]


def measure(
    traces: Sequence[Trace],
    completion_tokens: int | None,
    statuses: Sequence[Status],
    left: int,
    intervals: Intervals,
) -> Pilot:
    """The pilot of these `traces`, which have so many completion tokens together; `statuses` are the verdicts
    on those that have a gold answer."""
    costs = [trace.cost for trace in traces]
    known = [cost for cost in costs if cost is not None]
    priced = bool(costs) and len(known) == len(costs)
    correct = sum(status == "correct" for status in statuses)
    total = sum(known, Decimal(0)) if priced else None
    return Pilot(
        rows=len(traces),
        left=left,
        cost=total,
        each=None if total is None else total / len(costs),
        each_ci=intervals.mean([float(cost) for cost in known]) if priced else None,
        tokens=completion_tokens / len(traces) if traces and completion_tokens is not None else None,
        judged=len(statuses),
        correct=correct,
        share_ci=intervals.share(correct, len(statuses)) if statuses else None,
    )


def dollars(amount: Decimal | float | None) -> str:
    """Two digits after the first that counts: `$1.30`, `$0.041`, `$0.00000012`; never a rounded 0."""
    if amount is None:
        return "an unknown amount"
    value = Decimal(str(amount)) if isinstance(amount, float) else amount
    if not value or value >= 1:
        return f"${value:.2f}"
    return f"${value:.{1 - value.adjusted()}f}"


def _exact(amount: Decimal | None) -> str | None:
    return None if amount is None else format(amount.quantize(PICO).normalize(), "f")
