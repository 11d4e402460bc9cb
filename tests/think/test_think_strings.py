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
from tutelage.think.strings import PENALTIES, Example, Picker, collect, fit

WORDS = ("Wait", "Hmm")


def examples(count=60, close=0, seed=0):
    """The first coordinate of the state decides which of two strings ends right; the second is noise, the
    third never varies."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        sign = float(rng.choice((-1, 1)))
        state = np.array([sign + 0.1 * rng.normal(), rng.normal(), 4.0])
        made.append(Example(f"p{number}", close, state, (float(sign > 0), float(sign < 0))))
    return made


def test_it_learns_which_string_ends_right():
    picker = fit(examples(), WORDS)
    fresh = examples(seed=1)
    picked = [picker(torch.tensor(example.state), 0) for example in fresh]
    assert all(example.right[i] == 1.0 for i, example in zip(picked, fresh, strict=True))
    assert picker.strings == WORDS and picker.examples == 60 and picker.weights.shape == (1, 2, 3)


def test_without_a_signal_it_picks_what_is_right_more_often():
    rng = np.random.default_rng(0)
    noise = [
        Example(f"p{i}", 0, rng.normal(size=8), (float(i % 10 < 3), float(i % 10 < 6))) for i in range(200)
    ]
    picker = fit(noise, WORDS)
    assert picker.penalties == (PENALTIES[-1],)
    assert [picker(torch.tensor(rng.normal(size=8)), 0) for _ in range(20)].count(1) >= 18


def test_each_close_has_weights_of_its_own_and_later_ones_use_the_last():
    turned = [Example(one.problem_id, 1, -one.state, one.right) for one in examples(seed=2)]
    picker = fit([*examples(), *turned], WORDS)
    state = torch.tensor([1.0, 0.0, 4.0])
    assert [picker(state, waits) for waits in range(4)] == [0, 1, 1, 1]


def test_the_same_examples_and_seed_give_the_same_picker():
    one, two = fit(examples(), WORDS, seed=3), fit(examples(), WORDS, seed=3)
    assert np.array_equal(one.weights, two.weights) and one.penalties == two.penalties


def test_what_is_saved_is_what_is_loaded(tmp_path):
    picker = fit(examples(), WORDS)
    again = Picker.load(picker.save(tmp_path / "new" / "picker"))
    assert (again.strings, again.penalties, again.examples) == (WORDS, picker.penalties, 60)
    states = np.random.default_rng(0).normal(size=(5, 3))
    assert np.array_equal(again.logits(states, 0), picker.logits(states, 0))
    assert json.loads((tmp_path / "new/picker/picker.json").read_text())["strings"] == list(WORDS)


@pytest.mark.parametrize("broken", ["picker.json", "picker.safetensors"])
def test_a_picker_that_is_not_whole_is_refused(tmp_path, broken):
    fit(examples(), WORDS).save(tmp_path)
    (tmp_path / broken).write_bytes(b"{")
    with pytest.raises(UsageError, match="no readable picker"):
        Picker.load(tmp_path)
    with pytest.raises(UsageError, match="no readable picker"):
        Picker.load(tmp_path / "nowhere")


def test_another_models_states_are_refused():
    with pytest.raises(UsageError, match=r"width 3, this model's have 2"):
        fit(examples(), WORDS)(torch.zeros(2), 0)


def test_too_few_problems_are_refused():
    with pytest.raises(UsageError, match="close 0 was refused on 4 problems"):
        fit(examples(4), WORDS)
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


def test_every_order_is_tried_and_shares_are_those_of_its_continuations():
    solver, talker = minded_solver()
    found = collect(solver, questions(2), WORDS, closes=2)
    assert len(talker.asked) == 2 * len(WORDS) ** 2
    by_place = {(one.problem_id, one.close, tuple(one.state)): one.right for one in found}
    # At the first close: the wanted string is right whatever follows, the other one half of the time.
    assert by_place["p0", 0, (0.0, 1.0)] == (1.0, 0.5)
    assert by_place["p1", 0, (1.0, 1.0)] == (0.5, 1.0)
    # At the second, one example for each string that may stand before it.
    assert by_place["p0", 1, (0.0, 6.0)] == (1.0, 1.0) and by_place["p0", 1, (0.0, 5.0)] == (1.0, 0.0)
    assert len(found) == 2 * (1 + 2)


def test_a_reply_that_does_not_come_to_a_close_gives_no_example():
    solver, talker = minded_solver()
    talker.say = lambda prompt, seed: "aaaa|7"
    object.__setattr__(solver, "policy", ThinkingPolicy(max_tokens=3))
    assert collect(solver, questions(3), ("W", "H")) == []


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
    assert found and all(example.state.shape == (32,) for example in found)
    natural = {one.problem.id: one.chosen for one in Natural().run(solver, questions(8))}
    asked = {problem.id: problem for problem in questions(8)}
    for example in found:
        reply, prompt = natural[example.problem_id], solver.prompt(asked[example.problem_id], "")
        thought = reply.ids[: sum(reply.count("thinking"))]
        assert reply.closed_by in ("model", "eos")
        with torch.no_grad():
            states = engine.student.model(
                torch.tensor([[*prompt, *thought]]), output_hidden_states=True
            ).hidden_states[-1]
        assert np.allclose(states[0, -1].numpy(), example.state, atol=1e-4)
