"""The product world: what do six turns of a triangle come to, one after the other?

A problem is a row of letters, such as "cfbd". Each letter is one of the six elements of S3, the smallest
group in which order matters; the answer is the letter of their product from left to right. Every letter is
one token, so that a problem of n letters takes n dependent steps and nothing else: its difficulty is n. A
model of few layers cannot do long ones in one pass (Barrington 1989 has what such products are worth as a
test of depth; Liu et al. 2023, "Transformers learn shortcuts to automata", tried them on transformers).

Promises: the same seed makes the same problems; no two problems of a split share their question; difficulties
are equally frequent where there are enough different questions. Every problem says in `prefix_answers` what
the answer would be if its question had ended earlier.
Does not: train, or know about tokens (see `lab.tokenizer`).
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate, permutations

from tutelage.errors import UsageError
from tutelage.records import Problem, stable_hash

LETTERS = "abcdef"
DOMAIN = "products"
_TURNS = tuple(permutations(range(3)))
_TABLE = tuple(
    tuple(_TURNS.index(tuple(one[place] for place in other)) for other in _TURNS) for one in _TURNS
)


def phrases() -> tuple[str, ...]:
    """The vocabulary's plain phrases, in id order after the special tokens."""
    return tuple(LETTERS)


def product(one: int, other: int) -> int:
    """The element `one` · `other`, each a number from 0 to 5: first `other` acts, then `one`."""
    return _TABLE[one][other]


@dataclass(frozen=True, slots=True)
class Walk:
    """The product of `factors`, from left to right."""

    factors: tuple[int, ...]

    def values(self) -> tuple[int, ...]:
        """The product after each factor; the last one is the answer."""
        return tuple(accumulate(self.factors, product))

    def question(self) -> str:
        """The problem as text."""
        return _text(self.factors)

    def prefix_answers(self) -> list[tuple[int, str]]:
        """After how many characters of the question which answer is decided: after every factor."""
        return list(enumerate(_text(self.values()), start=1))


def _text(elements: Iterable[int]) -> str:
    return "".join(LETTERS[each] for each in elements)


def draw_walk(rng: random.Random, steps: int) -> Walk:
    """A walk of `steps` factors, each drawn evenly."""
    return Walk(tuple(rng.randrange(len(LETTERS)) for _ in range(steps)))


def to_problem(walk: Walk) -> Problem:
    """The walk as a Problem. `metadata`: `difficulty` and `steps` (factors), `values` (the product
    after each factor, for the scripted teacher) and `prefix_answers` (see `train.examples`)."""
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
    return "".join(map("".join, zip(problem.question, values, strict=True))) if restated else values


def make_problems(
    count: int,
    *,
    min_steps: int,
    max_steps: int,
    stride: int = 1,
    seed: int,
    exclude: Iterable[str] = (),
) -> list[Problem]:
    """`count` problems with distinct questions of `min_steps`, `min_steps` + `stride` ... to `max_steps`
    factors, in turn; no question of `exclude`. A length of which half of all questions are drawn is left to
    the longer ones.

    Raises UsageError when the range is empty or so small that no further question is found."""
    if not 1 <= min_steps <= max_steps or stride < 1:
        raise UsageError(
            "steps must be 1 <= min_steps <= max_steps and the stride at least 1, "
            f"got {min_steps}..{max_steps} and {stride}"
        )
    rng = random.Random(f"lab-products-{seed}")
    room = {steps: len(LETTERS) ** steps // 2 for steps in range(min_steps, max_steps + 1, stride)}
    taken = set(exclude)
    problems: list[Problem] = []
    while len(problems) < count:
        open_lengths = [steps for steps, left in room.items() if left > 0]
        if not open_lengths:
            raise UsageError(
                f"found only {len(problems)} distinct problems of {count}; ask for fewer, or more steps"
            )
        for steps in open_lengths[: count - len(problems)]:
            problem = _another(rng, steps, taken)
            if problem is None:
                room[steps] = 0
                continue
            room[steps] -= 1
            taken.add(problem.question)
            problems.append(problem)
    return problems


def _another(rng: random.Random, steps: int, taken: set[str]) -> Problem | None:
    """A problem whose question is not taken; None when a hundred draws found none."""
    for _ in range(100):
        walk = draw_walk(rng, steps)
        if walk.question() not in taken:
            return to_problem(walk)
    return None
