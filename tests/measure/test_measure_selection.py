"""Held-out problems: what was chosen on is not measured on, and a look at a student changes nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinymodel import tiny_student
from tutelage.errors import UsageError
from tutelage.measure.selection import Seen, allow, evaluator, seen
from tutelage.questions import question_hashes
from tutelage.records import Problem
from tutelage.students.lineage import Lineage
from tutelage.teachers.local import LocalTeacher, local_sampler
from tutelage.think.policy import ThinkingPolicy
from tutelage.think.sampling import Sampling


def problems(*numbers: int) -> list[Problem]:
    return [Problem(f"p{n}", f"What is {n} + 1?", gold=str(n + 1)) for n in numbers]


def made(chosen: list[Problem], learned: list[Problem]) -> Lineage:
    hashes = sorted(int(each, 16) for each in question_hashes(learned))
    stages = ({"stage": "mid"}, {"stage": "sft", "selected_on": sorted(question_hashes(chosen))})
    return Lineage({}, stages, tuple(hashes))


NUMBERS = st.sets(st.integers(0, 9))


@given(asked=NUMBERS, chosen=NUMBERS, learned=NUMBERS)
def test_what_was_seen_is_counted_exactly(asked: set[int], chosen: set[int], learned: set[int]) -> None:
    lineage = made(problems(*chosen), problems(*learned))
    found = seen(problems(*asked), lineage)
    assert found == Seen(len(asked & chosen), len(asked & learned))
    if not asked & chosen:
        assert allow(problems(*asked), lineage, forced=False, what="stage eval") == found
    else:
        with pytest.raises(UsageError, match="stage eval: stage sft of this model chose its checkpoint"):
            allow(problems(*asked), lineage, forced=False, what="stage eval")
    assert allow(problems(*asked), lineage, forced=True, what="stage eval") == found


def test_the_refusal_says_how_many_and_what_to_do() -> None:
    with pytest.raises(UsageError, match=r"on 2 of these 3 questions.*allow_chosen_on: true"):
        allow(problems(1, 2, 3), made(problems(2, 3, 4), []), forced=False, what="x")


def test_a_look_at_a_student_is_an_accuracy_and_leaves_everything_as_it_was() -> None:
    student = tiny_student(closes=3.0)
    student.model.train()
    weights = {name: each.clone() for name, each in student.model.state_dict().items()}
    look = evaluator(
        problems(1, 2, 3), policy={"max_tokens": 4}, sampling={"temperature": 1.0}, max_answer=4, seed=3
    )
    state = torch.get_rng_state()
    first, second = look(student), look(student)
    assert first == second and 0 <= first <= 1
    assert student.model.training and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(weights[name], each) for name, each in student.model.state_dict().items())


def test_the_share_of_right_answers_is_what_a_look_gives() -> None:
    student = tiny_student(thinking=False)
    asked = [Problem(f"p{n}", f"Say {n}.", gold="nothing like it", checker="exact") for n in range(4)]
    teacher = LocalTeacher(student, "x", Sampling(), seed=0, max_answer=6, max_batch=4)
    said = [trace.answer for trace in local_sampler(teacher, ThinkingPolicy())(asked)]
    known = [replace(problem, gold=text) for problem, text in zip(asked[:3], said, strict=False)]

    def look(chosen: list[Problem]) -> float:
        return evaluator(chosen, policy={}, sampling={}, max_answer=6)(student)

    assert (look(asked), look(known), look([*known, asked[3]])) == (0.0, 1.0, 0.75)


def test_no_problem_to_look_at_is_refused() -> None:
    with pytest.raises(UsageError, match="no problem to validate on"):
        evaluator([], policy={}, sampling={})
