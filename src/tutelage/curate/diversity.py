"""Which candidates make a small set: samplers that spread over domains and lean to long thinking, and the
simple ones to compare them with.

Promises: a sampler returns places (rows of the candidates) in the order of being chosen, no place twice, and
`target` of them or all there are (`long_short`: at most so many, in whole shares); the same records in
another order of rows give the same ids in the same order, on every machine: rows are sorted by id first, and
every draw is by `random.Random` seeded with a text that holds the seed.
Does not: label domains, filter, or judge. What is not chosen is the caller's to name.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import UsageError
from tutelage.train.mixing import shares_of


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """What is chosen from, one row a record: its id (no id twice), its domain, and the length of its thinking
    in tokens or words. `sources` and `correct` are needed for `preselected` only.

    Raises UsageError when the columns do not fit together."""

    ids: Sequence[str]
    domains: Sequence[str]
    lengths: NDArray[np.int64]  # (rows,)
    sources: Sequence[str] = ()
    correct: Sequence[bool] = ()

    def __post_init__(self) -> None:
        rows = len(self.ids)
        if self.lengths.ndim != 1 or self.lengths.dtype.kind not in "iu":
            raise UsageError("lengths: give one whole number for each candidate")
        for name in ("domains", "lengths", "sources", "correct"):
            found = len(getattr(self, name))
            if found != rows and not (name in ("sources", "correct") and not found):
                raise UsageError(f"{name}: {found} values for {rows} candidates; give one for each")
        if len(set(self.ids)) != rows:
            twice = next(i for i, times in Counter(self.ids).items() if times > 1)
            raise UsageError(f"ids: {twice!r} is there twice; ids must be unique")

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class PreRule:
    """Which correct candidates are taken before any draw: those of `source`, of `domain`, and of at least
    `least_length`; None: any."""

    source: str | None = None
    domain: str | None = None
    least_length: int | None = None


def preselected(c: Candidates, rules: Sequence[PreRule]) -> list[int]:
    """The places of all correct candidates that a rule takes, in the order of the rules, the longest of a
    rule first: what s1 and s1_code get as `first`.

    s1 (arXiv 2501.19393 §2.2) took all correct AIME and GPQA questions and the correct MATH questions with
    more than 5,600 tokens of thinking (`least_length` 5601), 384 in all.
    Raises UsageError when the candidates do not say what is correct, or, for a rule with a source, where they
    come from."""
    if rules and len(c.correct) != len(c):
        raise UsageError("correct: a rule for what is taken first needs it for each candidate")
    if len(c.sources) != len(c) and any(rule.source is not None for rule in rules):
        raise UsageError("sources: a rule for what is taken first names one; give one for each candidate")
    order = [place for place in _longest_first(c, range(len(c))) if c.correct[place]] if rules else []
    found: dict[int, None] = {}
    for rule in rules:
        for place in order:
            if (
                (rule.source is None or c.sources[place] == rule.source)
                and (rule.domain is None or c.domains[place] == rule.domain)
                and (rule.least_length is None or c.lengths[place] >= rule.least_length)
            ):
                found[place] = None
    return list(found)


def s1(c: Candidates, target: int, seed: int, *, first: Sequence[int] = ()) -> list[int]:
    """Algorithm 1 of s1 (Muennighoff et al. 2025, arXiv 2501.19393 §2.2): a domain uniformly among those with
    candidates left; within it one of rank r (the longest has rank 0) with weight 2^-r; until `target`.

    The places in `first` come before all draws and count. The first k of a longer choice are the choice of k.
    We differ in nothing but ties in length, which the paper leaves open: the smaller id is the longer one.
    Raises UsageError for a `target` below 1, and for a place in `first` that is none or is there twice."""
    goal = _goal(c, target)
    pools = _Pools(c, first)
    rng = _rng("s1", seed)
    chosen = list(first[:goal])
    _fill(chosen, goal, lambda: pools.take(pools.uniform(rng), _halving(rng)))
    return chosen


def s1_code(
    c: Candidates,
    target: int,
    seed: int,
    weights: Mapping[str, float],
    *,
    uniform: float = 0.7,
    first: Sequence[int] = (),
) -> list[int]:
    """What the published code of s1 does (data/filter.ipynb): like `s1` until the share `uniform` of `target`
    is chosen (700 of 1,000, `first` counted), then the domain is drawn by `weights` (see `benchmark_weights`)
    among those with candidates left.

    Domains without a weight get nothing in the second part, until all that have one are empty: from there on
    it is uniform again, where the published code has no rule. As long as it is uniform it chooses what `s1`
    chooses with the same seed.
    Raises UsageError as `s1`, and for a share outside 0 to 1, a weight that is negative or not finite, and
    weights of which none above 0 belongs to a domain of the candidates."""
    if not 0 <= uniform <= 1:
        raise UsageError(f"uniform is {uniform}; it is a share of the target, 0 to 1")
    for domain, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise UsageError(f"weights: {domain!r} has {weight}; a weight is finite and not negative")
    if len(c) and not any(weights.get(domain, 0) > 0 for domain in c.domains):
        raise UsageError(
            "weights: no candidate is of a domain with a weight above 0; use the same labels for both"
        )
    goal = _goal(c, target)
    pools = _Pools(c, first)
    rng = _rng("s1", seed)
    chosen = list(first[:goal])
    _fill(chosen, min(goal, round(uniform * target)), lambda: pools.take(pools.uniform(rng), _halving(rng)))
    _fill(chosen, goal, lambda: pools.take(pools.weighted(rng, weights), _halving(rng)))
    return chosen


def benchmark_weights(
    domains_by_benchmark: Mapping[str, Mapping[str, int]], shares: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Weights of domains (they sum to 1) from the number of questions of each domain in each benchmark. A
    benchmark weighs as `shares` says, however many questions it has; without `shares` all weigh the same. s1
    has {aime: 1, gpqa: 0.5}.

    Raises UsageError for a benchmark without questions, a negative count or share, and shares that name other
    benchmarks."""
    if shares is None:
        shares = dict.fromkeys(domains_by_benchmark, 1.0)
    if odd := sorted(shares.keys() ^ domains_by_benchmark.keys()):
        raise UsageError(f"shares: {odd[0]!r} is not in both, shares and benchmarks; name the same ones")
    whole = sum(shares.values())
    if not (math.isfinite(whole) and whole > 0) or min(shares.values()) < 0:
        raise UsageError("shares: give each benchmark a share of 0 or more, and one of them more than 0")
    weights: dict[str, float] = {}
    for benchmark, counts in sorted(domains_by_benchmark.items()):
        if min(counts.values(), default=0) < 0 or not (total := sum(counts.values())):
            raise UsageError(f"benchmark {benchmark!r}: its domains need counts, none negative and not all 0")
        for domain, count in sorted(counts.items()):
            weights[domain] = weights.get(domain, 0.0) + shares[benchmark] / whole * count / total
    return weights


def uniform_domains(c: Candidates, target: int, seed: int) -> list[int]:
    """A domain uniformly among those with candidates left, then one of its candidates uniformly: what s1
    compares with as diverse only (arXiv 2501.19393 §5.1). The first k of a longer choice are the choice of
    k."""
    pools = _Pools(c, ())
    rng = _rng("uniform_domains", seed)
    chosen: list[int] = []
    _fill(chosen, _goal(c, target), lambda: pools.take(pools.uniform(rng), rng.randrange))
    return chosen


def at_random(c: Candidates, target: int, seed: int) -> list[int]:
    """Uniformly among all. The first k of a longer choice are the choice of k."""
    order = _by_id(c)
    rng = _rng("at_random", seed)
    goal = _goal(c, target)
    for place in range(goal):  # the first `goal` steps of a Fisher-Yates shuffle
        other = rng.randrange(place, len(order))
        order[place], order[other] = order[other], order[place]
    return order[:goal]


def longest(c: Candidates, target: int) -> list[int]:
    """The longest first; of equally long ones the smaller id."""
    return _longest_first(c, range(len(c)))[: _goal(c, target)]


def everything(c: Candidates) -> list[int]:
    """All of them, by id."""
    return _by_id(c)


def long_short(
    c: Candidates, target: int, seed: int, long: int = 1, short: int = 4, border: int | None = None
) -> list[int]:
    """`long` long ones for `short` short ones, share after share, as `train.mixing` mixes traces (Li et al.
    2025, arXiv 2502.12143); longer than `border` is long, without a `border` than the median. As many whole
    shares as there are, and as go into `target`: the result may be smaller.

    Raises UsageError when there is not one share, or `target` is smaller than one."""
    _goal(c, target)
    if not len(c):
        return []
    order = _by_id(c)
    lengths: list[int] = c.lengths[order].tolist()
    drawn = shares_of(
        lengths, long=long, short=short, border=border, seed=f"tutelage long_short {seed}", at_most=target
    )
    chosen: list[int] = []
    for share in range(len(drawn.long) // long):
        chosen += drawn.long[share * long : (share + 1) * long]
        chosen += drawn.short[share * short : (share + 1) * short]
    return [order[place] for place in chosen]


class _Pools:
    """The candidates left in each domain, the longest last so that taking one near it moves little."""

    def __init__(self, c: Candidates, first: Sequence[int]) -> None:
        taken = set(first)
        if len(taken) != len(first) or any(not 0 <= place < len(c) for place in taken):
            raise UsageError(f"first: give places below {len(c)}, none of them twice")
        order = _longest_first(c, (place for place in range(len(c)) if place not in taken))
        self._left: dict[str, list[int]] = {}
        for place in reversed(order):
            self._left.setdefault(c.domains[place], []).append(place)
        self._domains = sorted(self._left)

    def uniform(self, rng: random.Random) -> str:
        return self._domains[rng.randrange(len(self._domains))]

    def weighted(self, rng: random.Random, weights: Mapping[str, float]) -> str:
        """A domain by its weight; uniformly where none that is left has one."""
        having = [domain for domain in self._domains if weights.get(domain, 0) > 0]
        if not having:
            return self.uniform(rng)
        ends = list(accumulate(weights[domain] for domain in having))
        at = bisect_right(ends, rng.random() * ends[-1])
        return having[min(at, len(having) - 1)]  # the product may round up to the end

    def take(self, domain: str, rank: Callable[[int], int]) -> int:
        """Take the candidate of `domain` whose rank `rank` draws from how many are left there."""
        left = self._left[domain]
        place = left.pop(-1 - rank(len(left)))
        if not left:
            self._domains.remove(domain)
        return place


def _halving(rng: random.Random) -> Callable[[int], int]:
    """Draws a rank below `count` with weights 2^-rank, exactly: the number of tails before the first head has
    them without an end, and what is beyond the end is drawn anew (at most every second time)."""

    def rank(count: int) -> int:
        while True:
            tails = 0
            while tails < count and rng.getrandbits(1):
                tails += 1
            if tails < count:
                return tails

    return rank


def _rng(method: str, seed: int) -> random.Random:
    # From a text, not from its hash(): `random` digests it by SHA-512, the same in every process.
    return random.Random(f"tutelage {method} {seed}")


def _goal(c: Candidates, target: int) -> int:
    if target < 1:
        raise UsageError(f"target is {target}; it must be at least 1")
    return min(target, len(c))


def _fill(chosen: list[int], goal: int, draw: Callable[[], int]) -> None:
    while len(chosen) < goal:
        chosen.append(draw())


def _by_id(c: Candidates) -> list[int]:
    return sorted(range(len(c)), key=c.ids.__getitem__)


def _longest_first(c: Candidates, places: Sequence[int] | Iterator[int]) -> list[int]:
    lengths: list[int] = c.lengths.tolist()
    return sorted(places, key=lambda place: (-lengths[place], c.ids[place]))
