"""Groups of replies to one problem: which to learn from, which problems to take, and how hot to sample.

Promises: pure functions; what is random takes its generator; the same arguments give the same group. A group
holds exactly the rows that were asked for.
Does not: sample, judge, or train (see `grpo`).

Oversample, rebalance, filter; uniform lengths; and the annealed temperature are the three changes that
Phi-4-Mini-Reasoning makes to GRPO (arXiv 2504.21233 §3.4). It keeps every right reply and samples as many
wrong ones; digests that turn this round are mistaken.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

Drop = Literal["too easy", "none right", "none wrong", "no spread", "no reward"]
SPREAD = 1e-6
"""Rewards closer together than this are the same: a group of them teaches nothing."""


def wants_more(rights: Sequence[bool], drawn: int, most: int, drop_above: float) -> bool:
    """Whether to draw more replies to a problem that has `drawn` of at most `most`: its graded replies lack
    right or wrong ones, and it is not too easy by what is known."""
    if drawn >= most:
        return False
    if not rights:
        return True
    return not any(rights) or (all(rights) and drop_above >= 1)


def choose(
    rights: Sequence[bool],
    rewards: Sequence[float],
    size: int,
    *,
    balance: bool,
    drop_above: float,
    rng: random.Random,
) -> tuple[int, ...] | Drop:
    """`size` rows of one problem's graded replies, as indices, or why the problem is left out.

    It is left out when its share of right replies exceeds `drop_above`, or all chosen rewards are the same.
    With `balance`, right and wrong rows are equally many: all right ones (at most `size` / 2, then a random
    choice) and as many random wrong ones, so that rewards of +1 and -1 give advantages of exactly +1 and -1.
    Fewer rows than `size` are repeated evenly: the group then weighs as one of `size` in the loss, and where
    `size` is a multiple of the rows its normalised loss is exactly theirs (else some, drawn at random, stand
    once more than the others). Without `balance` the first rows are taken; where they are all right, or all
    wrong, up to half of them give way to the first rows of the other kind."""
    if not rewards:
        return "no reward"
    if sum(rights) / len(rights) > drop_above:
        return "too easy"
    chosen = _balanced(rights, size, rng) if balance else _first(rights, size)
    if isinstance(chosen, str):
        return chosen
    values = [rewards[row] for row in chosen]
    return chosen if max(values) - min(values) > SPREAD else "no spread"


def _balanced(rights: Sequence[bool], size: int, rng: random.Random) -> tuple[int, ...] | Drop:
    good = [row for row, is_right in enumerate(rights) if is_right]
    bad = [row for row, is_right in enumerate(rights) if not is_right]
    if not good:
        return "none right"
    if not bad:
        return "none wrong"
    pairs = min(len(good), len(bad), size // 2)
    rows = []
    for kind in (good, bad):
        kept = sorted(rng.sample(kind, pairs))
        rows += kept * (size // 2 // pairs) + sorted(rng.sample(kept, size // 2 % pairs))
    return tuple(rows)


def _first(rights: Sequence[bool], size: int) -> tuple[int, ...]:
    rows = list(range(len(rights)))[:size]
    if len(set(rights[:size])) == 1 and len(set(rights)) == 2:
        other = [row for row, is_right in enumerate(rights) if is_right != rights[0]][: size // 2]
        rows = [*rows[: size - len(other)], *other]
    return tuple(rows[place % len(rows)] for place in range(size))


def annealed(step: int, steps: int, start: float, end: float) -> float:
    """The temperature of step `step` (from 0) of `steps`: linearly from `start` to `end` over the first half,
    then `end` (arXiv 2504.21233 §3.4: 1.0 to 0.6)."""
    half = steps / 2
    return end if step >= half else start + (end - start) * step / half


def uniform_length(lengths: Mapping[str, Sequence[Sequence[int]]], share: float) -> list[str]:
    """Of the problems with the `lengths` of their replies in tokens, round by round, the `share` whose
    replies vary least, in the order given; at least one.

    The criterion is not disclosed (arXiv 2504.21233 §3.4); here it is the standard deviation over the mean,
    averaged over the rounds, so that long problems are not left out for being long."""
    ranked = sorted(lengths, key=lambda name: statistics.fmean(_variation(one) for one in lengths[name]))
    kept = set(ranked[: max(1, round(share * len(ranked)))])
    return [name for name in lengths if name in kept]


def _variation(counts: Sequence[int]) -> float:
    mean = statistics.fmean(counts)
    return statistics.pstdev(counts) / mean if mean else 0.0


def in_turn(count: int, seed: int, start: int) -> Iterator[int]:
    """Numbers below `count`, endlessly, each once per epoch, in an order that depends on (`seed`, epoch)
    alone; from place `start` of that stream on."""
    epoch, place = divmod(start, count)
    while True:
        order = list(range(count))
        random.Random(f"{seed}|{epoch}").shuffle(order)
        yield from order[place:]
        epoch, place = epoch + 1, 0
