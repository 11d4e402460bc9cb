"""The value head: how much reward is still to come, from the model's last hidden state at each place.

Promises: a fresh head says 0 everywhere, so that training starts without a bias; its weights are saved and
loaded beside a checkpoint (safetensors), never inside the model, which stays the plain model that it was.
Does not: change the model, or compute losses.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tutelage.errors import UsageError

FILE = "value_head.safetensors"


class ValueHead(nn.Module):
    """Two layers, float32: states (..., width) -> values (...). `seed` makes the first layer's weights."""

    def __init__(self, width: int, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.inner = nn.Linear(width, width)
        self.out = nn.Linear(width, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, states: Tensor) -> Tensor:
        """The values of `states`."""
        found: Tensor = self.out(torch.tanh(self.inner(states.float())))
        return found.squeeze(-1)

    def save(self, folder: Path) -> None:
        """Write the weights into `folder`."""
        save_file(
            {name: each.detach().cpu().contiguous() for name, each in self.state_dict().items()},
            folder / FILE,
        )

    def load(self, folder: Path) -> None:
        """Read what `save` wrote. Raises UsageError when it is not there."""
        file = folder / FILE
        if not file.is_file():
            raise UsageError(f"{folder}: this checkpoint has no {FILE}; remove it to start anew")
        self.load_state_dict(load_file(file))


def width_of(model: Any) -> int:
    """The size of the model's hidden states."""
    return int(model.get_output_embeddings().weight.shape[-1])
