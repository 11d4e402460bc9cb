"""Thinking: how long a model thinks, decoding under that policy, and voting."""

from tutelage.think.policy import ThinkingPolicy

__all__ = ["ThinkingPolicy"]
