"""Self-speculation beside deep decoding, the same replies from both: what it accepts, and the time it takes.

    python benchmarks/speculation.py [--model FOLDER [--problems FILE.jsonl]] [--steps N] [--drafts 2,4]
        [--batches 1,8] [--tokens N] [--rounds N] [--train SECONDS] [--device cuda]

Greedy replies of exactly --tokens ids from the backend itself, no engine around it (what the engine adds is
the same for both). Each round runs every way once, one after the other; the table has medians, and their
ratio is that of one round's two times. Before any clock runs the ids of each way are compared with those of
deep decoding; "equal" says how many replies are (a tie in the last bits may part them).

Models without --model, all of random prompts:
- "random": width 512, large weights in the core. What it drafts is noise: what speculation costs.
- "settled": a core whose first pass says nearly all, so that drafts are right: the most it can give.
- "taught" (--train, 0: leave it out): width 128, bytes, trained so many seconds at random depths on this
  repository's own documentation: a model that has learned something, asked to go on with its text.

"accepted": of the drafts; those behind the end of a reply were in vain. "per check": tokens that one deep
computation of a row gave. "passes": core passes times tokens, of drafts too, over those of deep decoding:
above 1 speculation computes more, in fewer and larger products.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from tutelage.records import Problem
from tutelage.students.pretrained import load_student
from tutelage.students.recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM
from tutelage.students.template import render_prompt
from tutelage.think.backend import Backend
from tutelage.think.effort import Effort
from tutelage.think.loops import Loops
from tutelage.think.speculation import Speculating

Prompts = list[tuple[int, ...]]
DOCS = Path(__file__).parents[1] / "docs"


def built(width: int, vocabulary: int, mean: int = 8) -> Any:
    """A random model, its first weights near what trains at small scale."""
    torch.manual_seed(0)
    config = RecurrentDepthConfig(
        hidden_size=width,
        num_attention_heads=width // 64,
        intermediate_size=3 * width,
        vocab_size=vocabulary,
        mean_recurrence=mean,
        mean_backprop_depth=4,
        tie_word_embeddings=False,
        adapter_init="identity",
        state_std=0.2,
        max_position_embeddings=1024,
    )
    return RecurrentDepthForCausalLM(config)


def noisy(model: Any) -> Any:
    """`model` with a core so large that each pass changes much of what the last one said. (With weights
    larger still the loop is chaotic: last bits grow until greedy ids differ; in float64 they do not.)"""
    with torch.no_grad():
        for weight in model.model.core.parameters():
            weight *= 2.0 if weight.ndim == 2 else 1.0
    return model


def settled(model: Any) -> Any:
    """`model` with a core whose first pass says nearly all: the adapter forgets the state before it."""
    width = model.config.hidden_size
    with torch.no_grad():
        model.model.adapter.linear.weight[:, :width] *= 0.02
    return model


def taught(seconds: float) -> tuple[Any, Prompts]:
    """A small model of bytes after `seconds` of training on the documentation, and prompts from its end,
    which it was not trained on."""
    text = torch.tensor(list(b"\n".join(file.read_bytes() for file in sorted(DOCS.glob("*.md")))))
    cut = len(text) - len(text) // 20
    model = built(128, 256, mean=4).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1)
    chance = torch.Generator().manual_seed(0)
    began, step, loss = time.monotonic(), 0, 0.0
    while time.monotonic() - began < seconds:
        starts = torch.randint(0, cut - 64, (16,), generator=chance).tolist()
        ids = torch.stack([text[at : at + 64] for at in starts])
        found = model(ids, labels=ids).loss
        found.backward()
        loss = found.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        step += 1
    print(f"taught: {step} steps of 16 x 64 bytes, loss {loss:.2f} nats a byte", flush=True)
    places = random.Random(1).sample(range(cut, len(text) - 64), 32)
    return model, [tuple(text[at : at + 64].tolist()) for at in places]


def loaded(folder: str, problems: str | None) -> tuple[Any, Prompts]:
    """The model of a folder, and the questions of a file of problems as its prompts."""
    student = load_student(folder, device="cpu")
    if problems is None:
        return student.model, drawn(len(student.tokenizer))
    lines = Path(problems).read_text(encoding="utf-8").splitlines()[:32]
    asked = [Problem.from_dict(json.loads(line)).question for line in lines]
    return student.model, [tuple(render_prompt(student.tokenizer, student.template, one)) for one in asked]


def drawn(vocabulary: int) -> Prompts:
    """Random prompts."""
    chance = random.Random(0)
    return [tuple(chance.randrange(3, vocabulary) for _ in range(chance.randint(16, 64))) for _ in range(32)]


def write(backend: Backend, prompts: Prompts, tokens: int, effort: Effort) -> tuple[list[list[int]], float]:
    """Greedy replies of `tokens` ids, and the seconds after the prefill."""
    rows, scores = backend.prefill(prompts, [effort] * len(prompts))
    told: list[list[int]] = [[] for _ in prompts]
    began = time.perf_counter()
    for turn in range(tokens):
        for reply, token in zip(told, scores.logits.argmax(dim=-1).tolist(), strict=True):
            reply.append(token)
        if turn + 1 < tokens:
            scores = backend.decode({row: reply[-1] for row, reply in zip(rows, told, strict=True)}, rows)
    took = time.perf_counter() - began
    for row in rows:
        backend.free(row)
    return told, took


def race(name: str, model: Any, prompts: Prompts, options: argparse.Namespace) -> None:
    """One model: all batches and drafts, a line each."""
    loops = Loops(model.eval().to(options.device))
    effort = Effort(options.steps)
    for batch in options.batches:
        some = prompts[:batch]
        right, _ = write(loops, some, options.tokens, effort)
        for steps in options.drafts:
            speculating = Speculating(loops, steps, options.lookahead)
            before = loops.core_steps
            mine, _ = write(speculating, some, options.tokens, effort)
            middle = loops.core_steps
            write(loops, some, options.tokens, effort)
            passes = (middle - before) / (loops.core_steps - middle)
            equal = sum(map(list.__eq__, mine, right))
            pairs = [
                (
                    write(loops, some, options.tokens, effort)[1],
                    write(speculating, some, options.tokens, effort)[1],
                )
                for _ in range(options.rounds)
            ]
            rate, fed = speculating.drafts.rate, batch * (options.tokens - 1)
            checked = fed * (options.rounds + 1) / speculating.drafts.checks
            ratios = [deep / fast for deep, fast in pairs]
            speeds = [fed / median(times) for times in zip(*pairs, strict=True)]
            print(
                f"{name:9} {batch:5} {steps:5}/{options.steps:<3} {equal:3} of {batch:<3} {rate:7.0%} "
                f"{checked:9.1f} {passes:8.2f} {speeds[0]:9.0f} {speeds[1]:9.0f} {median(ratios):6.2f} "
                f"({min(ratios):.2f} to {max(ratios):.2f})",
                flush=True,
            )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    numbers = {"type": lambda text: [int(one) for one in text.split(",")]}
    parser.add_argument("--model")
    parser.add_argument("--problems")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--drafts", default=[2, 4], **numbers)
    parser.add_argument("--batches", default=[1, 8], **numbers)
    parser.add_argument("--lookahead", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--train", type=float, default=60.0)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    print(
        "model     batch  draft/deep  equal  accepted  per check  passes  deep t/s  mine t/s  ratio (spread)",
        flush=True,
    )
    if options.model:
        model, prompts = loaded(options.model, options.problems)
        models = {"yours": (model, prompts)}
    else:
        models = {
            "random": (noisy(built(options.width, 2048)), drawn(2048)),
            "settled": (settled(built(options.width, 2048)), drawn(2048)),
        }
        if options.train:
            models["taught"] = taught(options.train)
    with torch.inference_mode():
        for name, (model, prompts) in models.items():
            race(name, model, prompts, options)


if __name__ == "__main__":
    main()
