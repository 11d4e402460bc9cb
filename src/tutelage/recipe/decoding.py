"""Settings of decoding with a local model, shared by the stages and the teachers that decode.

Promises: importing it loads no heavy library; fields and defaults are those of what they set.
"""

from __future__ import annotations

from tutelage.recipe.stage import Settings


class Policy(Settings):
    """The thinking policy (see `think.policy.ThinkingPolicy`)."""

    min_tokens: int = 0
    max_tokens: int | None = None
    refuse_closes: int = 0
    wait: str | tuple[str, ...] | None = None
    max_waits: int | None = None
    close: str = "hard"
    grace_tokens: int = 0
    close_text: str = ""
    answer_reserve: int = 32
    num_steps: int | None = None
    exit: str | None = None
    continuous: bool = False


class Sampling(Settings):
    """How tokens are chosen; temperature 0 is greedy."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
