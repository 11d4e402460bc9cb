"""Promises of picking the wait string: what is learned, from what, and that it is saved whole."""

import json

import numpy as np
import pytest
import torch
from talkers import Talker, part, questions, talking_solver

from tinymodel import tiny_student
from tutelage.errors import UsageError
from tutelage.students.template import Template, render_prompt
from tutelage.think.control import BudgetForcing, Natural
from tutelage.think.engine import Engine
from tutelage.think.methods import Solver
from tutelage.think.policy import ThinkingPolicy
from tutelage.think.sampling import Sampling
from tutelage.think.strings import PENALTIES, Picker, Sequenced, Tried, collect, fit, orders

WORDS = ("Wait", "Hmm")


def tried(count=60, seed=0, close=False):
    """The first coordinate of the state decides which of two strings ends right (or, with `close`, whether to
    let the model close); the second is noise, the third never varies."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        sign = float(rng.choice((-1, 1)))
        state = np.array([sign + 0.1 * rng.normal(), rng.normal(), 4.0])
        right = {(0,): sign > 0, (1,): sign < 0}
        if close:
            right = {(0,): sign > 0, (1,): False, (2,): sign < 0}
        made.append(Tried(f"p{number}", 0, {(): state}, right))
    return made


def test_it_learns_which_string_ends_right():
    picker = fit(tried(), WORDS)
    fresh = tried(seed=1)
    assert all(one.right[(picker(torch.tensor(one.states[()]), 0),)] for one in fresh)
    assert picker.strings == WORDS and picker.examples == 60 and picker.weights.shape == (1, 2, 3)


@pytest.mark.slow
def test_it_learns_when_to_let_the_model_close():
    picker = fit(tried(close=True), WORDS)
    picks = {float(sign): picker(torch.tensor([sign, 0.0, 4.0]), 0) for sign in (-1.0, 1.0)}
    assert picks == {-1.0: None, 1.0: 0} and picker.weights.shape == (1, 3, 3)


def test_without_a_signal_it_picks_what_is_right_more_often():
    rng = np.random.default_rng(0)
    noise = [
        Tried(f"p{i}", 0, {(): rng.normal(size=8)}, {(0,): i % 10 < 3, (1,): i % 10 < 6}) for i in range(200)
    ]
    picker = fit(noise, WORDS)
    assert picker.penalties == (PENALTIES[-1],)
    assert [picker(torch.tensor(rng.normal(size=8)), 0) for _ in range(20)].count(1) >= 18


@pytest.mark.slow
def test_earlier_closes_reckon_with_what_later_ones_will_pick():
    """After the first string one of two ends right, as the state says; after the second both do in half of
    the replies. Blind shares would be a tie; a picker that knows itself takes the first."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(80):
        sign, luck = float(rng.choice((-1, 1))), bool(number % 2)
        states = {(): np.array([0.0, 1.0]), (0,): np.array([sign, 1.0]), (1,): np.array([0.0, rng.normal()])}
        right = {(0, 0): sign > 0, (0, 1): sign < 0, (1, 0): luck, (1, 1): luck}
        made.append(Tried(f"p{number}", 0, states, right))
    picker = fit(made, WORDS)
    assert picker(torch.tensor([0.0, 1.0]), 0) == 0
    assert [picker(torch.tensor([sign, 1.0]), waits) for sign in (-1.0, 1.0) for waits in (1, 2)] == [
        1,
        1,
        0,
        0,
    ]
    assert picker.examples == 80 * 3


def test_the_same_trials_and_seed_give_the_same_picker():
    one, two = fit(tried(), WORDS, seed=3), fit(tried(), WORDS, seed=3)
    assert np.array_equal(one.weights, two.weights) and one.penalties == two.penalties


def test_what_is_saved_is_what_is_loaded(tmp_path):
    picker = fit(tried(), WORDS)
    again = Picker.load(picker.save(tmp_path / "new" / "picker"))
    assert (again.strings, again.penalties, again.examples) == (WORDS, picker.penalties, 60)
    states = np.random.default_rng(0).normal(size=(5, 3))
    assert np.array_equal(again.logits(states, 0), picker.logits(states, 0))
    assert json.loads((tmp_path / "new/picker/picker.json").read_text())["strings"] == list(WORDS)


@pytest.mark.parametrize("broken", ["picker.json", "picker.safetensors"])
def test_a_picker_that_is_not_whole_is_refused(tmp_path, broken):
    fit(tried(), WORDS).save(tmp_path)
    (tmp_path / broken).write_bytes(b"{")
    with pytest.raises(UsageError, match="no readable picker"):
        Picker.load(tmp_path)
    with pytest.raises(UsageError, match="no readable picker"):
        Picker.load(tmp_path / "nowhere")


def test_another_models_states_are_refused():
    with pytest.raises(UsageError, match=r"width 3, this model's have 2"):
        fit(tried(), WORDS)(torch.zeros(2), 0)


def test_too_few_problems_are_refused():
    with pytest.raises(UsageError, match="close 0 was refused on 4 problems"):
        fit(tried(4), WORDS)
    with pytest.raises(UsageError, match="0 problems"):
        fit([], WORDS)


class Minded(Talker):
    """A model that closes once, and then is right only after the string that its problem wants."""

    def __init__(self, wants):
        super().__init__(
            lambda prompt, seed: "a|b|c|d|7", lambda prompt, written: self.state(prompt, written)
        )
        self.wants = wants

    def state(self, prompt, written):
        return [self.wants(prompt), float(len(written))]


def number(prompt):
    return int(prompt.split("question ")[1].split("<|")[0])


def wanted(prompt):
    """Which string makes it right: by the problem's number."""
    return float(number(prompt) % 2)


def minded_solver():
    talker = Minded(wanted)
    solver = talking_solver(talker, sampling=Sampling())
    strings = {0.0: "Wait", 1.0: "Hmm"}

    def verify(problems, replies):
        return [
            strings[wanted(f"{problem.question}<|")] in part(reply, "thinking")
            for problem, reply in zip(problems, replies, strict=True)
        ]

    object.__setattr__(solver, "verify", verify)
    return solver, talker


def test_every_order_is_tried_and_every_state_is_kept():
    solver, talker = minded_solver()
    found = collect(solver, questions(2), WORDS, closes=2)
    assert len(talker.asked) == 2 * len(WORDS) ** 2
    assert [(one.problem_id, one.sample) for one in found] == [("p0", 0), ("p1", 0)]
    assert dict(found[0].right) == {(0, 0): True, (0, 1): True, (1, 0): True, (1, 1): False}
    # At the second close, one state for each string that may stand before it.
    assert {taken: list(state) for taken, state in found[1].states.items()} == {
        (): [1.0, 1.0],
        (0,): [1.0, 6.0],
        (1,): [1.0, 5.0],
    }


def test_letting_it_close_ends_an_order():
    solver, talker = minded_solver()
    found = collect(solver, questions(1), WORDS, closes=2, may_close=True)[0]
    assert sorted(found.right) == sorted(orders(2, 2, may_close=True))
    assert sorted(found.right) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2,)]
    assert len(talker.asked) == 7
    assert not found.right[(2,)] and found.right[(0, 2)] and not found.right[(1, 2)]
    method = Sequenced(WORDS, (1, 2), closes=2)
    reply = method.run(solver, questions(1))[0].chosen
    assert part(reply, "thinking") == "aHmmb" and (reply.refused, reply.closed_by) == (1, "model")
    assert method.row() == {"waits": 1, "wait": ["Hmm"], "chosen": "given"}


def test_a_close_before_the_minimum_is_refused_whatever_is_picked():
    solver, _ = minded_solver()
    forcing = BudgetForcing(min_tokens=2, wait=WORDS, choose_wait=lambda state, waits: None)
    reply = forcing.run(solver, questions(1))[0].chosen
    assert part(reply, "thinking") == "ab" and reply.refused == 1 and reply.waits == 0


def test_a_reply_that_does_not_come_to_a_close_has_no_state():
    solver, talker = minded_solver()
    talker.say = lambda prompt, seed: "aaaa|7"
    object.__setattr__(solver, "policy", ThinkingPolicy(max_tokens=3))
    found = collect(solver, questions(3), ("W", "H"))
    assert [one.states for one in found] == [{}] * 3
    with pytest.raises(UsageError, match="refused on 0 problems"):
        fit(found, ("W", "H"))


def test_a_fitted_picker_chooses_in_the_engine():
    solver, _ = minded_solver()
    picker = fit(collect(solver, questions(20), WORDS), WORDS)
    method = BudgetForcing(refuse_closes=1, wait=picker.strings, choose_wait=picker)
    outcomes = method.run(solver, questions(30)[20:])
    assert [("Hmm" if number(one.problem.question + "<|") % 2 else "Wait") for one in outcomes] == [
        next(word for word in WORDS if word in part(one.chosen, "thinking")) for one in outcomes
    ]
    assert method.row() == {"waits": 1, "wait": list(WORDS), "chosen": "picked"}


def test_there_must_be_something_to_choose_and_to_learn_from():
    solver, _ = minded_solver()
    for words, closes in ((("Wait",), 1), (("Wait", "Wait"), 1), (WORDS, 0)):
        with pytest.raises(UsageError, match="nothing to choose"):
            collect(solver, questions(1), words, closes)
    assert collect(solver, questions(1), ("Wait",), may_close=True)
    object.__setattr__(solver, "verify", None)
    with pytest.raises(UsageError, match="give the solver a verifier"):
        collect(solver, questions(1), WORDS)


def test_states_are_those_of_a_real_model():
    """On the real engine: the last hidden state, of the model's width, at the very place of the close."""
    engine = Engine(tiny_student(seed=3, closes=3.0))
    tokenizer = engine.student.tokenizer
    solver = Solver(
        engine=engine,
        prompt=lambda problem, line: tuple(render_prompt(tokenizer, Template(), problem.question)),
        read=lambda problems, replies: [None for _ in replies],
        verify=lambda problems, replies: [len(reply.ids) % 2 == 0 for reply in replies],
        policy=ThinkingPolicy(max_tokens=60, answer_reserve=2),
        max_answer=2,
    )
    found = collect(solver, questions(8), WORDS)
    refused = {one.problem_id: one.states[()] for one in found if one.states}
    assert refused and all(state.shape == (32,) for state in refused.values())
    natural = {one.problem.id: one.chosen for one in Natural().run(solver, questions(8))}
    asked = {problem.id: problem for problem in questions(8)}
    for problem_id, state in refused.items():
        reply, prompt = natural[problem_id], solver.prompt(asked[problem_id], "")
        thought = reply.ids[: sum(reply.count("thinking"))]
        assert reply.closed_by in ("model", "eos")
        with torch.no_grad():
            states = engine.student.model(
                torch.tensor([[*prompt, *thought]]), output_hidden_states=True
            ).hidden_states[-1]
        assert np.allclose(states[0, -1].numpy(), state, atol=1e-4)
