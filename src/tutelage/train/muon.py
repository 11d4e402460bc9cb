"""Muon for the matrices of a model's layers, AdamW for all else, as one optimiser.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; torch's own implementation) moves a
matrix by the nearest orthogonal one to its momentum, so that every direction is learned at the same speed.
It is meant for matrices that multiply activations; embedding, head, norms and biases go by AdamW, as in
McLeish et al. 2025 (arXiv 2511.07384), whose rates are 1e-3 and 5e-5.

Promises: trainers, schedulers, accelerate and checkpoints see one torch optimiser with ordinary groups; a
schedule scales both rates; parameters without a gradient are left alone; groups that are added later (a value
head) go by AdamW.
Does not: know schedules, or work on weights that are spread over processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon

from tutelage.errors import UsageError
from tutelage.train.settings import Optimiser

_MARK = "muon"
_BETA1 = 0.9


class MuonWithAdamW(torch.optim.Optimizer):
    """Two optimisers under one roof: their groups and states are those of this one."""

    def __init__(
        self, matrices: Iterable[dict[str, Any]], others: Iterable[dict[str, Any]], **adamw: Any
    ) -> None:
        self.parts: tuple[Muon, AdamW] = (Muon(list(matrices)), AdamW(list(others), **adamw))
        groups = [group for part in self.parts for group in part.param_groups]
        super().__init__(groups, {})
        self._share()

    def _share(self) -> None:
        """Give both parts this optimiser's groups and states, not copies of them."""
        for part in self.parts:
            wanted = isinstance(part, Muon)
            part.param_groups = [each for each in self.param_groups if bool(each.get(_MARK)) == wanted]
            part.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of both. `closure` computes the loss again, with gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()  # type: ignore[no-untyped-call]
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        super().load_state_dict(state_dict)
        self._share()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """One more group. Without the mark of Muon it goes by AdamW."""
        if not param_group.get(_MARK):
            param_group = {**self.parts[1].defaults, **param_group}
        super().add_param_group(param_group)
        self._share()


def build_muon(model: nn.Module, optimiser: Optimiser) -> MuonWithAdamW:
    """The optimiser of `model`'s trained weights. Weight decay falls on matrices, embedding and head, not on
    norms and biases. Raises UsageError for a model without a matrix to train."""
    chosen = set(matrices(model))
    trained = [(name, each) for name, each in model.named_parameters() if each.requires_grad]
    by_muon = [each for name, each in trained if name in chosen]
    rest = [each for name, each in trained if name not in chosen]
    if not by_muon:
        raise UsageError("optimiser: muon needs matrices to train, and this model has none; use adamw")
    decay = optimiser.weight_decay
    rate = optimiser.learning_rate
    return MuonWithAdamW(
        [{"params": by_muon, "lr": optimiser.muon_learning_rate, "weight_decay": decay, _MARK: True}],
        [
            {"params": [each for each in rest if each.ndim >= 2], "lr": rate, "weight_decay": decay},
            {"params": [each for each in rest if each.ndim < 2], "lr": rate, "weight_decay": 0.0},
        ],
        lr=rate,
        betas=(_BETA1, optimiser.beta2),
        fused=True,
    )


def matrices(model: nn.Module) -> list[str]:
    """Names of the parameters that Muon is for: the weights of linear layers, but not the head's."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    kept = {id(head.weight)} if head is not None else set()
    kept |= {id(each.weight) for each in model.modules() if isinstance(each, nn.Embedding)}
    # By type name too: GPT-2 keeps its linear layers as Conv1D.
    linear = {
        id(each.weight)
        for each in model.modules()
        if isinstance(each, nn.Linear) or type(each).__name__ == "Conv1D"
    }
    return [name for name, each in model.named_parameters() if id(each) in linear - kept and each.ndim == 2]
