"""The whole funnel on as many recorded traces as s1 had, on this machine and on Ray.

    python benchmarks/funnel.py [--traces 59000] [--words 600] [--gsm8k test.jsonl] [--ray-traces 4000]

The pool: a JSON-lines file of questions from a seeded grammar (see questions.py) with thinking of `--words`
words on average (exponential) and an answer; one in a hundred is cut, one empty, one goes round in circles,
one in fifty repeats another question, some are copies of benchmark items. `curate` takes it to 1,000 by
s1's rule, without solvers: reading, quality, decontamination of questions, answers and thinking,
duplicates, domains by clusters, selection, writing, the page. Each time is that of a fresh process. s1's
traces have 3,600 tokens on average, about `--words 2400`: 0.8 GB in all. Then a smaller pool by both
engines: the chosen ids and the drops must be equal.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import pyarrow.parquet as pq
from questions import question

TARGET = 1000


def write_pool(path: Path, count: int, words: int, items: Sequence[str]) -> int:
    """The pool; gives its size in bytes."""
    rng = random.Random("funnel")
    sentences = [question(rng, 1) for _ in range(20_000)]
    asked: list[str] = []
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            asked.append(asked[rng.randrange(number)] if number % 50 == 49 else question(rng))
            if items and number % 200 == 199:
                asked[-1] = rng.choice(items)
            long, thinking = rng.expovariate(1 / words), []
            while long > 0:
                thinking.append(rng.choice(sentences))
                long -= len(thinking[-1].split())
            if number % 100 == 0:
                thinking = [" ".join(thinking[:1]) + " So it must be checked again."] * 40
            row = {
                "id": f"r{number}",
                "question": asked[-1],
                "thinking": " ".join(thinking),
                "response": "" if number % 100 == 1 else f"The answer is {rng.randrange(1000)}.",
                "gold": str(rng.randrange(1000)),
                "finish_reason": "length" if number % 100 == 2 else "stop",
            }
            file.write(json.dumps(row) + "\n")
    return path.stat().st_size


def curate(pool: Path, out: Path, more: Sequence[str]) -> tuple[dict[str, Any], float, float]:
    """The document of the verb, its seconds, and the most memory that it or a child of it took."""
    command = [sys.executable, "-m", "tutelage", "curate", "--traces", str(pool), "--target", str(TARGET)]
    started = time.perf_counter()
    done = subprocess.run(
        [*command, "--out", str(out), "--json", *more], capture_output=True, text=True, check=False
    )
    took = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(done.stderr)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return json.loads(done.stdout), took, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--traces", type=int, default=59_000)
    parser.add_argument("--words", type=int, default=600)
    parser.add_argument("--gsm8k", type=Path)
    parser.add_argument("--ray-traces", type=int, default=4_000)
    options = parser.parse_args()
    items = []
    if options.gsm8k is not None:
        lines = options.gsm8k.read_text(encoding="utf-8").splitlines()
        items = [json.loads(line)["question"] for line in lines if line.strip()]
    against = ["--against", str(options.gsm8k)] if options.gsm8k else []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = write_pool(folder / "pool.jsonl", options.traces, options.words, items)
        print(f"{options.traces:,} traces, {size / 1e6:,.0f} MB")
        told, took, peak = curate(folder / "pool.jsonl", folder / "out", against)
        for row in told["stages"]:
            reasons = ", ".join(f"{rule} {count:,}" for rule, count in row["reasons"].items())
            print(f"  {row['stage']:16} {row['kept']:>8,} kept {row['dropped']:>8,} dropped  {reasons}")
        rate = options.traces / took
        print(f"{took:.1f} s, {rate:,.0f} traces/s, {size / took / 1e6:.1f} MB/s; most memory {peak:,.0f} MB")
        if options.ray_traces:
            engines(folder, options.ray_traces, options.words, items, against)


def engines(folder: Path, count: int, words: int, items: Sequence[str], against: Sequence[str]) -> None:
    """The same small pool by both engines."""
    write_pool(folder / "small.jsonl", count, words, items)
    found = {}
    for engine in ("local", "ray"):
        out = folder / engine
        _, took, _ = curate(folder / "small.jsonl", out, [*against, "--engine", engine, "--workers", "2"])
        tables = [pq.read_table(out / each).to_pylist() for each in ("traces.parquet", "drops.parquet")]
        found[engine] = tables
        print(
            f"{engine}: {count:,} traces in {took:.1f} s (the start of the process, or the cluster, included)"
        )
    print("traces and drops are equal" if found["local"] == found["ray"] else "TRACES OR DROPS DIFFER")


if __name__ == "__main__":
    main()
