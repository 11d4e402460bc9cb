"""The shape of a recurrent-depth model, and what it does where nobody says otherwise.

Promises: the defaults are those of Huginn (Geiping et al. 2025, "Scaling up test-time compute with latent
reasoning: a recurrent depth approach", section 3 and appendix A) at a small size; a shape that cannot work is
refused when the configuration is made, with one line.
Does not: hold weights, or know a tokenizer.
"""

from __future__ import annotations

from math import sqrt
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from tutelage.errors import UsageError

_COUNTS = ("hidden_size", "num_attention_heads", "intermediate_size", "vocab_size", "num_core_layers")
_CHOICES: dict[str, tuple[str | None, ...]] = {
    "block": ("sandwich", "pre"),
    "adapter": ("linear", "add"),
    "adapter_init": ("normal", "identity"),
    "norm_after_core": ("exit", "every", "none"),
    "hidden_act": ("silu",),
}


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
    `state_seed`: of its draws in evaluation, the same for every position of a text. `qk_bias`: a learned bias
    on queries and keys; `attention_bias`: on queries, keys and values (Qwen2); `qk_norm`: a norm of each
    head's queries and keys (Qwen3). `rope_parameters` as in transformers; `rope_theta` alone is enough.

    Raises UsageError that names the field."""

    model_type = "recurrent_depth"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values", "state"]

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
        use_cache: bool = True,
        **kwargs: Any,
    ) -> None:
        self.hidden_size = hidden_size
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads or num_attention_heads
        self.intermediate_size = intermediate_size
        self.vocab_size = vocab_size
        self.num_prelude_layers = num_prelude_layers
        self.num_core_layers = num_core_layers
        self.num_coda_layers = num_coda_layers
        self.mean_recurrence = mean_recurrence
        self.mean_backprop_depth = mean_backprop_depth
        self.max_recurrence = 8 * mean_recurrence if max_recurrence is None else max_recurrence
        self.max_position_embeddings = max_position_embeddings
        given = dict(rope_parameters or {})
        given.setdefault("rope_type", "default")
        given["rope_theta"] = float(rope_theta or given.get("rope_theta") or 50_000.0)
        self.rope_parameters = given
        self.rope_theta = given["rope_theta"]
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
        self.use_cache = use_cache
        self._check(head_dim)
        self.head_dim = head_dim or hidden_size // num_attention_heads
        self.embedding_scale = sqrt(hidden_size) if embedding_scale is None else embedding_scale
        self.state_std = sqrt(0.4) if state_std is None else state_std
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

    def _check(self, head_dim: int | None) -> None:
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise UsageError(f"recurrent model: {name} is {getattr(self, name)}; it must be at least 1")
        for name in ("num_prelude_layers", "num_coda_layers"):
            if getattr(self, name) < 0:
                raise UsageError(f"recurrent model: {name} is {getattr(self, name)}; it must not be negative")
        for name in ("mean_recurrence", "mean_backprop_depth", "max_recurrence"):
            if getattr(self, name) < 1:
                raise UsageError(
                    f"recurrent model: {name} is {getattr(self, name)}; the core runs at least once"
                )
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise UsageError(
                    f"recurrent model: {name} is {getattr(self, name)!r}; known: {', '.join(map(str, known))}"
                )
        if head_dim is None and self.hidden_size % self.num_attention_heads:
            raise UsageError(
                f"recurrent model: hidden_size {self.hidden_size} does not divide by "
                f"num_attention_heads {self.num_attention_heads}"
            )
        width = head_dim or self.hidden_size // self.num_attention_heads
        if width % 2:
            raise UsageError(f"recurrent model: heads are {width} wide; rotary positions need an even width")
        if self.num_attention_heads % self.num_key_value_heads:
            raise UsageError(
                f"recurrent model: num_attention_heads {self.num_attention_heads} does not divide by "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
