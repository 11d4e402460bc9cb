"""The lab world: word problems about a counter with one digit.

A problem reads: "Counter: 4. Ann adds 3. Ben watches. Cleo multiplies by 3. What does the counter show?" The
counter has one wheel with the digits 0 to 9 and rolls over both ways, so every value is taken modulo 10. The
number of people who act is the difficulty; onlookers are distractors.

Promises: the same seed makes the same problems; no two problems of a split share their question, also across
train and test; difficulties are equally frequent (to within one problem).
Does not: answer as a teacher would (see `oracles`), or know about tokens.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tutelage.errors import UsageError
from tutelage.records import Problem, stable_hash

NAMES = (
    "Ann", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana", "Ivo", "Jo",
    "Kim", "Leo", "Mia", "Ned", "Ola", "Pia",
)  # fmt: skip
ADD, TAKE, MULTIPLY, WATCH = "adds", "takes", "multiplies by", "watches"
AMOUNTS: Mapping[str, tuple[int, ...]] = {
    ADD: tuple(range(1, 10)),
    TAKE: tuple(range(1, 10)),
    # Only factors that are invertible modulo 10: no step may make the earlier ones irrelevant.
    MULTIPLY: (3, 7, 9),
}
QUESTION_END = ". What does the counter show?"


@dataclass(frozen=True, slots=True)
class Step:
    """One person's action on the counter."""

    name: str
    operation: str
    amount: int

    @property
    def acts(self) -> bool:
        """Whether this person changes the counter; an onlooker does not."""
        return self.operation != WATCH

    def __str__(self) -> str:
        return f"{self.name} {self.operation} {self.amount}" if self.acts else f"{self.name} {self.operation}"

    def apply(self, value: int) -> int:
        """The counter's digit after this step."""
        if not self.acts:
            return value
        if self.operation == ADD:
            return (value + self.amount) % 10
        if self.operation == TAKE:
            return (value - self.amount) % 10
        return (value * self.amount) % 10


@dataclass(frozen=True, slots=True)
class Story:
    """A start digit and the steps that follow."""

    start: int
    steps: tuple[Step, ...]

    def values(self) -> tuple[int, ...]:
        """The digit after each step; the last one is the answer."""
        value, seen = self.start, []
        for step in self.steps:
            value = step.apply(value)
            seen.append(value)
        return tuple(seen)

    def question(self) -> str:
        """The problem as a person reads it."""
        acts = "".join(f". {step}" for step in self.steps)
        return f"Counter: {self.start}{acts}{QUESTION_END}"


def draw_story(rng: random.Random, steps: int, onlookers: int = 0) -> Story:
    """A story of `steps` people who act and up to `onlookers` who only watch, in random places. The kind of
    each operation is drawn first, then its amount."""
    watching = rng.randint(0, onlookers)
    names = rng.sample(NAMES, steps + watching)
    operations = [rng.choice((ADD, TAKE, MULTIPLY)) for _ in range(steps)] + [WATCH] * watching
    rng.shuffle(operations)
    return Story(
        start=rng.randrange(10),
        steps=tuple(
            Step(name, kind, rng.choice(AMOUNTS[kind]) if kind in AMOUNTS else 0)
            for name, kind in zip(names, operations, strict=True)
        ),
    )


def to_problem(story: Story) -> Problem:
    """The story as a Problem; the story itself is kept in `metadata` for the scripted teachers."""
    question = story.question()
    return Problem(
        id=f"lab-{stable_hash(question)}",
        question=question,
        gold=str(story.values()[-1]),
        checker="number",
        domain="counter",
        source="tutelage lab world",
        licence="CC0-1.0",
        metadata={
            "difficulty": sum(step.acts for step in story.steps),
            "start": story.start,
            "steps": [[s.name, s.operation, s.amount] for s in story.steps],
        },
    )


def to_story(metadata: Mapping[str, Any]) -> Story:
    """The story kept in a problem's metadata.

    Raises UsageError when the problem is not of the lab world."""
    try:
        return Story(int(metadata["start"]), tuple(Step(n, o, int(a)) for n, o, a in metadata["steps"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError("a scripted lab teacher answers only problems of the lab world") from error


def make_problems(
    count: int,
    *,
    min_steps: int,
    max_steps: int,
    onlookers: int = 0,
    seed: int,
    exclude: Iterable[str] = (),
) -> list[Problem]:
    """`count` distinct problems with `min_steps` to `max_steps` acting people, in turn, and up to `onlookers`
    who only watch; no id of `exclude`.

    Raises UsageError when the range is empty or so small that no further distinct problem is found."""
    if not 1 <= min_steps <= max_steps or onlookers < 0 or max_steps + onlookers > len(NAMES):
        raise UsageError(
            f"steps must be 1 <= min_steps <= max_steps and max_steps + onlookers at most {len(NAMES)}, got "
            f"{min_steps}..{max_steps} and {onlookers}"
        )
    rng = random.Random(f"lab-world-{seed}")
    problems: list[Problem] = []
    taken, misses = set(exclude), 0
    lengths = range(min_steps, max_steps + 1)
    while len(problems) < count:
        problem = to_problem(draw_story(rng, lengths[len(problems) % len(lengths)], onlookers))
        if problem.id in taken:
            misses += 1
            if misses > 1000:
                raise UsageError(
                    f"found only {len(problems)} distinct problems of {count}; ask for fewer, or more steps"
                )
            continue
        misses = 0
        taken.add(problem.id)
        problems.append(problem)
    return problems
