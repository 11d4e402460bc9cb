"""Rollouts as tensors, and what a model says of them: log-probabilities, entropies, values.

Promises: an action is an id that the model drew; ids that the policy wrote are read but never scored; padding
changes nothing. Log-probabilities and entropies are of the tempered distribution that was sampled from.
Does not: know about rewards or losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tutelage.train.rollouts import Rollout
from tutelage.train.value import ValueHead


@dataclass(frozen=True, slots=True)
class Episodes:
    """Rollouts, padded at the right: `ids` (rows, tokens) of prompt and reply and which are `real`; `places`
    (rows, actions) where in `ids` each action stands, `mask` (rows, actions) which of them there are."""

    ids: Tensor
    real: Tensor
    places: Tensor
    mask: Tensor

    def rows(self, index: Sequence[int]) -> Episodes:
        """Those rows, cut to the longest of them."""
        ids, real, places, mask = (
            each[list(index)] for each in (self.ids, self.real, self.places, self.mask)
        )
        tokens, actions = int(real.sum(dim=1).max()), int(mask.sum(dim=1).max())
        return Episodes(ids[:, :tokens], real[:, :tokens], places[:, :actions], mask[:, :actions])


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a model says of each action, (rows, actions): the log-probability of the id that was drawn, the
    entropy of what it was drawn from (without gradient), and the value before it."""

    logprobs: Tensor
    entropy: Tensor
    values: Tensor


def gather(rollouts: Sequence[Rollout], pad: int, device: torch.device) -> Episodes:
    """`rollouts` as one padded batch. `pad` fills up (any id: it is masked)."""
    whole = [each.prompt_ids + each.ids for each in rollouts]
    drawn = [
        [len(each.prompt_ids) + place for place, free in enumerate(each.free) if free] for each in rollouts
    ]
    tokens, actions = max(map(len, whole)), max(map(len, drawn))
    lengths = torch.tensor([len(ids) for ids in whole])
    counts = torch.tensor([len(places) for places in drawn])
    return Episodes(
        ids=torch.tensor([[*ids, *[pad] * (tokens - len(ids))] for ids in whole]).to(device),
        real=(torch.arange(tokens)[None] < lengths[:, None]).to(device),
        # The filler must be a place that can be looked up: the last prompt token's successor always is.
        places=torch.tensor(
            [
                [*found, *[len(each.prompt_ids)] * (actions - len(found))]
                for each, found in zip(rollouts, drawn, strict=True)
            ]
        ).to(device),
        mask=(torch.arange(actions)[None] < counts[:, None]).to(device),
    )


def look(model: Any, head: ValueHead | None, episodes: Episodes, temperature: float) -> Outlook:
    """What `model` (and `head`; None: values of 0) says of the actions of `episodes`.

    The value before an action is read at the token before it, from the state that the output matrix reads."""
    first = int(episodes.places.min()) - 1  # the scores at a place are of the next one
    states: list[Tensor] = []
    hook = model.get_output_embeddings().register_forward_pre_hook(
        lambda module, args: states.append(args[0])
    )
    try:
        out = model(
            input_ids=episodes.ids,
            attention_mask=episodes.real.long(),
            use_cache=False,
            logits_to_keep=episodes.ids.shape[1] - first,
        )
    finally:
        hook.remove()
    logits = out.logits[:, :-1].float() / temperature  # (rows, tokens from first on, vocabulary)
    every = logits.log_softmax(dim=-1)
    index = episodes.places - 1 - first  # (rows, actions)
    drawn = every.gather(-1, episodes.ids[:, first + 1 :, None])[..., 0]
    with torch.no_grad():
        entropy = -(every.exp() * every).sum(dim=-1)
    kept = episodes.mask
    if head is None:
        values = torch.zeros_like(kept, dtype=torch.float32)
    else:
        values = head(states[-1][:, :-1]).gather(1, index) * kept
    return Outlook(drawn.gather(1, index) * kept, entropy.gather(1, index) * kept, values)
