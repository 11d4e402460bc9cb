"""The parts of a recurrent-depth model: adapter, attention, feed-forward, and the block of the last two.

Promises: attention is any that transformers offers (eager, sdpa, flash), with its masks; grouped key heads,
biases and head norms as the configuration says.
Does not: loop (see `model`), or decide on positions and masks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, eager_attention_forward

from tutelage.students.recurrent.config import RecurrentDepthConfig

Rotation = tuple[Tensor, Tensor]


class RMSNorm(nn.RMSNorm):
    """With its weight in the dtype of what it is given: under autocast these differ, and torch has no fused
    kernel for a difference."""

    def forward(self, x: Tensor) -> Tensor:
        """`x` (..., width) → the same shape and dtype."""
        return functional.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Adapter(nn.Module):
    """Joins state and embedding: a matrix over their concatenation, or their sum."""

    def __init__(self, config: RecurrentDepthConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.linear = nn.Linear(2 * width, width, bias=False) if config.adapter == "linear" else None

    def forward(self, state: Tensor, embedded: Tensor) -> Tensor:
        """Two of (rows, tokens, width) → one."""
        if self.linear is None:
            return state + embedded
        out: Tensor = self.linear(torch.cat([state, embedded], dim=-1))
        return out


class Attention(nn.Module):
    """Causal attention with rotary positions."""

    is_causal = True

    def __init__(self, config: RecurrentDepthConfig) -> None:
        super().__init__()
        self.config = config
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        heads, key_heads, bias = config.num_attention_heads, config.num_key_value_heads, config.attention_bias
        self.q_proj = nn.Linear(config.hidden_size, heads * self.head_dim, bias=bias)
        self.k_proj = nn.Linear(config.hidden_size, key_heads * self.head_dim, bias=bias)
        self.v_proj = nn.Linear(config.hidden_size, key_heads * self.head_dim, bias=bias)
        self.o_proj = nn.Linear(heads * self.head_dim, config.hidden_size, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(heads, self.head_dim)) if config.qk_bias else None
        self.k_bias = nn.Parameter(torch.zeros(key_heads, self.head_dim)) if config.qk_bias else None
        self.q_norm = RMSNorm(self.head_dim, eps=config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(self.head_dim, eps=config.rms_norm_eps) if config.qk_norm else None

    def forward(
        self,
        x: Tensor,
        rotation: Rotation,
        mask: Tensor | None,
        cache: Cache | None,
        place: int,
        **packed: Any,
    ) -> Tensor:
        """`x` (rows, tokens, width) → the same shape. `place`: the layer of `cache` to use; `packed`: where
        examples end, for the flash kernels, which take no mask."""
        shape = (*x.shape[:-1], -1, self.head_dim)
        query, key = self.q_proj(x).view(shape), self.k_proj(x).view(shape)
        if self.q_bias is not None and self.k_bias is not None:
            query, key = query + self.q_bias, key + self.k_bias
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key = query.transpose(1, 2), key.transpose(1, 2)
        value = self.v_proj(x).view(shape).transpose(1, 2)
        query, key = apply_rotary_pos_emb(query, key, *rotation)
        if cache is not None:
            key, value = cache.update(key, value, place)
        attend: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        mixed, _ = attend(self, query, key, value, mask, dropout=0.0, scaling=self.scaling, **packed)
        out: Tensor = self.o_proj(mixed.reshape(*x.shape[:-1], -1))
        return out


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, config: RecurrentDepthConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`x` (..., width) → the same shape."""
        out: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Block(GradientCheckpointingLayer):  # type: ignore[misc]
    """One layer. Sandwich: x = n₂(x + A(n₁(x))); x = n₄(x + F(n₃(x))). Pre-norm: the same without n₂, n₄."""

    def __init__(self, config: RecurrentDepthConfig) -> None:
        super().__init__()

        def norm() -> RMSNorm:
            return RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

        sandwich = config.block == "sandwich"
        self.norm_1 = norm()
        self.self_attn = Attention(config)
        self.norm_2 = norm() if sandwich else None
        self.norm_3 = norm()
        self.mlp = FeedForward(config)
        self.norm_4 = norm() if sandwich else None

    def forward(
        self,
        x: Tensor,
        rotation: Rotation,
        mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        place: int = 0,
        **packed: Any,
    ) -> Tensor:
        """`x` (rows, tokens, width) → the same shape; see `Attention`."""
        x = x + self.self_attn(self.norm_1(x), rotation, mask, past_key_values, place, **packed)
        if self.norm_2 is not None:
            x = self.norm_2(x)
        x = x + self.mlp(self.norm_3(x))
        if self.norm_4 is not None:
            x = self.norm_4(x)
        return x
