"""Methods by name, as a recipe or a command writes them: `rejection:64`, `best-of:4`.

Promises: one spelling per method, the same in recipes and on the command line; a name or number that is not
one is refused with what there is.
Does not: run them (see `think.methods`), or cover budgets, waits and plain votes (see `grid`).

    token-conditional:TOKENS[:forced]    the question asks for so many tokens; forced: they are also a maximum
    step-conditional:STEPS[:forced]      steps are counted down; forced: thinking ends when none is left
    class-conditional:short|long         the question asks to think briefly, or long
    rejection:TOKENS[:TRIES]             drawn again until the thinking is at most so long
    weighted-vote:N                      a vote weighted by the mean probability of each reply
    best-of:N                            the likeliest of N replies
    pass:N                               an oracle: right if any of N replies is
    shortest-of-correct:N                an oracle: the right one of N replies that thought least
"""

from __future__ import annotations

from collections.abc import Callable

from tutelage.errors import UsageError
from tutelage.think.control import ClassConditional, RejectionSampling, TokenConditional
from tutelage.think.methods import Method
from tutelage.think.steps import StepConditional
from tutelage.think.vote import PROBABILITY, RIGHT, BestOf, ShortestOfCorrect, Vote


def method_of(text: str) -> Method:
    """The method that `text` names. Raises UsageError."""
    name, _, rest = text.strip().partition(":")
    if name not in _METHODS:
        raise UsageError(f"methods: there is no {name!r}; there is: {', '.join(_METHODS)}")
    usage, make = _METHODS[name]
    try:
        return make(rest.split(":"))
    except (ValueError, IndexError, KeyError) as error:
        raise UsageError(f"methods: {text!r}: write it as {name}:{usage}") from error


def _forced(rest: list[str]) -> bool:
    """Whether the second word is `forced`."""
    if len(rest) > 2:
        raise ValueError(rest)
    return {"": False, "forced": True}[rest[1] if len(rest) == 2 else ""]


def _number(rest: list[str]) -> int:
    """The only word, a number."""
    (word,) = rest
    return int(word)


def _class(rest: list[str]) -> Method:
    (word,) = rest
    if word not in ("short", "long"):
        raise ValueError(word)
    return ClassConditional("short" if word == "short" else "long")


def _rejection(rest: list[str]) -> Method:
    if len(rest) > 2:
        raise ValueError(rest)
    return RejectionSampling(*(int(word) for word in rest))


_METHODS: dict[str, tuple[str, Callable[[list[str]], Method]]] = {
    "token-conditional": ("TOKENS[:forced]", lambda rest: TokenConditional(int(rest[0]), _forced(rest))),
    "step-conditional": (
        "STEPS[:forced]",
        lambda rest: StepConditional(int(rest[0]), forced_end=_forced(rest)),
    ),
    "class-conditional": ("short|long", _class),
    "rejection": ("TOKENS[:TRIES]", _rejection),
    "weighted-vote": ("N", lambda rest: Vote(_number(rest), weight=PROBABILITY)),
    "best-of": ("N", lambda rest: BestOf(_number(rest))),
    "pass": ("N", lambda rest: BestOf(_number(rest), by=RIGHT)),
    "shortest-of-correct": ("N", lambda rest: ShortestOfCorrect(_number(rest))),
}
