"""Advantages and returns from rewards and values, and what whitening is.

Promises: pure functions of tensors; what lies outside the mask changes nothing and comes back as 0.
Does not: know about tokens or models (a row is one episode, a column one action), or estimate values.
"""

from __future__ import annotations

import torch
from torch import Tensor

_EPSILON = 1e-8


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Generalised advantages, and the returns that the value function is to learn (advantages + values).

    All are (rows, actions); `rewards[i, t]` is given after action t, `values[i, t]` is the value before it;
    `mask` (bool) marks a row's actions, which stand at its left. After a row's last action the value is 0,
    also where the episode was cut off by a limit: its reward is then all that comes.

    Schulman et al. 2016, "High-dimensional continuous control using generalized advantage estimation",
    equations 11 to 16: delta_t = r_t + gamma V_(t+1) - V_t, A_t = delta_t + gamma lambda A_(t+1)."""
    kept = mask.to(values.dtype)
    rewards, values = rewards * kept, values * kept
    after = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    deltas = rewards + gamma * after - values
    advantages = torch.zeros_like(values)
    running = torch.zeros_like(values[:, 0])
    for place in reversed(range(values.shape[1])):
        running = (deltas[:, place] + gamma * lam * running) * kept[:, place]
        advantages[:, place] = running
    return advantages, advantages + values


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    """`x` with mean 0 and standard deviation 1 (of the population) over all that `mask` marks, 0 elsewhere;
    where all are the same, zeros."""
    picked = x[mask]
    if not len(picked):
        return torch.zeros_like(x)
    centred = (x - picked.mean()) * mask
    return centred / (picked.std(correction=0) + _EPSILON)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """The mean of `x` over what `mask` marks; 0 where it marks nothing."""
    return (x * mask).sum() / mask.sum().clamp(min=1)
