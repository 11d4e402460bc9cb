"""Thinking: how long a model thinks, and decoding under that policy.

`policy` says what is written and when, `machine` plays it token by token, `sampling` chooses ids, `backend`
runs the model, `engine` puts them together. What a vote among replies is worth: see `measure.at_k`.
"""

from tutelage.think.engine import Completion, Request, generate
from tutelage.think.policy import ThinkingPolicy
from tutelage.think.sampling import Sampling

__all__ = ["Completion", "Request", "Sampling", "ThinkingPolicy", "generate"]
