"""What a training run will take: tokens, epochs, time and memory, from the data, the settings and one step.

Promises: pure functions of numbers; every assumption is in the estimate itself, in words; nothing is called
measured that was not.
Does not: run a model (see `dry`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tutelage.train.muon import matrices
from tutelage.train.recurrent import backbone
from tutelage.train.settings import Optimiser

FLOAT, HALF = 4, 2


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a decoder that memory depends on. `layers` are those that a gradient passes through, those
    of a recurrent core once for each loop with gradient; `loops` is the mean of all its loops. `adapted` are
    the sums of inputs and outputs of the linear layers that an adapter would be put on; `matrices` are the
    weights that Muon would train; `weight_bytes` is what one weight takes."""

    parameters: int
    layers: int
    width: int
    feed_forward: int
    key_value: int
    vocabulary: int
    adapted: int
    weight_bytes: int = FLOAT
    matrices: int = 0
    loops: int | None = None


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes by what they hold."""

    weights: int
    gradients: int
    optimiser: int
    activations: int

    @property
    def total(self) -> int:
        """All together."""
        return self.weights + self.gradients + self.optimiser + self.activations


@dataclass(frozen=True, slots=True)
class Estimate:
    """`tokens` and `learned` are fed over the whole run, padding not counted; `padding` is its share of the
    positions computed; `seconds` is None where no step was measured."""

    rows: int
    steps: int
    epochs: float
    tokens: int
    learned: int
    padding: float
    seconds: float | None
    parameters: int
    trained: int
    memory: Memory
    assumptions: tuple[str, ...]


def shape_of(model: Any) -> Shape:
    """The sizes of a transformers decoder, from its configuration and its layers."""
    config = model.config.get_text_config()
    width = int(config.hidden_size)
    heads = int(getattr(config, "num_attention_heads", 1))
    per_head = int(getattr(config, "head_dim", None) or width // heads)
    groups = int(getattr(config, "num_key_value_heads", None) or heads)
    head = model.get_output_embeddings()
    linear = [each for each in model.modules() if _is_linear(each) and each is not head]
    parameters = list(model.parameters())
    layers, loops = int(config.num_hidden_layers), None
    if backbone(model) is not None:
        loops = int(config.mean_recurrence)
        layers = int(config.depth(min(loops, config.mean_backprop_depth)))
    by_muon = set(matrices(model))
    return Shape(
        parameters=sum(each.numel() for each in parameters),
        layers=layers,
        width=width,
        feed_forward=int(getattr(config, "intermediate_size", None) or 4 * width),
        key_value=per_head * groups,
        vocabulary=int(config.vocab_size),
        adapted=sum(int(each.weight.shape[0] + each.weight.shape[1]) for each in linear),
        weight_bytes=parameters[0].element_size(),
        matrices=sum(each.numel() for name, each in model.named_parameters() if name in by_muon),
        loops=loops,
    )


def trained_weights(shape: Shape, optimiser: Optimiser) -> int:
    """How many weights are trained: all, or those of the adapter."""
    return shape.parameters if optimiser.lora is None else optimiser.lora.rank * shape.adapted


def memory(shape: Shape, optimiser: Optimiser, rows: int, length: int) -> Memory:
    """Bytes at the peak of a step on `rows` rows of `length` tokens.

    Weights, gradients and Adam's two moments (Muon has one) are exact (Rajbhandari et al. 2020, ZeRO, §3.1,
    here with weights of one precision). Activations follow Korthikanti et al. 2022 ("Reducing activation
    recomputation in large transformer models", §4), counted for a block of Llama's kind with attention that
    keeps no scores: what two norms and the attention save (9 widths and twice the keys), four times the
    feed-forward width, and three times the vocabulary for the logits, their logarithms and their gradient."""
    trained = trained_weights(shape, optimiser)
    adapter = 0 if optimiser.lora is None else trained * FLOAT
    each = HALF if optimiser.bf16 else FLOAT
    # Norms and what they are given stay in float32 in mixed precision.
    block = 6 * shape.width * FLOAT + (3 * shape.width + 2 * shape.key_value + 4 * shape.feed_forward) * each
    layers = shape.layers * shape.width * FLOAT + block if optimiser.checkpointing else shape.layers * block
    copies = shape.parameters * HALF if optimiser.bf16 and shape.weight_bytes == FLOAT else 0
    return Memory(
        weights=shape.parameters * shape.weight_bytes + adapter,
        gradients=trained * shape.weight_bytes,
        optimiser=(2 * trained - (shape.matrices if optimiser.kind == "muon" else 0)) * shape.weight_bytes,
        activations=rows * length * (layers + 3 * shape.vocabulary * FLOAT) + copies,
    )


def expected_longest(lengths: Sequence[int], rows: int) -> float:
    """The mean length of the longest of `rows` drawn without replacement: the width of a padded batch."""
    ordered = sorted(lengths)
    count = len(ordered)
    if rows >= count:
        return float(ordered[-1])
    # P(the i-th smallest is the longest) = C(i-1, rows-1) / C(count, rows), from the longest downwards.
    share, mean = rows / count, 0.0
    for place in range(count, rows - 1, -1):
        mean += share * ordered[place - 1]
        share *= (place - rows) / (place - 1) if place > 1 else 0.0
    return mean


def estimate(
    shape: Shape,
    optimiser: Optimiser,
    lengths: Sequence[int],
    learned: int,
    *,
    step_seconds: float | None = None,
    step_positions: int = 0,
) -> Estimate:
    """The run on rows of these `lengths` (tokens), of which `learned` tokens in all carry loss.
    `step_seconds` is what a micro-batch of `step_positions` positions took."""
    micro = optimiser.batch // optimiser.accumulate
    rows = min(micro, len(lengths))
    mean = sum(lengths) / len(lengths)
    positions = rows * expected_longest(lengths, rows)
    fed = optimiser.steps * optimiser.batch
    assumptions = ["memory: one process, attention that keeps no scores, nothing else on the device"]
    seconds = None
    if shape.loops is not None:
        assumptions.append(
            f"loops: {shape.loops} on average; those without gradient keep no activations; a ramp of the "
            "mean takes less time"
        )
    if step_seconds is not None and step_positions:
        seconds = optimiser.steps * optimiser.accumulate * step_seconds * positions / step_positions
        assumptions.append(
            "time: as one measured step on the longest batch, in proportion to the positions; validation and "
            "checkpoints come on top"
        )
    return Estimate(
        rows=len(lengths),
        steps=optimiser.steps,
        epochs=round(fed / len(lengths), 3),
        tokens=round(fed * mean),
        learned=round(fed * learned / len(lengths)),
        padding=round(1 - rows * mean / positions, 4),
        seconds=seconds,
        parameters=shape.parameters,
        trained=trained_weights(shape, optimiser),
        memory=memory(shape, optimiser, rows, max(lengths)),
        assumptions=tuple(assumptions),
    )


def _is_linear(module: Any) -> bool:
    weight = getattr(module, "weight", None)
    # Linear layers by their shape and name: GPT-2 keeps them as Conv1D.
    return type(module).__name__ in ("Linear", "Conv1D") and weight is not None and weight.ndim == 2
