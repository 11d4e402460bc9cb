"""Decoding in which each token leaves the loop by itself, beside a fixed depth, on one model in one run.

    python benchmarks/exits.py [--model FOLDER] [--rows N] [--batch 32] [--rounds N] [--fixed R]

Rows of the product world (see `lab.products`), of 3 to 12 factors: every letter is fed as one token, and
after each the model says the product so far. `--model`: a recurrent student of that world, such as
`recurrent-seed0` of recipe lab-recurrent; without one a model like it is trained first, for about a minute
on one core, on the running products alone.

One reply is a row, decoded letter by letter in a batch of `--batch`; where a row ends the next one begins, so
that rows of any length stand beside each other. `fixed`: all tokens make R passes, by default the fewest of
1, 2, 4, 6, 8, 12, 16, 24 and 32 that are within half a point of the best of them, which is the hardest to
beat: it has to be known beforehand, and an exit has not. An exit has the same R as its bound, so that it can
only save. Caches: with `latest` a step reads the tokens before it at that step, so that work travels from
token to token; with `shared:1` it reads them as they are, which is how they ended where tokens come one by
one. R is chosen with `latest`, and that run stands first. Accuracy is over all products of all rows; the
interval is that of the paired difference from
`fixed`, rows drawn again as wholes (95 %). `passes`: of the core, per token. `steps` and `time` are ratios,
fixed over exit: above 1 the exit is cheaper. Times are medians over rounds, in which the methods take turns.
The second table is the same for reading whole rows, `--batch` prompts in one prefill.

--cpu-time counts seconds of CPU of one thread: for machines that do other work as well.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from tutelage.lab.products import draw_walk, make_problems
from tutelage.measure.statistics import paired
from tutelage.students.pretrained import load_student
from tutelage.students.recurrent.depth import sample_steps
from tutelage.students.template import render_prompt
from tutelage.students.tiny import Loops as Shape
from tutelage.students.tiny import TinyConfig, build_tiny
from tutelage.think.effort import Effort, Exit
from tutelage.think.loops import Loops
from tutelage.tokens import encode_text

EXITS = (
    "kl:1e-6", "kl:5e-4", "kl:5e-4,ordered", "kl:5e-3", "state:0.05", "state:0.05,ordered", "state:0.15",
    "argmax:4", "argmax:4,ordered", "acceleration:0.15",
)  # fmt: skip
CACHES = ("latest", "shared:1")
DEPTHS = (1, 2, 4, 6, 8, 12, 16, 24, 32)
SHORTEST, LONGEST = 3, 12
BEGIN = 6

clock: Callable[[], float] = time.perf_counter


@dataclass(frozen=True)
class Row:
    """`ids` in the order they are fed; `answers`: after which of them (place) which id is to be said."""

    ids: tuple[int, ...]
    answers: tuple[tuple[int, int], ...]


@dataclass
class Run:
    """One way through all rows: whether each answer was right, row by row; passes of the core; seconds."""

    right: list[list[bool]]
    passes: int
    tokens: int
    seconds: float


def own_rows(count: int, seed: int) -> list[Row]:
    """Rows of letters after a first id, for the model trained here: the ids are the elements."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        walk = draw_walk(draw, SHORTEST + number % (LONGEST - SHORTEST + 1))
        rows.append(Row((BEGIN, *walk.factors), tuple(enumerate(walk.values(), start=1))))
    return rows


def lab_rows(student: Any, count: int, seed: int) -> list[Row]:
    """Rows as a student of the recipe has them: its prompt, the products of the question, and the answer."""
    rows = []
    for problem in make_problems(count, min_steps=SHORTEST, max_steps=LONGEST, seed=seed):
        ids = tuple(render_prompt(student.tokenizer, student.template, problem.question))
        question = tuple(encode_text(student.tokenizer, problem.question))
        values = encode_text(student.tokenizer, problem.metadata["values"])
        first = next(k for k in range(len(ids)) if ids[k : k + len(question)] == question)
        answers = [(first + k, value) for k, value in enumerate(values)]
        rows.append(Row(ids, (*answers, (len(ids) - 1, values[-1]))))
    return rows


def train(seed: int, steps: int, width: int) -> Any:
    """A model like that of recipe lab-recurrent, on running products; the length grows from 3 to 12."""
    shape = TinyConfig(width=width, heads=width // 32, feed_forward=3 * width, rope_base=100.0, loops=Shape())
    model = build_tiny(shape, vocabulary=8, pad=7, end=BEGIN, seed=seed).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01)
    draw = random.Random(seed)
    started = time.process_time()
    for step in range(steps):
        longest = min(LONGEST, SHORTEST + int((LONGEST - SHORTEST) * step / (0.45 * steps)))
        walks = [draw_walk(draw, draw.randint(SHORTEST, longest)) for _ in range(64)]
        ids, values = (
            torch.tensor([(*each, *[pad] * (longest + 1 - len(each))) for each in rows])
            for rows, pad in (
                ([(BEGIN, *w.factors) for w in walks], 7),
                ([(-100, *w.values()) for w in walks], -100),
            )
        )
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * min(1, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
        logits = model(ids, num_steps=sample_steps(step, 8, 5, seed)).logits
        loss = functional.cross_entropy(logits.flatten(0, 1), values.flatten(), ignore_index=-100)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        if (step + 1) % 200 == 0:
            spent = time.process_time() - started
            print(f"step {step + 1}: loss {loss.item():.3f}, {spent:.0f} s", flush=True)
    return model.eval()


def decode(model: Any, rows: Sequence[Row], effort: Effort, cache: str, batch: int) -> Run:
    """Letter by letter, `batch` rows at a time."""
    loops = Loops(model, cache=cache)
    right: list[list[bool]] = [[] for _ in rows]
    said: dict[int, list[int]] = {k: [] for k in range(len(rows))}
    waiting, alive = list(range(len(rows)))[::-1], {}
    started = clock()
    while waiting or alive:
        fresh = [waiting.pop() for _ in range(min(batch - len(alive), len(waiting)))]
        # The others go on first: a new row's first letter comes from the prefill.
        handles = list(alive)
        if handles:
            tokens = {handle: rows[k].ids[len(said[k])] for handle, k in alive.items()}
            for handle, best in zip(
                handles, loops.decode(tokens, handles).logits.argmax(-1).tolist(), strict=True
            ):
                said[alive[handle]].append(best)
        if fresh:
            handles, scores = loops.prefill([rows[k].ids[:1] for k in fresh], [effort] * len(fresh))
            for handle, k, best in zip(handles, fresh, scores.logits.argmax(-1).tolist(), strict=True):
                alive[handle] = k
                said[k].append(best)
        for handle, k in list(alive.items()):
            if len(said[k]) == len(rows[k].ids):
                loops.free(handle)
                del alive[handle]
    seconds = clock() - started
    for k, row in enumerate(rows):
        right[k] = [said[k][place] == answer for place, answer in row.answers]
    return Run(right, loops.core_steps, sum(len(row.ids) for row in rows), seconds)


def read(model: Any, rows: Sequence[Row], effort: Effort, cache: str, batch: int) -> Run:
    """Whole rows, `batch` at a time; only the scores after the last letter are there."""
    loops = Loops(model, cache=cache)
    right: list[list[bool]] = []
    started = clock()
    for first in range(0, len(rows), batch):
        some = rows[first : first + batch]
        handles, scores = loops.prefill([row.ids for row in some], [effort] * len(some))
        best = scores.logits.argmax(-1).tolist()
        right += [[one == row.answers[-1][1]] for one, row in zip(best, some, strict=True)]
        for handle in handles:
            loops.free(handle)
    return Run(right, loops.core_steps, sum(len(row.ids) for row in rows), clock() - started)


def share(run: Run) -> float:
    """Right answers of all."""
    return float(np.mean([right for row in run.right for right in row]))


def pick_fixed(model: Any, rows: Sequence[Row], batch: int) -> int:
    """The fewest passes within half a point of the best."""
    most = model.config.max_recurrence
    found = {}
    for steps in (each for each in DEPTHS if each <= most):
        found[steps] = share(decode(model, rows, Effort(steps), CACHES[0], batch))
    print("accuracy by passes: " + ", ".join(f"{steps}: {100 * a:.1f}" for steps, a in found.items()))
    return min(steps for steps, a in found.items() if a >= max(found.values()) - 0.005)


def compare(
    way: Callable[[Any, Sequence[Row], Effort, str, int], Run],
    model: Any,
    rows: Sequence[Row],
    efforts: dict[str, tuple[Effort, str]],
    batch: int,
    rounds: int,
) -> None:
    """The table of one way."""
    runs: dict[str, list[Run]] = {name: [] for name in efforts}
    for _ in range(rounds):
        for name, (effort, cache) in efforts.items():
            runs[name].append(way(model, rows, effort, cache, batch))
    (base_name, base), *_ = ((name, found[0]) for name, found in runs.items())
    base_time = median(run.seconds for run in runs[base_name])
    print(
        f"{'effort':<36}{'accuracy':>9}{'difference (95 %)':>28}{'passes':>8}{'steps':>7}{'time':>7}{'s':>8}"
    )
    for name, found in runs.items():
        run, seconds = found[0], median(each.seconds for each in found)
        change = paired(run.right, base.right)
        told = (
            ""
            if name == base_name
            else f"{100 * change.mean:+.2f} [{100 * change.lo:+.2f}, {100 * change.hi:+.2f}]"
        )
        print(
            f"{name:<36}{100 * share(run):>8.1f}%{told:>28}{run.passes / run.tokens:>8.2f}"
            f"{base.passes / run.passes:>6.2f}x{base_time / seconds:>6.2f}x{seconds:>8.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", help="folder of a recurrent student of the product world")
    parser.add_argument("--rows", type=int, default=480)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--fixed", type=int, help="passes of the fixed depth")
    parser.add_argument("--exits", nargs="+", default=list(EXITS))
    parser.add_argument("--caches", nargs="+", default=list(CACHES))
    parser.add_argument("--width", type=int, default=64, help="of the model trained here")
    parser.add_argument("--train-steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cpu-time", action="store_true")
    options = parser.parse_args()
    if options.cpu_time:
        global clock
        clock = time.process_time
    torch.set_num_threads(1)
    if options.model:
        student = load_student(options.model, device="cpu")
        model = student.model.eval()
        rows = lab_rows(student, options.rows, seed=1 << 20)
    else:
        model = train(options.seed, options.train_steps, options.width)
        rows = own_rows(options.rows, seed=1 << 20)
    weights = sum(weight.numel() for weight in model.parameters())
    print(f"{weights:,} weights, {len(rows)} rows of {SHORTEST} to {LONGEST} factors, batch {options.batch}")
    with torch.inference_mode():
        fixed = options.fixed or pick_fixed(model, rows, options.batch)
        efforts: dict[str, tuple[Effort, str]] = {}
        for cache in options.caches:
            depths = {fixed: None} if cache == CACHES[0] else dict.fromkeys([fixed, *DEPTHS[:3]])
            efforts |= {f"fixed {steps}, {cache}": (Effort(steps), cache) for steps in depths}
            efforts |= {
                f"{text}, {cache}": (Effort(fixed, Exit.parse(text)), cache) for text in options.exits
            }
        print("\nletter by letter")
        compare(decode, model, rows, efforts, options.batch, options.rounds)
        print("\nwhole rows at once; the answer after the last letter")
        compare(read, model, rows, efforts, options.batch, options.rounds)


if __name__ == "__main__":
    main()
