"""Effort words: what `reasoning_effort` means in tokens of thinking.

Promises: by default a larger word is never a smaller budget; `none` is no thinking; the table can be set, and
a wrong setting is refused by name.
Does not: read requests (see `fields`).
"""

from __future__ import annotations

from collections.abc import Sequence

from tutelage.errors import UsageError

UNLIMITED = -1
# The budgets that harnesses publish for the words, and the share of the context that they may take of a small
# model's.
_EFFORTS = {
    "minimal": (2048, 1 / 16),
    "low": (4096, 1 / 8),
    "medium": (10000, 1 / 4),
    "high": (16000, 1 / 2),
    "xhigh": (32000, 3 / 4),
    "max": (32000, 3 / 4),
}


def default_efforts(context: int) -> dict[str, int]:
    """Budget of each effort word for a model with `context` tokens."""
    return {"none": 0, **{word: min(most, int(share * context)) for word, (most, share) in _EFFORTS.items()}}


def read_efforts(settings: Sequence[str], context: int) -> dict[str, int]:
    """The table of effort words with `word=budget` settings. Raises UsageError for one that is not so."""
    efforts = default_efforts(context)
    for setting in settings:
        for item in setting.split(","):
            word, _, value = item.strip().partition("=")
            if word not in efforts or not value.removeprefix("-").isdecimal() or int(value) < UNLIMITED:
                known = ", ".join(efforts)
                raise UsageError(f"--effort {item!r}: write WORD=TOKENS (-1: no limit) with one of {known}")
            efforts[word] = int(value)
    return efforts
