"""Pivotal tokens: the single places of a reply at which the probability of success changes most.

The search of Phi-4 (arXiv 2412.08905 §4.3, Fig. 4): the probability that a reply which begins with some ids
ends well is estimated from continuations; a stretch of a reply over which it changes by `gap` is split where
half of its log-probability lies, until one token is left.
Promises: prefixes are token ids and the key of what is remembered, so that no prefix is estimated twice and
none is ever tokenised again; what one level of the search needs, over all replies, is asked for in one call,
so that the engine is full; a place is reported only if fresh continuations (`confirm` on each side, never
those that led there) show the gap again, and only if the model itself chose its token; problems that nearly
always or hardly ever succeed are left out and counted.
Does not: decode or judge (the estimate is handed in), or train.

Why the fresh ones: of equal probabilities (one half), two estimates from n continuations differ by 0.2 or
more in 50 % of cases for n = 10, 10 % for 32, 2.7 % for 64; a search looks at many places and finds those.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tutelage.errors import UsageError
from tutelage.train.pairs import Ids, Pair, PairSet

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Estimate:
    """`successes` among `n` continuations of a prefix; `firsts` is for each id that came next (successes, n)
    of those continuations."""

    successes: int
    n: int
    firsts: Mapping[int, tuple[int, int]] = field(default_factory=dict)

    @property
    def p(self) -> float:
        """The share that succeeded."""
        return self.successes / self.n

    def plus(self, other: Estimate) -> Estimate:
        """Both together."""
        firsts = {
            token: (a[0] + b[0], a[1] + b[1])
            for token in {**self.firsts, **other.firsts}
            for a, b in [(self.firsts.get(token, (0, 0)), other.firsts.get(token, (0, 0)))]
        }
        return Estimate(self.successes + other.successes, self.n + other.n, firsts)


Prefix = tuple[str, Ids]
"""A problem's id, and the ids of the reply so far."""
Oracle = Callable[[Sequence[Prefix], int, int], Sequence[Estimate]]
"""(prefixes, n, round) -> one estimate each, from `n` continuations. Other rounds draw other ones."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A whole reply to search in. `free` marks the ids that the model chose, `logprobs` are their natural-log
    probabilities, `right` is its verdict."""

    problem_id: str
    trace_id: str
    prompt_ids: Ids
    ids: Ids
    free: tuple[bool, ...]
    logprobs: tuple[float, ...]
    right: bool


@dataclass(frozen=True, slots=True)
class Search:
    """`gap`: the least change of the probability; `estimate` continuations for the search and `confirm` fresh
    ones for each side of a place found; problems succeed with a probability within `band`."""

    gap: float = 0.2
    estimate: int = 32
    confirm: int = 64
    band: tuple[float, float] = (0.2, 0.8)

    def __post_init__(self) -> None:
        if not 0 < self.gap < 1:
            raise UsageError(f"gap is {self.gap:g}; it must lie between 0 and 1")
        if self.estimate < 1 or self.confirm < 64:
            raise UsageError(
                f"estimate {self.estimate}, confirm {self.confirm}: at least 1 and at least 64 are needed "
                "(of places without any change 10 % would be confirmed with 32)"
            )
        if not 0 <= self.band[0] <= self.band[1] <= 1:
            raise UsageError(f"band is {list(self.band)}; it must be two rising shares")


@dataclass(frozen=True, slots=True)
class Stretch:
    """Ids `first` up to (not with) `last` of attempt number `attempt`."""

    attempt: int
    first: int
    last: int


def reaches(change: float, gap: float) -> bool:
    """Whether a probability changes by `gap` or more: 0.8 to 1 is 0.2, also in floating point."""
    return abs(change) >= gap - 1e-9


def midpoint(weights: Sequence[float]) -> int:
    """Where to split a stretch of at least two tokens: after so many of them. `weights` are minus their
    log-probabilities; both parts get as nearly half of the sum as tokens allow, and at least one token. Where
    the sum is 0 (all of them certain) it is half the length."""
    if len(weights) < 2:
        raise ValueError("one token cannot be split")
    total = sum(weights)
    if total <= 0:
        return len(weights) // 2
    passed, best, nearest = 0.0, 1, float("inf")
    for at, weight in enumerate(weights[:-1], start=1):
        passed += weight
        if abs(passed - total / 2) < nearest:
            best, nearest = at, abs(passed - total / 2)
    return best


class Memory:
    """Estimates by prefix. What is asked for together and not known yet goes to the oracle in one call."""

    def __init__(self, oracle: Oracle, n: int, progress: Progress | None = None) -> None:
        self.oracle, self.n, self.progress = oracle, n, progress
        self.known: dict[Prefix, Estimate] = {}
        self.calls = self.hits = 0

    def learn(self, prefixes: Iterable[Prefix]) -> None:
        """Make sure that these are known."""
        asked = list(prefixes)
        wanted = [each for each in dict.fromkeys(asked) if each not in self.known]
        self.hits += len(asked) - len(wanted)
        if wanted:
            found = self.oracle(wanted, self.n, self.calls)
            self.known.update(zip(wanted, found, strict=True))
            self.calls += 1
            if self.progress is not None:
                self.progress(len(self.known), len(self.known), f"{len(self.known)} prefixes estimated")

    def __getitem__(self, prefix: Prefix) -> Estimate:
        return self.known[prefix]


def subdivide(attempts: Sequence[Attempt], memory: Memory, gap: float) -> Iterator[Stretch]:
    """The stretches that the replies fall into: those over which the probability changes by less than `gap`,
    and single tokens (Subdivide of §4.3, for all attempts at once, level by level)."""
    open_ = [Stretch(number, 0, len(each.ids)) for number, each in enumerate(attempts) if each.ids]
    for each in attempts:  # the end is known: the reply is whole and has its verdict
        memory.known[_prefix(each, len(each.ids))] = Estimate(int(each.right), 1)
    while open_:
        memory.learn(_prefix(attempts[one.attempt], at) for one in open_ for at in (one.first, one.last))
        deeper: list[Stretch] = []
        for one in open_:
            attempt = attempts[one.attempt]
            before, after = (memory[_prefix(attempt, at)].p for at in (one.first, one.last))
            if one.last - one.first <= 1 or not reaches(after - before, gap):
                yield one
                continue
            free, logprobs = attempt.free[one.first : one.last], attempt.logprobs[one.first : one.last]
            weights = [-logprob if own else 0.0 for logprob, own in zip(logprobs, free, strict=True)]
            split = one.first + midpoint(weights)
            deeper += [Stretch(one.attempt, one.first, split), Stretch(one.attempt, split, one.last)]
        open_ = deeper


def _prefix(attempt: Attempt, length: int) -> Prefix:
    return attempt.problem_id, attempt.ids[:length]


def pivotal_pairs(
    attempts: Sequence[Attempt],
    oracle: Oracle,
    search: Search,
    *,
    per_problem: int | None = None,
    progress: Progress | None = None,
) -> PairSet:
    """A pair of single tokens for every pivotal place: after the same ids, one that raises the probability of
    success and one that lowers it, both drawn by the model. Of each problem at most `per_problem` are kept,
    those whose tokens differ most in it.

    The other token is the one that, among all continuations drawn from before the place, went with the most
    successes (or failures) beyond what their number makes likely (footnote 7: the rollouts that estimated the
    prefix serve); its own probability is then estimated with fresh continuations, and must lie on the other
    side of that before the place. Counts of all that was left out, and of the work, are in `left_out`."""
    count: Counter[str] = Counter()
    memory = Memory(oracle, search.estimate, progress)
    memory.learn(_prefix(each, 0) for each in attempts)
    low, high = search.band
    within = [each for each in attempts if low <= memory[_prefix(each, 0)].p <= high]
    count["replies outside the band"] = len(attempts) - len(within)
    found = []
    for stretch in subdivide(within, memory, search.gap):
        attempt = within[stretch.attempt]
        before, after = (memory[_prefix(attempt, at)].p for at in (stretch.first, stretch.last))
        if not reaches(after - before, search.gap):
            continue
        count["candidates"] += 1
        if attempt.free[stretch.first]:
            found.append((attempt, stretch.first))
        else:
            count["written by the policy"] += 1
    fresh = Memory(oracle, search.confirm, progress)
    fresh.calls = memory.calls  # rounds go on: nothing drawn so far is drawn again
    pairs = list(_confirmed(found, memory, fresh, search.gap, count))
    kept = _furthest(pairs, per_problem)
    count["beyond per_problem"] = len(pairs) - len(kept)
    count["prefixes"] = len(memory.known) + len(fresh.known)
    count["remembered"] = memory.hits + fresh.hits
    return PairSet(kept, left_out=dict(count))


def _furthest(pairs: Sequence[Pair], per_problem: int | None) -> list[Pair]:
    """At most `per_problem` pairs of each problem, in their order."""
    ranked = sorted(pairs, key=lambda pair: pair.evidence["p_rejected"] - pair.evidence["p_chosen"])
    taken: Counter[str] = Counter()
    kept: set[int] = set()
    for pair in ranked:
        taken[pair.problem_id] += 1
        if per_problem is None or taken[pair.problem_id] <= per_problem:
            kept.add(id(pair))
    return [pair for pair in pairs if id(pair) in kept]


def _confirmed(
    found: Sequence[tuple[Attempt, int]],
    memory: Memory,
    fresh: Memory,
    gap: float,
    count: Counter[str],
) -> Iterator[Pair]:
    """The pairs of those places that fresh continuations confirm, each pair once."""
    fresh.learn(_prefix(attempt, at + side) for attempt, at in found for side in (0, 1))
    kept: list[tuple[Attempt, int, int]] = []
    for attempt, at in found:
        before, after = (fresh[_prefix(attempt, at + side)] for side in (0, 1))
        if not reaches(after.p - before.p, gap):
            count["not confirmed"] += 1
            continue
        drawn = memory[_prefix(attempt, at)].plus(before)
        other = other_token(drawn, attempt.ids[at], rises=after.p > before.p)
        if other is None:
            count["no other token drawn"] += 1
        else:
            kept.append((attempt, at, other))
    fresh.learn((attempt.problem_id, (*attempt.ids[:at], other)) for attempt, at, other in kept)
    seen: set[tuple[Prefix, int, int]] = set()
    for attempt, at, other in kept:
        token = attempt.ids[at]
        before, after = (fresh[_prefix(attempt, at + side)] for side in (0, 1))
        beside = fresh[attempt.problem_id, (*attempt.ids[:at], other)]
        rises = after.p > before.p
        if beside.p >= before.p if rises else beside.p <= before.p:
            count["the other token is on the same side"] += 1
            continue
        chosen, rejected = (token, other) if rises else (other, token)
        key = (_prefix(attempt, at), chosen, rejected)
        if key in seen:
            count["the same pair again"] += 1
            continue
        seen.add(key)
        good, bad = (after, beside) if rises else (beside, after)
        yield Pair(
            problem_id=attempt.problem_id,
            prompt_ids=(*attempt.prompt_ids, *attempt.ids[:at]),
            chosen_ids=(chosen,),
            rejected_ids=(rejected,),
            chosen_free=(True,),
            rejected_free=(True,),
            method="pivotal",
            chosen_trace=attempt.trace_id,
            rejected_trace=attempt.trace_id,
            evidence={
                "place": at,
                "found": "chosen" if rises else "rejected",
                "p_before": before.p,
                "p_chosen": good.p,
                "p_rejected": bad.p,
                "n": before.n,
            },
        )


def other_token(drawn: Estimate, token: int, *, rises: bool) -> int | None:
    """Of the ids that came next in the continuations `drawn` and are not `token`: where `token` raises the
    probability the one with the most failures beyond n times the share of failures, where it lowers it the
    one with the most successes beyond; None where no other id leans that way."""
    leaning: dict[int, float] = {}
    for other, (successes, n) in drawn.firsts.items():
        if other != token:
            leaning[other] = (drawn.p * n - successes) * (1 if rises else -1)
    best = max(leaning, key=lambda other: (leaning[other], -other), default=None)
    return best if best is not None and leaning[best] > 0 else None


def told(pairs: Sequence[Pair]) -> dict[str, Any]:
    """What a report says of pivotal pairs: the mean probabilities before, with the chosen and with the
    rejected token (None: no pair)."""
    n = len(pairs)
    return {
        name: round(sum(pair.evidence[name] for pair in pairs) / n, 4) if n else None
        for name in ("p_before", "p_chosen", "p_rejected")
    }
