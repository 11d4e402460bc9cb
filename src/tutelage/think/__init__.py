"""Thinking: how long a model thinks, and decoding under that policy.

`policy` says what is wanted, `segments` plays it piece by piece, `machine` token by token, `sampling` chooses
ids, `backend` runs the model, `engine` puts them together. `methods`, with `control`, `steps`, `vote` and
`strings`, are ways to spend compute; what a vote is worth in expectation: see `measure.at_k`. Names are
imported when they are asked for: a policy needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tutelage.think.engine import Completion, Engine, Request
    from tutelage.think.policy import ThinkingPolicy
    from tutelage.think.sampling import Sampling

_HOMES = {
    "Completion": "engine",
    "Engine": "engine",
    "Request": "engine",
    "Sampling": "sampling",
    "ThinkingPolicy": "policy",
}
__all__ = ["Completion", "Engine", "Request", "Sampling", "ThinkingPolicy"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
