"""A trainer's temperature that may change while it trains.

TRL's trainers that learn from samples compute log-probabilities under the temperature that was sampled with,
by a head that has it built in. Here the same head is made again when the temperature changes.

Promises: the loss is computed by TRL's own code at the temperature last set; `remove` leaves the model as it
was.
Does not: sample.
"""

from __future__ import annotations

import functools
from typing import Any

from peft import PeftModel
from trl.trainer.utils import add_fused_lm_head

OUTPUTS = ("log_probs", "entropy")


class Heat:
    """The head of `model` (plain or with an adapter), to be put in place after the trainer was built and
    before it trains."""

    def __init__(self, model: Any, temperature: float) -> None:
        self._model = model.get_base_model() if isinstance(model, PeftModel) else model
        vars(self._model).pop("forward", None)  # the trainer's own head
        self._plain = self._model.forward
        self._temperature: float | None = None
        self._head = self._plain
        self.set(temperature)

        # A function, not a method: mixed precision binds methods to the model. The signature stays: who runs
        # the model looks at it.
        @functools.wraps(type(self._model).forward)
        def forward(*args: Any, **kwargs: Any) -> Any:
            return self._head(*args, **kwargs)

        self._model.forward = forward

    def set(self, temperature: float) -> None:
        """Compute log-probabilities and entropies at `temperature` from now on."""
        if temperature == self._temperature:
            return
        around = vars(self._model).get("forward")  # ours, or mixed precision around ours
        self._model.forward = self._plain
        add_fused_lm_head(self._model, temperature=temperature, outputs=OUTPUTS)
        self._head, self._temperature = self._model.forward, temperature
        if around is not None:
            self._model.forward = around

    def remove(self) -> None:
        """Give the model its own forward pass back."""
        vars(self._model).pop("forward", None)
