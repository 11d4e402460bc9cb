"""The tiny student: a transformer of a few hundred thousand weights that trains in seconds on one core.

It has no positional encoding (Kazemnejad et al. 2023, "The impact of positional encoding on length
generalization in transformers"): a model this small that has seen short pieces only learns their positions by
heart where it can, and then fails at lengths in between or beyond; see docs/lab-notes.md. Where neighbours
matter, `rope_base` gives it rotary positions.

Promises: a stock `SmolLM3ForCausalLM` with its rotary encoding on or off in every layer, which any recent
transformers loads, or a `RecurrentDepthForCausalLM` of the same width; the same seed gives the same weights.
Does not: know a tokenizer or a world; it is told the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import SmolLM3Config, SmolLM3ForCausalLM

from tutelage.errors import UsageError
from tutelage.students.recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM


@dataclass(frozen=True, slots=True)
class Loops:
    """The recurrent depth of a tiny model; see `RecurrentDepthConfig`, whose fields these are: layers of
    `prelude`, `core` and `coda`, `mean` passes of the core, `backprop` of them with a gradient, at most
    `limit`. Output projections start `output_gain` times as large as Huginn's, which shrink with the depth.

    The defaults are what trains at this size, where Huginn's own collapse: a model of one core layer and
    nothing else cannot but use its passes, while layers before and after it learned short rows by heart and
    then ignored the state (docs/lab-notes.md)."""

    prelude: int = 0
    core: int = 1
    coda: int = 0
    mean: int = 8
    backprop: int = 5
    limit: int | None = None
    block: str = "pre"
    norm_after_core: str = "every"
    adapter_init: str = "identity"
    state_std: float = 0.2
    embedding_scale: float | None = 1.0
    output_gain: float = 4.0


@dataclass(frozen=True, slots=True)
class TinyConfig:
    """Shape of the tiny model: `width` is the hidden size, `feed_forward` the SwiGLU width, `rope_base` the
    base of its rotary positions (None: no positions; with `loops`, the base of `RecurrentDepthConfig`).
    `loops` takes the place of `layers`."""

    width: int = 96
    layers: int = 3
    heads: int = 3
    feed_forward: int = 256
    positions: int = 512
    rope_base: float | None = None
    loops: Loops | None = None


def build_tiny(config: TinyConfig, *, vocabulary: int, pad: int, end: int, seed: int) -> Any:
    """A freshly initialised model with tied embeddings over `vocabulary` ids.

    Raises UsageError when the width does not divide by the heads, and what `RecurrentDepthConfig` raises."""
    if config.width % config.heads:
        raise UsageError(f"tiny model: width {config.width} does not divide by {config.heads} heads")
    ids = {"pad_token_id": pad, "eos_token_id": end, "bos_token_id": None}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.loops is not None:
            model = RecurrentDepthForCausalLM(_recurrent(config, config.loops, vocabulary, ids))
            _amplify(model, config.loops.output_gain)
            return model
        rotary = {"rope_type": "default", "rope_theta": config.rope_base} if config.rope_base else None
        return SmolLM3ForCausalLM(
            SmolLM3Config(
                vocab_size=vocabulary,
                hidden_size=config.width,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                num_key_value_heads=config.heads,
                intermediate_size=config.feed_forward,
                max_position_embeddings=config.positions,
                no_rope_layers=[int(rotary is not None)] * config.layers,
                rope_parameters=rotary,
                use_sliding_window=False,
                tie_word_embeddings=True,
                **ids,
            )
        )


def _recurrent(
    config: TinyConfig, loops: Loops, vocabulary: int, ids: dict[str, Any]
) -> RecurrentDepthConfig:
    return RecurrentDepthConfig(
        vocab_size=vocabulary,
        hidden_size=config.width,
        num_attention_heads=config.heads,
        intermediate_size=config.feed_forward,
        max_position_embeddings=config.positions,
        rope_theta=config.rope_base,
        num_prelude_layers=loops.prelude,
        num_core_layers=loops.core,
        num_coda_layers=loops.coda,
        mean_recurrence=loops.mean,
        mean_backprop_depth=loops.backprop,
        max_recurrence=loops.limit,
        block=loops.block,
        norm_after_core=loops.norm_after_core,
        adapter_init=loops.adapter_init,
        state_std=loops.state_std,
        embedding_scale=loops.embedding_scale,
        **ids,
    )


@torch.no_grad()
def _amplify(model: RecurrentDepthForCausalLM, gain: float) -> None:
    for name, weight in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.mul_(gain)
