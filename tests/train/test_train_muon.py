"""Muon with AdamW: which weights go by which, what an update is, and that trainers see one optimiser."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from loopstudent import loop_examples, loop_student
from torch import nn

from tinymodel import tiny_student
from tutelage.errors import UsageError
from tutelage.students.pretrained import Student
from tutelage.train.muon import MuonWithAdamW, build_muon, matrices
from tutelage.train.settings import Optimiser
from tutelage.train.sft import train_sft

TOLD = Optimiser(
    10, kind="muon", muon_learning_rate=0.02, learning_rate=1e-3, weight_decay=0.1, warmup_steps=0
)


def toy(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    middle = nn.Sequential(nn.Tanh(), nn.LayerNorm(24))
    return nn.Sequential(nn.Embedding(7, 16), nn.Linear(16, 24), middle, nn.Linear(24, 5))


def learn(model: nn.Module, by: torch.optim.Optimizer, steps: int) -> list[float]:
    ids, wanted = torch.arange(7), torch.arange(7) % 5
    losses = []
    for _ in range(steps):
        by.zero_grad()
        loss = nn.functional.cross_entropy(model(ids), wanted)
        loss.backward()
        by.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("begun", [tiny_student(), loop_student(), loop_student(tie_word_embeddings=False)])
def test_matrices_of_layers_go_by_muon_and_all_else_by_adamw(begun: Student) -> None:
    chosen = set(matrices(begun.model))
    for name, weight in begun.model.named_parameters():
        by_adamw = any(part in name for part in ("embed", "lm_head", "norm", "bias"))
        assert (name in chosen) == (not by_adamw), name
        assert name not in chosen or weight.ndim == 2
    assert len(chosen) > 7
    optimiser = build_muon(begun.model, TOLD)
    held = [id(each) for group in optimiser.param_groups for each in group["params"]]
    assert sorted(held) == sorted(id(each) for each in begun.model.parameters())
    assert [group["lr"] for group in optimiser.param_groups] == [0.02, 1e-3, 1e-3]
    assert [group["weight_decay"] for group in optimiser.param_groups] == [0.1, 0.1, 0.0]


def test_a_first_update_is_orthogonal_and_as_large_as_the_rate_says() -> None:
    model = toy()
    told = Optimiser(10, kind="muon", muon_learning_rate=0.02, weight_decay=0.0, warmup_steps=0)
    before = model[1].weight.detach().clone()
    learn(model, build_muon(model, told), 1)
    moved = torch.linalg.svdvals(model[1].weight.detach() - before)
    # Five rounds of Newton-Schulz leave the singular values of full rank between about 0.7 and 1.2; a wide
    # or tall matrix is scaled by the root of its ratio.
    assert float(moved[0]) <= 0.02 * 1.3 * (24 / 16) ** 0.5 and float(moved[0]) >= 0.02 * 0.6


def test_it_learns_a_toy_and_its_state_goes_on() -> None:
    model = toy()
    optimiser = build_muon(model, TOLD)
    losses = learn(model, optimiser, 60)
    assert losses[-1] < 0.1 * losses[0]
    twin = copy.deepcopy(model)
    again = build_muon(twin, TOLD)
    again.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    assert learn(model, optimiser, 5) == learn(twin, again, 5)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    fresh = toy()
    assert learn(fresh, build_muon(fresh, TOLD), 5) != losses[-5:]


def test_a_schedule_scales_both_rates_and_a_later_group_goes_by_adamw() -> None:
    model, head = toy(), nn.Linear(3, 3)
    optimiser = build_muon(model, TOLD)
    optimiser.add_param_group({"params": list(head.parameters()), "lr": 0.5, "weight_decay": 0.0})
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 0.1**step)
    learn(model, optimiser, 1)
    schedule.step()
    assert [group["lr"] for group in optimiser.param_groups] == pytest.approx([2e-3, 1e-4, 1e-4, 0.05])
    before = head.weight.detach().clone()
    head(torch.ones(3)).sum().backward()
    optimiser.step()
    # Adam's first step is the rate, whatever the gradient's size.
    assert torch.allclose(before - head.weight, torch.full((3, 3), 0.05), atol=1e-4)
    assert isinstance(optimiser, MuonWithAdamW) and isinstance(optimiser, torch.optim.Optimizer)


def test_weights_without_a_gradient_are_left_alone() -> None:
    model = toy()
    optimiser = build_muon(model, TOLD)
    before = [each.detach().clone() for each in model.parameters()]
    optimiser.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    closed = optimiser.step(lambda: 3.0)
    assert closed == 3.0


def test_a_model_without_matrices_is_refused() -> None:
    with pytest.raises(UsageError, match="needs matrices to train"):
        build_muon(nn.Embedding(3, 4), TOLD)


@pytest.mark.slow
@pytest.mark.parametrize("make", [tiny_student, loop_student])
def test_a_stage_trains_by_it(make: Any) -> None:
    curves = {}
    for kind in ("adamw", "muon"):
        begun = make()
        found = train_sft(
            begun,
            loop_examples(begun, 8),
            Optimiser(
                10, batch=8, kind=kind, learning_rate=1e-3, muon_learning_rate=0.02, warmup_steps=0, seed=1
            ),
        )
        curves[kind] = [loss for _, loss in found.losses]
        rates = [row["learning_rate"] for row in found.fitted.log if "learning_rate" in row]
        assert rates[0] == pytest.approx(0.02 if kind == "muon" else 1e-3)
    assert curves["muon"][0] == pytest.approx(curves["adamw"][0], rel=1e-5)
    assert curves["muon"][-1] < curves["muon"][0] - 0.2 and curves["muon"][-1] != curves["adamw"][-1]
