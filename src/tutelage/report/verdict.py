"""What the numbers say, in three plain sentences, before any plot.

Promises: a comparison counts as shown only when its interval excludes zero on every seed and its p, corrected
for all comparisons (Holm), is below 0.05; what is not shown is named too; "waiting stops helping" has one
written rule (`waiting_stops`). Does not: round a failure away.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

from tutelage.report.summary import Arm, Comparison, Point
from tutelage.report.words import amount, interval, listing, percent, points

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


def three_sentences(
    arms: Sequence[Arm], comparisons: Sequence[Comparison], curve: Sequence[Point], bill: str
) -> list[str]:
    """Up to three sentences: who is best, what is and is not shown, and what thinking longer does (or `bill`,
    what the run cost, where thinking was not varied). Where loops were varied, one more says what they do."""
    tokens = [point for point in curve if point.part != "loops"]
    varied = any(point.part != "natural" for point in tokens) or len(tokens) == len(curve)
    loops = looping(curve)
    third = thinking(tokens) if varied else ""
    found = [best_arm(arms), shown(comparisons), third or ("" if loops else bill), loops]
    return [sentence for sentence in found if sentence]


def best_arm(arms: Sequence[Arm]) -> str:
    """The arm with the highest mean over seeds, beside the base (or else the lowest arm)."""
    if not arms:
        return ""
    by_name = _grouped(arms, lambda arm: arm.name)
    ranked = sorted(by_name, key=lambda name: _mean(arm.accuracy for arm in by_name[name]))
    best, low = ranked[-1], "base" if "base" in by_name else ranked[0]
    n = by_name[best][0].n
    text = f"The student with the highest measured accuracy, “{best}”, "
    text += f"answers {_each_seed(by_name[best])} of {n:,} test problems right"
    if low == best:
        return text + "."
    name = "the base it started from" if low == "base" else f"the weakest, “{low}”,"
    return f"{text}; {name} answers {_each_seed(by_name[low])}."


def shown(comparisons: Sequence[Comparison]) -> str:
    """Which paired differences hold on every seed, which do not."""
    if not comparisons:
        return ""
    better: list[str] = []
    worse: list[str] = []
    weak: list[str] = []
    open_: list[str] = []
    for (a, b), rows in _grouped(comparisons, lambda row: (row.a, row.b)).items():
        sizes = " and ".join(points(row.difference) for row in rows)
        directions = {row.direction for row in rows}
        if directions in ({1}, {-1}):
            than = "beats" if directions == {1} else "is worse than"
            found = weak if any(row.by_chance for row in rows) else better if directions == {1} else worse
            found.append(f"“{a}” {than} “{b}” ({sizes} points)")
        else:
            open_.append(f"“{a}” against “{b}” ({sizes} points)")
    seeds = len({row.seed for row in comparisons})
    on = "on every seed " if seeds > 1 else ""
    parts = []
    if better or worse:
        parts.append(f"Shown {on}with a 95 % interval that excludes zero: {listing(better + worse)}")
    else:
        how = "" if weak else "with a 95 % interval that excludes zero"
        parts.append(f"No difference is shown {on}{how}".rstrip())
    if weak:
        parts.append(f"only without a correction for {len(comparisons)} comparisons (Holm): {listing(weak)}")
    if open_:
        parts.append(f"not shown: {listing(open_)}")
    elif not weak:
        parts.append("every comparison of this run holds")
    sizes_n = sorted({row.n for row in comparisons})
    problems = f"{sizes_n[0]:,}" if len(sizes_n) == 1 else f"{sizes_n[0]:,} to {sizes_n[-1]:,}"
    return "; ".join(parts) + f" (differences on the same {problems} problems)."


def thinking(curve: Sequence[Point]) -> str:
    """Where waiting stops helping for the arm that waits, and how the alternatives do."""
    waiting = [point for point in curve if point.method == "wait"]
    if not waiting:
        return _most_and_least(curve)
    arm = waiting[0].arm
    mine = [point for point in curve if point.arm == arm]
    by_seed = _grouped(mine, lambda point: point.seed)
    stops = {seed: _stop(stop) for seed, rows in by_seed.items() if (stop := waiting_stops(rows)) is not None}
    if not stops:
        return _most_and_least(curve)
    if len(set(stops.values())) == 1:
        told = next(iter(stops.values())) + (" on every seed" if len(stops) > 1 else "")
    else:
        told = listing([f"{stop} (seed {seed})" for seed, stop in stops.items()])
    peak = max((p for p in mine if p.method == "wait"), key=lambda p: p.accuracy)
    text = f"Making “{arm}” think on when it wants to stop {told}: with waits at best {_at(peak)}"
    plain = [p for p in mine if p.method == "natural" and p.seed == peak.seed]
    if plain:
        text += f", against {_at(max(plain, key=lambda p: p.accuracy))} unforced"
    votes = [p for p in mine if p.method == "vote" and p.seed == peak.seed]
    if votes:
        text += f", and {_at(max(votes, key=lambda p: p.accuracy))} by majority vote"
    return f"{text} ({peak.n:,} problems)."


def looping(curve: Sequence[Point]) -> str:
    """What more passes through the core do for the arm with most depths, from the fewest to the best, and at
    what cost; seed by seed."""
    depths = [point for point in curve if point.method == "loops" and point.num_steps is not None]
    if not depths:
        return ""
    by_arm = _grouped(depths, lambda point: point.arm)
    arm = max(by_arm, key=lambda name: len(by_arm[name]))
    told = []
    by_seed = _grouped(by_arm[arm], lambda point: point.seed)
    for seed, rows in by_seed.items():
        least = min(rows, key=lambda point: point.num_steps or 0.0)
        best = max(rows, key=lambda point: point.accuracy)
        text = f"{_deep(least)} and at best {_deep(best)}"
        if least.flops and best.flops and best is not least:
            text += f" for {best.flops / least.flops:.1f} times the FLOPs"
        told.append(text + (f" (seed {seed})" if len(by_seed) > 1 else ""))
    return f"Looping, “{arm}” gives {listing(told)} ({depths[0].n:,} problems)."


def _deep(point: Point) -> str:
    steps = point.num_steps or 0.0
    loops = f"{amount(steps)} loop{'s' if steps != 1 else ''}"
    note = f" ({point.note})" if point.note else ""
    return f"{percent(point.accuracy)} {interval(point.lo, point.hi)} with {loops}{note}"


def waiting_stops(points: Iterable[Point]) -> Point | None:
    """The point of fewest waits whose 95 % interval no larger number of waits rises above.

    `points` are of one arm and seed; the main wait string is the one with most points (first on a tie); the
    start is the same arm unforced, with the sampled baseline preferred over the greedy one. None when fewer
    than two numbers of waits were tried. A rule about intervals of single points is cautious: a smaller real
    gain can hide inside them."""
    rows = list(points)
    # Waiting until a minimum is reached has no number of waits.
    by_string = _grouped((p for p in rows if p.method == "wait" and p.waits is not None), lambda p: p.wait)
    if not by_string:
        return None
    ladder = {p.waits or 0.0: p for p in max(by_string.values(), key=len)}
    natural = sorted((p for p in rows if p.method == "natural"), key=lambda p: p.sampling == "greedy")
    if natural and 0.0 not in ladder:
        ladder[0.0] = natural[0]
    ordered = [ladder[waits] for waits in sorted(ladder)]
    if len(ordered) < 2:
        return None
    for index, point in enumerate(ordered):
        if all(later.accuracy <= point.hi for later in ordered[index + 1 :]):
            return point
    return ordered[-1]


def _most_and_least(curve: Sequence[Point]) -> str:
    """For a curve without waits: the ends of its token axis."""
    known = [point for point in curve if point.tokens is not None]
    if len(known) < 2:
        return ""
    best, least = max(known, key=lambda p: p.accuracy), min(known, key=lambda p: p.tokens or 0.0)
    text = f"The most accurate thinking setting gives {_at(best)}; the shortest gives {_at(least)}"
    return f"{text} ({best.n:,} problems)."


def _stop(point: Point) -> str:
    if not point.waits:
        return "shows no gain"
    return f"shows no further gain after {amount(point.waits)} wait{'s' if point.waits != 1 else ''}"


def _at(point: Point) -> str:
    tokens = "" if point.tokens is None else f" at {amount(round(point.tokens))} thinking tokens"
    note = f" ({point.note})" if point.note else ""
    return f"{percent(point.accuracy)} {interval(point.lo, point.hi)}{tokens}{note}"


def _each_seed(arms: Sequence[Arm]) -> str:
    values = " and ".join(
        f"{percent(arm.accuracy)} {interval(arm.lo, arm.hi)}{f' ({arm.note})' if arm.note else ''}"
        for arm in arms
    )
    return f"{values} (seeds {', '.join(arm.seed for arm in arms)})" if len(arms) > 1 else values


def _mean(values: Iterable[float]) -> float:
    items = list(values)
    return sum(items) / len(items)


def _grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    groups: dict[K, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups
