"""What k attempts are worth: pass@k and maj@k from n >= k recorded attempts at one question.

Promises: unbiased expectations over all subsets of k attempts without replacement, not the luck of the first
k; exact wherever that is cheap, else seeded resampling. Both work on one question: average over questions,
and put the interval around that with `statistics.cluster_bootstrap`.
Does not: canonicalise answers (the checker's `extracted` text is the input) or judge them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from tutelage.errors import UsageError

# Exact maj@k costs about n·k·k additions of integers; 100,000 is some 30 ms a question on one slow core.
_EXACT = 100_000
_DRAWS = 4000


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that at least one of k attempts is right, from c right among n recorded.

    1 − C(n−c, k)/C(n, k) = 1 − Π_{j=n−c+1..n} (1 − k/j); 1 when n − c < k.
    Source: Chen et al., arXiv:2107.03374, equation 1. Raises UsageError unless 1 <= k <= n, 0 <= c <= n."""
    _check_k(n, k, "pass@k")
    if not 0 <= c <= n:
        raise UsageError(f"pass@k: {c} right out of {n} attempts is impossible")
    if n - c < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / j for j in range(n - c + 1, n + 1))


def majority_at_k(answers: Sequence[str | None], correct: Sequence[bool], k: int, seed: int = 0) -> float:
    """Expected accuracy of a majority vote among k attempts drawn without replacement from the n given.

    `answers` are canonical (equal strings vote together); None means no answer and never wins, so k attempts
    without any answer are wrong. `correct[i]` says whether answers[i] is right; equal answers must agree, and
    several different answers may be right.
    Tie rule: that of `think.vote.vote`, the answer that came first wins. Over all orders of the k attempts
    each tied answer is first equally often, so a tie of t answers counts 1/t for each: the value used here.
    Exact: Σ over right answers g and votes m of C(c_g, m) · Σ_t W(m, t)/(1 + t) / C(n, k), with W the number
    of ways to draw the other k − m attempts so that t rivals have exactly m votes and none has more. Where
    that is dear (n·k² over 100,000), the mean of 4,000 draws seeded by `seed` (standard error ≤ 0.008).
    Source: self-consistency, Wang et al., arXiv:2203.11171, section 2; expectation instead of one vote.
    Raises UsageError unless 1 <= k <= n, the two sequences fit, and `correct` agrees for equal answers."""
    n = len(answers)
    _check_k(n, k, "maj@k")
    if len(correct) != n:
        raise UsageError(f"maj@k: {n} answers but {len(correct)} judgements")
    right: dict[str, bool] = {}
    for answer, is_right in zip(answers, correct, strict=True):
        if answer is not None and right.setdefault(answer, bool(is_right)) != bool(is_right):
            raise UsageError(
                f"maj@k: the answer {answer[:60]!r} is judged both right and wrong; canonicalise first"
            )
    counts = Counter(answer for answer in answers if answer is not None)
    if not any(right.values()):
        return 0.0
    if n * k * k <= _EXACT:
        return _exact(counts, right, n, k)
    return _resampled(counts, right, n, k, seed)


def _exact(counts: Counter[str], right: dict[str, bool], n: int, k: int) -> float:
    silent = n - counts.total()
    favourable = 0.0
    # Right answers with equally many votes have the same chance; each distinct size is worked out once.
    for size, repeats in Counter(counts[answer] for answer, ok in right.items() if ok).items():
        rivals = sorted(counts.values())
        rivals.remove(size)
        for votes in range(1, min(size, k) + 1):
            ways = _rival_ways(rivals, silent, votes, k - votes)
            share = math.fsum(count / (1 + ties) / math.comb(n, k) for ties, count in enumerate(ways))
            favourable += repeats * math.comb(size, votes) * share
    return min(1.0, favourable)


def _rival_ways(rivals: Sequence[int], silent: int, votes: int, left: int) -> list[int]:
    """Ways to draw `left` more attempts from `rivals` (sizes) and `silent` ones so that no rival exceeds
    `votes`; entry t counts the ways in which t rivals have exactly `votes`."""
    most_ties = left // votes
    # ways[t][used]
    ways = [[0] * (left + 1) for _ in range(most_ties + 1)]
    for used in range(min(silent, left) + 1):
        ways[0][used] = math.comb(silent, used)
    for size in rivals:
        choose = [math.comb(size, m) for m in range(min(size, votes) + 1)]
        fresh = [[0] * (left + 1) for _ in range(most_ties + 1)]
        for ties in range(most_ties + 1):
            for used, count in enumerate(ways[ties]):
                if not count:
                    continue
                for m, factor in enumerate(choose[: left - used + 1]):
                    fresh[ties + (m == votes)][used + m] += count * factor
        ways = fresh
    return [row[left] for row in ways]


def _resampled(counts: Counter[str], right: dict[str, bool], n: int, k: int, seed: int) -> float:
    sizes = [*counts.values(), n - counts.total()]
    is_right = np.array([right[answer] for answer in counts])
    drawn = np.random.default_rng(seed).multivariate_hypergeometric(sizes, k, size=_DRAWS)[:, :-1]
    top = drawn.max(axis=1, keepdims=True)
    tied = (drawn == top) & (top > 0)
    return float(((tied & is_right).sum(axis=1) / np.maximum(tied.sum(axis=1), 1)).mean())


def _check_k(n: int, k: int, name: str) -> None:
    if n <= 0:
        raise UsageError(f"{name}: no attempts were recorded for this question")
    if not 1 <= k <= n:
        raise UsageError(f"{name}: k must lie between 1 and the {n} recorded attempts, not {k}")
