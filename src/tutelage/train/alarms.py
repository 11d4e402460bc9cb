"""Two ways in which a recurrent student fails without a sound, looked for from the first steps on.

Collapse: the states of all tokens become one vector, and no text can be told from another. Ignored state: the
loops change nothing, so that one loop scores as well as many. Geiping et al. 2025 (section 4.3) lost a run to
each, the second one with a healthy loss.

Promises: a look costs a few rows of the current micro-batch, without gradient and without touching a random
state, so that training is bit for bit what it would be without it; what alarms is a function of the log's
rows alone, so that a resumed run alarms alike.
Does not: stop a run, or choose settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tutelage.train.examples import IGNORE
from tutelage.train.recurrent import backbone

COSINE, ONE, FOUR, MEAN = "state_cosine", "loss_r1", "loss_r4", "loss_mean"
EARLY = (10, 25, 50, 100)
"""Steps with a look of their own, beside those that are logged."""
_ROWS, _TOKENS = 4, 1024
_IN_TURN = 3  # looks in a row that must say the same: one can be chance
_ALIKE, _SAME = 0.95, 0.01
_ADVICE = (
    "try adapter_init: identity, state_std: 0.2, short examples first (lengths), or a lower learning rate"
)


def look(model: Any, inputs: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of `model` (unwrapped) on a few rows of a micro-batch with `input_ids` and `labels`: the
    mean cosine between the last states of two tokens, and the loss after one loop, four, and the mean."""
    core = backbone(model)
    labels = inputs.get("labels")
    if core is None or labels is None or "input_ids" not in inputs:
        return {}
    device = core.embed_tokens.weight.device
    batch = {
        name: inputs[name][:_ROWS, :_TOKENS].to(device)
        for name in ("input_ids", "labels", "position_ids", "attention_mask")
        if isinstance(inputs.get(name), Tensor)
    }
    learned = batch["labels"] != IGNORE  # (rows, tokens)
    if not learned[:, 1:].any():
        return {}
    mean = core.config.mean_recurrence
    found: dict[str, float] = {}
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for name, steps in ((ONE, 1), (FOUR, 4), (MEAN, mean)):
                if steps <= mean:
                    out = model(**batch, num_steps=steps, use_cache=False)
                    found[name] = float(out.loss)
    finally:
        model.train(training)
    # Padding stands behind the last learned token of a row.
    real = learned.flip(1).cumsum(1).flip(1) > 0
    found[COSINE] = cosine(out.state[real])
    return found


def cosine(states: Tensor) -> float:
    """The mean cosine between two different ones of `states` (tokens, width); 0 for fewer than two."""
    count = len(states)
    if count < 2:
        return 0.0
    total = functional.normalize(states.float(), dim=-1).sum(dim=0)
    return float((total.square().sum() - count) / (count * (count - 1)))


def alarms(rows: Sequence[Mapping[str, Any]], *, after: int) -> list[str]:
    """What the last looks of a log say is wrong, a line each. `after`: the step up to which loops need not
    matter yet (warm-up, a ramp of the mean)."""
    found = []
    alike = [row[COSINE] for row in rows if COSINE in row][-_IN_TURN:]
    if len(alike) == _IN_TURN and min(alike) > _ALIKE and alike[-1] >= alike[0] - 0.005:
        found.append(
            f"collapse: the states of different tokens are alike (cosine {alike[-1]:.3f}); {_ADVICE}"
        )
    pairs = [(row[ONE], row[MEAN]) for row in rows if ONE in row and MEAN in row and row["step"] > after]
    last = pairs[-_IN_TURN:]
    if len(last) == _IN_TURN and all(abs(one - many) < _SAME * max(many, 1e-6) for one, many in last):
        one, many = last[-1]
        found.append(
            f"ignores its state: the loss is {one:.4f} after one loop and {many:.4f} at the mean; {_ADVICE}, "
            "unless the task needs no depth"
        )
    return found
