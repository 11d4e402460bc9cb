"""What a recurrent-depth model returns.

Promises: `state` and `steps` are beside what transformers' models return; its trainers leave them out of
predictions (`keys_to_ignore_at_inference` of the configuration).
Does not: hold attention maps or the states of each layer; asking for these is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers.cache_utils import Cache
from transformers.modeling_outputs import ModelOutput


@dataclass
class RecurrentDepthOutput(ModelOutput):  # type: ignore[misc]
    """`loss` (), where labels were given; `logits` (rows, tokens, vocabulary); `state` (rows, tokens, width),
    as the last pass of the core left it; `steps` (n, k) that were made without and with gradient."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    state: Tensor | None = None
    steps: tuple[int, int] | None = None


@dataclass
class BackboneOutput(ModelOutput):  # type: ignore[misc]
    """`last_hidden_state` (rows, tokens, width) is what the head reads; the rest as in
    `RecurrentDepthOutput`."""

    last_hidden_state: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    state: Tensor | None = None
    steps: tuple[int, int] | None = None
