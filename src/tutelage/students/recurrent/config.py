"""The shape of a recurrent-depth model, and what it does where nobody says otherwise.

Promises: the defaults are those of Huginn (Geiping et al. 2025, "Scaling up test-time compute with latent
reasoning: a recurrent depth approach", section 3 and appendix A) at a small size; a shape that cannot work is
refused when the configuration is made, with one line.
Does not: hold weights, or know a tokenizer.
"""

from __future__ import annotations

import re
from math import isfinite, sqrt
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from tutelage.errors import UsageError

# Whole numbers, and the least that each may be.
_COUNTS = {
    "hidden_size": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 1,
    "intermediate_size": 1,
    "vocab_size": 1,
    "num_prelude_layers": 0,
    "num_core_layers": 1,
    "num_coda_layers": 0,
    "mean_recurrence": 1,
    "mean_backprop_depth": 1,
    "max_recurrence": 1,
    "max_position_embeddings": 1,
    "state_seed": 0,
}
# Numbers, and whether each may be zero.
_NUMBERS = {"rms_norm_eps": False, "embedding_scale": False, "state_std": True}
_CHOICES: dict[str, tuple[str | None, ...]] = {
    "block": ("sandwich", "pre"),
    "adapter": ("linear", "add"),
    "adapter_init": ("normal", "identity"),
    "norm_after_core": ("exit", "every", "none"),
    "hidden_act": ("silu",),
}


def slots_of(mode: str) -> int | None:
    """How many slots a loop cache of `mode` has for the steps of the loop, None: one for each. Raises
    UsageError for a mode that is not one."""
    if mode in ("full", "latest"):
        return None
    found = re.fullmatch(r"shared:([1-9][0-9]{0,5})", str(mode))
    if found is None:
        raise UsageError(f"loop cache {mode!r}: write full, latest or shared:M with M of at least 1")
    return int(found[1])


class RecurrentDepthConfig(PreTrainedConfig):  # type: ignore[misc]
    """The shape of a recurrent-depth model of `num_prelude_layers`, `num_core_layers` (repeated) and
    `num_coda_layers`.

    `mean_recurrence`: the mean r̄ that training samples depths around, and the depth of evaluation;
    `mean_backprop_depth`: the last so many of them carry a gradient; `max_recurrence`: the most steps that
    may be asked for at test time (None: eight times the mean). `block` "sandwich" has norms before and after
    each half, "pre" those of Llama. `adapter` joins state and embedding: "linear" maps their concatenation
    (2d → d), "add" sums them; `adapter_init` "identity" starts it near [I, 0.5 I], which trains at small
    scale where "normal" collapses. `norm_after_core`: the final norm is applied to the state at its "exit"
    from the loop (Huginn), after "every" pass, or not (None: "exit" for sandwich blocks, else "none").
    `embedding_scale` None: √hidden_size. `state_std`: of the initial state, truncated at three (None: √0.4);
    `state_seed`: of its draws in evaluation, one per position and the same for every text. `qk_bias`: a
    learned bias on queries and keys; `attention_bias`: on queries, keys and values (Qwen2); `qk_norm`: a norm
    of each head's queries and keys (Qwen3). `rope_parameters` as in transformers; `rope_theta` alone is
    enough.
    `loop_cache`: the `cache.LoopCache` that `generate` and `use_cache=True` make ("full", "latest" or
    "shared:M").

    Raises UsageError that names the field."""

    model_type = "recurrent_depth"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values", "loop_state", "steps"]

    def __init__(
        self,
        *,
        hidden_size: int = 256,
        num_attention_heads: int = 4,
        num_key_value_heads: int | None = None,
        head_dim: int | None = None,
        intermediate_size: int = 768,
        vocab_size: int = 512,
        num_prelude_layers: int = 1,
        num_core_layers: int = 2,
        num_coda_layers: int = 1,
        mean_recurrence: int = 8,
        mean_backprop_depth: int = 4,
        max_recurrence: int | None = None,
        tie_word_embeddings: bool = True,
        max_position_embeddings: int = 4096,
        rope_theta: float | None = None,
        rope_parameters: dict[str, Any] | None = None,
        rms_norm_eps: float = 1e-6,
        qk_bias: bool = False,
        attention_bias: bool = False,
        qk_norm: bool = False,
        hidden_act: str = "silu",
        block: str = "sandwich",
        adapter: str = "linear",
        adapter_init: str = "normal",
        norm_after_core: str | None = None,
        embedding_scale: float | None = None,
        state_std: float | None = None,
        state_seed: int = 0,
        loop_cache: str = "full",
        use_cache: bool = True,
        **kwargs: Any,
    ) -> None:
        self.hidden_size = hidden_size
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_attention_heads if num_key_value_heads is None else num_key_value_heads
        self.head_dim: int = head_dim  # type: ignore[assignment]
        self.intermediate_size = intermediate_size
        self.vocab_size = vocab_size
        self.num_prelude_layers = num_prelude_layers
        self.num_core_layers = num_core_layers
        self.num_coda_layers = num_coda_layers
        self.mean_recurrence = mean_recurrence
        self.mean_backprop_depth = mean_backprop_depth
        self.max_recurrence: int = max_recurrence  # type: ignore[assignment]
        self.max_position_embeddings = max_position_embeddings
        self.rope_parameters = _rope(rope_theta, rope_parameters)
        self.rope_theta = self.rope_parameters["rope_theta"]
        self.rms_norm_eps = rms_norm_eps
        self.qk_bias = qk_bias
        self.attention_bias = attention_bias
        self.qk_norm = qk_norm
        self.hidden_act = hidden_act
        self.block = block
        self.adapter = adapter
        self.adapter_init = adapter_init
        if norm_after_core is None:
            norm_after_core = "exit" if block == "sandwich" else "none"
        self.norm_after_core = norm_after_core
        self.state_seed = state_seed
        self.loop_cache = loop_cache
        self.use_cache = use_cache
        self.embedding_scale: float = embedding_scale  # type: ignore[assignment]
        self.state_std = sqrt(0.4) if state_std is None else state_std
        self._complete()
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)

    @property
    def num_hidden_layers(self) -> int:
        """Layers with weights of their own."""
        return self.num_prelude_layers + self.num_core_layers + self.num_coda_layers

    def depth(self, steps: int) -> int:
        """Layers that a token passes through with `steps` passes of the core."""
        return self.num_prelude_layers + steps * self.num_core_layers + self.num_coda_layers

    def check_steps(self, steps: int, name: str = "num_steps") -> int:
        """`steps`, if a token may take so many. Raises UsageError."""
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise UsageError(f"{name} is {steps!r}; the core runs at least once, so write 1 or more")
        if steps > self.max_recurrence:
            raise UsageError(
                f"{name} is {steps}; this model's max_recurrence is {self.max_recurrence} (set it in its "
                "config.json to allow more)"
            )
        return steps

    def _complete(self) -> None:
        """Check what was given, and fill in what follows from it."""
        for name, least in _COUNTS.items():
            given = getattr(self, name)
            if given is None and name in ("head_dim", "max_recurrence"):
                continue
            if isinstance(given, bool) or not isinstance(given, int) or given < least:
                raise _wrong(f"{name} is {given!r}; write a whole number of at least {least}")
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                told = ", ".join(map(str, known))
                raise _wrong(f"{name} is {getattr(self, name)!r}; known: {told}")
        slots_of(self.loop_cache)
        if self.head_dim is None:
            if self.hidden_size % self.num_attention_heads:
                raise _wrong(
                    f"hidden_size {self.hidden_size} does not divide by num_attention_heads "
                    f"{self.num_attention_heads}"
                )
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.head_dim % 2:
            raise _wrong(f"heads are {self.head_dim} wide; rotary positions need an even width")
        if self.num_attention_heads % self.num_key_value_heads:
            raise _wrong(
                f"num_attention_heads {self.num_attention_heads} does not divide by num_key_value_heads "
                f"{self.num_key_value_heads}"
            )
        if self.max_recurrence is None:
            self.max_recurrence = 8 * self.mean_recurrence
        if self.mean_recurrence > self.max_recurrence:
            raise _wrong(
                f"mean_recurrence is {self.mean_recurrence}, more than max_recurrence {self.max_recurrence}"
            )
        if self.embedding_scale is None:
            self.embedding_scale = sqrt(self.hidden_size)
        for name, zero in _NUMBERS.items():
            given = getattr(self, name)
            if isinstance(given, bool) or not isinstance(given, int | float) or not isfinite(given):
                raise _wrong(f"{name} is {given!r}; write a number")
            if given < 0 or (given == 0 and not zero):
                raise _wrong(f"{name} is {given}; it must be {'at least' if zero else 'above'} 0")


def _wrong(told: str) -> UsageError:
    return UsageError(f"recurrent model: {told}")


def _rope(theta: float | None, parameters: dict[str, Any] | None) -> dict[str, Any]:
    found = dict(parameters or {})
    found.setdefault("rope_type", "default")
    inside = found.get("rope_theta")
    if theta is not None and inside is not None and float(theta) != float(inside):
        raise _wrong(f"rope_theta is {theta}, but rope_parameters say {inside}; give one of them")
    given = next((each for each in (theta, inside) if each is not None), 50_000.0)
    if isinstance(given, bool) or not isinstance(given, int | float) or not given > 0:
        raise _wrong(f"rope_theta is {given!r}; write a number above 0")
    found["rope_theta"] = float(given)
    return found
