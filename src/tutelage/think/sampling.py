"""Choosing the next id from scores: greedy, temperature, top-k, top-p, with random numbers of the row's own.

Promises: a row's choice depends on its own scores, settings, seed, position and number of refusals only,
never on its neighbours in the batch or on what was sampled before it; the truncations are exact.
Does not: hold state. The generator is counter-based: the random number of (seed, step, attempt) is a hash of
the three, so that a reply can be taken up again in its middle.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.errors import UsageError

_SHORTLIST = 1024
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True)
class Sampling:
    """`temperature` 0 is greedy. `top_k` 0 and `top_p` 1 keep every token; top-k is applied first."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UsageError(f"sampling: temperature is {self.temperature}; it must be 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"sampling: top_p is {self.top_p}; it must be above 0 and at most 1")
        if self.top_k < 0:
            raise UsageError(f"sampling: top_k is {self.top_k}; it must be 0 (all) or more")

    @property
    def greedy(self) -> bool:
        """Whether no random number is used."""
        return self.temperature == 0 or self.top_k == 1

    @property
    def truncated(self) -> bool:
        """Whether some tokens are cut off before one is drawn."""
        return self.top_k > 0 or self.top_p < 1

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-serialisable values."""
        return asdict(self)


def uniforms(seeds: Sequence[int], steps: Sequence[int], attempts: Sequence[int]) -> NDArray[np.float64]:
    """One number in [0, 1) per row, a function of that row's (seed, step, attempt) alone.

    splitmix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators", fig. 16), applied
    to each part in turn."""
    state = np.array([seed & 0xFFFFFFFFFFFFFFFF for seed in seeds], dtype=np.uint64)
    for part in (steps, attempts):
        state = _mix(_mix(state) + np.array(part, dtype=np.uint64) * _GOLDEN)
    return (_mix(state) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def choose(logits: Tensor, settings: Sequence[Sampling], u: NDArray[np.float64]) -> list[int]:
    """Next ids for `logits` (rows, vocabulary); `u` (rows,) from `uniforms`, not read for greedy rows."""
    picked: list[int] = logits.argmax(dim=-1).tolist()
    # Plain and truncated rows invert in different orders of ids, so which company a row is in must not
    # decide.
    for truncated in (False, True):
        drawn = [i for i, one in enumerate(settings) if not one.greedy and one.truncated == truncated]
        if drawn:
            rows = logits if len(drawn) == len(settings) else logits[drawn]
            for i, token in zip(drawn, _draw(rows, [settings[i] for i in drawn], u[drawn]), strict=True):
                picked[i] = token
    return picked


def _draw(logits: Tensor, settings: Sequence[Sampling], u: NDArray[np.float64]) -> list[int]:
    device, vocabulary = logits.device, logits.shape[-1]
    heat = torch.tensor([one.temperature for one in settings], device=device)[:, None]
    heat = heat.clamp(min=torch.finfo(heat.dtype).tiny)  # what rounds to 0 must not divide 0 by 0
    scaled = (logits.float() - logits.amax(dim=-1, keepdim=True).float()) / heat
    uniform = torch.from_numpy(u).to(device)
    if not settings[0].truncated:
        return _inverse(scaled.double().softmax(dim=-1), uniform).tolist()
    top_k = torch.tensor([one.top_k or vocabulary for one in settings], device=device)[:, None]
    top_p = torch.tensor([one.top_p for one in settings], device=device, dtype=torch.float64)[:, None]
    # A full sort of a large vocabulary costs more than the model's step; a shortlist is exact when it holds
    # enough.
    width = min(vocabulary, _SHORTLIST)
    kept, ids, enough = _truncate(scaled, width, top_k, top_p)
    picked = ids.gather(1, _inverse(kept, uniform)[:, None])[:, 0]
    # Only the rows that need it: a wider list may order equal scores differently.
    short = (~enough).nonzero()[:, 0]
    if len(short):
        kept, ids, _ = _truncate(scaled[short], vocabulary, top_k[short], top_p[short])
        picked[short] = ids.gather(1, _inverse(kept, uniform[short])[:, None])[:, 0]
    return picked.tolist()


def _truncate(scaled: Tensor, width: int, top_k: Tensor, top_p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities (rows, width) of the best ids with everything outside top-k and then top-p set to 0, the
    ids, and for each row whether `width` was wide enough."""
    values, ids = scaled.topk(width, dim=-1)
    rank = torch.arange(width, device=scaled.device)[None, :]
    weights = values.double().exp() * (rank < top_k)
    unlimited = top_k >= scaled.shape[-1]
    # Top-p refers to the mass that top-k left: known from the shortlist unless k reaches beyond it.
    every = scaled.double().exp().sum(dim=-1, keepdim=True)
    share = weights / torch.where(unlimited, every, weights.sum(dim=-1, keepdim=True))
    before = share.cumsum(dim=-1) - share
    reached = (top_p < 1.0) & (before[:, -1:] + share[:, -1:] >= top_p)
    enough = (top_k <= width) | (unlimited & reached) | (width >= scaled.shape[-1])
    return share * (before < top_p), ids, enough[:, 0]


def _inverse(weights: Tensor, uniform: Tensor) -> Tensor:
    """Index (rows,) drawn from unnormalised `weights` (rows, n) by inverting their distribution at
    `uniform`."""
    cdf = weights.cumsum(dim=-1)
    total = cdf[:, -1]
    aim = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cdf, aim[:, None], right=True)[:, 0]


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
