"""The tiny student: a transformer of a few hundred thousand weights that trains in seconds on one core.

It has no positional encoding (Kazemnejad et al. 2023, "The impact of positional encoding on length
generalization in transformers"): a model this small that has seen short pieces only learns their positions by
heart where it can, and then fails at lengths in between or beyond; see docs/lab-notes.md.

Promises: a stock `SmolLM3ForCausalLM` with its rotary encoding switched off in every layer, which any recent
transformers loads; the same seed gives the same weights.
Does not: know a tokenizer or a world; it is told the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import SmolLM3Config, SmolLM3ForCausalLM

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
        return SmolLM3ForCausalLM(
            SmolLM3Config(
                vocab_size=vocabulary,
                hidden_size=config.width,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                num_key_value_heads=config.heads,
                intermediate_size=config.feed_forward,
                max_position_embeddings=config.positions,
                no_rope_layers=[0] * config.layers,
                use_sliding_window=False,
                tie_word_embeddings=True,
                pad_token_id=pad,
                eos_token_id=end,
                bos_token_id=None,
            )
        )
