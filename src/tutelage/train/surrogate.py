"""The two losses of PPO, as pure functions.

Promises: what lies outside the mask changes nothing; the clipped loss is never below the plain one.
Does not: sample, estimate advantages (see `gae`), or know about models.

Schulman et al. 2017, "Proximal policy optimization algorithms"; the value loss is clipped as in the authors'
code (openai/baselines, ppo2), which the paper does not describe. Means are over the actions of a minibatch,
so that a long reply weighs as many times as it has tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.train.gae import masked_mean


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """`loss`; `clipped`: the share of actions where the clip took the gradient away; `moved`: the estimated
    divergence from the policy that drew the actions (k3, see `k3`)."""

    loss: Tensor
    clipped: Tensor
    moved: Tensor


def policy_loss(
    logprobs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, *, low: float = 0.2, high: float = 0.2
) -> PolicyLoss:
    """- mean of min(r A, clip(r, 1 - low, 1 + high) A) with r = exp(logprobs - old), all (rows, actions)
    (equation 7; `high` above `low` is DAPO's clip-higher)."""
    shift = (logprobs - old) * mask
    ratio = shift.exp()
    plain = ratio * advantages
    held = ratio.clamp(1 - low, 1 + high) * advantages
    return PolicyLoss(
        loss=-masked_mean(torch.minimum(plain, held), mask),
        clipped=masked_mean((held < plain).to(ratio.dtype), mask).detach(),
        moved=masked_mean(k3(shift), mask).detach(),
    )


def value_loss(values: Tensor, old: Tensor, returns: Tensor, mask: Tensor, *, clip: float = 0.2) -> Tensor:
    """Half the mean of the larger of two squared errors: of the new values, and of new values that may differ
    from the `old` ones by `clip` at most."""
    held = old + (values - old).clamp(-clip, clip)
    return 0.5 * masked_mean(torch.maximum((values - returns) ** 2, (held - returns) ** 2), mask)


def action_rewards(
    rewards: Tensor, logprobs: Tensor, reference: Tensor | None, mask: Tensor, kl: float
) -> Tensor:
    """What each action earns, (rows, actions): the whole reply's reward, (rows,), at its last one, and at
    each -`kl` times `k1` of it (Ouyang et al. 2022, arXiv 2203.02155, section 3.5). `reference` None: no such
    term."""
    given = torch.zeros_like(logprobs)
    rows = mask.any(dim=1)
    given[rows, mask.sum(dim=1)[rows] - 1] = rewards[rows].to(given.dtype)
    return given if reference is None else (given - kl * k1(logprobs, reference)) * mask


def k1(logprobs: Tensor, reference: Tensor) -> Tensor:
    """log(p / q) of each action drawn from p: unbiased for KL(p || q). As part of a reward it has the
    gradient of the divergence, which k3 there has not (Schulman 2020, "Approximating KL divergence")."""
    return logprobs - reference


def k3(log_ratio: Tensor) -> Tensor:
    """q / p - 1 - log(q / p) with `log_ratio` = log(q / p): unbiased too, never negative; for watching."""
    return log_ratio.exp() - 1 - log_ratio
