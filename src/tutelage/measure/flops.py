"""What thinking costs in arithmetic: FLOPs of a forward pass, and of a reply, with loops counted.

Promises: one rule for models of fixed depth and for those that loop, so that thinking in tokens and thinking
in the state stand on one axis: 2 × the weights of every matrix that a token passes through, as often as it
does; a lookup in an embedding is none, the head counts where scores are made, attention 4 × heads × their
width for each token that is looked at. These are all multiplications and additions of matrix products, to the
last one (a test compares with torch's own counter); norms, rotations, softmax and sampling are left out.
Does not: measure time, count training, or know what was shared between replies: every reply is counted with
its whole prompt, as its tokens are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from tutelage.errors import UsageError
from tutelage.measure.statistics import Floats, cluster_bootstrap
from tutelage.students.recurrent.exits import looks, predicts
from tutelage.think.effort import Effort
from tutelage.think.request import Completion

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of a model: FLOPs of its matrices per token, and of its attention for each token that is
    looked at."""

    weights: float
    attention: float

    def at(self, context: Any) -> Any:
        """FLOPs of a token that looks at `context` tokens (itself included); numbers or arrays."""
        return self.weights + self.attention * context


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """FLOPs per token of a model: `before` the loop (all layers, where there is none), one pass of the
    `core`, `after` it, and the `head`. `mean` and `most`: passes where none are asked for, without and with
    an exit; None: no loops."""

    before: Part
    core: Part
    after: Part
    head: float
    mean: int | None
    most: int | None = None

    def steps(self, steps: int | None) -> int:
        """Passes of the core that `steps` means. Raises UsageError for a model without loops."""
        if self.mean is None:
            if steps is not None:
                raise UsageError(f"num_steps is {steps}, but this model has no loops; leave it out")
            return 0
        return self.mean if steps is None else steps

    def bound(self, effort: Effort) -> int:
        """The most passes that `effort` means: with an exit and no number the model's maximum."""
        if self.mean is None or self.most is None:
            return self.steps(effort.num_steps)
        return effort.bound(self.mean, self.most)


@dataclass(frozen=True, slots=True)
class Spent:
    """What replies took: `flops`, their prompts included, and the `passes` of the core behind their `tokens`
    (None: a model without loops)."""

    flops: float
    passes: int | None
    tokens: int

    @property
    def loops(self) -> float | None:
        """Mean passes per token; None also where there is no token."""
        return None if self.passes is None or not self.tokens else self.passes / self.tokens


def together(parts: Sequence[Spent]) -> Spent:
    """What several replies took."""
    passes = [part.passes for part in parts if part.passes is not None]
    return Spent(
        sum(part.flops for part in parts),
        sum(passes) if len(passes) == len(parts) else None,
        sum(part.tokens for part in parts),
    )


def arithmetic(model: Any) -> Arithmetic:
    """The FLOPs of `model`, a causal language model of transformers or a recurrent one.

    Of a mixture of experts those that a token goes to are counted. Raises UsageError for weights of which
    nobody can tell how a token passes them."""
    model = getattr(model, "get_base_model", lambda: model)()
    config = model.config
    head = model.get_output_embeddings()
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    attention = 4.0 * heads * width
    counted = _Weights(config)
    scores = 2.0 * head.weight.numel()
    core = getattr(getattr(model, "model", None), "core", None)
    mean = getattr(config, "mean_recurrence", None)
    if core is None or mean is None:
        whole = Part(counted.of(model, head), attention * config.num_hidden_layers)
        return Arithmetic(whole, Part(0.0, 0.0), Part(0.0, 0.0), scores, None)
    body = model.model
    looped = counted.of(core) + counted.of(body.adapter)
    return Arithmetic(
        Part(counted.of(body.prelude), attention * len(body.prelude)),
        Part(looped, attention * len(core)),
        Part(counted.of(body.coda), attention * len(body.coda)),
        scores,
        int(mean),
        int(config.max_recurrence),
    )


def flops_per_token(model: Any, steps: int | None = None, context: int = 0) -> float:
    """FLOPs of the forward pass of one token with its scores: 2 × the weights passed, with `steps` passes of
    the core (None: the model's mean). Attention is left out unless `context`, the tokens that are looked at,
    is given. Raises UsageError as `arithmetic`, and for steps of a model without loops."""
    cost = arithmetic(model)
    passes = cost.steps(steps)
    found = cost.before.at(context) + passes * cost.core.at(context) + cost.after.at(context) + cost.head
    return float(found)


def spent(cost: Arithmetic, prompt_tokens: int, reply: Completion, effort: Effort) -> Spent:
    """What `reply` to a prompt of `prompt_tokens` ids took, decoded under `effort`, with its attention.

    Fed are the prompt and the reply up to its last sampled id, which itself is not; scored are the sampled
    ids. How deep each token of the reply went, it says itself; of the prompt it says the sum, which is spread
    evenly over its tokens. An exit that reads predictions pays for each look with coda and head. Raises
    UsageError for a reply of a model with loops that does not tell its passes."""
    sampled = np.flatnonzero(np.frombuffer(reply.forced, np.uint8) == 0)
    if cost.mean is None:
        fed = prompt_tokens + int(sampled.max(initial=0))
        whole = cost.before.at(np.arange(1.0, fed + 1)).sum()
        return Spent(float(whole + len(sampled) * cost.head), None, len(reply.ids))
    own = np.array([steps for steps in reply.steps if steps], dtype=np.float64)
    if len(reply.steps) != len(reply.ids) or not reply.core_steps:
        raise UsageError(
            f"a reply of {len(reply.ids)} tokens tells {len(reply.steps)} numbers of passes; decode it with "
            "the engine's own backend for models that loop"
        )
    before = prompt_tokens - 1 if len(own) else prompt_tokens
    spread = (reply.core_steps - own.sum()) / max(before, 1)
    passes = np.concatenate([np.full(before, spread), own])
    context = np.arange(1.0, len(passes) + 1)
    looked = _looks(cost, effort, passes)
    # The last look of a token that leaves by it is what it says in the end; any other goes on from its state.
    ends = np.where(passes < cost.bound(effort), looked == 0, True)
    ends[:before] = True
    flops = (
        cost.before.at(context) + passes * cost.core.at(context) + (looked + ends) * cost.after.at(context)
    )
    heads = looked.sum() + len(sampled)
    return Spent(float(flops.sum() + heads * cost.head), int(own.sum()), len(own))


def _looks(cost: Arithmetic, effort: Effort, passes: Floats) -> Floats:
    """How many predictions were made for tokens that left after `passes`; between two whole numbers a share
    of what lies between."""
    if effort.exit is None or not predicts(effort.exit):
        return np.zeros(len(passes))
    steps = np.arange(cost.bound(effort) + 1)
    made = np.cumsum([step > 0 and looks(effort.exit, int(step)) for step in steps])
    found: Floats = np.interp(passes, steps, made)
    return found


def cost_rows(
    model: Any, prompts: Sequence[int], replies: Sequence[Completion], effort: Effort, samples: int
) -> dict[str, Any]:
    """`flops` (mean per sample) and `loops` (mean passes of the core per token of a reply), with 95 %
    intervals over problems, of which each has `samples` replies in a row; JSON-ready, None where they are not
    known. `prompts` are the prompts' numbers of tokens, in step with `replies`."""
    cost = known_arithmetic(model)
    found: list[Spent | None] = [
        None if cost is None else spent(cost, length, reply, effort)
        for length, reply in zip(prompts, replies, strict=True)
    ]
    flops, loops = per_problem(found, samples)
    return with_interval("flops", flops) | with_interval("loops", loops)


def known_arithmetic(model: Any) -> Arithmetic | None:
    """The arithmetic of `model`; None where nobody can tell it."""
    try:
        return arithmetic(model)
    except UsageError:
        return None


def per_problem(found: Sequence[Spent | None], samples: int) -> tuple[Floats | None, Floats | None]:
    """Each problem's mean FLOPs per sample, and passes of the core per token of its replies, (n,) each; the
    parts come problem by problem. None where one of them is not known."""
    parts = [each for each in found if each is not None]
    if len(parts) < len(found):
        return None, None
    groups = [parts[i : i + samples] for i in range(0, len(parts), samples)]
    flops = np.array([together(group).flops / samples for group in groups])
    loops = [loops for group in groups if (loops := together(group).loops) is not None]
    return flops, np.array(loops) if len(loops) == len(groups) else None


def with_interval(name: str, values: Floats | None) -> dict[str, Any]:
    """A mean over problems with the interval of the bootstrap, both None where it is not known."""
    if values is None:
        return {name: None, f"{name}_ci95": None}
    mean = cluster_bootstrap(values, bounds=None)
    return {name: mean.mean, f"{name}_ci95": [mean.lo, mean.hi]}


class _Weights:
    """FLOPs of the matrices of modules, for a token that passes each of them once."""

    def __init__(self, config: Any) -> None:
        self._experts = next((int(getattr(config, name)) for name in _EXPERTS if hasattr(config, name)), 0)
        self._chosen = int(getattr(config, "num_experts_per_tok", None) or 0)

    def of(self, module: nn.Module, head: nn.Module | None = None) -> float:
        """FLOPs of `module`; without its embeddings and `head`."""
        skipped = {
            id(parameter)
            for part in module.modules()
            if part is head or isinstance(part, nn.Embedding)
            for parameter in part.parameters()
        }
        return 2 * sum(
            self._passed(name, parameter)
            for name, parameter in module.named_parameters()
            if id(parameter) not in skipped and parameter.ndim > 1 and not name.endswith("bias")
        )

    def _passed(self, name: str, parameter: nn.Parameter) -> float:
        """Weights of one matrix that a token passes: of experts side by side the chosen ones."""
        if parameter.ndim == 2:
            return parameter.numel()
        if self._experts and self._chosen and parameter.ndim == 3 and parameter.shape[0] == self._experts:
            return parameter.numel() * self._chosen / self._experts
        raise UsageError(
            f"{name}: weights of shape {tuple(parameter.shape)} are no matrix and no row of experts; the "
            "FLOPs of this model cannot be told"
        )
