"""What a recurrent-depth model returns.

Promises: `loop_state` and `steps` are beside what transformers' models return; its trainers leave them out of
predictions (`keys_to_ignore_at_inference` of the configuration).
Does not: hold attention maps or the states of each layer; asking for these is refused.

The field is `loop_state` because `generate` of transformers takes an output that is called `state` for a
cache (RWKV's), hands it to the next call and fails to reorder it for beams.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers.cache_utils import Cache
from transformers.modeling_outputs import ModelOutput


@dataclass
class RecurrentDepthOutput(ModelOutput):  # type: ignore[misc]
    """`loss` (), where labels were given; `logits` (rows, tokens, vocabulary); `loop_state`, also `state`
    (rows, tokens, width), as the last pass of the core left it; `steps` (n, k) that were made without and
    with gradient."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    loop_state: Tensor | None = None
    steps: tuple[int, int] | None = None

    @property
    def state(self) -> Tensor | None:
        """`loop_state`."""
        return self.loop_state


@dataclass
class BackboneOutput(ModelOutput):  # type: ignore[misc]
    """`last_hidden_state` (rows, tokens, width) is what the head reads; the rest as in
    `RecurrentDepthOutput`."""

    last_hidden_state: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    loop_state: Tensor | None = None
    steps: tuple[int, int] | None = None

    @property
    def state(self) -> Tensor | None:
        """`loop_state`."""
        return self.loop_state
