"""The tiny student: a Llama of a few hundred thousand weights that trains in seconds on one core.

Promises: a stock `LlamaForCausalLM` (any Llama-aware tool loads it); the same seed gives the same weights.
Does not: know a tokenizer or a world; it is told the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tutelage.errors import UsageError


@dataclass(frozen=True, slots=True)
class TinyConfig:
    """Shape of the tiny model: `width` is the hidden size, `feed_forward` the SwiGLU width."""

    width: int = 96
    layers: int = 3
    heads: int = 3
    feed_forward: int = 256
    positions: int = 512


def build_tiny(config: TinyConfig, *, vocabulary: int, pad: int, end: int, seed: int) -> Any:
    """A freshly initialised model with tied embeddings over `vocabulary` ids.

    Raises UsageError when the width does not divide by the heads."""
    if config.width % config.heads:
        raise UsageError(f"tiny model: width {config.width} does not divide by {config.heads} heads")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary,
                hidden_size=config.width,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                num_key_value_heads=config.heads,
                intermediate_size=config.feed_forward,
                max_position_embeddings=config.positions,
                tie_word_embeddings=True,
                pad_token_id=pad,
                eos_token_id=end,
                bos_token_id=None,
            )
        )
