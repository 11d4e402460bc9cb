"""Which layers of a donor do least: a table, and a choice of prelude, core and coda from it.

Promises: the same model and texts give the same numbers; a text's first token is left out, where pretrained
models keep values a hundred times as large as anywhere else, which would drown the rest.
Does not: cut the model (see `retrofit`), or say how well the choice heals.

Sources: block influence is that of ShortGPT (Men et al. 2024, arXiv 2403.03853, equation 1): one minus the
mean cosine between what goes into a layer and what comes out. Angular distance is that of Gromov et al. 2024
(arXiv 2403.17887, equation 7), between the input of a layer and what goes into the layer `span` further on;
they look at the last token of each text, we at the mean over all of its tokens but the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import pi
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from tutelage.errors import UsageError
from tutelage.students.recurrent.retrofit import Split

By = Literal["influence", "angle"]


@dataclass(frozen=True, slots=True)
class LayerScore:
    """What a layer does: its block `influence` in [0, 2], and the angular distance in [0, 1] over the layers
    from this one on that would be left out together (None where fewer follow)."""

    layer: int
    influence: float
    angle: float | None


@torch.no_grad()
def score_layers(model: Any, texts: Sequence[Sequence[int]], span: int) -> list[LayerScore]:
    """The score of each layer of `model` on `texts` (token ids), with angles over `span` layers.

    Raises UsageError where no text has two tokens."""
    texts = [text for text in texts if len(text) > 1]
    if not texts:
        raise UsageError("no text with two tokens or more to measure the layers on; give a longer one")
    layers = len(model.model.layers)
    influence, angle, seen = torch.zeros(layers), torch.zeros(layers), 0
    for text in texts:
        flow = _flow(model, torch.tensor([list(text)], device=model.device))
        for layer in range(layers):
            influence[layer] += (1 - _cosine(flow[layer], flow[layer + 1])).sum().cpu()
            if span and layer + span <= layers:
                angle[layer] += (torch.arccos(_cosine(flow[layer], flow[layer + span])) / pi).sum().cpu()
        seen += len(text) - 1
    return [
        LayerScore(
            layer,
            float(influence[layer]) / seen,
            float(angle[layer]) / seen if span and layer + span <= layers else None,
        )
        for layer in range(layers)
    ]


def choose_split(scores: Sequence[LayerScore], counts: tuple[int, int, int], by: By) -> Split:
    """The layers of prelude, core and coda, so many of each, in the donor's order. `influence` leaves out the
    layers that do least, one by one; `angle` the run of layers whose end is closest to its start (the scores'
    span must be as long as what is left out).

    Raises UsageError for counts that the donor does not have."""
    prelude, core, _ = counts
    span = spare(len(scores), counts)
    if by == "influence":
        order = sorted(scores, key=lambda each: (-each.influence, each.layer))
        kept = sorted(each.layer for each in order[: len(scores) - span])
    else:
        runs = [each for each in scores if each.angle is not None]
        first = min(runs, key=lambda each: (each.angle, each.layer)).layer if span else 0
        kept = [each.layer for each in scores if not first <= each.layer < first + span]
    return Split(tuple(kept[:prelude]), tuple(kept[prelude : prelude + core]), tuple(kept[prelude + core :]))


def spare(layers: int, counts: tuple[int, int, int]) -> int:
    """How many of a donor's `layers` are left out when so many become prelude, core and coda. Raises
    UsageError."""
    if min(counts) < 0 or counts[1] < 1:
        raise UsageError(f"layers {_told(counts)}: prelude and coda may be 0, the core needs at least 1")
    if sum(counts) > layers:
        raise UsageError(f"layers {_told(counts)}: {sum(counts)} layers, but the donor has {layers}")
    return layers - sum(counts)


def table(scores: Sequence[LayerScore], split: Split) -> str:
    """The scores and what became of each layer, in lines for people."""
    parts = {
        layer: name
        for name, layers in (("prelude", split.prelude), ("core", split.core), ("coda", split.coda))
        for layer in layers
    }
    lines = ["layer  influence  angle  becomes"]
    for each in scores:
        angle = "     -" if each.angle is None else f"{each.angle:6.3f}"
        lines.append(f"{each.layer:5}  {each.influence:9.4f} {angle}  {parts.get(each.layer, '-')}")
    return "\n".join(lines)


def _told(counts: tuple[int, int, int]) -> str:
    return ",".join(map(str, counts))


def _flow(model: Any, ids: Tensor) -> list[Tensor]:
    """What goes into each layer of `model` and what comes out of the last, (tokens - 1, width) each, float32,
    for `ids` (1, tokens)."""
    flow: list[Tensor] = []

    def heard(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs["hidden_states"]
        flow.append(x[0, 1:].float())

    def last(_: Any, __: Any, out: Any) -> None:
        flow.append((out if torch.is_tensor(out) else out[0])[0, 1:].float())

    hooks = [layer.register_forward_pre_hook(heard, with_kwargs=True) for layer in model.model.layers]
    hooks.append(model.model.layers[-1].register_forward_hook(last))
    try:
        model.model(ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return flow


def _cosine(one: Tensor, other: Tensor) -> Tensor:
    """Of each token, within [-1, 1] whatever the rounding."""
    return cosine_similarity(one, other, dim=-1).clamp(-1, 1)
