"""Keys and values of a model that passes through the same layers again: a slot per step of the loop.

Promises: works for any numbers of prelude, core and coda layers, with depths that change from call to call;
`crop`, `reorder_cache` and the others of transformers' caches mean what they say; a call that "full" has to
refuse leaves the cache as it was.
Does not: serve rows of different depth in one batch (the engine's backend does).

Ways to share (Geiping et al. 2025, section 6.2): with "full", step i of a token reads step i of the tokens
before it, which must have come so far; with "latest", a token that stopped earlier is read at its last step;
with "shared:m" step i writes and reads slot i mod m, so that memory is that of m steps whatever the depth.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from tutelage.errors import UsageError
from tutelage.students.recurrent.config import RecurrentDepthConfig, slots_of


class LoopCache(Cache):  # type: ignore[misc]
    """A cache for `RecurrentDepthForCausalLM`: give it to `forward` or `generate` as `past_key_values`.

    Layers: prelude, coda, then those of the core slot by slot. In "latest" and "shared" every slot holds all
    tokens so far; in "full" one that the last tokens did not reach is shorter."""

    def __init__(self, config: RecurrentDepthConfig, mode: str | None = None) -> None:
        """`mode` None: that of the configuration. Raises UsageError for a mode that is not one."""
        super().__init__(layer_class_to_replicate=DynamicLayer)
        self.mode: str = config.loop_cache if mode is None else mode
        self._slots = slots_of(self.mode)
        self._outer = config.num_prelude_layers + config.num_coda_layers
        self._core = config.num_core_layers
        self._past = 0

    def begin(self, steps: int) -> None:
        """Before new tokens that take `steps` steps. Raises UsageError where "full" cannot serve them."""
        self._past = self.get_seq_length()
        if self.mode == "full" and self._past and self.get_seq_length(self.place(steps - 1, 0)) < self._past:
            raise UsageError(
                f"loop cache 'full': not all earlier tokens went {steps} steps deep; give every call the "
                "same num_steps, or use LoopCache(config, 'latest')"
            )

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
        total = self.layers[last].keys.shape[-2]
        if self.mode == "full":
            return  # no later token will come so far, see `begin`
        for place in range(self._outer, len(self.layers)):
            layer = self.layers[place]
            if layer.keys.shape[-2] < total:
                source = self.layers[last + (place - self._outer) % self._core]
                layer.keys = torch.cat([layer.keys, source.keys[..., self._past :, :]], dim=-2)
                layer.values = torch.cat([layer.values, source.values[..., self._past :, :]], dim=-2)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens; their number is negative, as in transformers. A slot of "full" that they
        did not reach keeps what it has."""
        if tokens_to_remove > 0:
            raise ValueError(
                f"crop({tokens_to_remove}): write how many tokens to remove as a negative number"
            )
        left = max(0, self.get_seq_length() + tokens_to_remove)
        for layer in self.layers:
            if layer.is_initialized:
                layer.keys, layer.values = layer.keys[..., :left, :], layer.values[..., :left, :]

    def _open(self, layer_idx: int) -> None:
        """A slot that no token before came to: they are read at their last step."""
        source = self.layers[layer_idx - self._core]
        while len(self.layers) <= layer_idx:
            self.layers.append(DynamicLayer())
        layer = self.layers[layer_idx]
        layer.lazy_initialization(source.keys, source.values)
        layer.keys = source.keys[..., : self._past, :]
        layer.values = source.values[..., : self._past, :]
