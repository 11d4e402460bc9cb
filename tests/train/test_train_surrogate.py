"""The losses of PPO against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tutelage.train.surrogate import action_rewards, k1, k3, policy_loss, value_loss


def row(*numbers: float) -> Tensor:
    return torch.tensor([numbers])


def logs(*ratios: float) -> Tensor:
    return row(*map(math.log, ratios))


ALL = torch.tensor([[True] * 4])


def test_the_clipped_surrogate_by_hand() -> None:
    # Ratios 1.5, 0.5, 1.5, 0.5; advantages 1, 1, -1, -1; clip to [0.8, 1.2]:
    # min(1.5, 1.2) + min(0.5, 0.8) + min(-1.5, -1.2) + min(-0.5, -0.8) = 1.2 + 0.5 - 1.5 - 0.8 = -0.6
    found = policy_loss(logs(1.5, 0.5, 1.5, 0.5), row(0, 0, 0, 0), row(1, 1, -1, -1), ALL)
    assert float(found.loss) == pytest.approx(0.6 / 4)
    # The clip decides where the first and the last lie beyond it on the side that pays.
    assert float(found.clipped) == 0.5
    # k3 of each: r - 1 - log r.
    expected = (2 * (0.5 - math.log(1.5)) + 2 * (-0.5 - math.log(0.5))) / 4
    assert float(found.moved) == pytest.approx(expected, abs=1e-6)


def test_the_upper_clip_may_be_higher_than_the_lower() -> None:
    found = policy_loss(logs(1.5, 0.5, 1, 1), row(0, 0, 0, 0), row(1, -1, 0, 0), ALL, low=0.2, high=0.28)
    assert float(found.loss) == pytest.approx(-(1.28 - 0.8) / 4)


def test_the_gradient_is_that_of_the_policy_gradient_at_first_and_0_where_clipped() -> None:
    new = logs(1.0, 1.0, 1.5, 0.5).requires_grad_()
    policy_loss(new, row(0, 0, 0, 0), row(2, -3, 1, 1), ALL).loss.backward()
    # d/dlogp of -r A / 4: -A / 4 at ratio 1; 0 where it is clipped (1.5 up); -0.5 A / 4 where it is not.
    assert new.grad is not None
    assert new.grad.tolist()[0] == pytest.approx([-0.5, 0.75, 0.0, -0.125])


def test_the_clipped_value_loss_by_hand() -> None:
    values, old, returns = row(1.0, 0.3, -1.0, 0.5), row(0.0, 0.2, 0.0, 0.5), row(1.0, 1.0, -1.0, 0.0)
    # Held to old +- 0.2: 0.2, 0.3, -0.2, 0.5. Larger squared errors: 0.8^2, 0.7^2, 0.8^2, 0.5^2.
    expected = 0.5 * (0.64 + 0.49 + 0.64 + 0.25) / 4
    assert float(value_loss(values, old, returns, ALL)) == pytest.approx(expected)


numbers = st.lists(st.tuples(*[st.floats(-2, 2)] * 3), min_size=1, max_size=5)


@settings(max_examples=40, deadline=None)
@given(numbers, st.integers(0, 3), st.floats(-3, 3))
def test_what_is_outside_the_mask_changes_nothing(
    rows: list[tuple[float, float, float]], padding: int, noise: float
) -> None:
    columns = [row(*(each[k] for each in rows)) for k in range(3)]
    mask = torch.ones_like(columns[0], dtype=torch.bool)
    fill = torch.full((1, padding), noise)
    wide = [torch.cat([column, fill], 1) for column in columns]
    wide_mask = torch.cat([mask, torch.zeros(1, padding, dtype=torch.bool)], 1)
    one, other = policy_loss(*columns, mask), policy_loss(*wide, wide_mask)
    for name in ("loss", "clipped", "moved"):
        assert float(getattr(one, name)) == pytest.approx(float(getattr(other, name)), abs=1e-5)
    assert float(value_loss(*columns, mask)) == pytest.approx(float(value_loss(*wide, wide_mask)), abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(numbers)
def test_the_clipped_losses_are_never_below_the_plain_ones(rows: list[tuple[float, float, float]]) -> None:
    new, old, third = (row(*(each[k] for each in rows)) for k in range(3))
    mask = torch.ones_like(new, dtype=torch.bool)
    plain = -((new - old).exp() * third).mean()
    assert float(policy_loss(new, old, third, mask).loss) >= float(plain) - 1e-4
    assert float(value_loss(new, old, third, mask)) >= float(0.5 * ((new - third) ** 2).mean()) - 1e-5


def test_both_estimators_have_the_divergence_as_their_mean_and_k3_is_never_negative() -> None:
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.2, 0.3, 0.5])
    divergence = float((p * (p / q).log()).sum())
    assert float((p * k1(p.log(), q.log())).sum()) == pytest.approx(divergence)
    each = k3(q.log() - p.log())
    assert float((p * each).sum()) == pytest.approx(divergence, rel=1e-5)
    assert float(each.min()) >= 0


def test_a_reply_earns_at_its_last_action_and_pays_for_each_step_away_from_the_start() -> None:
    mask = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
    new = torch.tensor([[-1.0, -2.0, -0.5], [-1.0, 9.0, 9.0], [9.0, 9.0, 9.0]])
    old = torch.tensor([[-1.5, -1.0, -0.5], [-3.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    rewards = torch.tensor([1.0, -1.0, 5.0])
    found = action_rewards(rewards, new, old, mask, 0.1)
    # -0.1 * (0.5, -1, 0) and 1 at the last; -0.1 * 2 - 1; a reply without an action earns nothing.
    expected = [[-0.05, 0.1, 1.0], [-1.2, 0.0, 0.0], [0.0, 0.0, 0.0]]
    assert torch.allclose(found, torch.tensor(expected))
    plain = action_rewards(rewards, new, None, mask, 0.1)
    assert plain.tolist() == [[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
