"""Generalised advantages against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.train.gae import gae, masked_mean, whiten

MASK = torch.tensor([[True, True, True]])


def test_three_actions_by_hand() -> None:
    rewards = torch.tensor([[0.0, -0.5, 1.0]])
    values = torch.tensor([[0.2, 0.4, 0.6]])
    # gamma 0.5, lambda 0.5. delta_2 = 1 - 0.6 = 0.4; delta_1 = -0.5 + 0.5 * 0.6 - 0.4 = -0.6;
    # delta_0 = 0 + 0.5 * 0.4 - 0.2 = 0. A_2 = 0.4; A_1 = -0.6 + 0.25 * 0.4 = -0.5; A_0 = 0.25 * -0.5.
    advantages, returns = gae(rewards, values, MASK, gamma=0.5, lam=0.5)
    assert advantages.tolist()[0] == pytest.approx([-0.125, -0.5, 0.4])
    assert returns.tolist()[0] == pytest.approx([0.075, -0.1, 1.0])


def test_lambda_1_gives_the_sum_of_what_comes_less_the_value_and_lambda_0_one_step_errors() -> None:
    rewards = torch.tensor([[0.1, 0.2, 1.0]])
    values = torch.tensor([[0.5, -0.3, 0.7]])
    advantages, returns = gae(rewards, values, MASK, gamma=1.0, lam=1.0)
    assert returns.tolist()[0] == pytest.approx([1.3, 1.2, 1.0])
    assert advantages.tolist()[0] == pytest.approx([0.8, 1.5, 0.3])
    advantages, _ = gae(rewards, values, MASK, gamma=1.0, lam=0.0)
    assert advantages.tolist()[0] == pytest.approx([0.1 - 0.3 - 0.5, 0.2 + 0.7 + 0.3, 1.0 - 0.7])


@settings(max_examples=40, deadline=None)
@given(
    numbers=st.lists(st.tuples(st.floats(-2, 2), st.floats(-2, 2)), min_size=1, max_size=6),
    padding=st.integers(0, 4),
    noise=st.floats(-9, 9),
    gamma=st.floats(0, 1),
    lam=st.floats(0, 1),
)
def test_what_is_outside_the_mask_changes_nothing(
    numbers: list[tuple[float, float]], padding: int, noise: float, gamma: float, lam: float
) -> None:
    rewards, values = (torch.tensor([[row[k] for row in numbers]]) for k in range(2))
    mask = torch.ones_like(rewards, dtype=torch.bool)
    alone = gae(rewards, values, mask, gamma=gamma, lam=lam)
    fill = torch.full((1, padding), noise)
    wide = gae(
        torch.cat([rewards, fill], 1),
        torch.cat([values, fill], 1),
        torch.cat([mask, fill.bool() & False], 1),
        gamma=gamma,
        lam=lam,
    )
    for one, other in zip(alone, wide, strict=True):
        assert torch.allclose(one, other[:, : len(numbers)], atol=1e-6)
        assert not other[:, len(numbers) :].any()


def test_whitened_is_mean_0_and_deviation_1_over_the_mask_alone() -> None:
    x = torch.tensor([[1.0, 3.0, 99.0], [5.0, -99.0, 99.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    # Mean 3, population deviation sqrt(8 / 3).
    found = whiten(x, mask)
    assert found[mask].tolist() == pytest.approx([-1.2247449, 0.0, 1.2247449], abs=1e-6)
    assert not found[~mask].any()
    assert not whiten(torch.full((1, 3), 0.7), MASK).any()
    assert not whiten(x, mask & False).any()


def test_a_masked_mean_of_nothing_is_0() -> None:
    assert masked_mean(torch.tensor([[2.0, 4.0, 9.0]]), torch.tensor([[True, True, False]])) == 3.0
    assert masked_mean(torch.ones(1, 3), MASK & False) == 0.0
