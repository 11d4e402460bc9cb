"""Next-token scores for a changing batch of rows: a Hugging Face causal language model and the cache it
reads.

Promises: a row's scores do not depend on its neighbours (own positions, own mask, float32); nothing is
computed twice, forced tokens are fed like sampled ones, a withdrawn token is only masked; models whose
attention does not look at the whole row are refused by name.
Does not: choose tokens or know about thinking.

Layout. Rows are aligned at their right end: slot j of the cache belongs to the same step for every row, and
what lies before a row's start, or was withdrawn, is masked. Rotary or learned positions are given
explicitly, so that the slot a key lies in carries no meaning and rows can join, leave and take tokens back
at any step.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tutelage.errors import UsageError

# Slots allocated beyond what is needed now, so that most steps write in place instead of copying the cache.
_HEADROOM = 64
# Most prompt tokens in one prefill: bounds its memory.
_PREFILL_TOKENS = 16_384
_ATTENTION = "tutelage_slots"


class _SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of one layer, written in place. Both lie as (rows, heads, width, slots): with one
    query per row the two matrix products then run along contiguous slots (400 rows on one Zen-4 thread: 3
    times as fast)."""

    def __init__(self) -> None:
        super().__init__()
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = key_states.transpose(2, 3), value_states.transpose(2, 3)
        self.length = key_states.shape[2]
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            return key_states, value_states
        end = self.length + key_states.shape[2]
        if end > self.keys.shape[3]:
            self.arrange(None, 0, end + _HEADROOM)
        self.keys[..., self.length : end] = key_states.transpose(2, 3)
        self.values[..., self.length : end] = value_states.transpose(2, 3)
        self.length = end
        return self.keys[..., :end].transpose(2, 3), self.values[..., :end].transpose(2, 3)

    def arrange(self, rows: Tensor | None, start: int, capacity: int) -> None:
        """Keep `rows` (None: all) from slot `start` on, in buffers of `capacity` slots."""
        for name in ("keys", "values"):
            old = getattr(self, name)[..., start : self.length]
            new = old.new_empty((len(old) if rows is None else len(rows), *old.shape[1:3], capacity))
            new[..., : old.shape[3]] = old if rows is None else old[rows]
            setattr(self, name, new)
        self.length -= start

    def join(self, other: _SlotLayer, capacity: int) -> None:
        """Append the rows of `other`, both aligned at their right end."""
        length = max(self.length, other.length)
        for name in ("keys", "values"):
            mine = getattr(self, name)[..., : self.length]
            theirs = getattr(other, name)[..., : other.length]
            # Zeros, not garbage, where a row has nothing: masked values still must be finite.
            new = mine.new_zeros((len(mine) + len(theirs), *mine.shape[1:3], capacity))
            new[: len(mine), ..., length - self.length : length] = mine
            new[len(mine) :, ..., length - other.length : length] = theirs
            setattr(self, name, new)
        self.length = length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1


def slot_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention of one query per row, (rows, heads, 1, width), over keys and values as `_SlotLayer` keeps
    them; anything else goes to transformers' own. Returns (rows, 1, heads, width). Groups of heads share
    keys."""
    rows, heads, queries, width = query.shape
    if queries > 1 or any(options.get(name) is not None for name in ("softcap", "s_aux", "position_bias")):
        out: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
        return out
    shared, slots = key.shape[1], key.shape[2]
    by_slot = key.transpose(2, 3).reshape(rows * shared, width, slots)
    scores = torch.bmm(query.reshape(rows * shared, heads // shared, width), by_slot)
    scores = scores.view(rows, heads, slots).float() * (width**-0.5 if scaling is None else scaling)
    weights = (scores + attention_mask[:, 0]).softmax(dim=-1).to(value.dtype)
    mixed = torch.bmm(
        value.transpose(2, 3).reshape(rows * shared, value.shape[3], slots),
        weights.view(rows * shared, heads // shared, slots).transpose(1, 2),
    )
    return mixed.transpose(1, 2).reshape(rows, 1, heads, value.shape[3]), None


ALL_ATTENTION_FUNCTIONS.register(_ATTENTION, slot_attention)


class Batch:
    """The rows that a model is working on, their cache, and the scores after each row's last token: `logits`
    (rows, vocabulary), float32 on the model's device."""

    def __init__(self, model: Any) -> None:
        """Raises UsageError that names the model's kind when it cannot be run here."""
        self.model = model
        self.device: torch.device = model.device
        self.context = check_model(model)
        self._layers: list[_SlotLayer] = []
        self._bias = torch.empty(0)
        self._positions = torch.empty(0)
        self.logits = torch.empty(0)
        self._low = torch.finfo(model.dtype).min

    def __len__(self) -> int:
        return len(self._positions)

    def admit(self, prompts: Sequence[Sequence[int]]) -> None:
        """Prefill `prompts` as new rows behind the present ones. Equal prompts next to each other are
        computed once."""
        done = 0
        while done < len(prompts):
            unique: list[Sequence[int]] = []
            owner: list[int] = []
            width = 0
            for prompt in prompts[done:]:
                if not unique or prompt != unique[-1]:
                    width = max(width, len(prompt))
                    if unique and (len(unique) + 1) * width > _PREFILL_TOKENS:
                        break
                    unique.append(prompt)
                owner.append(len(unique) - 1)
            done += len(owner)
            self._join(self._prefill(unique), owner)

    def decode(self, tokens: Sequence[int]) -> None:
        """Feed one token to every row."""
        length = self._layers[0].length
        if length + 1 > self._bias.shape[1]:
            self._widen(length + 1 + _HEADROOM)
        self._bias[:, length] = 0.0
        ids = torch.tensor(tokens, device=self.device)[:, None]
        # Finished rows are fed until they are dropped; learned positions end with the context.
        positions = self._positions.clamp(max=self.context - 1)[:, None]
        self._forward(ids, self._bias[:, None, None, : length + 1], positions)
        self._positions += 1

    def withdraw(self, row: int, count: int) -> None:
        """Take the last `count` tokens of `row` back. Its `logits` are void until it has been fed again."""
        if count:
            seen = (self._bias[row, : self._layers[0].length] == 0).nonzero()[-count:, 0]
            self._bias[row, seen] = self._low
            self._positions[row] -= count

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these, and the slots that no row uses any more."""
        index = torch.tensor(rows, dtype=torch.long, device=self.device)
        length = self._layers[0].length
        bias = self._bias[index]
        used = (bias[:, :length] == 0).any(dim=0)
        start = int(used.int().argmax()) if bool(used.any()) else length
        for layer in self._layers:
            layer.arrange(index, start, length - start + _HEADROOM)
        self._bias = bias[:, start:]
        self._positions = self._positions[index]
        self.logits = self.logits[index]

    def _prefill(self, prompts: Sequence[Sequence[int]]) -> Batch:
        part = Batch(self.model)
        part._layers = [_SlotLayer() for _ in range(self.model.config.num_hidden_layers)]
        width = max(len(prompt) for prompt in prompts)
        ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=self.device)
        lengths = torch.tensor([len(p) for p in prompts], device=self.device)
        real = torch.arange(width, device=self.device)[None] >= width - lengths[:, None]
        part._bias = torch.zeros(real.shape, dtype=self.model.dtype, device=self.device)
        part._bias.masked_fill_(~real, self._low)
        causal = torch.ones((width, width), dtype=torch.bool, device=self.device).tril()
        mask = part._bias[:, None, None, :].masked_fill(~causal, self._low)
        part._positions = lengths
        part._forward(ids, mask, (real.cumsum(dim=1) - 1).clamp(min=0))
        return part

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor) -> None:
        config = self.model.config
        usual = config._attn_implementation
        config._attn_implementation = (
            _ATTENTION  # for this call only: training the same model goes on as it was
        )
        try:
            out = self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=Cache(layers=self._layers),
                use_cache=True,
                logits_to_keep=1,
            )
        finally:
            config._attn_implementation = usual
        self.logits = out.logits[:, -1].float()

    def _join(self, part: Batch, owner: Sequence[int]) -> None:
        """Append the rows `owner` of `part` (a row may be taken several times)."""
        if owner != list(range(len(part))):
            part.keep(owner)
        if not len(self):
            self._layers, self._bias = part._layers, part._bias
            self._positions, self.logits = part._positions, part.logits
            return
        here, there = self._layers[0].length, part._layers[0].length
        length = max(here, there)
        bias = self._bias.new_full((len(self) + len(part), length + _HEADROOM), self._low)
        bias[: len(self), length - here : length] = self._bias[:, :here]
        bias[len(self) :, length - there : length] = part._bias[:, :there]
        for mine, theirs in zip(self._layers, part._layers, strict=True):
            mine.join(theirs, length + _HEADROOM)
        self._bias = bias
        self._positions = torch.cat([self._positions, part._positions])
        self.logits = torch.cat([self.logits, part.logits])

    def _widen(self, capacity: int) -> None:
        bias = self._bias.new_full((len(self), capacity), self._low)
        bias[:, : self._bias.shape[1]] = self._bias
        self._bias = bias


def check_model(model: Any) -> int:
    """The model's context length in tokens. Raises UsageError for models that this backend cannot run."""
    config = model.config
    name = f"{config.model_type} ({type(model).__name__})"
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    sliding = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    forward = getattr(model, "get_base_model", lambda: model)().forward
    if getattr(config, "is_encoder_decoder", False):
        raise UsageError(f"{name}: encoder-decoder models cannot be run here; use a decoder-only model")
    if config.get_text_config() is not config:
        raise UsageError(
            f"{name}: models of text and images cannot be run here; load the language model alone"
        )
    if getattr(config, "alibi", False):
        raise UsageError(f"{name}: ALiBi takes positions from where a key lies; use a model with rotary ones")
    if kinds != {"full_attention"} or (sliding and not getattr(config, "layer_types", None)):
        other = sorted(kinds - {"full_attention"}) or ["sliding_attention"]
        raise UsageError(
            f"{name}: layers with {other[0]} cannot be run here; use a model with full attention"
        )
    if not {"position_ids", "past_key_values", "logits_to_keep"} <= set(
        inspect.signature(forward).parameters
    ):
        raise UsageError(f"{name}: this model takes no explicit positions and cache, which is needed here")
    if config._attn_implementation not in ("sdpa", "eager"):
        raise UsageError(
            f"{name}: attention {config._attn_implementation!r} is not supported; load it with 'sdpa'"
        )
    context = int(config.max_position_embeddings)
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        # One row beyond this length would change the rotations of all its neighbours.
        context = min(context, int(rope["original_max_position_embeddings"]))
    return context
