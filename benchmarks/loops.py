"""What a recurrent-depth model costs: beside the same loop in bare PyTorch, and as its depth grows.

    python benchmarks/loops.py [--quick] [--widths 96,512] [--rounds 7] [--threads 2]

*Training step*: forward, loss and backward of `RecurrentDepthForCausalLM` against the loop unrolled by hand,
here, with plain functions over the same weights: same operations, no masks, caches or choices. Alternating
rounds in one process; the two losses and gradients are first shown to be equal. A ratio of 1.05 says that the
model takes 5 % longer.

*Memory*: bytes of the tensors that autograd keeps for the backward pass, with gradient through the last four
steps after n without: they do not grow with n.

*Depth*: seconds per token of a forward pass at r = 1, 2, 4, ... and the straight line through them: its
slope is the cost of one pass of the core; R² how straight it is; and the share that the core's arithmetic
(2 operations per weight and token, attention beside) has of what the largest matrix product of the model
reaches by itself.

Seconds are processor seconds of all threads, which other work on the machine disturbs less than wall time,
the least of the rounds; all figures are for a CPU in float32.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tutelage.students.recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM
from tutelage.students.recurrent.layers import Block

VOCABULARY = 256
KEPT = 4


def build(width: int) -> RecurrentDepthForCausalLM:
    """One prelude, one core, one coda layer, as the lab's."""
    torch.manual_seed(0)
    config = RecurrentDepthConfig(
        hidden_size=width,
        num_attention_heads=max(1, width // 32),
        intermediate_size=width * 8 // 3 // 8 * 8,
        vocab_size=VOCABULARY,
        num_core_layers=1,
        max_recurrence=256,
        adapter_init="identity",
    )
    return RecurrentDepthForCausalLM(config).train()


def bare(model: RecurrentDepthForCausalLM, ids: Tensor, state: Tensor, free: int, kept: int) -> Tensor:
    """The loss of `ids` (rows, tokens), written out."""
    config, inner = model.config, model.model
    heads, width = config.num_attention_heads, config.head_dim
    rows, tokens = ids.shape
    size, eps = (config.hidden_size,), config.rms_norm_eps
    powers = torch.arange(0, width, 2).float() / width
    angles = torch.arange(tokens).float()[:, None] / config.rope_theta**powers
    angles = torch.cat([angles, angles], dim=-1)
    cos, sin = angles.cos(), angles.sin()

    def rotated(x: Tensor) -> Tensor:
        one, two = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-two, one], dim=-1) * sin

    def layer(block: Block, x: Tensor) -> Tensor:
        at, mlp = block.self_attn, block.mlp
        normed = functional.rms_norm(x, size, block.norm_1.weight, eps)
        q, k, v = (
            functional.linear(normed, each.weight).view(rows, tokens, heads, width).transpose(1, 2)
            for each in (at.q_proj, at.k_proj, at.v_proj)
        )
        mixed = functional.scaled_dot_product_attention(rotated(q), rotated(k), v, is_causal=True)
        x = x + functional.linear(mixed.transpose(1, 2).reshape(x.shape), at.o_proj.weight)
        x = functional.rms_norm(x, size, block.norm_2.weight, eps)
        normed = functional.rms_norm(x, size, block.norm_3.weight, eps)
        gate = functional.silu(functional.linear(normed, mlp.gate_proj.weight))
        up = functional.linear(normed, mlp.up_proj.weight)
        x = x + functional.linear(gate * up, mlp.down_proj.weight)
        return functional.rms_norm(x, size, block.norm_4.weight, eps)

    def once(state: Tensor) -> Tensor:
        x = functional.linear(torch.cat([state, embedded], dim=-1), inner.adapter.linear.weight)
        for block in inner.core:
            x = layer(block, x)
        return x

    embedded = functional.embedding(ids, inner.embed_tokens.weight) * config.embedding_scale
    for block in inner.prelude:
        embedded = layer(block, embedded)
    with torch.no_grad():
        for _ in range(free):
            state = once(state)
    for _ in range(kept):
        state = once(state)
    x = functional.rms_norm(state, size, inner.norm.weight, eps)
    for block in inner.coda:
        x = layer(block, x)
    x = functional.rms_norm(x, size, inner.norm.weight, eps)
    logits = functional.linear(x, model.lm_head.weight)
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def seconds(work: Callable[[], object]) -> float:
    """Processor seconds of `work`."""
    began = time.process_time()
    work()
    return time.process_time() - began


def training(width: int, rows: int, tokens: int, rounds: int) -> None:
    """The first figure."""
    model = build(width)
    ids = torch.randint(VOCABULARY, (rows, tokens))
    state = 0.2 * torch.randn(rows, tokens, width)
    print(f"\nTraining step, width {width}, {rows} x {tokens} tokens, {rounds} rounds")
    for free, kept in ((0, 4), (4, 4), (12, 4)):

        def ours(free: int = free, kept: int = kept) -> Tensor:
            model.zero_grad()
            loss = model(ids, labels=ids, num_steps=(free, kept), initial_state=state).loss
            loss.backward()
            return loss.detach()

        def plain(free: int = free, kept: int = kept) -> Tensor:
            model.zero_grad()
            loss = bare(model, ids, state, free, kept)
            loss.backward()
            return loss.detach()

        def gradient(step: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
            loss = step()
            return loss, torch.cat([each.grad.flatten() for each in model.parameters()])

        (loss, grads), (other, others) = gradient(ours), gradient(plain)
        assert torch.allclose(loss, other, rtol=1e-4), (loss, other)
        assert (grads - others).norm() < 1e-3 * others.norm()
        pairs = [(seconds(ours), seconds(plain)) for _ in range(rounds)]
        best, least = (min(each) for each in zip(*pairs, strict=True))
        middle = median(one / two for one, two in pairs)
        print(
            f"  n={free:2} k={kept}  model {best * 1e3:8.1f} ms  bare loop {least * 1e3:8.1f} ms  "
            f"ratio of the best {best / least:.3f}, median ratio {middle:.3f}"
        )


def memory(width: int, rows: int, tokens: int) -> None:
    """The second figure."""
    model = build(width)
    ids = torch.randint(VOCABULARY, (rows, tokens))
    print(f"\nMemory kept for the backward pass, width {width}, {rows} x {tokens} tokens")
    for free, kept in ((0, KEPT), (4, KEPT), (16, KEPT), (64, KEPT), (0, 2 * KEPT), (0, 4 * KEPT)):
        held: dict[int, Tensor] = {}

        def pack(tensor: Tensor, held: dict[int, Tensor] = held) -> Tensor:
            held[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            found = model(ids, labels=ids, num_steps=(free, kept))
        size = sum(each.untyped_storage().nbytes() for each in held.values())
        print(f"  n={free:2} k={kept:2}  {size / 2**20:8.2f} MiB")
        del found


def depth(width: int, rows: int, tokens: int, depths: list[int], rounds: int) -> None:
    """The third figure."""
    model = build(width).eval()
    config = model.config
    ids = torch.randint(VOCABULARY, (rows, tokens))
    count = rows * tokens
    best = dict.fromkeys(depths, float("inf"))
    limit = 0.0
    x = torch.randn(count, width)
    matrix = torch.randn(width, config.intermediate_size)
    with torch.inference_mode():
        model(ids, num_steps=2)
        for _ in range(rounds):
            for steps in depths:
                best[steps] = min(best[steps], seconds(lambda steps=steps: model(ids, num_steps=steps)))
            took = min(seconds(lambda: x @ matrix) for _ in range(10))
            limit = max(limit, 2 * x.numel() * matrix.shape[1] / took)
    each = np.array([best[steps] / count for steps in depths])
    slope, start = np.polyfit(depths, each, 1)
    rest = each - (slope * np.array(depths) + start)
    straight = 1 - float((rest**2).sum() / ((each - each.mean()) ** 2).sum())
    weights = sum(
        part.numel() for part in [*model.model.core.parameters(), *model.model.adapter.parameters()]
    )
    # Scores and mixing, over half of the positions.
    attention = 2 * 2 * config.num_attention_heads * config.head_dim * (tokens + 1) / 2
    work = 2 * weights + attention
    print(f"\nCost of depth, width {width}, {rows} x {tokens} tokens, forward, best of {rounds}")
    for steps, found in zip(depths, each, strict=True):
        print(f"  r={steps:3}  {found * 1e6:8.2f} µs/token")
    print(f"  line: {start * 1e6:.2f} + {slope * 1e6:.2f} r µs/token, R² {straight:.5f}")
    print(f"  a pass of the core: {work / 1e6:.2f} million operations a token, {work / slope / 1e9:.1f} G/s")
    print(f"  the product ({count} x {width}) by ({width} x {matrix.shape[1]}) alone: {limit / 1e9:.1f} G/s")
    print(f"  share of it: {work / slope / limit:.0%}")


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two rounds of small batches")
    parser.add_argument("--widths", default="96,512")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rounds = 2 if given.quick else given.rounds
    rows = 4 if given.quick else 16
    depths = [1, 2, 4, 8] if given.quick else [1, 2, 4, 8, 16, 32]
    for width in (int(each) for each in given.widths.split(",")):
        training(width, rows, 64, rounds)
        memory(width, rows, 64)
        depth(width, rows, 64, depths, rounds)


if __name__ == "__main__":
    main()
