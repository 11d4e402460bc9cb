"""Weights of the published Huginn layout, into our modules.

Promises: every tensor is placed and checked by shape; missing and extra keys are listed.
Does not: fetch them, or run their code.

Differences of the layouts: they rotate neighbouring pairs of a head's width where we rotate its halves, so
rows of the query and key matrices and their biases are put in another order; query, key and value are one
matrix there, gate and up another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from tutelage.errors import UsageError
from tutelage.students.recurrent.config import RecurrentDepthConfig
from tutelage.students.recurrent.model import RecurrentDepthForCausalLM

_PARTS = {"prelude": "prelude", "core_block": "core", "coda": "coda"}
_IGNORED = {"freqs_cis"}
_SHOWN = 5


def load_huginn_state_dict(
    model: RecurrentDepthForCausalLM, state_dict: Mapping[str, Tensor]
) -> RecurrentDepthForCausalLM:
    """Put the tensors of `state_dict` (keys of the published checkpoint, `transformer.wte.weight` and so on)
    into `model`, which is returned.

    Raises UsageError that lists missing and extra keys, or names the first tensor whose shape does not fit
    the model's configuration; the model is then as it was."""
    config = model.config
    shapes = dict(_shapes(config))
    given = {key: value for key, value in state_dict.items() if key not in _IGNORED}
    if config.tie_word_embeddings:
        given.pop("lm_head.weight", None)
    missing, extra = sorted(shapes.keys() - given.keys()), sorted(given.keys() - shapes.keys())
    if missing or extra:
        told = [f"{name} {_some(keys)}" for name, keys in (("missing", missing), ("extra", extra)) if keys]
        raise UsageError(f"Huginn checkpoint: {'; '.join(told)}")
    for key, shape in shapes.items():
        if tuple(given[key].shape) != shape:
            raise UsageError(
                f"Huginn checkpoint: {key} has the shape {tuple(given[key].shape)}, but this configuration "
                f"needs {shape}"
            )
    found = dict(_renamed(config, given))
    if config.tie_word_embeddings:
        found["lm_head.weight"] = found["model.embed_tokens.weight"]
    model.load_state_dict(found)
    return model


def _shapes(config: RecurrentDepthConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The keys of the published layout and their shapes, for `config`. Raises UsageError for a model that the
    layout cannot hold."""
    if config.num_key_value_heads != config.num_attention_heads or config.block != "sandwich":
        raise UsageError(
            "Huginn checkpoint: it has sandwich blocks and no grouped key heads; the model's configuration "
            "differs"
        )
    d, wide, heads, width = (
        config.hidden_size,
        config.intermediate_size,
        config.num_attention_heads,
        config.head_dim,
    )
    yield "transformer.wte.weight", (config.vocab_size, d)
    for part, ours in _PARTS.items():
        for number in range(getattr(config, f"num_{ours}_layers")):
            start = f"transformer.{part}.{number}"
            for norm in (1, 2, 3, 4):
                yield f"{start}.norm_{norm}.weight", (d,)
            if config.qk_bias:
                yield f"{start}.attn.qk_bias", (2, 1, heads, width)
            yield f"{start}.attn.Wqkv.weight", (3 * heads * width, d)
            yield f"{start}.attn.proj.weight", (d, heads * width)
            yield f"{start}.mlp.fc.weight", (2 * wide, d)
            yield f"{start}.mlp.proj.weight", (d, wide)
    if config.adapter == "linear":
        yield "transformer.adapter.weight", (d, 2 * d)
    yield "transformer.ln_f.weight", (d,)
    if not config.tie_word_embeddings:
        yield "lm_head.weight", (config.vocab_size, d)


def _renamed(config: RecurrentDepthConfig, given: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Our names and tensors."""
    heads, width = config.num_attention_heads, config.head_dim
    order = torch.cat([torch.arange(0, width, 2), torch.arange(1, width, 2)])
    for key, value in given.items():
        if key == "lm_head.weight":
            yield key, value
            continue
        name = key.removeprefix("transformer.")
        if name == "wte.weight":
            yield "model.embed_tokens.weight", value
        elif name == "ln_f.weight":
            yield "model.norm.weight", value
        elif name == "adapter.weight":
            yield "model.adapter.linear.weight", value
        else:
            part, number, rest = name.split(".", 2)
            start = f"model.{_PARTS[part]}.{number}"
            if rest == "attn.Wqkv.weight":
                query, key_, value_ = value.chunk(3)
                yield f"{start}.self_attn.q_proj.weight", _reordered(query, order, heads)
                yield f"{start}.self_attn.k_proj.weight", _reordered(key_, order, heads)
                yield f"{start}.self_attn.v_proj.weight", value_
            elif rest == "attn.qk_bias":
                yield f"{start}.self_attn.q_bias", value[0, 0][:, order]
                yield f"{start}.self_attn.k_bias", value[1, 0][:, order]
            elif rest == "attn.proj.weight":
                yield f"{start}.self_attn.o_proj.weight", value
            elif rest == "mlp.fc.weight":
                gate, up = value.chunk(2)
                yield f"{start}.mlp.gate_proj.weight", gate
                yield f"{start}.mlp.up_proj.weight", up
            elif rest == "mlp.proj.weight":
                yield f"{start}.mlp.down_proj.weight", value
            else:
                yield f"{start}.{rest}", value


def _reordered(matrix: Tensor, order: Tensor, heads: int) -> Tensor:
    """Rows of each head: first those of the even places, then those of the odd ones."""
    return matrix.view(heads, len(order), -1)[:, order].reshape(matrix.shape)


def _some(keys: list[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more
