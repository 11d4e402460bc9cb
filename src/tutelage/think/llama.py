"""The forward pass of the Llama family from a loaded model's own weights, without its modules.

Promises: the same function as the model's own `forward` (float32: up to the order of sums), for Llama, Qwen2,
Qwen3 and SmolLM3 as transformers builds them and nothing else (`fits` says whether); tokens of several
prompts are computed side by side without padding; the output matrix is applied to asked rows only.
Does not: follow later changes of the weights (what was packed is a copy: build it anew after training), or
know about rows and slots.

What it saves, measured on two cores with 32 rows of SmolLM2-135M: query, key and value are one product, and
gate and up another; on CPUs the matrices are packed once for oneDNN (products of one step in bfloat16: 18
instead of 23 ms; in float32: 31 instead of 77, because torch's default is another library there); one
rotation table per step; no Python per module. The price is a second copy of the weights in memory on CPUs.
On CUDA the model's own weights are used where they lie (that path has not been run on a GPU, and has no CUDA
graphs).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_FAMILY = {"LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "SmolLM3ForCausalLM"}

Attend = Callable[[int, Tensor, Tensor, Tensor, float], Tensor]
"""(layer, query (tokens, heads, width), key, value (tokens, key heads, width), scale) -> like `query`."""


def fits(model: Any) -> bool:
    """Whether `model` is of the family, with nothing in it replaced (adapters, hooks, quantised layers)."""
    kind = type(model)
    if kind.__name__ not in _FAMILY or not kind.__module__.startswith("transformers.models."):
        return False
    if getattr(model.config, "hidden_act", None) != "silu" or not model.dtype.is_floating_point:
        return False
    return all(
        (type(module) is nn.Linear or not isinstance(module, nn.Linear))
        and type(module).__module__.startswith(("torch.nn.", "transformers."))
        and not (module._forward_hooks or module._forward_pre_hooks)
        and all(weight.dtype == model.dtype for weight in module.parameters(recurse=False))
        for module in model.modules()
    )


class _Product:
    """x @ weightᵀ + bias for several matrices of one input at once; `add` is added to the result."""

    def __init__(self, layers: Sequence[Any]) -> None:
        self._layers = [(layer.weight.detach(), layer.bias) for layer in layers]
        first = self._layers[0][0]
        self._packed: Tensor | None = None
        self._bias: Tensor | None = None
        if first.device.type == "cpu" and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
            whole = first if len(layers) == 1 else torch.cat([weight for weight, _ in self._layers])
            self._packed = torch.ops.mkldnn._reorder_linear_weight(whole, None)
            if self._layers[0][1] is not None:
                self._bias = torch.cat([bias.detach() for _, bias in self._layers])

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        if self._packed is None:
            parts = [functional.linear(x, weight, bias) for weight, bias in self._layers]
            y = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
            return y if add is None else y.add_(add)
        linear = torch.ops.mkldnn._linear_pointwise
        if add is None:
            y = linear(x, self._packed, self._bias, "none", [], "")
        else:
            y = linear.binary(x, add, self._packed, self._bias, "add")
        assert isinstance(y, Tensor)
        return y


@dataclass(frozen=True, slots=True)
class _Layer:
    norm: Tensor
    qkv: _Product
    head_norms: tuple[Tensor, Tensor] | None
    rotates: bool
    out: _Product
    norm_mlp: Tensor
    up: _Product
    down: _Product


class Llama:
    """`model` as a function of token ids; see the module."""

    def __init__(self, model: Any) -> None:
        config, inner = model.config, model.model
        first = inner.layers[0].self_attn
        self.layers = len(inner.layers)
        self.heads: int = config.num_attention_heads
        self.key_heads: int = config.num_key_value_heads
        self.width: int = first.head_dim
        self._eps: float = config.rms_norm_eps
        self._scale: float = first.scaling
        self._embed, self._rotary = inner.embed_tokens.weight.detach(), inner.rotary_emb
        self._norm = inner.norm.weight.detach()
        self._layers = [self._layer(layer) for layer in inner.layers]
        self._head = _Product([model.lm_head])

    @staticmethod
    def _layer(layer: Any) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        norms = None
        if hasattr(attention, "q_norm"):
            norms = (attention.q_norm.weight.detach(), attention.k_norm.weight.detach())
        return _Layer(
            layer.input_layernorm.weight.detach(),
            _Product([attention.q_proj, attention.k_proj, attention.v_proj]),
            norms,
            bool(getattr(attention, "use_rope", True)),
            _Product([attention.o_proj]),
            layer.post_attention_layernorm.weight.detach(),
            _Product([mlp.gate_proj, mlp.up_proj]),
            _Product([mlp.down_proj]),
        )

    def hidden(self, ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """The last hidden states (tokens, width) of `ids` (tokens,) at `positions`, what `scores` reads."""
        x = functional.embedding(ids, self._embed)
        cos, sin = self._rotary(x, position_ids=positions[None])
        half = self.width // 2
        cos = cos[0][:, None]  # (tokens, 1, width)
        # Rotating swaps the halves and negates one: the sign goes into the table.
        sin = torch.cat([-sin[0, :, :half], sin[0, :, half:]], dim=-1)[:, None]
        heads, key_heads, tokens = self.heads, self.key_heads, len(ids)
        cut = (heads + key_heads) * self.width
        for number, layer in enumerate(self._layers):
            qkv = layer.qkv(self._normed(x, layer.norm))
            both = qkv[:, :cut].view(tokens, heads + key_heads, self.width)
            if layer.head_norms is not None:
                q_norm, k_norm = layer.head_norms
                both = torch.cat(
                    [self._normed(both[:, :heads], q_norm), self._normed(both[:, heads:], k_norm)], dim=1
                )
            if layer.rotates:
                both = torch.addcmul(both * cos, both.roll(half, -1), sin)
            mixed = attend(
                number,
                both[:, :heads],
                both[:, heads:],
                qkv[:, cut:].view(tokens, key_heads, self.width),
                self._scale,
            )
            x = layer.out(mixed.reshape(tokens, heads * self.width), x)
            gate, up = layer.up(self._normed(x, layer.norm_mlp)).chunk(2, dim=-1)
            x = layer.down(functional.silu(gate).mul_(up), x)
        return self._normed(x, self._norm)

    def scores(self, states: Tensor) -> Tensor:
        """Next-token scores (rows, vocabulary) of `hidden` states (rows, width), float32."""
        return self._head(states).float()

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(x, (x.shape[-1],), weight, self._eps)
