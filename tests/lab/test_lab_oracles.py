"""Scripted teachers: what each of them may get wrong, and how often."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.errors import UsageError
from tutelage.lab import products
from tutelage.lab.oracles import WAIT, Oracle, OracleReply, reply, slip
from tutelage.lab.tokenizer import UNKNOWN, build_tokenizer
from tutelage.lab.world import MULTIPLY, Story, make_problems, to_story
from tutelage.records import Problem
from tutelage.tokens import decode_ids, encode_text

PROBLEMS = make_problems(300, min_steps=2, max_steps=6, onlookers=2, seed=5)
STYLES = ("direct", "human", "detailed", "careless", "drafting")
TOKENIZER = build_tokenizer()
sloppy = st.builds(
    Oracle,
    style=st.sampled_from(STYLES),
    seed=st.integers(0, 9),
    slip=st.floats(0, 1),
    stop=st.floats(0, 1),
    skip=st.integers(0, 9),
    repeats=st.integers(1, 3),
)


def final(said: OracleReply) -> str:
    return re.fullmatch(r"Answer: (\d)", said.answer)[1]  # type: ignore[index]


def true_values(problem: Problem) -> list[tuple[str, int]]:
    story = to_story(problem.metadata)
    return [(step.name, v) for step, v in zip(story.steps, story.values(), strict=True) if step.acts]


def written(part: str) -> list[tuple[str, int]]:
    """(person, value) of each sentence of a terse or detailed derivation."""
    return [(name, int(value)) for name, value in re.findall(r"([A-Z][a-z]+)[^.:]*: (\d)", part)]


@given(sloppy, st.sampled_from(PROBLEMS), st.integers(0, 5))
def test_the_answer_is_the_last_value_of_the_thinking(oracle: Oracle, problem: Problem, sample: int) -> None:
    said = reply(oracle, problem, sample)
    if oracle.style == "direct":
        assert said.thinking == "" and final(said) == problem.gold
    else:
        assert final(said) == re.findall(r": (\d)", said.thinking)[-1]


@given(sloppy, st.sampled_from(PROBLEMS), st.integers(0, 5))
def test_a_reply_depends_on_oracle_problem_and_sample_alone(
    oracle: Oracle, problem: Problem, sample: int
) -> None:
    random.seed(0)
    first = reply(oracle, problem, sample)
    random.seed(1)
    assert reply(oracle, problem, sample) == first


@given(sloppy, st.sampled_from(PROBLEMS), st.integers(0, 5))
def test_every_reply_survives_the_tokenizer(oracle: Oracle, problem: Problem, sample: int) -> None:
    said = reply(oracle, problem, sample)
    for text in (said.thinking, said.answer):
        ids = encode_text(TOKENIZER, text)
        assert decode_ids(TOKENIZER, ids) == text
        assert TOKENIZER.convert_tokens_to_ids(UNKNOWN) not in ids


@pytest.mark.parametrize("style", ["direct", "human", "detailed"])
def test_who_does_not_slip_is_always_right(style: str) -> None:
    oracle = Oracle(style, slip=1.0, skip=4)  # `slip` is not for these
    assert all(final(reply(oracle, problem, 0)) == problem.gold for problem in PROBLEMS)


def test_the_detailed_teacher_writes_every_action_with_the_value_after_it() -> None:
    for problem in PROBLEMS:
        said = reply(Oracle("detailed"), problem, 0)
        assert written(said.thinking)[1:] == true_values(problem)  # the first is the counter's start
        story = to_story(problem.metadata)
        assert all((str(step) in said.thinking) == step.acts for step in story.steps)


@pytest.mark.parametrize("skip", [0, 4, 9])
def test_the_terse_expert_leaves_out_small_sums_but_never_a_multiplication_or_the_end(skip: int) -> None:
    for problem in PROBLEMS:
        said = reply(Oracle("human", skip=skip), problem, 0)
        shown = written(said.thinking)[1:]
        story = to_story(problem.metadata)
        acting = [step for step in story.steps if step.acts]
        expected = [
            step.name
            for step in acting
            if step.operation == MULTIPLY or step.amount > skip or step is acting[-1]
        ]
        assert [name for name, _ in shown] == expected
        assert set(shown) <= set(true_values(problem))


def slips(probability: float, seeds: range) -> tuple[list[bool], Counter[int]]:
    """For each multiplication, whether it was done as an addition (where that shows); for each other step, by
    how much its value is off."""
    multiplied: list[bool] = []
    off: Counter[int] = Counter()
    for seed in seeds:
        for problem in PROBLEMS:
            story = to_story(problem.metadata)
            values = slip(random.Random(f"{seed}{problem.id}"), story, probability)
            for step, (before, after) in zip(story.steps, pairwise((story.start, *values)), strict=True):
                right, added = step.apply(before), (before + step.amount) % 10
                if step.operation != MULTIPLY:
                    off[(after - right) % 10] += 1
                elif right != added:
                    assert after in (right, added)
                    multiplied.append(after == added)
    return multiplied, off


def test_slips_are_as_frequent_and_of_the_kind_as_documented() -> None:
    multiplied, off = slips(0.6, range(4))
    assert len(multiplied) > 1000
    assert sum(multiplied) / len(multiplied) == pytest.approx(0.6, abs=0.05)  # over three standard errors
    # Every other step, onlookers aside, is off by one, up or down alike, with an eighth of that.
    acting = sum(step.acts and step.operation != MULTIPLY for p in PROBLEMS for step in _steps(p)) * 4
    assert set(off) == {0, 1, 9}
    assert (off[1] + off[9]) / acting == pytest.approx(0.6 / 8, abs=0.02)
    assert off[1] / (off[1] + off[9]) == pytest.approx(0.5, abs=0.1)


def _steps(problem: Problem) -> tuple[object, ...]:
    return to_story(problem.metadata).steps


def test_no_probability_no_slip_and_full_probability_always() -> None:
    multiplied, off = slips(0.0, range(1))
    assert not any(multiplied) and set(off) == {0}
    assert all(slips(1.0, range(1))[0])


def test_onlookers_do_not_slip() -> None:
    for seed in range(50):
        story = to_story(PROBLEMS[seed].metadata)
        watching = Story(story.start, tuple(step for step in story.steps if not step.acts))
        assert set(slip(random.Random(seed), watching, 1.0)) <= {story.start}


def test_a_slip_is_carried_on_and_shows_in_the_answer() -> None:
    oracle = Oracle("careless", slip=0.6)
    wrong = 0
    for problem in PROBLEMS:
        said = reply(oracle, problem, 0)
        steps = [step for step in to_story(problem.metadata).steps if step.acts]
        values = written(said.thinking)[1:]
        assert [name for name, _ in values] == [step.name for step in steps]
        wrong += final(said) != problem.gold
    assert 0.2 < wrong / len(PROBLEMS) < 0.9


def test_samples_differ_where_chance_has_a_part() -> None:
    oracle = Oracle("careless", slip=0.5)
    assert any(reply(oracle, problem, 0) != reply(oracle, problem, 1) for problem in PROBLEMS)
    assert any(reply(oracle, p, 0) != reply(replace(oracle, seed=1), p, 0) for p in PROBLEMS)


def test_the_drafting_teacher_is_right_whenever_it_derives_again() -> None:
    oracle = Oracle("drafting", slip=0.6, stop=0.5, skip=4, repeats=3)
    counts: Counter[int] = Counter()
    trusted_wrong = repaired = 0
    for problem in PROBLEMS:
        said = reply(oracle, problem, 0)
        draft, *again = said.thinking.split(WAIT)
        counts[len(again)] += 1
        draft_answer = written(draft)[-1][1]
        if not again:
            trusted_wrong += final(said) != problem.gold
            continue
        assert final(said) == problem.gold
        assert all(written(part) == true_values(problem) for part in again)
        assert len(set(again)) == 1
        repaired += str(draft_answer) != problem.gold
    assert set(counts) == {0, 1, 2, 3}
    assert counts[0] / len(PROBLEMS) == pytest.approx(0.5, abs=0.1)
    assert trusted_wrong and repaired  # drafts do slip, trusted or not


def test_trusting_every_draft_or_none() -> None:
    never = [reply(Oracle("drafting", slip=0.5, stop=0.0), problem, 0) for problem in PROBLEMS]
    always = [reply(Oracle("drafting", slip=0.5, stop=1.0), problem, 0) for problem in PROBLEMS]
    assert all(WAIT in said.thinking for said in never)
    assert not any(WAIT in said.thinking for said in always)


def test_an_unknown_style_and_a_problem_from_elsewhere_are_refused() -> None:
    with pytest.raises(UsageError, match="no lab teacher 'wise'; there are direct, "):
        reply(Oracle("wise"), PROBLEMS[0], 0)
    with pytest.raises(UsageError, match="only problems of the lab world"):
        reply(Oracle("human"), Problem("p", "1 + 1"), 0)


def test_products_have_teachers_who_restate_who_write_values_and_who_write_nothing() -> None:
    (problem,) = products.make_problems(1, min_steps=5, max_steps=5, seed=0)
    values = problem.metadata["values"]
    thinking = reply(Oracle("detailed"), problem, 0).thinking
    assert (thinking[::2], thinking[1::2]) == (problem.question, values)
    assert reply(Oracle("human"), problem, 0).thinking == values
    assert reply(Oracle("direct"), problem, 0).thinking == ""
    for style in ("detailed", "human", "direct"):
        assert reply(Oracle(style), problem, 0).answer == problem.gold
    with pytest.raises(UsageError, match="no teacher 'careless' of products"):
        reply(Oracle("careless"), problem, 0)
