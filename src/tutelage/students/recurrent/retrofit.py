"""Surgery: some layers of a pretrained Llama-type model as prelude, core and coda of a recurrent-depth model.

Promises: every copied layer computes what it computes in the donor (`layer_differences` measures it); a donor
whose layers ours cannot reproduce is refused, and what about it is named; the donor is left as it was.
Does not: choose layers (see `influence`), or heal: a model fresh from surgery has lost the layers that were
left out, and its core has never seen its own output. Train it on general text first, then on tasks.

Source: McLeish et al. 2025 (arXiv 2511.07384): early layers become the prelude, late ones core and coda, what
is left out lies between; blocks keep the donor's norms, and there is none after the core. We differ in two
things: the adapter starts as a weighted sum of state and embedding, where theirs starts from noise, so that
the first pass is the donor's own; and a tied head stays tied unless told otherwise, where theirs is untied.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from copy import copy
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from tutelage.errors import UsageError
from tutelage.students.recurrent.config import RecurrentDepthConfig
from tutelage.students.recurrent.model import RecurrentDepthForCausalLM

FAMILIES = ("llama", "qwen2", "qwen3")
# What other families do that our layers do not.
_UNLIKE = {
    "smollm3": "some of its layers have no rotary positions",
    "mistral": "its attention may have a sliding window",
    "gemma2": "it has a sliding window, soft caps and norms after each half",
    "gemma3_text": "it has a sliding window and norms after each half",
    "phi3": "its attention and feed-forward matrices are fused",
    "mixtral": "it is a mixture of experts",
    "qwen2_moe": "it is a mixture of experts",
    "qwen3_moe": "it is a mixture of experts",
    "recurrent_depth": "it has recurrent depth already",
}
Start = Literal["embedding", "sum", "mean", "identity", "noise"]
STARTS: dict[str, tuple[float, float] | None] = {
    "embedding": (0.0, 1.0),
    "sum": (1.0, 1.0),
    "mean": (0.5, 0.5),
    "identity": (1.0, 0.5),
    "noise": None,
}
"""What an adapter starts as: (a, b) in x = a·s + b·e; None: noise, as Huginn's."""
# The standard deviation that Huginn's configuration gives the initial state, where embeddings are not scaled.
STATE_STD = 0.0087
_RANGE = re.compile(r"([0-9]+)(?:-([0-9]+))?")


@dataclass(frozen=True, slots=True)
class Split:
    """Which layers of the donor, counted from 0, become which part."""

    prelude: tuple[int, ...]
    core: tuple[int, ...]
    coda: tuple[int, ...]

    @property
    def layers(self) -> tuple[int, ...]:
        """All of them, in the order of one pass."""
        return self.prelude + self.core + self.coda


@dataclass(frozen=True, slots=True)
class Surgery:
    """What the donor becomes. `mean` is the mean number of passes that training draws around and the depth of
    evaluation, `backprop` how many of them carry a gradient (None: 8, or the mean where that is less),
    `most` the most that may be asked for (None: eight times the mean). `start` is what the adapter "linear"
    starts as (see `STARTS`). `untie` gives the head weights of its own."""

    mean: int = 4
    backprop: int | None = None
    most: int | None = None
    adapter: Literal["linear", "add"] = "linear"
    start: Start = "embedding"
    untie: bool = False
    state_std: float = STATE_STD
    seed: int = 0


def read_layers(text: str, name: str) -> tuple[int, ...]:
    """The layers of `0-3` or `0-2,5`; none for an empty text. `name` is the option. Raises UsageError."""
    found: list[int] = []
    for part in filter(None, text.replace(" ", "").split(",")):
        pair = _RANGE.fullmatch(part)
        if pair is None or len(part) > 12:
            raise UsageError(f"{name} {text}: write layers as 0-3, or as 0-2,5")
        first, last = int(pair[1]), int(pair[2] or pair[1])
        if last < first:
            raise UsageError(f"{name} {text}: {part} runs downwards; write the lower layer first")
        if last - first >= 10_000:
            raise UsageError(f"{name} {text}: no model has so many layers")
        found.extend(range(first, last + 1))
    return tuple(found)


def check_split(split: Split, layers: int) -> Split:
    """`split`, if a donor of so many layers can be cut like this: no layer twice, in ascending order.

    Raises UsageError."""
    if not split.core:
        raise UsageError("core: no layer; the core needs at least one")
    before, place = -1, ""
    for name, part in asdict(split).items():
        for layer in part:
            if layer >= layers:
                raise UsageError(
                    f"{name}: layer {layer} is not in the donor, which has {layers} (0-{layers - 1})"
                )
            if layer <= before:
                overlaps = layer in split.layers[: split.layers.index(layer) + 1] and (
                    split.layers.count(layer) > 1
                )
                said = "is named twice" if overlaps else f"comes after layer {before} of the {place}"
                raise UsageError(
                    f"{name}: layer {layer} {said}; prelude, core and coda must ascend and not overlap"
                )
            before, place = layer, name
    return split


def donor_config(config: Any, split: Split, surgery: Surgery, name: str = "donor") -> RecurrentDepthConfig:
    """The configuration of what the donor with `config` becomes. Raises UsageError for a donor whose layers
    ours cannot reproduce, naming what they do."""
    _refuse(config, name)
    check_split(split, config.num_hidden_layers)
    tied = bool(config.tie_word_embeddings) and not surgery.untie
    ids = {key: getattr(config, key, None) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return RecurrentDepthConfig(
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None),
        intermediate_size=config.intermediate_size,
        vocab_size=config.vocab_size,
        num_prelude_layers=len(split.prelude),
        num_core_layers=len(split.core),
        num_coda_layers=len(split.coda),
        mean_recurrence=surgery.mean,
        mean_backprop_depth=min(8, surgery.mean) if surgery.backprop is None else surgery.backprop,
        max_recurrence=surgery.most,
        tie_word_embeddings=tied,
        max_position_embeddings=config.max_position_embeddings,
        rope_parameters=dict(config.rope_parameters),
        rms_norm_eps=config.rms_norm_eps,
        attention_bias=config.model_type == "qwen2",
        qk_norm=config.model_type == "qwen3",
        hidden_act=config.hidden_act,
        block="pre",
        norm_after_core="none",
        adapter=surgery.adapter,
        embedding_scale=1.0,
        state_std=surgery.state_std,
        **{key: value for key, value in ids.items() if value is not None},
    )


def retrofit(
    donor: Any, split: Split, surgery: Surgery | None = None, name: str = "donor"
) -> RecurrentDepthForCausalLM:
    """The recurrent-depth model that `donor` (a causal language model of `FAMILIES`) becomes, with weights of
    its own, in evaluation mode. `name` is what messages call the donor. Raises UsageError."""
    surgery = surgery or Surgery()
    config = donor_config(donor.config, split, surgery, name)
    if surgery.start not in STARTS:
        raise UsageError(f"start {surgery.start!r} is not known; known: {', '.join(STARTS)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(surgery.seed)  # the adapter's noise; everything else is copied over
        model = RecurrentDepthForCausalLM(config)
    weights = dict(_renamed(donor.state_dict(), split))
    # A tied head is not in every donor's state dict, and one that is untied now starts as the embedding.
    weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
    if model.model.adapter.linear is not None:
        weights["model.adapter.linear.weight"] = _adapter(model, surgery.start)
    missing, extra = model.load_state_dict(weights, strict=False)
    if missing or extra:
        raise UsageError(f"{name}: its layers are not those of its type: missing {missing}, extra {extra}")
    if donor.generation_config is not None:
        model.generation_config = copy(donor.generation_config)
    model.to(device=donor.device, dtype=donor.dtype).eval()
    return model


def sliced(donor: Any, layers: tuple[int, ...]) -> Any:
    """`donor` with these of its layers alone, for passes without a cache; the two share weights."""
    config = copy(donor.config)
    config.num_hidden_layers = len(layers)
    config.use_cache = False  # the layers keep the places that they had in the donor's
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = [donor.config.layer_types[layer] for layer in layers]
    with torch.device("meta"):
        cut = AutoModelForCausalLM.from_config(config)
    cut.model.embed_tokens, cut.model.norm = donor.model.embed_tokens, donor.model.norm
    cut.model.rotary_emb, cut.lm_head = donor.model.rotary_emb, donor.lm_head
    cut.model.layers = nn.ModuleList([donor.model.layers[layer] for layer in layers])
    return cut.eval()


@torch.no_grad()
def layer_differences(
    donor: Any, model: RecurrentDepthForCausalLM, split: Split, ids: Tensor
) -> list[tuple[int, float]]:
    """How far one pass through `model` without its adapter is from the donor cut to the same layers, on `ids`
    (rows, tokens): for each layer of the donor (layer, largest difference of a hidden value as a share of the
    largest value there), and last (-1, the same of the logits)."""
    inner = model.model
    blocks = [*inner.prelude, *inner.core, *inner.coda]
    theirs: list[Tensor] = []
    cut = sliced(donor, split.layers)
    hooks = [
        layer.register_forward_hook(lambda _, __, out: theirs.append(out if torch.is_tensor(out) else out[0]))
        for layer in cut.model.layers
    ]
    try:
        logits = cut(ids).logits
    finally:
        for hook in hooks:
            hook.remove()
    x = inner.embed_tokens(ids) * model.config.embedding_scale
    positions = torch.arange(ids.shape[1], device=ids.device)[None]
    rotation = inner.rotary_emb(x, position_ids=positions)
    found = []
    for layer, block, wanted in zip(split.layers, blocks, theirs, strict=True):
        x = block(x, rotation)
        found.append((layer, _apart(x, wanted)))
    found.append((-1, _apart(model.lm_head(inner.norm(x)), logits)))
    return found


def _apart(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-9))


def _adapter(model: RecurrentDepthForCausalLM, start: str) -> Tensor:
    """The adapter's first weights (width, 2 · width)."""
    linear = model.model.adapter.linear
    assert linear is not None
    pair = STARTS[start]
    if pair is None:
        return linear.weight.detach().clone()
    eye = torch.eye(model.config.hidden_size)
    return torch.cat([pair[0] * eye, pair[1] * eye], dim=1)


def _renamed(given: dict[str, Tensor], split: Split) -> Iterator[tuple[str, Tensor]]:
    """Our names, for the donor's tensors that are kept."""
    parts = {
        layer: f"model.{part}.{number}"
        for part, layers in asdict(split).items()
        for number, layer in enumerate(layers)
    }
    for key, value in given.items():
        if not key.startswith("model.layers."):
            yield key, value
            continue
        layer, rest = key.removeprefix("model.layers.").split(".", 1)
        if int(layer) in parts:
            rest = rest.replace("post_attention_layernorm", "norm_3").replace("input_layernorm", "norm_1")
            yield f"{parts[int(layer)]}.{rest}", value


def _refuse(config: Any, name: str) -> None:
    """Raise UsageError for what our layers do not do."""
    kind = config.model_type
    if kind not in FAMILIES:
        why = f": {_UNLIKE[kind]}" if kind in _UNLIKE else ""
        raise UsageError(
            f"{name}: a donor of type {kind} is not supported{why}; known: {', '.join(FAMILIES)}"
        )
    others = {each for each in getattr(config, "layer_types", None) or () if each != "full_attention"}
    if others:
        raise UsageError(
            f"{name}: layers with {', '.join(sorted(others))} are not supported, only full attention is"
        )
    biased = {
        "attention_bias": "biases in attention, its output included",
        "mlp_bias": "biases in the feed-forward",
        "attention_dropout": "dropout in attention",
    }
    for field, said in biased.items():
        if getattr(config, field, None):
            raise UsageError(f"{name}: {said} ({field}: {getattr(config, field)}) is not supported")
