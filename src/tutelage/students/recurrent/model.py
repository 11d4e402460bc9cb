"""A causal language model that passes through its core as often as it is told to.

    e = prelude(scale · embed(ids));  s ← s₀;  r times: s ← core(adapter(s, e));  logits = head(norm(coda(s)))

Promises: correct with any attention mask: a padded batch gives each row the logits that it has alone; the
depth is an explicit argument, and what carries a gradient is what was asked for; in evaluation the initial
state is a fixed function of a token's position, so that the same text gives the same logits.
Does not: decide when a token has been thought about enough (see `exits`, and the engine's backend), or train.

Written from Geiping et al. 2025 (arXiv 2502.05171), section 3 and appendix A, with the blocks of Llama
as McLeish et al. 2025 (arXiv 2511.07384) loop them for `block="pre"`.
"""

from __future__ import annotations

from math import sqrt
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_causal_mask
from transformers.modeling_utils import slice_logits_to_keep
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from tutelage.errors import UsageError
from tutelage.students.recurrent.cache import LoopCache
from tutelage.students.recurrent.config import RecurrentDepthConfig
from tutelage.students.recurrent.depth import Clock, NumSteps, read_steps
from tutelage.students.recurrent.layers import Adapter, Attention, Block, RMSNorm
from tutelage.students.recurrent.outputs import BackboneOutput, RecurrentDepthOutput
from tutelage.students.recurrent.states import InitialStates

# How far from [I, 0.5 I] the adapter starts with adapter_init "identity".
_NEAR = 0.02
# Where the examples of a packed row end: what flash attention is told in place of a mask.
_PACKED = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")


class RecurrentDepthPreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    """What transformers wants to know of the family, and how weights start (Geiping et al. 2025, appendix A):
    standard deviation √(2/5d), output projections divided by √(2 · depth at the mean)."""

    config: RecurrentDepthConfig
    config_class = RecurrentDepthConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["Block"]
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        config = self.config
        std = sqrt(2 / (5 * config.hidden_size))
        if isinstance(module, nn.Linear):
            role = getattr(module, "role", None)
            if role == "adapter" and config.adapter_init == "identity":
                init.normal_(module.weight, std=_NEAR / sqrt(config.hidden_size))
                if not getattr(module.weight, "_is_hf_initialized", False):
                    eye = torch.eye(config.hidden_size).to(module.weight)
                    module.weight.add_(torch.cat([eye, 0.5 * eye], dim=1))
            else:
                depth = config.depth(config.mean_recurrence)
                init.normal_(module.weight, std=std / sqrt(2 * depth) if role == "output" else std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=std)
        elif isinstance(module, Attention):
            for bias in (module.q_bias, module.k_bias):
                if bias is not None:
                    init.zeros_(bias)
        else:
            super()._init_weights(module)


class RecurrentDepthModel(RecurrentDepthPreTrainedModel):
    """Everything but the head. The depth of training steps is drawn here, from `clock`, because trainers call
    the backbone without the head."""

    def __init__(self, config: RecurrentDepthConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.prelude = nn.ModuleList([Block(config) for _ in range(config.num_prelude_layers)])
        self.adapter = Adapter(config)
        self.core = nn.ModuleList([Block(config) for _ in range(config.num_core_layers)])
        self.coda = nn.ModuleList([Block(config) for _ in range(config.num_coda_layers)])
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.clock = Clock(config.mean_recurrence, config.mean_backprop_depth)
        self._states = InitialStates(config)
        block: Any
        for block in [*self.prelude, *self.core, *self.coda]:
            block.self_attn.o_proj.role = block.mlp.down_proj.role = "output"  # for their first weights
        if self.adapter.linear is not None:
            setattr(self.adapter.linear, "role", "adapter")  # noqa: B010 - modules take any attribute
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The embedding."""
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Put another embedding in its place."""
        self.embed_tokens = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: LoopCache | None = None,
        inputs_embeds: Tensor | None = None,
        num_steps: NumSteps = None,
        initial_state: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BackboneOutput:
        """As `RecurrentDepthForCausalLM.forward`, without head and loss."""
        free, kept = self.steps(num_steps)
        _check_inputs(input_ids, inputs_embeds, kwargs)
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        past_key_values = self._cache(past_key_values, use_cache)
        past = 0
        if past_key_values is not None:
            past_key_values.begin(free + kept)
            past = past_key_values.get_seq_length()
        seen = past + inputs_embeds.shape[1]
        if attention_mask is not None and attention_mask.ndim == 2 and attention_mask.shape[1] != seen:
            raise UsageError(f"attention_mask has {attention_mask.shape[1]} columns for {seen} tokens so far")
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,  # where given, they say which texts share a row
        )
        if position_ids is None:
            position_ids = _positions(inputs_embeds, attention_mask, past)
        packed = {name: kwargs[name] for name in _PACKED if name in kwargs} | {"position_ids": position_ids}
        scaled = inputs_embeds * self.config.embedding_scale
        rotation = self.rotary_emb(scaled, position_ids=position_ids)
        through = (rotation, mask, past_key_values)
        embedded = scaled
        for number, block in enumerate(self.prelude):
            embedded = block(embedded, *through, number, **packed)
        state = self.first_state(embedded, position_ids) if initial_state is None else initial_state
        if state.shape != embedded.shape:
            raise UsageError(
                f"initial_state has the shape {tuple(state.shape)}; {tuple(embedded.shape)} is needed"
            )
        if free:
            with torch.no_grad():
                for step in range(free):
                    state = self.once(state, embedded, step, *through, **packed)
            # Before torch 2.11 autocast kept the weights cast here, without gradient, for the steps below.
            torch.clear_autocast_cache()
        for step in range(free, free + kept):
            state = self.once(state, embedded, step, *through, **packed)
        hidden = self.heard(state, *through, **packed)
        if past_key_values is not None:
            past_key_values.settle(free + kept)
        return BackboneOutput(
            last_hidden_state=hidden,
            past_key_values=past_key_values,
            loop_state=state,
            steps=(free, kept),
        )

    def once(
        self,
        state: Tensor,
        embedded: Tensor,
        step: int,
        rotation: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: LoopCache | None,
        **packed: Any,
    ) -> Tensor:
        """One pass of the core over `state`, step number `step` from 0; `packed` as in `layers.Attention`."""
        x = self.adapter(state, embedded)
        for number, block in enumerate(self.core):
            x = block(x, rotation, mask, cache, 0 if cache is None else cache.place(step, number), **packed)
        out: Tensor = self.norm(x) if self.config.norm_after_core == "every" else x
        return out

    def heard(
        self,
        state: Tensor,
        rotation: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: LoopCache | None,
        **packed: Any,
    ) -> Tensor:
        """What the head reads of `state` (rows, tokens, width): coda and norms."""
        hidden = self.norm(state) if self.config.norm_after_core == "exit" else state
        for number, block in enumerate(self.coda, start=len(self.prelude)):
            hidden = block(hidden, rotation, mask, cache, number, **packed)
        out: Tensor = self.norm(hidden)
        return out

    def steps(self, num_steps: NumSteps) -> tuple[int, int]:
        """The depth (n, k) that `num_steps` means now: None is drawn in training, and the mean otherwise.
        Raises UsageError for a depth that the model does not have."""
        if num_steps is None:
            if self.training:
                return self.clock.draw()
            num_steps = self.config.mean_recurrence
        free, kept = read_steps(num_steps)
        self.config.check_steps(free + kept)
        return free, kept

    def _cache(self, given: LoopCache | None, use_cache: bool | None) -> LoopCache | None:
        checkpointing = self.training and self.gradient_checkpointing
        if given is None:
            return LoopCache(self.config) if use_cache and not checkpointing else None
        if not isinstance(given, LoopCache):
            raise UsageError(f"{type(given).__name__} does not know of loops; give a LoopCache, or none")
        if checkpointing:
            raise UsageError("gradient checkpointing cannot fill a cache; train without past_key_values")
        return given

    def first_state(self, like: Tensor, position_ids: Tensor) -> Tensor:
        """The initial state s₀, of the shape of `like` (rows, tokens, width), see `states`."""
        return self._states.draw(like, position_ids, self.clock if self.training else None)


class RecurrentDepthForCausalLM(RecurrentDepthPreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """The backbone with a head; what `generate` of transformers and the engine run."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: RecurrentDepthConfig) -> None:
        super().__init__(config)
        self.model = RecurrentDepthModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: LoopCache | None = None,
        inputs_embeds: Tensor | None = None,
        num_steps: NumSteps = None,
        initial_state: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> RecurrentDepthOutput:
        """Scores of `input_ids` (rows, tokens).

        `num_steps`: r, with gradient wherever gradients are on; a pair (n, k): n without, then k with; None:
        drawn in training (see `depth`), the configuration's mean in evaluation. `attention_mask` (rows,
        tokens so far), 1 for real tokens; positions count real tokens where `position_ids` are not given.
        `initial_state` (rows, tokens, width) starts the loop. `labels` (rows, tokens), -100 where there is
        none, are shifted here: the token at i is predicted at i - 1. Raises UsageError for an impossible
        depth."""
        found = self.model(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            num_steps=num_steps,
            initial_state=initial_state,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(found.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        return RecurrentDepthOutput(
            loss=loss,
            logits=logits,
            past_key_values=found.past_key_values,
            loop_state=found.loop_state,
            steps=found.steps,
        )

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        asked = generation_config.cache_implementation
        if asked is not None:
            raise UsageError(
                f"cache_implementation {asked!r} does not know of loops; leave it out, or give "
                "past_key_values=LoopCache(...)"
            )
        if model_kwargs.get("past_key_values") is None and generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = LoopCache(self.config)


def _check_inputs(input_ids: Tensor | None, inputs_embeds: Tensor | None, others: dict[str, Any]) -> None:
    if (input_ids is None) == (inputs_embeds is None):
        raise UsageError("give the model either input_ids or inputs_embeds")
    for name in ("output_hidden_states", "output_attentions"):
        if others.get(name):
            raise UsageError(
                f"{name}: a recurrent model does not return these; its `state` is the last of the loop, and "
                "think.trajectories gives all of them"
            )


def _positions(like: Tensor, attention_mask: Tensor | None, past: int) -> Tensor:
    """Positions (rows or 1, tokens): of real tokens alone, where the mask says which these are."""
    tokens = like.shape[1]
    if attention_mask is not None and attention_mask.ndim == 2:
        return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)[:, -tokens:]
    return torch.arange(past, past + tokens, device=like.device)[None]
