"""The product world: what do six turns of a triangle come to, one after the other?

A problem is a row of letters, such as "cfbd". Each letter is one of the six elements of S3, the smallest
group in which order matters; the answer is the letter of their product from left to right. Every letter is
one token, so that a problem of n letters takes n dependent steps and nothing else: its difficulty is n. A
model of few layers cannot do long ones in one pass (Barrington 1989 has what such products are worth as a
test of depth; Liu et al. 2023, "Transformers learn shortcuts to automata", tried them on transformers).

With `hidden`, the product starts from an element that the question does not name, and worked examples from
the same start tell it: "cd=b,fa=e,dbc". Without an example nobody can do better than one in six.

Promises: the same seed makes the same problems; no two problems of a split share their question; difficulties
are equally frequent where there are enough different questions. Every problem says in `prefix_answers` what
the answer would be if its question had ended earlier.
Does not: train, or know about tokens (see `lab.tokenizer`).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, permutations

from tutelage.errors import UsageError
from tutelage.records import Problem, stable_hash

LETTERS = "abcdef"
GIVES, NEXT = "=", ","
_NONE = " "
DOMAIN = "products"
_TURNS = tuple(permutations(range(3)))
_TABLE = tuple(
    tuple(_TURNS.index(tuple(one[place] for place in other)) for other in _TURNS) for one in _TURNS
)
_IDENTITY = _TURNS.index((0, 1, 2))
# Worked examples are short: they are there to tell the start, not to be hard.
_EXAMPLE = 3


def phrases() -> tuple[str, ...]:
    """The vocabulary's plain phrases, in id order after the special tokens."""
    return (*LETTERS, GIVES, NEXT)


def product(one: int, other: int) -> int:
    """The element `one` · `other`, each a number from 0 to 5: first `other` acts, then `one`."""
    return _TABLE[one][other]


@dataclass(frozen=True, slots=True)
class Walk:
    """`start` · factors, from left to right. `hidden`: the question does not name the start, and the
    `examples` (each the factors of another walk from it) tell it."""

    factors: tuple[int, ...]
    start: int = _IDENTITY
    hidden: bool = False
    examples: tuple[tuple[int, ...], ...] = ()

    def values(self) -> tuple[int, ...]:
        """The product after each factor; the last one is the answer."""
        return self._along(self.factors)

    def question(self) -> str:
        """The problem as text."""
        return "".join(piece for piece, _ in self._pieces())

    def prefix_answers(self) -> list[tuple[int, str]]:
        """After how many characters of the question which answer is already decided: after every factor, once
        the start is known; then also the start itself after a comma, where the next row has yet to begin."""
        found, at = [], 0
        for piece, answers in self._pieces():
            found += [(at + end, answer) for end, answer in enumerate(answers, start=1) if answer != _NONE]
            at += len(piece)
        return found

    def _along(self, factors: Sequence[int]) -> tuple[int, ...]:
        return tuple(accumulate(factors, product, initial=self.start))[1:]

    def _pieces(self) -> list[tuple[str, str]]:
        """The question in pieces, each with the answer after each of its characters."""
        pieces, known = [], not self.hidden
        for factors in self.examples:
            values = _text(self._along(factors))
            said = values + values[-1] if known else _NONE * (len(values) + 1)
            pieces.append(
                (f"{_text(factors)}{GIVES}{values[-1]}{NEXT}", f"{said}{_NONE}{LETTERS[self.start]}")
            )
            known = True  # the first example has told the start
        values = _text(self.values())
        return [*pieces, (_text(self.factors), values if known else _NONE * len(values))]


def _text(elements: Iterable[int]) -> str:
    return "".join(LETTERS[each] for each in elements)


def draw_walk(rng: random.Random, steps: int, *, hidden: bool = False, examples: int = 0) -> Walk:
    """A walk of `steps` factors, each drawn evenly; if hidden, so is the start, and so are `examples` walks
    of one to three factors from it."""

    def factors(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(len(LETTERS)) for _ in range(count))

    if not hidden:
        return Walk(factors(steps))
    start = rng.randrange(len(LETTERS))
    shown = tuple(factors(rng.randint(1, _EXAMPLE)) for _ in range(examples))
    return Walk(factors(steps), start, hidden=True, examples=shown)


def to_problem(walk: Walk) -> Problem:
    """The walk as a Problem. `metadata`: `difficulty` and `steps` (factors), `examples` (worked ones),
    `values` (the product after each factor, for the scripted teacher) and `prefix_answers` (see
    `train.examples`)."""
    question = walk.question()
    return Problem(
        id=f"s3-{stable_hash(question)}",
        question=question,
        gold=LETTERS[walk.values()[-1]],
        checker="exact",
        domain=DOMAIN,
        source="tutelage lab world",
        licence="CC0-1.0",
        metadata={
            "difficulty": len(walk.factors),
            "steps": len(walk.factors),
            "examples": len(walk.examples),
            "values": _text(walk.values()),
            "prefix_answers": [list(pair) for pair in walk.prefix_answers()],
        },
    )


def reasoning(problem: Problem, *, restated: bool = True) -> str:
    """The thinking of the scripted teachers: after each other the factors, each with the product up to it,
    such as "caffbe"; if not `restated`, the products alone.

    Raises UsageError for a problem from elsewhere."""
    values = problem.metadata.get("values")
    if problem.domain != DOMAIN or not isinstance(values, str):
        raise UsageError("the teacher of products answers only problems of the product world")
    # The row that is asked about is the last one; worked examples stand before it.
    factors = problem.question.rpartition(NEXT)[2]
    return "".join(map("".join, zip(factors, values, strict=True))) if restated else values


def make_problems(
    count: int,
    *,
    min_steps: int,
    max_steps: int,
    stride: int = 1,
    hidden: bool = False,
    examples: Sequence[int] = (0,),
    seed: int,
    exclude: Iterable[str] = (),
) -> list[Problem]:
    """`count` problems with distinct questions of `min_steps`, `min_steps` + `stride` ... to `max_steps`
    factors, in turn, and with each number of worked `examples` equally often; no question of `exclude`. A
    length of which half of all questions are drawn is left to the longer ones.

    Raises UsageError when the range is empty or so small that no further question is found."""
    if not 1 <= min_steps <= max_steps or stride < 1 or not examples or min(examples) < 0:
        raise UsageError(
            "steps must be 1 <= min_steps <= max_steps, the stride at least 1 and examples 0 or more, "
            f"got {min_steps}..{max_steps}, {stride} and {tuple(examples)}"
        )
    if not hidden and any(examples):
        raise UsageError("worked examples tell a hidden start; set hidden as well, or leave examples out")
    rng = random.Random(f"lab-products-{seed}")
    lengths = list(range(min_steps, max_steps + 1, stride))
    kinds = [(steps, shown) for shown in examples for steps in lengths]
    room = {kind: len(LETTERS) ** kind[0] // 2 for kind in kinds if not kind[1]}
    taken = set(exclude)
    problems: list[Problem] = []
    while len(problems) < count:
        open_kinds = [kind for kind in kinds if room.get(kind, 1) > 0]
        if not open_kinds:
            raise UsageError(
                f"found only {len(problems)} distinct problems of {count}; ask for fewer, or more steps"
            )
        for kind in open_kinds[: count - len(problems)]:
            problem = _another(rng, kind, hidden, taken)
            if problem is None:
                room[kind] = 0
                continue
            room[kind] = room.get(kind, count) - 1
            taken.add(problem.question)
            problems.append(problem)
    return problems


def _another(rng: random.Random, kind: tuple[int, int], hidden: bool, taken: set[str]) -> Problem | None:
    """A problem whose question is not taken; None when a hundred draws found none."""
    steps, shown = kind
    for _ in range(100):
        walk = draw_walk(rng, steps, hidden=hidden, examples=shown)
        if walk.question() not in taken:
            return to_problem(walk)
    return None
