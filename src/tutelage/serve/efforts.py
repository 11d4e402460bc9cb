"""Effort words: what `reasoning_effort` means in tokens of thinking, or in loops.

Promises: by default a larger word is never less effort; `none` is no thinking, in loops a single one; the
table can be set, and a wrong setting is refused by name.
Does not: read requests (see `fields`).

One unit for all words. A model that thinks in tokens has them in tokens, also when it has loops (the client's
`num_steps` is there for these); a recurrent-depth model without thinking has them in loops. `--effort-in`
says it otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tutelage.errors import UsageError
from tutelage.serve.source import Depth

Unit = Literal["tokens", "loops"]
UNLIMITED = -1
# The budgets that harnesses publish for the words, and the share of the context that they may take of a small
# model's.
_TOKENS = {
    "minimal": (2048, 1 / 16),
    "low": (4096, 1 / 8),
    "medium": (10000, 1 / 4),
    "high": (16000, 1 / 2),
    "xhigh": (32000, 3 / 4),
    "max": (32000, 3 / 4),
}
# Multiples of the mean that training sampled depths around; "max" is all that the model allows.
_LOOPS = {"minimal": 0.25, "low": 0.5, "medium": 1.0, "high": 2.0, "xhigh": 4.0}
WORDS = ("none", *_TOKENS)


@dataclass(frozen=True, slots=True)
class Efforts:
    """`words`: how much each effort word is, in `unit` (tokens: -1 for no limit; loops: 1 or more)."""

    words: Mapping[str, int]
    unit: Unit = "tokens"


def default_efforts(context: int) -> Efforts:
    """Tokens of thinking of each effort word for a model with a context of `context` tokens."""
    return Efforts(
        {"none": 0, **{word: min(most, int(share * context)) for word, (most, share) in _TOKENS.items()}}
    )


def default_loops(depth: Depth) -> Efforts:
    """Loops of each effort word for a model of that `depth`."""
    some = {word: min(max(int(share * depth.mean), 1), depth.most) for word, share in _LOOPS.items()}
    return Efforts({"none": 1, **some, "max": depth.most}, "loops")


def parse_settings(settings: Sequence[str]) -> dict[str, int]:
    """What `word=amount` settings say, whatever the unit. Raises UsageError for one that is not so."""
    found: dict[str, int] = {}
    for setting in settings:
        for item in setting.split(","):
            word, _, value = item.strip().partition("=")
            if word not in WORDS or not value.removeprefix("-").isdecimal() or int(value) < UNLIMITED:
                raise UsageError(
                    f"--effort {item!r}: write WORD=NUMBER (tokens, -1: no limit; or loops) with one of "
                    f"{', '.join(WORDS)}"
                )
            found[word] = int(value)
    return found


def read_efforts(
    settings: Sequence[str],
    context: int,
    *,
    thinks: bool = True,
    depth: Depth | None = None,
    unit: Unit | None = None,
) -> Efforts:
    """The effort words of a model with their `word=amount` settings, in `unit` (None: see the module).
    `thinks`: whether it thinks in tokens; `depth`: its loops. Raises UsageError for what it cannot do."""
    given = parse_settings(settings)
    if unit == "loops" and depth is None:
        raise UsageError("--effort-in loops: this model is not passed through again; leave it out")
    if unit == "tokens" and not thinks:
        raise UsageError("--effort-in tokens: this model does not think before it answers; leave it out")
    if unit == "tokens" or depth is None or (unit is None and thinks):
        return Efforts({**default_efforts(context).words, **given})
    for word, loops in given.items():
        if not 1 <= loops <= depth.most:
            raise UsageError(f"--effort {word}={loops}: this model makes 1 to {depth.most} loops")
    return Efforts({**default_loops(depth).words, **given}, "loops")
