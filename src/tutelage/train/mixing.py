"""Long and short traces in a fixed proportion.

Small students learn more from mostly short thoughts with some long ones among them than from long ones alone
(Li et al. 2025, arXiv 2502.12143, "Small Models Struggle to Learn from Strong Reasoners": long to short 1:4
for models of 3B and less).

Promises: the proportion is exact, as many traces as it allows are used, which ones depends on the lengths and
the seed alone, and those left out are counted on both sides.
Does not: shorten traces, or choose among right and wrong ones (see `curate`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from tutelage.errors import UsageError
from tutelage.records import Trace


@dataclass(frozen=True, slots=True)
class Mixed:
    """The traces of a mix in their old order. Above `border` tokens of thinking a trace counts as long."""

    traces: list[Trace]
    border: float
    long: int
    short: int
    long_left_out: int
    short_left_out: int

    def to_dict(self) -> dict[str, float]:
        """The counts, for a stage's metrics."""
        return {
            "border": self.border,
            "long": self.long,
            "short": self.short,
            "long_left_out": self.long_left_out,
            "short_left_out": self.short_left_out,
        }


@dataclass(frozen=True, slots=True)
class Shares:
    """Places of long and of short ones in the proportion asked for, in the order in which they were drawn,
    and how many were left out. Longer than `border` counts as long."""

    border: float
    long: list[int]
    short: list[int]
    long_left_out: int
    short_left_out: int


def shares_of(
    lengths: Sequence[int],
    *,
    long: int = 1,
    short: int = 4,
    border: int | None = None,
    seed: int | str = 0,
    at_most: int | None = None,
) -> Shares:
    """The places of as many of `lengths` as give `long` long ones for `short` short ones, whole shares only,
    and `at_most` so many in all. Without a `border` the median length divides them.

    Raises UsageError when there is no length, when those on one side do not suffice for a single share, and
    for `at_most` below one share."""
    if not lengths:
        raise UsageError("there is no trace to mix; look at the funnel for where they were dropped")
    if min(long, short) < 1:
        raise UsageError(f"mix {long}:{short} of long and short traces: both must be at least 1")
    if at_most is not None and at_most < long + short:
        raise UsageError(
            f"mix {long}:{short} of long and short traces: {at_most} are wanted, but one share has "
            f"{long + short}; ask for more"
        )
    edge = median(lengths) if border is None else border
    sides: dict[bool, list[int]] = {True: [], False: []}
    for place, length in enumerate(lengths):
        sides[length > edge].append(place)
    shares = min(len(sides[True]) // long, len(sides[False]) // short)
    if not shares:
        side, wanted = ("long", long) if len(sides[True]) < long else ("short", short)
        raise UsageError(
            f"mix {long}:{short} of long and short traces: {len(sides[side == 'long'])} {side} ones (border "
            f"{edge:g} tokens of thinking) where {wanted} are needed; set another mix.border (lengths are "
            f"{min(lengths)} to {max(lengths)}) or leave mix out"
        )
    if at_most is not None:
        shares = min(shares, at_most // (long + short))
    rng = random.Random(seed)
    drawn_long = rng.sample(sides[True], shares * long)
    drawn_short = rng.sample(sides[False], shares * short)
    return Shares(
        float(edge),
        drawn_long,
        drawn_short,
        len(sides[True]) - len(drawn_long),
        len(sides[False]) - len(drawn_short),
    )


def mix(
    traces: Sequence[Trace],
    lengths: Sequence[int],
    *,
    long: int = 1,
    short: int = 4,
    border: int | None = None,
    seed: int = 0,
) -> Mixed:
    """As many of `traces` as give `long` long ones for `short` short ones. `lengths` are their tokens of
    thinking, [traces]; without a `border` the median length divides them.

    Raises UsageError when the traces on one side do not suffice for a single share."""
    drawn = shares_of(lengths, long=long, short=short, border=border, seed=seed)
    chosen = {*drawn.long, *drawn.short}
    return Mixed(
        [trace for place, trace in enumerate(traces) if place in chosen],
        drawn.border,
        len(drawn.long),
        len(drawn.short),
        drawn.long_left_out,
        drawn.short_left_out,
    )
