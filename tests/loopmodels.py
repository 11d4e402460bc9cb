"""Recurrent models for tests: small, in float32, with weights that make every part count."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tutelage.students.recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM

VOCABULARY = 40


def small_config(**changed: Any) -> RecurrentDepthConfig:
    shape: dict[str, Any] = {
        "hidden_size": 16,
        "num_attention_heads": 4,
        "intermediate_size": 24,
        "vocab_size": VOCABULARY,
        "mean_recurrence": 3,
        "mean_backprop_depth": 2,
        "eos_token_id": None,
        "bos_token_id": None,
        "pad_token_id": 0,
    }
    return RecurrentDepthConfig(**(shape | changed))


def small(seed: int = 0, **changed: Any) -> RecurrentDepthForCausalLM:
    """In evaluation mode. Every weight is random and of a size that matters, biases and norms too."""
    attention = changed.pop("attention", "sdpa")
    model = RecurrentDepthForCausalLM(small_config(**changed)).eval()
    model.set_attn_implementation(attention)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=draw)
            norm = "norm" in name
            weight.copy_(
                1 + 0.1 * noise
                if norm
                else noise * (0.3 if weight.ndim == 1 else 1.2 / weight.shape[-1] ** 0.5)
            )
    return model


def texts(*lengths: int, seed: int = 0) -> list[Tensor]:
    """Random ids above 0, one text of each length."""
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(1, VOCABULARY, (length,), generator=draw) for length in lengths]


def padded(rows: list[Tensor], left: bool) -> tuple[Tensor, Tensor]:
    """Ids and mask (rows, longest)."""
    widest = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), widest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for line, row in enumerate(rows):
        at = widest - len(row) if left else 0
        ids[line, at : at + len(row)] = row
        mask[line, at : at + len(row)] = 1
    return ids, mask
