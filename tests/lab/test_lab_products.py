"""The product world: products by matrices, answers of prefixes by reading them, distinct questions."""

from __future__ import annotations

import random
from collections import Counter
from itertools import product as pairs

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.errors import UsageError
from tutelage.lab.products import (
    LETTERS,
    Walk,
    draw_walk,
    make_problems,
    phrases,
    product,
    reasoning,
    to_problem,
)
from tutelage.lab.tokenizer import SPECIAL, build_tokenizer
from tutelage.records import Problem
from tutelage.tokens import decode_ids, encode_text

TOKENIZER = build_tokenizer(phrases())
ELEMENTS = st.integers(0, 5)
# The same group in other words: the six symmetries of a triangle as matrices over its corners, in the order
# of their images, so that letters can be multiplied without the table.
MATRICES = [
    np.eye(3, dtype=int)[:, list(images)]
    for images in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
]


def multiplied(letters: str) -> np.ndarray:
    found = np.eye(3, dtype=int)
    for letter in letters:
        found = found @ MATRICES[LETTERS.index(letter)]
    return found


def letter_of(matrix: np.ndarray) -> str:
    (found,) = [letter for letter, each in zip(LETTERS, MATRICES, strict=True) if (each == matrix).all()]
    return found


WALKS = st.builds(Walk, st.lists(ELEMENTS, min_size=1, max_size=9).map(tuple))


def test_the_table_is_that_of_a_group_in_which_order_matters() -> None:
    for one, other in pairs(range(6), repeat=2):
        assert LETTERS[product(one, other)] == letter_of(MATRICES[one] @ MATRICES[other])
    assert any(product(one, other) != product(other, one) for one, other in pairs(range(6), repeat=2))


@given(WALKS)
def test_the_gold_answer_is_what_the_question_says(walk: Walk) -> None:
    problem = to_problem(walk)
    assert problem.gold == letter_of(multiplied(problem.question))
    assert problem.metadata["difficulty"] == problem.metadata["steps"] == len(walk.factors)


@given(WALKS)
def test_the_answer_of_every_prefix_is_that_of_the_question_cut_there(walk: Walk) -> None:
    problem = to_problem(walk)
    given_answers = dict(problem.metadata["prefix_answers"])
    for end in range(1, len(problem.question) + 1):
        assert given_answers.pop(end) == letter_of(multiplied(problem.question[:end]))
    assert not given_answers


@given(WALKS)
def test_every_letter_is_one_token(walk: Walk) -> None:
    question = walk.question()
    ids = encode_text(TOKENIZER, question)
    assert len(ids) == len(question) and decode_ids(TOKENIZER, ids) == question
    assert min(ids) >= len(SPECIAL)


@given(st.integers(1, 8), st.integers(0, 2**31))
def test_a_drawn_walk_is_as_long_as_asked(steps: int, seed: int) -> None:
    assert len(draw_walk(random.Random(seed), steps).factors) == steps


def test_problems_are_distinct_and_short_ones_leave_room_to_others() -> None:
    problems = make_problems(2000, min_steps=2, max_steps=6, seed=0)
    assert len({problem.question for problem in problems}) == len({p.id for p in problems}) == 2000
    shares = Counter(problem.metadata["difficulty"] for problem in problems)
    assert shares[2] == 18 and shares[3] == 108  # half of all that there are
    assert max(shares[n] for n in (4, 5, 6)) - min(shares[n] for n in (4, 5, 6)) <= 1
    strided = make_problems(30, min_steps=4, max_steps=12, stride=4, seed=0)
    assert Counter(p.metadata["difficulty"] for p in strided) == {4: 10, 8: 10, 12: 10}


def test_the_seed_decides_and_what_is_taken_is_not_drawn_again() -> None:
    def draw(seed: int, exclude: set[str] = frozenset()) -> set[str]:  # type: ignore[assignment]
        return {p.question for p in make_problems(50, min_steps=3, max_steps=4, seed=seed, exclude=exclude)}

    assert draw(3) == draw(3) != draw(4)
    assert not draw(3, draw(3)) & draw(3)


def test_impossible_requests_are_refused() -> None:
    with pytest.raises(UsageError, match="1 <= min_steps <= max_steps"):
        make_problems(5, min_steps=4, max_steps=3, seed=0)
    with pytest.raises(UsageError, match="found only 21 distinct problems of 50"):
        make_problems(50, min_steps=1, max_steps=2, seed=0)


@given(WALKS)
def test_the_teacher_says_each_factor_and_the_product_after_it(walk: Walk) -> None:
    problem = to_problem(walk)
    thought = reasoning(problem)
    assert thought[::2] == problem.question and thought[-1] == problem.gold
    values = reasoning(problem, restated=False)
    assert thought[1::2] == values == "".join(LETTERS[value] for value in walk.values())


def test_the_teacher_refuses_problems_from_elsewhere() -> None:
    with pytest.raises(UsageError, match="only problems of the product world"):
        reasoning(Problem("p", "What is 1 + 1?", gold="2"))
