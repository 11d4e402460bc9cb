"""The groups of one step: replies drawn, graded, oversampled, rebalanced, filtered and refilled.

Promises: what is drawn and chosen depends on the arguments alone; a problem is drawn from until its group has
right and wrong replies, or `oversample` of them were drawn; a problem that teaches nothing is replaced by the
next candidate, and counted with its reason; grading runs beside decoding.
Does not: decode (it is handed `replies`), grade (see `grading`), or train.
"""

from __future__ import annotations

import random
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from tutelage.errors import UsageError
from tutelage.records import Problem, Trace
from tutelage.train.grading import Graded, Grader, Ticket
from tutelage.train.groups import SPREAD, choose, wants_more
from tutelage.train.rewards import Unrewarded, finished, reply_tokens
from tutelage.train.rollouts import Rollout

Replies = Callable[[Sequence[Problem], int, Callable[[int, Rollout], None]], list[Rollout]]
"""(problems, round, each) -> `size` rollouts of each problem, problem by problem; `each` is told the
number and the rollout as soon as one is there."""


@dataclass(frozen=True, slots=True)
class Grouping:
    """`size` replies to a problem come together (G). At most `oversample` are drawn for one problem while its
    group lacks right or wrong ones; `balance` and `drop_above`: see `groups.choose`. At most `tries` times as
    many problems as are wanted are looked at in one step. Raises UsageError for numbers that cannot work."""

    size: int = 8
    oversample: int = 32
    balance: bool = True
    drop_above: float = 0.5
    tries: int = 4

    def __post_init__(self) -> None:
        if self.size < 2 or (self.balance and self.size % 2):
            raise UsageError(f"group is {self.size}; it must be at least 2, and even where balance is on")
        if self.oversample < self.size:
            raise UsageError(f"oversample is {self.oversample}, fewer replies than the group of {self.size}")
        if self.tries < 1:
            raise UsageError(f"tries is {self.tries}; it must be at least 1")


@dataclass(frozen=True, slots=True)
class Member:
    """One row of a group."""

    rollout: Rollout
    reward: float
    right: bool


@dataclass(slots=True)
class _Pool:
    """What was drawn for one problem."""

    problem: Problem
    rollouts: list[Rollout] = field(default_factory=list)
    graded: list[Graded] = field(default_factory=list)

    def told(self) -> list[Member]:
        return [
            Member(rollout, graded.reward, graded.right)
            for rollout, graded in zip(self.rollouts, self.graded, strict=True)
            if graded.reward is not None
        ]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A step's groups (fewer than wanted where the candidates or tries ran out), and everything that was
    drawn for them: the problems looked at, why some were left out, and the graded replies."""

    groups: list[list[Member]]
    wanted: int
    size: int
    pools: list[_Pool]
    dropped: Counter[str]

    def totals(self) -> dict[str, float]:
        """Counts, to be added up over steps."""
        graded = [each for pool in self.pools for each in pool.graded]
        return {
            "replies": len(graded),
            "problems": len(self.pools),
            "discarded": self.dropped.total(),
            "missing_groups": self.wanted - len(self.groups),
            "late_rewards": sum(each.late for each in graded),
            "unrewarded": sum(each.reward is None for each in graded),
        }

    def numbers(self) -> dict[str, float]:
        """What a step's row of the log says of it. Shares are of the problems looked at, or of the replies
        drawn; `zero_spread` is the share of problems whose first `size` rewards are all the same."""
        totals = self.totals()
        replies, problems = totals["replies"], totals["problems"]
        told = [member for pool in self.pools for member in pool.told()]
        graded = [each for pool in self.pools for each in pool.graded]
        traces = [rollout.trace for pool in self.pools for rollout in pool.rollouts]
        found = {
            "oversampling": replies / (self.wanted * self.size),
            "discarded": totals["discarded"] / problems,
            "zero_spread": statistics.fmean(_flat(pool, self.size) for pool in self.pools),
            "missing_groups": totals["missing_groups"],
            "late": totals["late_rewards"] / replies,
            "unrewarded": totals["unrewarded"] / replies,
            "unfinished": statistics.fmean(not finished(trace) for trace in traces),
        }
        found |= {f"dropped/{name}": count / problems for name, count in sorted(self.dropped.items())}
        methods = Counter(each.method for each in graded if each.method)
        found |= {f"path/{name}": count / replies for name, count in sorted(methods.items())}
        lengths = [count for trace in traces if (count := _length(trace)) is not None]
        if lengths:
            found["tokens"] = statistics.fmean(lengths)
        if told:
            found["right"] = statistics.fmean(member.right for member in told)
            found["reward"] = statistics.fmean(member.reward for member in told)
        for name in sorted({name for each in graded for name in each.parts}):
            found[f"reward/{name}"] = statistics.fmean(
                each.parts[name] for each in graded if name in each.parts
            )
        return {f"drawn/{name}": float(value) for name, value in found.items()}


def draw_groups(
    wanted: int,
    candidates: Iterator[Problem],
    replies: Replies,
    grader: Grader,
    grouping: Grouping,
    seed: str,
) -> Drawn:
    """`wanted` groups from `candidates`, in rounds of `grouping.size` replies to each problem that is still
    looked at. Raises what `replies` and the grader raise."""
    pools: list[_Pool] = []
    groups: list[list[Member]] = []
    dropped: Counter[str] = Counter()
    most = wanted * grouping.tries
    waiting = _take(candidates, wanted)
    pools += waiting
    number = 0
    while waiting:
        _extend(waiting, replies, grader, grouping.size, number)
        number += 1
        still: list[_Pool] = []
        for pool in waiting:
            told = pool.told()
            rights = [member.right for member in told]
            if wants_more(rights, len(pool.graded), grouping.oversample, grouping.drop_above):
                still.append(pool)
                continue
            chosen = choose(
                rights,
                [member.reward for member in told],
                grouping.size,
                balance=grouping.balance,
                drop_above=grouping.drop_above,
                rng=random.Random(f"{seed}|{pool.problem.id}"),
            )
            if not isinstance(chosen, str):
                groups.append([told[row] for row in chosen])
                continue
            dropped[chosen] += 1
            if len(pools) < most:
                fresh = _take(candidates, 1)
                pools += fresh
                still += fresh
        waiting = still
    return Drawn(groups, wanted, grouping.size, pools, dropped)


def _take(candidates: Iterator[Problem], count: int) -> list[_Pool]:
    return [_Pool(problem) for problem in islice(candidates, count)]


def _extend(waiting: Sequence[_Pool], replies: Replies, grader: Grader, size: int, number: int) -> None:
    """Draw and grade `size` more replies for each of `waiting`."""
    problems = [pool.problem for pool in waiting]
    tickets: dict[int, Ticket] = {}

    def each(index: int, rollout: Rollout) -> None:
        tickets[index] = grader.submit(problems[index // size], rollout.trace)

    rollouts = replies(problems, number, each)
    graded = grader.results([tickets[index] for index in range(len(rollouts))])
    for index, pool in enumerate(waiting):
        pool.rollouts += rollouts[index * size : (index + 1) * size]
        pool.graded += graded[index * size : (index + 1) * size]


def _flat(pool: _Pool, size: int) -> bool:
    rewards = [each.reward for each in pool.graded[:size] if each.reward is not None]
    return not rewards or max(rewards) - min(rewards) <= SPREAD


def _length(trace: Trace) -> int | None:
    try:
        return reply_tokens(trace)
    except Unrewarded:
        return None
