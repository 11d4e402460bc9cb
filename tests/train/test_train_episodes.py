"""Rollouts as tensors: what a model says of each drawn id, and nothing of the others."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tinymodel import tiny_student
from tutelage.errors import UsageError
from tutelage.records import Problem
from tutelage.think.policy import ThinkingPolicy
from tutelage.think.sampling import Sampling
from tutelage.train.episodes import gather, look
from tutelage.train.rollouts import Rollout, sample
from tutelage.train.value import ValueHead, width_of

STUDENT = tiny_student(closes=1.5)
ROLLOUTS = sample(
    STUDENT,
    [Problem("a", "7?"), Problem("b", "12345?")],
    samples=2,
    policy=ThinkingPolicy(max_tokens=6, close_text="so"),
    sampling=Sampling(0.7),
    seed=3,
    max_answer=5,
)
DEVICE = torch.device("cpu")
PAD = int(STUDENT.tokenizer.pad_token_id)


def head() -> ValueHead:
    found = ValueHead(width_of(STUDENT.model), seed=1)
    with torch.no_grad():
        found.out.weight.normal_(generator=torch.Generator().manual_seed(0))
    return found


def test_each_drawn_id_has_the_log_probability_entropy_and_value_of_its_own_place() -> None:
    episodes, value = gather(ROLLOUTS, PAD, DEVICE), head()
    with torch.no_grad():
        found = look(STUDENT.model, value, episodes, 0.7)
    for row, rollout in enumerate(ROLLOUTS):
        ids = torch.tensor([rollout.prompt_ids + rollout.ids])
        with torch.no_grad():
            out = STUDENT.model(ids, output_hidden_states=True)
            told = (out.logits[0] / 0.7).log_softmax(-1)  # (tokens, vocabulary)
            values = value(out.hidden_states[-1][0])  # (tokens,)
        places = [len(rollout.prompt_ids) + k for k, free in enumerate(rollout.free) if free]
        assert not all(rollout.free) and episodes.mask[row].sum() == len(places)
        for action, place in enumerate(places):
            before = told[place - 1]
            assert float(found.logprobs[row, action]) == pytest.approx(float(before[ids[0, place]]), abs=1e-4)
            assert float(found.entropy[row, action]) == pytest.approx(
                float(-(before.exp() * before).sum()), abs=1e-4
            )
            assert float(found.values[row, action]) == pytest.approx(float(values[place - 1]), abs=1e-4)
        for each in (found.logprobs, found.entropy, found.values):
            assert not each[row, len(places) :].any()


def test_a_part_of_the_rows_says_the_same() -> None:
    episodes = gather(ROLLOUTS, PAD, DEVICE)
    with torch.no_grad():
        whole = look(STUDENT.model, None, episodes, 1.0)
        for row in range(len(ROLLOUTS)):
            part = episodes.rows([row])
            found = look(STUDENT.model, None, part, 1.0)
            actions = int(part.mask.sum())
            assert part.ids.shape[1] == int(part.real.sum())
            assert torch.allclose(found.logprobs[0], whole.logprobs[row, :actions], atol=1e-4)
            assert not found.values.any()


def test_an_adapter_is_looked_through() -> None:
    model = get_peft_model(copy.deepcopy(STUDENT.model), LoraConfig(target_modules="all-linear", r=2))
    episodes = gather(ROLLOUTS, PAD, DEVICE)
    with torch.no_grad():
        one, other = (look(each, None, episodes, 1.0) for each in (model.eval(), STUDENT.model))
    assert width_of(model) == 32
    assert torch.allclose(one.logprobs, other.logprobs, atol=1e-5)


def test_a_reply_without_a_drawn_id_has_no_action() -> None:
    forced = Rollout(ROLLOUTS[0].trace, (65, 66), (67, 68), (False, False))
    episodes = gather([forced, ROLLOUTS[1]], PAD, DEVICE)
    assert episodes.mask.sum(dim=1).tolist() == [0, sum(ROLLOUTS[1].free)]
    with torch.no_grad():
        assert not look(STUDENT.model, head(), episodes, 1.0).logprobs[0].any()


def test_a_fresh_head_says_0_and_its_weights_come_back_from_a_folder(tmp_path: Path) -> None:
    states = torch.randn(2, 5, 32, dtype=torch.bfloat16)
    assert not ValueHead(32)(states).any() and ValueHead(32)(states).dtype == torch.float32
    kept, other = head(), ValueHead(32, seed=9)
    kept.save(tmp_path)
    other.load(tmp_path)
    assert torch.equal(kept(states), other(states))
    assert torch.equal(ValueHead(32, seed=4).inner.weight, ValueHead(32, seed=4).inner.weight)
    with pytest.raises(UsageError, match="has no value_head"):
        other.load(tmp_path / "nothing")
