"""LIMO's quality score of a trace: length, and how often it checks, weighs and connects.

Promises: a text of any kind is read once, in linear time; a score lies in 0 to 1 and depends only on the set
compared, not on its order; of two traces, one that is ahead on all four terms has the higher score.
Does not: understand the text. A trace that repeats such words, or loops, scores high: choose among correct
and finished ones. It knows English words only; in another language the length alone decides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WEIGHTS = {"length": 0.30, "verification": 0.20, "tentative": 0.25, "connectives": 0.25}
"""Ye et al. 2025, arXiv 2502.03387 v3, the section on the construction of reasoning chains."""

_VERIFICATION = (
    "check verify checks checked checking recheck rechecking verifies verified verifying verification "
    "confirm confirms confirmed confirming validate validated validating test tests tested testing"
)
_TENTATIVE = (
    "perhaps might maybe possibly probably presumably apparently seems seem suppose guess wonder "
    "alternatively could unsure hmm"
)
_CONNECTIVES = (
    "therefore since thus hence because so consequently accordingly thereby whence implies then whereas "
    "otherwise"
)
KINDS: dict[str, int] = {
    word: kind
    for kind, words in enumerate((_VERIFICATION, _TENTATIVE, _CONNECTIVES))
    for word in words.split()
}
"""The words that count, and of which kind. The lists are our own: the paper gives two examples of each kind,
which are the first ones here ("check", "verify"; "perhaps", "might"; "therefore", "since")."""
_WORD = re.compile(r"[^\W_]+")
_LONGEST = max(map(len, KINDS))


@dataclass(frozen=True, slots=True)
class Features:
    """What the score needs of one text: its number of words, and how many of them are of each kind."""

    words: int
    verification: int
    tentative: int
    connectives: int


def features(text: str) -> Features:
    """The features of `text`. A word is a run of letters and digits; case does not matter."""
    counts = [0, 0, 0]
    words = 0
    for match in _WORD.finditer(text):
        words += 1
        if match.end() - match.start() <= _LONGEST:
            kind = KINDS.get(match.group().lower())
            if kind is not None:
                counts[kind] += 1
    return Features(words, *counts)


def scores(compared: Sequence[Features]) -> list[float]:
    """The score of each of `compared`, 0 to 1: 30 % length, 20 % verification, 25 % tentative words, 25 %
    connectives, the last three as a share of the words (LIMO, arXiv 2502.03387 v3).

    The paper does not say how terms of such different size are brought together. Here a term counts as the
    share of the others that it beats, where a tie is half a win: only the order matters, so that one endless
    or odd text does not press all others together, as it would with least and greatest as 0 and 1. So a score
    is how likely the trace is ahead of another one of the set, and scores of two sets cannot be compared. The
    mean over a set is 0.5, and so is the score of one alone."""
    terms: tuple[tuple[str, Callable[[Features], float]], ...] = (
        ("length", lambda found: found.words),
        ("verification", lambda found: found.verification / max(1, found.words)),
        ("tentative", lambda found: found.tentative / max(1, found.words)),
        ("connectives", lambda found: found.connectives / max(1, found.words)),
    )
    total = np.zeros(len(compared))
    for name, term in terms:
        total += WEIGHTS[name] * _beaten(np.array([term(found) for found in compared], np.float64))
    return [float(score) for score in total]


def _beaten(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The share of the others that each value beats, ties half: its rank from 0 to 1."""
    if len(values) < 2:
        return np.full(len(values), 0.5)
    order = np.sort(values)
    below = np.searchsorted(order, values, "left")
    not_above = np.searchsorted(order, values, "right")
    return (below + not_above - 1) / 2 / (len(values) - 1)
