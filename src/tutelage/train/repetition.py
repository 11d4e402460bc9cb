"""How much a reply repeats itself, in n-grams of token ids.

Promises: between -1 and 0 for any ids, also for a loop of one token.
Does not: read text, or weigh (see `rewards`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tutelage.errors import UsageError

WIDTH = 5
OFTEN = 5


def repetition(ids: Sequence[int], *, width: int = WIDTH, often: int = OFTEN) -> float:
    """-max(share of n-grams, distinct ones that occur more than `often` times over all, and the frequency of
    the most frequent one over tokens / `width`), at least -1; 0 for fewer ids than one n-gram has.

    The repetition term of Phi-4-reasoning-plus (arXiv 2504.21318 §4.2), over token ids. Clamped here: the
    second part is 1 for a loop of `width` tokens, but about `width` for a loop of one. It was made for
    replies of thousands of tokens: a reply of n tokens that repeats nothing still earns -`width` / n. Raises
    UsageError for counts below 1."""
    if width < 1 or often < 1:
        raise UsageError(f"repetition: width {width} and often {often} must be at least 1")
    grams = Counter(tuple(ids[place : place + width]) for place in range(len(ids) - width + 1))
    if not grams:
        return 0.0
    frequent = sum(count > often for count in grams.values()) / grams.total()
    loop = max(grams.values()) / (len(ids) / width)
    return -min(1.0, max(frequent, loop))
