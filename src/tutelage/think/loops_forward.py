"""The parts of a recurrent-depth model as functions of tokens side by side, from its own weights.

Promises: the same function as the model's own `forward` in evaluation (float32: up to the order of sums);
tokens of several rows without padding, one rotation table for all layers and steps; any tokens may be left
out of a pass.
Does not: loop, or know about rows and slots (see `loops`), or follow later changes of the weights.

What it saves is what `llama` saves, from the same products.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tutelage.errors import UsageError
from tutelage.students.recurrent.model import RecurrentDepthForCausalLM
from tutelage.think.llama import Attend, _Product


@dataclass(frozen=True, slots=True)
class Rotation:
    """cos and signed sin, (tokens, 1, head width), of tokens at their positions."""

    cos: Tensor
    sin: Tensor

    def of(self, index: Tensor) -> Rotation:
        """Those of the tokens `index`."""
        return Rotation(self.cos[index], self.sin[index])


@dataclass(frozen=True, slots=True)
class _Block:
    norm_1: Tensor
    qkv: _Product
    head_bias: Tensor | None  # (heads + key heads, head width)
    head_norms: tuple[Tensor, Tensor] | None
    out: _Product
    norm_2: Tensor | None
    norm_3: Tensor
    up: _Product
    down: _Product
    norm_4: Tensor | None


def base_model(model: Any) -> Any:
    """`model` without what peft puts around it."""
    return getattr(model, "get_base_model", lambda: model)()


class Parts:
    """`model` in pieces; see the module."""

    def __init__(self, model: Any) -> None:
        """Raises UsageError for a model with adapters, hooks or quantised layers."""
        model = base_model(model)
        _check_plain(model)
        config, inner = model.config, model.model
        self.heads: int = config.num_attention_heads
        self.key_heads: int = config.num_key_value_heads
        self.width: int = config.head_dim
        self._eps: float = config.rms_norm_eps
        self._scale: float = self.width**-0.5
        self._embed, self._embed_scale = inner.embed_tokens.weight.detach(), config.embedding_scale
        self._rotary = inner.rotary_emb
        self._adapter = None if inner.adapter.linear is None else _Product([inner.adapter.linear])
        self._norm = inner.norm.weight.detach()
        self._after_core: str = config.norm_after_core
        self._prelude = [_block(each) for each in inner.prelude]
        self._core = [_block(each) for each in inner.core]
        self._coda = [_block(each) for each in inner.coda]
        self._head = _Product([model.lm_head])
        self._states = _first_states(inner, config.max_position_embeddings)

    def rotation(self, positions: Tensor) -> Rotation:
        """The rotation of tokens at `positions` (tokens,)."""
        cos, sin = self._rotary(self._embed, position_ids=positions[None])
        half = self.width // 2
        # Rotating swaps the halves and negates one: the sign goes into the table.
        return Rotation(cos[0][:, None], torch.cat([-sin[0, :, :half], sin[0, :, half:]], dim=-1)[:, None])

    def prelude(self, ids: Tensor, rotation: Rotation, attend: Attend) -> Tensor:
        """The embedding (tokens, width) of `ids` (tokens,) that every pass of the core reads. `attend` is
        called with the number of the layer within the prelude."""
        x = functional.embedding(ids, self._embed) * self._embed_scale
        return self._through(self._prelude, x, rotation, attend)

    def first_state(self, positions: Tensor) -> Tensor:
        """The states (tokens, width) from which tokens at `positions` start."""
        return self._states[positions]

    def core(self, state: Tensor, embedded: Tensor, rotation: Rotation, attend: Attend) -> Tensor:
        """One pass: the next state (tokens, width)."""
        x = state + embedded if self._adapter is None else self._adapter(torch.cat([state, embedded], dim=-1))
        x = self._through(self._core, x, rotation, attend)
        return self._normed(x, self._norm) if self._after_core == "every" else x

    def coda(self, state: Tensor, rotation: Rotation, attend: Attend) -> Tensor:
        """The last hidden state (tokens, width), what `scores` reads."""
        x = self._normed(state, self._norm) if self._after_core == "exit" else state
        return self._normed(self._through(self._coda, x, rotation, attend), self._norm)

    def scores(self, hidden: Tensor) -> Tensor:
        """Next-token scores (tokens, vocabulary) of last hidden states, float32."""
        return self._head(hidden).float()

    def _through(self, blocks: list[_Block], x: Tensor, rotation: Rotation, attend: Attend) -> Tensor:
        heads, key_heads, tokens = self.heads, self.key_heads, len(x)
        cut, half = (heads + key_heads) * self.width, self.width // 2
        for number, block in enumerate(blocks):
            qkv = block.qkv(self._normed(x, block.norm_1))
            both = qkv[:, :cut].view(tokens, heads + key_heads, self.width)
            if block.head_bias is not None:
                both = both + block.head_bias
            if block.head_norms is not None:
                q_norm, k_norm = block.head_norms
                both = torch.cat(
                    [self._normed(both[:, :heads], q_norm), self._normed(both[:, heads:], k_norm)], dim=1
                )
            both = torch.addcmul(both * rotation.cos, both.roll(half, -1), rotation.sin)
            value = qkv[:, cut:].view(tokens, key_heads, self.width)
            mixed = attend(number, both[:, :heads], both[:, heads:], value, self._scale)
            x = block.out(mixed.reshape(tokens, heads * self.width), x)
            if block.norm_2 is not None:
                x = self._normed(x, block.norm_2)
            gate, up = block.up(self._normed(x, block.norm_3)).chunk(2, dim=-1)
            x = block.down(functional.silu(gate).mul_(up), x)
            if block.norm_4 is not None:
                x = self._normed(x, block.norm_4)
        return x

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(x, (x.shape[-1],), weight, self._eps)


def _block(block: Any) -> _Block:
    attention, mlp = block.self_attn, block.mlp
    bias = norms = None
    if attention.q_bias is not None:
        bias = torch.cat([attention.q_bias.detach(), attention.k_bias.detach()])
    if attention.q_norm is not None:
        norms = (attention.q_norm.weight.detach(), attention.k_norm.weight.detach())
    return _Block(
        block.norm_1.weight.detach(),
        _Product([attention.q_proj, attention.k_proj, attention.v_proj]),
        bias,
        norms,
        _Product([attention.o_proj]),
        None if block.norm_2 is None else block.norm_2.weight.detach(),
        block.norm_3.weight.detach(),
        _Product([mlp.gate_proj, mlp.up_proj]),
        _Product([mlp.down_proj]),
        None if block.norm_4 is None else block.norm_4.weight.detach(),
    )


def _first_states(inner: Any, context: int) -> Tensor:
    """The initial states of evaluation at all positions, (context, width), whatever mode the model is in."""
    mode, inner.training = inner.training, False
    try:
        like = torch.zeros((1, context, inner.config.hidden_size), dtype=inner.dtype, device=inner.device)
        found: Tensor = inner.first_state(like, torch.arange(context, device=inner.device)[None])
    finally:
        inner.training = mode
    return found[0].detach()


def _check_plain(model: Any) -> None:
    name = f"{model.config.model_type} ({type(model).__name__})"
    if not isinstance(model, RecurrentDepthForCausalLM):
        raise UsageError(f"{name}: this is no recurrent-depth model")
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) and type(module) is not nn.Linear:
            raise UsageError(f"{name}: {path} is a {type(module).__name__}; merge adapters before decoding")
        if not type(module).__module__.startswith(("torch.nn.", "transformers.", "tutelage.students.")):
            raise UsageError(f"{name}: {path} is a {type(module).__name__}; merge adapters before decoding")
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        # A trainer's, on the embedding, says only that gradients are wanted.
        if any(getattr(each, "__name__", "") != "make_inputs_require_grads" for each in hooks):
            raise UsageError(f"{name}: {path} has a hook, which would not be called here; remove it")
