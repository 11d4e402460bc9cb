"""How well a method controls thinking, what more thinking buys it, and how far it gets: three numbers.

Promises: the three measures of s1 (Muennighoff et al. 2025, "s1: Simple test-time scaling", section 3.2) as
pure functions of a method's runs, in the units in which that paper prints them (per cent, and points per
doubling of the tokens); what cannot be computed is an error, not a zero.
Does not: run anything, or give an interval: s1's measures are over a handful of runs. For a curve with
intervals see `curve`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from tutelage.errors import UsageError

Bound = tuple[float | None, float | None]


def control(tokens: Sequence[float], bounds: Sequence[Bound]) -> float:
    """Share of runs, in per cent, that thought as much as they were asked to.

    `tokens[i]` is the mean thinking of run i and `bounds[i]` its (least, most), None where there is no such
    limit; the bounds count as kept when met exactly. s1 asks the same of a method's runs at its limits (a
    limit of steps stands for 100 tokens a step; short and long prompts must lie on either side of none).
    Raises UsageError for no runs, or other numbers of bounds than of runs."""
    if not tokens or len(tokens) != len(bounds):
        raise UsageError(f"control: {len(tokens)} runs and {len(bounds)} bounds; give one bound for each run")
    kept = [
        (least is None or used >= least) and (most is None or used <= most)
        for used, (least, most) in zip(tokens, bounds, strict=True)
    ]
    return 100 * sum(kept) / len(kept)


def scaling(tokens: Sequence[float], accuracy: Sequence[float]) -> float:
    """Mean slope over all pairs of runs, in percentage points per doubling of thinking.

    Over pairs with more tokens in b than in a: mean of (f(b) − f(a)) / (log2 b − log2 a), f in per cent.
    `tokens` are each run's mean thinking, `accuracy` its share right in [0, 1]. Pairs of equal tokens have no
    slope and are left out. The paper does not print its axis; with log2 its tables 11 to 13 give its numbers,
    with tokens they do not.
    Raises UsageError for tokens that are not above zero, for accuracies outside [0, 1], and when there are no
    two runs of different tokens."""
    _check(tokens, accuracy)
    if any(used <= 0 for used in tokens):
        raise UsageError("scaling: a run without thinking has no place on an axis of doublings; leave it out")
    slopes = [
        100 * (high - low) / (math.log2(more) - math.log2(less))
        for (less, low), (more, high) in itertools.combinations(sorted(zip(tokens, accuracy, strict=True)), 2)
        if more > less
    ]
    if not slopes:
        raise UsageError("scaling: at least two runs that think differently long are needed")
    return math.fsum(slopes) / len(slopes)


def performance(accuracy: Sequence[float]) -> float:
    """The best run's accuracy, in per cent. Raises UsageError as `scaling`."""
    _check(accuracy, accuracy)
    return 100 * max(accuracy)


def _check(tokens: Sequence[float], accuracy: Sequence[float]) -> None:
    if not accuracy or len(tokens) != len(accuracy):
        raise UsageError(f"scaling: {len(tokens)} token counts and {len(accuracy)} accuracies; give pairs")
    if not all(0 <= value <= 1 for value in accuracy):
        raise UsageError("scaling: accuracies are shares between 0 and 1")
