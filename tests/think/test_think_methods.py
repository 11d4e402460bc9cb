"""Promises of running methods: what they cost, what they share, and in which order they come back."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from talkers import Talker, part, questions, talking_solver

from tinymodel import tiny_student
from tutelage.errors import UsageError
from tutelage.records import stable_hash
from tutelage.students.template import render_prompt
from tutelage.think.control import (
    BudgetForcing,
    ClassConditional,
    Natural,
    RejectionSampling,
    TokenConditional,
)
from tutelage.think.engine import Engine
from tutelage.think.methods import Solver, reply_seed, solve
from tutelage.think.policy import ThinkingPolicy
from tutelage.think.sampling import Sampling
from tutelage.think.steps import StepConditional
from tutelage.think.vote import PROBABILITY, BestOf, ShortestOfCorrect, Vote, mean_logprob


def by_seed(prompt, seed):
    """Thoughts of one to nine letters, answers from 5 to 9."""
    return "t" * (seed % 9 + 1) + f"|{seed % 5 + 5}"


def test_outcomes_come_problem_by_problem_and_sample_by_sample():
    solver = talking_solver(Talker(by_seed), samples=2)
    outcomes = Natural().run(solver, questions(3))
    assert [(one.problem.id, one.sample) for one in outcomes] == [
        (f"p{i}", sample) for i in range(3) for sample in range(2)
    ]
    for one in outcomes:
        seed = reply_seed(0, one.problem.id, one.sample)
        assert one.answer == part(one.chosen, "answer").rstrip("$") == str(seed % 5 + 5)


def test_seeds_are_those_of_a_local_teacher():
    assert reply_seed(3, "p1", 2) == int(stable_hash(3, "p1", 2), 16)


@pytest.mark.slow
@given(n=st.integers(1, 6), tries=st.integers(1, 5), limit=st.integers(0, 9), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_the_tokens_of_all_attempts_add_up(n, tries, limit, seed):
    talker = Talker(by_seed)
    solver = talking_solver(talker, seed=seed, samples=2)
    tasks = [(solver, Vote(n)), (solver, RejectionSampling(limit, tries)), (solver, ShortestOfCorrect(n))]
    for outcomes in solve(tasks, questions(2)):
        for one in outcomes:
            replies = [attempt.completion for attempt in one.attempts]
            assert sum(one.thinking) == sum(len(part(reply, "thinking")) for reply in replies)
            assert one.tokens == sum(len(reply.ids) for reply in replies)
            assert one.picked is None or one.chosen is replies[one.picked]
    assert len(talker.asked) == sum(len(one.attempts) for out in solve(tasks, questions(2)) for one in out)


def test_methods_are_decoded_together_and_equal_replies_are_read_once():
    talker = Talker(lambda prompt, seed: f"{seed}|7")
    read, rounds = [], []
    generate = talker.generate

    def counting(requests, progress=None):
        rounds.append(len(requests))
        return generate(requests, progress)

    talker.generate = counting
    plain = talking_solver(talker).read

    def reading(problems, replies):
        read.append(len(replies))
        return plain(problems, replies)

    solver = talking_solver(talker)
    object.__setattr__(solver, "read", reading)
    solve([(solver, Natural()), (solver, BudgetForcing(max_tokens=30)), (solver, Vote(3))], questions(4))
    assert rounds == [4 * (1 + 1 + 3)]
    # The budget cuts nothing, and the vote's first reply is the natural one.
    assert read == [4 * 3]


def test_a_vote_of_two_uses_replies_of_a_vote_of_four():
    solver = talking_solver(Talker(by_seed))
    two, four = solve([(solver, Vote(2)), (solver, Vote(4))], questions(3))
    for small, large in zip(two, four, strict=True):
        assert [a.completion.ids for a in small.attempts] == [a.completion.ids for a in large.attempts[:2]]


def test_one_engine_for_all():
    tasks = [(talking_solver(Talker(by_seed)), Natural()) for _ in range(2)]
    with pytest.raises(UsageError, match="one engine"):
        solve(tasks, questions(1))


def test_what_cannot_be_played_is_refused_before_anything_is_decoded():
    talker = Talker(by_seed)
    solver = talking_solver(talker, policy=ThinkingPolicy(max_tokens=5))
    for method in (BudgetForcing(min_tokens=9), BudgetForcing(max_tokens=-1)):
        with pytest.raises(UsageError):
            solve([(solver, Natural()), (solver, method)], questions(1))
    blind = talking_solver(talker)
    object.__setattr__(blind, "verify", None)
    with pytest.raises(UsageError, match="shortest-of-correct: it needs a verifier"):
        solve([(blind, ShortestOfCorrect(2))], questions(1))
    greedy = talking_solver(talker, sampling=Sampling())
    for method in (Vote(2), RejectionSampling(3)):
        with pytest.raises(UsageError, match="temperature"):
            solve([(greedy, method)], questions(1))
    assert not talker.asked


def test_no_problems_no_outcomes():
    assert Natural().run(talking_solver(Talker(by_seed)), []) == []


@pytest.fixture(scope="module")
def engine():
    """A random model that closes its thinking now and then."""
    return Engine(tiny_student(seed=3, closes=1.6), max_batch=16)


def engine_solver(engine, **settings):
    student = engine.student
    return Solver(
        engine=engine,
        prompt=lambda problem, line: tuple(
            render_prompt(student.tokenizer, student.template, problem.question + line)
        ),
        read=lambda problems, replies: [part(reply, "answer")[:1] or None for reply in replies],
        verify=lambda problems, replies: [part(reply, "answer") < "T" for reply in replies],
        policy=ThinkingPolicy(max_tokens=24, answer_reserve=4),
        max_answer=4,
        **settings,
    )


METHODS = [
    Natural(),
    BudgetForcing(max_tokens=6),
    BudgetForcing(refuse_closes=2, wait=("Wait", "Hmm")),
    TokenConditional(8, forced_end=True),
    StepConditional(2, forced_end=True),
    ClassConditional("short"),
    RejectionSampling(12, tries=3),
    Vote(3),
    Vote(3, of=BudgetForcing(max_tokens=6), weight=PROBABILITY),
    BestOf(3),
    ShortestOfCorrect(3),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_together_is_as_alone(engine, method):
    """On the real engine: what methods share does not change what any of them gives."""
    solver = engine_solver(engine, sampling=Sampling(temperature=1.0), samples=2)
    together = solve([(solver, each) for each in METHODS], questions(3))[METHODS.index(method)]
    alone = method.run(solver, questions(3))
    assert [(one.answer, one.picked) for one in together] == [(one.answer, one.picked) for one in alone]
    for one, two in zip(together, alone, strict=True):
        assert [a.completion.ids for a in one.attempts] == [a.completion.ids for a in two.attempts]
        assert sum(one.thinking) <= 24 * len(one.attempts)


def test_the_mean_log_probability_is_that_of_the_ids_the_model_chose(engine):
    solver = engine_solver(engine, sampling=Sampling(temperature=1.0))
    outcome = BestOf(2, of=BudgetForcing(max_tokens=5)).run(solver, questions(1))[0]
    model = engine.student.model
    for attempt in outcome.attempts:
        reply = attempt.completion
        prompt = solver.prompt(outcome.problem, "")
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *reply.ids]])).logits[0].log_softmax(dim=-1)
        own = [
            float(logits[len(prompt) + i - 1, token])
            for i, token in enumerate(reply.ids)
            if not reply.forced[i]
        ]
        assert mean_logprob(reply) == pytest.approx(np.mean(own), abs=1e-4)
        assert sum(reply.forced) > 0
    best = max(outcome.attempts, key=lambda attempt: mean_logprob(attempt.completion))
    assert outcome.chosen is best.completion


def test_what_was_decoded_without_log_probabilities_has_no_mean(engine):
    reply = Natural().run(engine_solver(engine), questions(1))[0].chosen
    with pytest.raises(UsageError, match="ask for logprobs"):
        mean_logprob(reply)
