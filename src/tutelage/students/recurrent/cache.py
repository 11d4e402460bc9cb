"""Keys and values of a model that passes through the same layers again: a slot per step of the loop.

Promises: works for any numbers of prelude, core and coda layers; every slot holds all tokens so far, so that
`crop`, `reorder_cache` and the others of transformers' caches mean what they say.
Does not: serve rows of different depth in one batch (the engine's backend does).

Ways to share (Geiping et al. 2025, section 6.2): with "full", step i of a token reads step i of the tokens
before it, which must have come so far; with "latest", a token that stopped earlier is read at its last step;
with "shared:m" step i writes and reads slot i mod m, so that memory is that of m steps whatever the depth.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from tutelage.errors import UsageError
from tutelage.students.recurrent.config import RecurrentDepthConfig


def slots_of(mode: str) -> int | None:
    """How many slots `mode` has for the steps of the loop, None: one for each. Raises UsageError for a mode
    that is not one."""
    if mode in ("full", "latest"):
        return None
    found = re.fullmatch(r"shared:([1-9][0-9]{0,5})", mode)
    if found is None:
        raise UsageError(f"loop cache {mode!r}: write full, latest or shared:M with M of at least 1")
    return int(found[1])


class LoopCache(Cache):  # type: ignore[misc]
    """A cache for `RecurrentDepthForCausalLM`. Layers: prelude, coda, then core layers slot by slot."""

    def __init__(self, config: RecurrentDepthConfig, mode: str = "full") -> None:
        """Raises UsageError for a mode that is not one."""
        super().__init__(layer_class_to_replicate=DynamicLayer)
        self.mode = mode
        self._slots = slots_of(mode)
        self._outer = config.num_prelude_layers + config.num_coda_layers
        self._core = config.num_core_layers
        self._past = 0

    def begin(self) -> None:
        """Before new tokens: how many there are."""
        self._past = self.get_seq_length()

    def place(self, step: int, layer: int) -> int:
        """The cache layer of core layer `layer` at `step`, counted from 0."""
        slot = step if self._slots is None else step % self._slots
        return self._outer + slot * self._core + layer

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """See `Cache`. A slot that the loop comes back to is written over for the new tokens."""
        fresh = layer_idx >= len(self.layers) or not self.layers[layer_idx].is_initialized
        if layer_idx >= self._outer and fresh and self._past:
            self._open(layer_idx)
        layer = self.layers[layer_idx] if layer_idx < len(self.layers) else None
        if layer is not None and layer.is_initialized and layer.keys.shape[-2] > self._past:
            layer.keys, layer.values = layer.keys[..., : self._past, :], layer.values[..., : self._past, :]
        found: tuple[Tensor, Tensor] = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        return found

    def settle(self, steps: int) -> None:
        """After `steps` steps: slots that the new tokens did not reach take over what they last wrote."""
        last = self.place(steps - 1, 0)
        total = self._past + self._new(last)
        for place in range(self._outer, len(self.layers)):
            layer = self.layers[place]
            if layer.keys.shape[-2] < total:
                source = self.layers[last + (place - self._outer) % self._core]
                if self.mode == "full":
                    continue  # a token that comes so far will be refused there
                layer.keys = torch.cat([layer.keys, source.keys[..., self._past :, :]], dim=-2)
                layer.values = torch.cat([layer.values, source.values[..., self._past :, :]], dim=-2)

    def _new(self, place: int) -> int:
        return int(self.layers[place].keys.shape[-2]) - self._past

    def _open(self, layer_idx: int) -> None:
        """A slot that no token before came to: they are read at their last step."""
        if self.mode == "full":
            raise UsageError(
                "loop cache 'full': earlier tokens did not come so deep; give every call the same num_steps, "
                "or use 'latest'"
            )
        source = self.layers[layer_idx - self._core]
        while len(self.layers) <= layer_idx:
            self.layers.append(DynamicLayer())
        layer = self.layers[layer_idx]
        layer.lazy_initialization(source.keys, source.values)
        layer.keys = source.keys[..., : self._past, :]
        layer.values = source.values[..., : self._past, :]
