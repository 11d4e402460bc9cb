"""Scripted teachers of the lab world: people-like ways to solve a counter problem, right and wrong.

- `human`: a terse expert who does small sums in the head and writes down the rest.
- `detailed`: says each person's action again and the value after it.
- `careless`: detailed, but with systematic slips (see `slip`).
- `drafting`: jumps to a value ("So: 7"), often a wrong one, and often stops there; else it says "Wait" and
  works it out in detail, once or more often.
- `direct`: no thinking at all.

The product world has three of them: `detailed` says each factor again and the product after it, `human`
writes the products alone, `direct` nothing.

Promises: a reply depends only on (seed, style, problem, sample); the final answer is always the last value of
the thinking, so that a slip shows in both.
Does not: store or price replies (the teachers room does).
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from tutelage.errors import UsageError
from tutelage.lab import products
from tutelage.lab.world import MULTIPLY, Story, to_story
from tutelage.records import Problem

WAIT, JUMP = ". Wait", ". So"


@dataclass(frozen=True, slots=True)
class Oracle:
    """A scripted teacher. `slip` is the probability that the careless teacher does a multiplication as an
    addition (the systematic slip; every other step is off by one with an eighth of it), or that the drafting
    one jumps to a wrong value. `stop` is the probability that the drafting teacher trusts its draft; else it
    works the problem out one to `repeats` times. The human does not write down additions and subtractions of
    at most `skip` (the last step always is)."""

    style: str = "detailed"
    seed: int = 0
    slip: float = 0.0
    stop: float = 0.55
    skip: int = 0
    repeats: int = 2


@dataclass(frozen=True, slots=True)
class OracleReply:
    """What the oracle said."""

    thinking: str
    answer: str


def slip(rng: random.Random, story: Story, probability: float) -> tuple[int, ...]:
    """Values after each step by someone careless: ×k is done as +k with `probability`, any other step is off
    by one with an eighth of it. A slip is carried on, as a person would."""
    value, seen = story.start, []
    for step in story.steps:
        if step.operation == MULTIPLY:
            value = (value + step.amount) % 10 if rng.random() < probability else step.apply(value)
        elif step.acts:
            value = step.apply(value)
            if rng.random() < probability / 8:
                value = (value + rng.choice((1, 9))) % 10
        seen.append(value)
    return tuple(seen)


def _detailed(story: Story, values: tuple[int, ...]) -> str:
    pairs = zip(story.steps, values, strict=True)
    return "".join(f". {step}: {value}" for step, value in pairs if step.acts)


def _terse(story: Story, values: tuple[int, ...], skip: int) -> str:
    acting = [(step, value) for step, value in zip(story.steps, values, strict=True) if step.acts]
    return "".join(
        f". {step}: {value}"
        for step, value in acting
        if step is acting[-1][0] or step.operation == MULTIPLY or step.amount > skip
    )


def reply(oracle: Oracle, problem: Problem, sample: int) -> OracleReply:
    """The oracle's answer number `sample` to `problem`.

    Raises UsageError for an unknown style or a problem from elsewhere."""
    if problem.domain == products.DOMAIN:
        return _of_products(oracle, problem)
    story = to_story(problem.metadata)
    rng = random.Random(f"{oracle.seed}|{oracle.style}|{problem.id}|{sample}")
    values, opening = story.values(), f"Counter: {story.start}"
    match oracle.style:
        case "direct":
            thinking = ""
        case "human":
            thinking = opening + _terse(story, values, oracle.skip)
        case "detailed":
            thinking = opening + _detailed(story, values)
        case "careless":
            values = slip(rng, story, oracle.slip)
            thinking = opening + _detailed(story, values)
        case "drafting":
            draft = values[-1]
            if rng.random() < oracle.slip:
                draft = (draft + rng.randint(1, 9)) % 10
            thinking = f"{opening}{JUMP}: {draft}"
            if rng.random() < oracle.stop:
                values = (draft,)
            else:
                thinking += (WAIT + _detailed(story, values)) * rng.randint(1, oracle.repeats)
        case _:
            known = "direct, human, detailed, careless, drafting"
            raise UsageError(f"no lab teacher {oracle.style!r}; there are {known}")
    return OracleReply(thinking, f"Answer: {values[-1]}")


def _of_products(oracle: Oracle, problem: Problem) -> OracleReply:
    values = products.reasoning(problem, restated=False)
    match oracle.style:
        case "direct":
            thinking = ""
        case "human":
            thinking = values
        case "detailed":
            thinking = products.reasoning(problem)
        case _:
            raise UsageError(f"no teacher {oracle.style!r} of products; there are direct, human and detailed")
    return OracleReply(thinking, values[-1])
