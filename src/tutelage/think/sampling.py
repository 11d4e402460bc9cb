"""Choosing the next id from scores: greedy, temperature, top-k, top-p, min-p; rows have own random numbers.

Promises: a row's choice depends on its own scores, settings, seed, position and number of refusals only,
never on its neighbours in the batch or on what was sampled before it; the truncations are exact.
Does not: hold state. The generator is counter-based: the random number of (seed, step, attempt) is a hash of
the three, so that a reply can be taken up again in its middle.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from tutelage.errors import UsageError

# Lengths of the lists in which a truncation is looked for, one after the other, before the whole vocabulary;
# most rows should be done with the first (32 rows of 49,152 ids on one thread: 1.2 ms; a list of 1,024: 12).
_SHORTLISTS = (64, 1024)
_BLOCK = 64
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True)
class Sampling:
    """`temperature` 0 is greedy. `top_k` 0, `top_p` 1 and `min_p` 0 keep every token. Top-k is applied first,
    top-p to what it left; `min_p` drops what is less likely than that share of the likeliest token."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UsageError(f"sampling: temperature is {self.temperature}; it must be 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"sampling: top_p is {self.top_p}; it must be above 0 and at most 1")
        if self.top_k < 0:
            raise UsageError(f"sampling: top_k is {self.top_k}; it must be 0 (all) or more")
        if not 0 <= self.min_p <= 1:
            raise UsageError(f"sampling: min_p is {self.min_p}; it must be between 0 and 1")

    @property
    def greedy(self) -> bool:
        """Whether no random number is used."""
        return self.temperature == 0 or self.top_k == 1

    @property
    def truncated(self) -> bool:
        """Whether some tokens are cut off before one is drawn."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

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
    """Next ids for `logits` (rows, vocabulary), float32; `u` (rows,) from `uniforms`, not read for greedy
    rows."""
    picked = [-1] * len(settings)
    # Plain and truncated rows invert in different orders of ids, so which company a row is in must not
    # decide.
    for draw in (_greedy, _plain, _truncated):
        mine = [i for i, one in enumerate(settings) if _way(one) is draw]
        if mine:
            rows = logits if len(mine) == len(settings) else logits[mine]
            found = draw(rows, [settings[i] for i in mine], torch.from_numpy(u[mine]).to(logits.device))
            for i, token in zip(mine, found.tolist(), strict=True):
                picked[i] = token
    return picked


def _way(one: Sampling) -> Callable[[Tensor, Sequence[Sampling], Tensor], Tensor]:
    if one.greedy:
        return _greedy
    return _truncated if one.truncated else _plain


def _greedy(logits: Tensor, settings: Sequence[Sampling], uniform: Tensor) -> Tensor:
    return logits.argmax(dim=-1)


def _plain(logits: Tensor, settings: Sequence[Sampling], uniform: Tensor) -> Tensor:
    """By the sums of blocks of ids first, then within the block: one pass over the vocabulary."""
    weights = _scaled(logits, settings).exp_()
    missing = -weights.shape[-1] % _BLOCK
    if missing:
        weights = functional.pad(weights, (0, missing))
    blocks = weights.view(len(weights), -1, _BLOCK)
    sums = blocks.sum(dim=-1, dtype=torch.float64)
    block, rest = _inverse(sums, uniform * sums.sum(dim=-1))
    inside = blocks[torch.arange(len(blocks), device=blocks.device), block].double()
    return block * _BLOCK + _inverse(inside, rest)[0]


def _truncated(logits: Tensor, settings: Sequence[Sampling], uniform: Tensor) -> Tensor:
    scaled = _scaled(logits, settings)
    device, vocabulary = scaled.device, scaled.shape[-1]
    top_k = torch.tensor([one.top_k or vocabulary for one in settings], device=device)[:, None]
    top_p = torch.tensor([one.top_p for one in settings], device=device, dtype=torch.float64)[:, None]
    floor = torch.tensor([one.min_p for one in settings], device=device, dtype=torch.float64)[:, None].log()
    # Top-p refers to the mass that top-k left: all of it where k is unlimited.
    every = scaled.exp().sum(dim=-1, keepdim=True, dtype=torch.float64)
    picked = torch.empty(len(scaled), dtype=torch.long, device=device)
    rows = torch.arange(len(scaled), device=device)
    # Only the rows that need it go on to a wider list: it may order equal scores differently.
    for width in (*_SHORTLISTS, vocabulary):
        values, ids = _best(scaled[rows], min(width, vocabulary))
        kept, enough = _truncate(values, top_k[rows], top_p[rows], floor[rows], every[rows], vocabulary)
        index, _ = _inverse(kept, uniform[rows] * kept.sum(dim=-1))
        picked[rows[enough]] = ids.gather(1, index[:, None])[enough, 0]
        rows = rows[~enough]
        if not len(rows):
            break
    return picked


def _scaled(logits: Tensor, settings: Sequence[Sampling]) -> Tensor:
    """Scores divided by the temperature, the best at 0."""
    heat = torch.tensor([one.temperature for one in settings], device=logits.device)[:, None]
    heat = heat.clamp(min=torch.finfo(heat.dtype).tiny)  # what rounds to 0 must not divide 0 by 0
    return (logits - logits.amax(dim=-1, keepdim=True)).div_(heat)


def _best(scaled: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The `width` best scores (rows, width), best first, and their ids. They lie in the `width` blocks of ids
    with the best maxima; so a large vocabulary is looked through once instead of being sorted."""
    rows, vocabulary = scaled.shape
    whole = vocabulary // _BLOCK
    if whole < 4 * width:
        values, ids = scaled.topk(width, dim=-1)
        return values, ids
    blocks = scaled[:, : whole * _BLOCK].view(rows, whole, _BLOCK)
    chosen = blocks.amax(dim=-1).topk(width, dim=-1).indices
    few = blocks.gather(1, chosen[..., None].expand(-1, -1, _BLOCK)).view(rows, -1)
    ids = (chosen[..., None] * _BLOCK + torch.arange(_BLOCK, device=scaled.device)).view(rows, -1)
    if whole * _BLOCK < vocabulary:
        tail = torch.arange(whole * _BLOCK, vocabulary, device=scaled.device)
        few = torch.cat([few, scaled[:, whole * _BLOCK :]], dim=-1)
        ids = torch.cat([ids, tail.expand(rows, -1)], dim=-1)
    values, places = few.topk(width, dim=-1)
    return values, ids.gather(1, places)


def _truncate(
    values: Tensor, top_k: Tensor, top_p: Tensor, floor: Tensor, every: Tensor, vocabulary: int
) -> tuple[Tensor, Tensor]:
    """Weights (rows, width) of the best scores `values`, those outside top-k, top-p and min-p set to 0, and
    for each row whether the list was long enough."""
    width = values.shape[-1]
    rank = torch.arange(width, device=values.device)[None, :]
    weights = values.double().exp() * (rank < top_k)
    unlimited = top_k >= vocabulary
    share = weights / torch.where(unlimited, every, weights.sum(dim=-1, keepdim=True))
    before = share.cumsum(dim=-1) - share
    likely = values >= floor
    reached = (top_p < 1.0) & (before[:, -1:] + share[:, -1:] >= top_p)
    enough = (top_k <= width) | (unlimited & reached) | ~likely[:, -1:] & unlimited
    return share * (before < top_p) * likely, (enough | (width >= vocabulary))[:, 0]


def _inverse(weights: Tensor, aim: Tensor) -> tuple[Tensor, Tensor]:
    """Index (rows,) at which the running sum of unnormalised `weights` (rows, n), float64, passes `aim`
    (rows,), and how far into that weight it lies."""
    cdf = weights.cumsum(dim=-1)
    total = cdf[:, -1]
    aim = torch.minimum(aim, torch.nextafter(total, torch.zeros_like(total)))
    index = torch.searchsorted(cdf, aim[:, None], right=True)
    here = cdf.gather(1, index) - weights.gather(1, index)
    return index[:, 0], (aim[:, None] - here)[:, 0].clamp(min=0.0)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
