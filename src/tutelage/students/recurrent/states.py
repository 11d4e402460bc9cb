"""Where the loop starts: initial states s₀, from a normal distribution cut at three deviations.

Promises: in evaluation the state of a position is a fixed draw, the same for every text, batch and machine;
where a trainer tells the step (see `depth.Clock`) it is a function of seed, step and position. Positions
count real tokens, so that padding and packing change nothing.
Does not: hold weights; the tables are no part of a checkpoint.

Source: Geiping et al. 2025, appendix A. They draw anew for each text; a fixed draw gives the same logits
twice, and where a state ends hardly depends on it (their section 7, path independence).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from tutelage.students.recurrent.config import RecurrentDepthConfig
from tutelage.students.recurrent.depth import Clock

# Positions with initial states of their own, after which they repeat; how many of them training draws at
# once; and where a draw is cut, in deviations.
_STATES = 1024
_BLOCK = 64
_CUT = 3.0


class InitialStates:
    """Draws them; keeps the tables of evaluation and of the last training step."""

    def __init__(self, config: RecurrentDepthConfig) -> None:
        self.config = config
        self._kept: dict[bool, tuple[tuple[object, ...], Tensor]] = {}

    def draw(self, like: Tensor, position_ids: Tensor, clock: Clock | None) -> Tensor:
        """States of the shape, dtype and device of `like` (rows, tokens, width). `position_ids` (rows or 1,
        tokens); `clock` None: evaluation."""
        std = float(self.config.state_std)
        if std == 0:
            return torch.zeros_like(like)
        if clock is not None and clock.mode == "free":
            fresh = torch.empty(like.shape, dtype=torch.float32, device=like.device)
            return truncated(fresh, std).to(like.dtype)
        told = clock is not None and clock.mode == "told"
        if clock is not None and told:
            # Only as many as there are tokens, since these are drawn at each step; block by block, so that a
            # longer batch has the same states at the places of a shorter one.
            blocks = -(-min(_STATES, like.shape[1]) // _BLOCK)
            seeds: list[tuple[int, ...]] = [(clock.seed, clock.step, block) for block in range(blocks)]
        else:
            seeds = [(self.config.state_seed,)]
        key = (*seeds, std, like.device)
        known, table = self._kept.get(told, (None, None))
        if table is None or known != key:
            table = torch.cat([_table(each, like.shape[-1], std) for each in seeds]).to(like.device)
            self._kept[told] = key, table
        return table[position_ids % len(table)].to(like.dtype).expand(like.shape)


def _table(seed: tuple[int, ...], width: int, std: float) -> Tensor:
    """States (positions, width) of evaluation's seed, or of (seed, step, block) of training."""
    number = seed[0] if len(seed) == 1 else int(np.random.default_rng(seed).integers(2**62))
    draw = torch.Generator().manual_seed(number)
    return truncated(torch.empty(_STATES if len(seed) == 1 else _BLOCK, width), std, draw)


def truncated(empty: Tensor, std: float, draw: torch.Generator | None = None) -> Tensor:
    """`empty` filled with normal numbers of deviation `std`, cut at three of them."""
    return nn.init.trunc_normal_(empty, std=std, a=-_CUT * std, b=_CUT * std, generator=draw)
