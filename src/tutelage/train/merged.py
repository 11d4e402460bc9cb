"""The plain model inside a trainer's, for decoding between two steps.

Promises: with a LoRA adapter the model seen within the block is a plain one whose weights are the merged
ones; afterwards training goes on with the very same adapter and base weights (these are put back from copies,
since adding and subtracting would round).
Does not: decode, or gather weights that are spread over several processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer


@contextmanager
def merged(model: Any) -> Iterator[Any]:
    """The transformers model to decode with, while `model` (plain, or with an adapter) is being trained. It
    is in evaluation mode within the block, and as it was after it."""
    training = model.training
    model.eval()
    try:
        if isinstance(model, PeftModel):
            with _without_adapter(model) as plain:
                yield plain
        else:
            yield model
    finally:
        model.train(training)


@contextmanager
def _without_adapter(model: PeftModel) -> Iterator[Any]:
    """The base model, merged, with the adapter's layers taken out of it for as long as the block lasts."""
    plain = model.get_base_model()
    layers = {name: each for name, each in plain.named_modules() if isinstance(each, BaseTunerLayer)}
    weights = {name: each.get_base_layer().weight.detach().clone() for name, each in layers.items()}
    with torch.no_grad():
        model.merge_adapter()
    try:
        for name, layer in layers.items():
            plain.set_submodule(name, layer.get_base_layer())
        yield plain
    finally:
        for name, layer in layers.items():
            plain.set_submodule(name, layer)
        with torch.no_grad():
            model.unmerge_adapter()
            for name, layer in layers.items():
                layer.get_base_layer().weight.copy_(weights[name])
