"""The counter world: values by brute force, distinct questions, equal difficulties, and its tokenizer."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.errors import UsageError
from tutelage.lab.tokenizer import SPECIAL, UNKNOWN, build_tokenizer
from tutelage.lab.world import (
    ADD,
    AMOUNTS,
    MULTIPLY,
    NAMES,
    TAKE,
    WATCH,
    Step,
    Story,
    draw_story,
    make_problems,
    to_problem,
    to_story,
)
from tutelage.tokens import decode_ids, encode_text

TOKENIZER = build_tokenizer()


@st.composite
def stories(draw: st.DrawFn, acting: int = 1) -> Story:
    """Any story, onlookers included, not only those that `draw_story` makes."""
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=8, unique=True))
    kinds = [draw(st.sampled_from((ADD, TAKE, MULTIPLY, WATCH))) for _ in names]
    for index in range(min(acting, len(kinds))):
        kinds[index] = draw(st.sampled_from((ADD, TAKE, MULTIPLY)))
    steps = [
        Step(name, kind, 0 if kind == WATCH else draw(st.sampled_from(AMOUNTS[kind])))
        for name, kind in zip(names, kinds, strict=True)
    ]
    return Story(draw(st.integers(0, 9)), tuple(steps))


def by_reading(question: str) -> int:
    """The answer from the question's text alone, on an unbounded counter read modulo ten at the end."""
    start, *sentences = question.removesuffix(". What does the counter show?").split(". ")
    value = int(re.fullmatch(r"Counter: (\d)", start)[1])  # type: ignore[index]
    for sentence in sentences:
        name, deed = sentence.split(" ", 1)
        assert name in NAMES
        if deed == "watches":
            continue
        verb, amount = re.fullmatch(r"(adds|takes|multiplies by) (\d)", deed).groups()  # type: ignore[union-attr]
        number = int(amount)
        value = {"adds": value + number, "takes": value - number, "multiplies by": value * number}[verb]
    return value % 10


@given(stories())
def test_the_gold_answer_is_what_the_question_says(story: Story) -> None:
    problem = to_problem(story)
    assert problem.gold == str(by_reading(problem.question)) == str(story.values()[-1])
    assert len(story.values()) == len(story.steps) and set(story.values()) <= set(range(10))
    assert problem.metadata["difficulty"] == sum(step.operation != WATCH for step in story.steps)


@given(stories())
def test_onlookers_change_nothing(story: Story) -> None:
    acting = tuple(step for step in story.steps if step.acts)
    values = [value for step, value in zip(story.steps, story.values(), strict=True) if step.acts]
    assert list(Story(story.start, acting).values()) == values


@given(stories())
def test_the_story_is_kept_in_the_problem(story: Story) -> None:
    assert to_story(to_problem(story).metadata) == story


@given(stories())
def test_every_question_survives_the_tokenizer(story: Story) -> None:
    question = story.question()
    ids = encode_text(TOKENIZER, question)
    assert decode_ids(TOKENIZER, ids) == question
    assert TOKENIZER.convert_tokens_to_ids(UNKNOWN) not in ids
    # One token per phrase: "Counter", start, each person and deed, the question.
    assert len(ids) == 3 + 2 * len(story.steps)


def test_an_unknown_word_becomes_unk() -> None:
    assert TOKENIZER.convert_tokens_to_ids(UNKNOWN) in encode_text(TOKENIZER, "Counter: 4. Zoe adds 3")


def test_the_vocabulary_is_small_and_the_spelling_of_a_control_token_stays_text() -> None:
    assert len(TOKENIZER) < 100
    special = {TOKENIZER.convert_tokens_to_ids(word) for word in SPECIAL if word != UNKNOWN}
    for word in SPECIAL:
        assert special.isdisjoint(encode_text(TOKENIZER, f"Counter{word}Answer"))


@given(st.integers(1, 8), st.integers(0, 8), st.integers(0, 2**31))
def test_a_drawn_story_has_the_steps_and_at_most_the_onlookers_asked_for(
    steps: int, onlookers: int, seed: int
) -> None:
    story = draw_story(random.Random(seed), steps, onlookers)
    watching = sum(step.operation == WATCH for step in story.steps)
    assert len(story.steps) - watching == steps and watching <= onlookers
    assert len({step.name for step in story.steps}) == len(story.steps)
    assert all(step.amount in AMOUNTS.get(step.operation, (0,)) for step in story.steps)


def test_every_operation_and_every_number_of_onlookers_occurs() -> None:
    drawn = [draw_story(random.Random(seed), 3, 2) for seed in range(300)]
    operations = Counter(step.operation for story in drawn for step in story.steps if step.acts)
    assert set(operations) == {ADD, TAKE, MULTIPLY} and min(operations.values()) > 200  # of 900
    watching = Counter(sum(not step.acts for step in story.steps) for story in drawn)
    assert set(watching) == {0, 1, 2}
    # They stand anywhere, the first and the last place included.
    assert any(not story.steps[0].acts for story in drawn) and any(not s.steps[-1].acts for s in drawn)


@pytest.mark.parametrize("onlookers", [0, 2])
def test_problems_are_distinct_and_difficulties_equally_frequent(onlookers: int) -> None:
    problems = make_problems(502, min_steps=2, max_steps=6, onlookers=onlookers, seed=0)
    assert len({problem.question for problem in problems}) == len({p.id for p in problems}) == 502
    shares = Counter(problem.metadata["difficulty"] for problem in problems)
    assert set(shares) == {2, 3, 4, 5, 6} and max(shares.values()) - min(shares.values()) <= 1
    assert all(str(by_reading(problem.question)) == problem.gold for problem in problems)
    assert {problem.checker for problem in problems} == {"number"}


def test_the_seed_decides() -> None:
    def draw(seed: int) -> list[str]:
        return [p.question for p in make_problems(50, min_steps=2, max_steps=4, onlookers=1, seed=seed)]

    assert draw(3) == draw(3) and not set(draw(3)) & set(draw(4))


def test_excluded_problems_are_not_drawn() -> None:
    first = make_problems(50, min_steps=2, max_steps=4, seed=1)
    other = make_problems(50, min_steps=2, max_steps=4, seed=1, exclude=[p.id for p in first])
    assert not {problem.id for problem in first} & {problem.id for problem in other}


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ((0, 2, 0), r"1 <= min_steps <= max_steps .* got 0\.\.2 and 0"),
        ((3, 2, 0), r"got 3\.\.2"),
        ((2, len(NAMES) + 1, 0), f"at most {len(NAMES)}"),
        ((2, len(NAMES), 1), f"at most {len(NAMES)}"),
        ((2, 3, -1), "got 2..3 and -1"),
    ],
)
def test_a_range_that_cannot_be_is_refused(steps: tuple[int, int, int], message: str) -> None:
    low, high, onlookers = steps
    with pytest.raises(UsageError, match=message):
        make_problems(1, min_steps=low, max_steps=high, onlookers=onlookers, seed=0)


def test_a_world_too_small_for_the_wish_says_so() -> None:
    # One step: 10 starts x 16 people x 21 deeds.
    with pytest.raises(UsageError, match=r"found only \d+ distinct problems of 3361; ask for fewer"):
        make_problems(10 * 16 * 21 + 1, min_steps=1, max_steps=1, seed=0)


@pytest.mark.parametrize(
    "metadata", [{}, {"start": 1}, {"start": "x", "steps": []}, {"start": 1, "steps": [["Ann"]]}]
)
def test_a_problem_from_elsewhere_is_refused(metadata: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="only problems of the lab world"):
        to_story(metadata)
