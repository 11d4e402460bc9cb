"""Majority vote over canonical answers.

Promises: the answer with the most votes wins; a tie goes to the answer that was given first, so that the
result is a function of the samples in their order; no answer (None) never wins and never breaks a tie.
Does not: canonicalise (the checkers do), or estimate accuracy over draws of k samples (see `measure.at_k`).

Source: self-consistency, Wang et al. 2022 (arXiv 2203.11171), section 2, unweighted sum.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def majority(answers: Sequence[str | None]) -> str | None:
    """The winning answer, None when no sample gave one."""
    # Counter keeps first-seen order and max takes the first of equals: that is the tie rule.
    votes = Counter(answer for answer in answers if answer is not None)
    return max(votes, key=votes.__getitem__) if votes else None
