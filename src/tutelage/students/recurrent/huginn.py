"""Weights of the published Huginn layout, into our modules.

Promises: every tensor is placed and checked by shape; missing and extra keys are listed; a folder of shards
is converted with one shard in memory at a time.
Does not: fetch them, or run their code.

Differences of the layouts: they rotate neighbouring pairs of a head's width where we rotate its halves, so
rows of the query and key matrices and their biases are put in another order; query, key and value are one
matrix there, gate and up another.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from tutelage.errors import StorageError, UsageError
from tutelage.plain import some
from tutelage.students.recurrent.config import RecurrentDepthConfig
from tutelage.students.recurrent.model import RecurrentDepthForCausalLM

_PARTS = {"prelude": "prelude", "core_block": "core", "coda": "coda"}
_IGNORED = {"freqs_cis"}
# Their name of a field: ours.
_FIELDS = {
    "n_embd": "hidden_size",
    "n_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "n_layers_in_prelude": "num_prelude_layers",
    "n_layers_in_recurrent_block": "num_core_layers",
    "n_layers_in_coda": "num_coda_layers",
    "mean_recurrence": "mean_recurrence",
    "mean_backprop_depth": "mean_backprop_depth",
    "tie_embeddings": "tie_word_embeddings",
    "block_size": "max_position_embeddings",
    "rope_base": "rope_theta",
    "norm_eps": "rms_norm_eps",
    "qk_bias": "qk_bias",
}
# Fields that must have this value, where they are given.
_FIXED = {
    "block_class_name": "SandwichBlock",
    "norm_class_name": "RMSNorm_llama",
    "mlp_class_name": "GatedMLP",
    "nonlin_name": "SiLU",
    "bias": False,
    "state_init": "like-init",
}
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
# Written anew for our model; all other json files of a folder are its tokenizer's.
_THEIRS = {"config.json", _INDEX}


def huginn_config(fields: Mapping[str, Any]) -> RecurrentDepthConfig:
    """Our configuration of a published `config.json`, whose `fields` are given.

    Raises UsageError that names a field that is missing, or has a value that our model does not have."""
    missing = sorted(_FIELDS.keys() - fields.keys())
    size = fields.get("padded_vocab_size", fields.get("vocab_size"))
    if missing or size is None:
        raise UsageError(f"Huginn config.json: missing {some(missing + ['vocab_size'] * (size is None), 5)}")
    for name, value in _FIXED.items():
        if fields.get(name, value) != value:
            raise UsageError(f"Huginn config.json: {name} is {fields[name]!r}; only {value!r} is supported")
    joins = fields.get("injection_type", "linear")
    if joins not in ("linear", "add"):
        raise UsageError(f"Huginn config.json: injection_type is {joins!r}; known: linear, add")
    given = {ours: fields[theirs] for theirs, ours in _FIELDS.items()}
    tokens = {name: fields[name] for name in _TOKEN_IDS if fields.get(name) is not None}
    return RecurrentDepthConfig(**given, vocab_size=size, adapter=joins, **tokens)


def convert_huginn(source: str | Path, out: str | Path) -> Path:
    """Write the folder `source` of the published layout (config.json, safetensors, tokenizer) as one of ours
    to `out`, which must not be there: `load_student(out)` and transformers' `from_pretrained` then read it.
    Weights keep their dtype.

    Raises UsageError for a folder that does not hold the whole model its config.json describes, StorageError
    when the disk refuses."""
    place, target = Path(source), Path(out)
    if target.exists():
        raise UsageError(f"{target}: is there already; remove it or name another folder")
    config = huginn_config(_json(place / "config.json"))
    files = _files(place)
    shapes: dict[str, Tensor] = {}
    for key, file in files.items():
        with _opened(file) as shard:
            if key not in shard.keys():  # noqa: SIM118 - it is no mapping
                raise UsageError(f"{file}: no tensor {key}, which {_INDEX} says it holds")
            shapes[key] = torch.empty(shard.get_slice(key).get_shape(), device="meta")
    _check(config, shapes)
    partial = target.with_name(target.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        index: dict[str, str] = {}
        total = 0
        shards = sorted(set(files.values()))
        for number, file in enumerate(shards, 1):
            name = f"model-{number:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else _WEIGHTS
            with _opened(file) as shard:
                held = {key: shard.get_tensor(key) for key in files if files[key] == file}
            ours = {key: each.contiguous() for key, each in _renamed(config, _wanted(config, held))}
            save_file(ours, partial / name, metadata={"format": "pt"})
            index |= dict.fromkeys(ours, name)
            total += sum(each.nbytes for each in ours.values())
        config.architectures = [RecurrentDepthForCausalLM.__name__]
        config.save_pretrained(partial)
        if len(shards) > 1:
            text = json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=1)
            (partial / _INDEX).write_text(text, encoding="utf-8")
        for file in place.glob("*.json"):
            if file.name not in _THEIRS:
                shutil.copy(file, partial)
        partial.rename(target)
    except OSError as error:
        raise StorageError(f"{target}: cannot write the model ({error.strerror or error})") from error
    return target


def load_huginn_state_dict(
    model: RecurrentDepthForCausalLM, state_dict: Mapping[str, Tensor]
) -> RecurrentDepthForCausalLM:
    """Put the tensors of `state_dict` (keys of the published checkpoint, `transformer.wte.weight` and so on)
    into `model`, which is returned; a model on the meta device takes the tensors themselves.

    Raises UsageError that lists missing and extra keys, or names the first tensor whose shape does not fit
    the model's configuration; the model is then as it was."""
    _check(model.config, state_dict)
    found = dict(_renamed(model.config, _wanted(model.config, state_dict)))
    if model.config.tie_word_embeddings:
        found["lm_head.weight"] = found["model.embed_tokens.weight"]
    bare = model.device.type == "meta"
    model.load_state_dict(found, assign=bare)
    if bare:  # a model without memory took the tensors themselves
        model.tie_weights()
        model.model.rotary_emb = LlamaRotaryEmbedding(model.config).to(model.device)
    return model


def _wanted(config: RecurrentDepthConfig, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what is computed, and the head where it is the embedding."""
    left = _IGNORED | ({"lm_head.weight"} if config.tie_word_embeddings else set())
    return {key: value for key, value in given.items() if key not in left}


def _check(config: RecurrentDepthConfig, state_dict: Mapping[str, Tensor]) -> None:
    shapes, given = dict(_shapes(config)), _wanted(config, state_dict)
    missing, extra = sorted(shapes.keys() - given.keys()), sorted(given.keys() - shapes.keys())
    if missing or extra:
        told = [f"{name} {some(keys, 5)}" for name, keys in (("missing", missing), ("extra", extra)) if keys]
        raise UsageError(f"Huginn checkpoint: {'; '.join(told)}")
    for key, shape in shapes.items():
        if tuple(given[key].shape) != shape:
            raise UsageError(
                f"Huginn checkpoint: {key} has the shape {tuple(given[key].shape)}, but this configuration "
                f"needs {shape}"
            )


def _shapes(config: RecurrentDepthConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The keys of the published layout and their shapes, for `config`. Raises UsageError for a model that the
    layout cannot hold."""
    needed = {
        "block": "sandwich",
        "norm_after_core": "exit",
        "num_key_value_heads": config.num_attention_heads,
        "attention_bias": False,
        "qk_norm": False,
    }
    for name, value in needed.items():
        if getattr(config, name) != value:
            raise UsageError(
                f"Huginn checkpoint: the layout needs {name} {value!r}, but this configuration has "
                f"{getattr(config, name)!r}"
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


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{file}: cannot read it ({error.strerror})") from error
    except ValueError as error:
        raise UsageError(f"{file}: not readable as JSON") from error
    if not isinstance(found, dict):
        raise UsageError(f"{file}: a JSON object is expected")
    return found


def _files(place: Path) -> dict[str, Path]:
    """The file of each tensor."""
    if (place / _INDEX).is_file():
        names = _json(place / _INDEX).get("weight_map")
        if not isinstance(names, dict):
            raise UsageError(f"{place / _INDEX}: no weight_map")
        return {key: place / Path(str(name)).name for key, name in names.items()}
    with _opened(place / _WEIGHTS) as shard:
        return dict.fromkeys(shard.keys(), place / _WEIGHTS)


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{file}: not a whole safetensors file ({error})") from error
