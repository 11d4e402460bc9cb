"""Detectors of benchmark items beside a plain set of 8-grams, on questions with planted copies.

    python benchmarks/decontaminate.py [--size 200000] [--gsm8k test.jsonl] [--rounds 3]

The pool: `--size` questions of a seeded grammar (see questions.py), among them 1,319 copies (as many as
GSM8K's test set has items) of each kind: exact, paraphrased, numbers changed, half of the sentences inside
others. The benchmark: GSM8K's test questions, where the file is given, and 12,000 questions of the same
grammar.
Methods take turns in each round; a rate is questions a second of wall time, the conversion of Python strings
to Arrow included. `split` (lower case and split by blanks, nothing else) is what nobody who reads the words
in Python can be faster than on one core. The peak of memory is that of a fresh process which reads the pool
from Parquet and asks all detectors. A clean question counts as found wrongly; the grammar shares phrases with
the benchmark by chance, so `precision` is no property of a detector alone.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import pyarrow as pa
import pyarrow.parquet as pq
from questions import KINDS, Planted, pool, question

from tutelage.curate.benchmarks import Benchmark
from tutelage.curate.detectors import Hit, find
from tutelage.curate.watch import DETECTORS, Watch, watch
from tutelage.engines import spread

EACH = 1319
MADE = 12_000
BATCH = 8192
WORKERS = 2
_BLANKS = re.compile(r"\s+")


def benchmarks(gsm8k: Path | None) -> list[Benchmark]:
    """What is protected."""
    rng = random.Random("benchmark")
    found = [Benchmark("made", tuple((str(n), question(rng)) for n in range(MADE)))]
    if gsm8k is not None:
        lines = gsm8k.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line)["question"] for line in lines if line.strip()]
        found.insert(0, Benchmark("gsm8k", tuple((str(n), text) for n, text in enumerate(rows))))
    return found


def eight_grams(text: str) -> set[str]:
    """Runs of eight words, in lower case, cut at blanks."""
    words = _BLANKS.sub(" ", text.lower()).strip().split(" ")
    return {" ".join(words[at : at + 8]) for at in range(len(words) - 7)}


def plain_sets(texts: Sequence[str], items: Sequence[str]) -> Callable[[], set[int]]:
    """The baseline: a set of all 8-grams of the benchmark, and a look at each question."""
    known = set().union(*map(eight_grams, items))
    return lambda: {row for row, text in enumerate(texts) if not known.isdisjoint(eight_grams(text))}


@contextmanager
def _finding(ready: Watch, only: Sequence[str] | None) -> Any:
    yield lambda batch: find(batch, ready, only)


def found_by(
    texts: Sequence[str] | pa.Array, ready: Watch, only: Sequence[str] | None
) -> list[tuple[int, Hit]]:
    """Hits with the row in all texts, by two threads."""
    column = texts if isinstance(texts, pa.Array) else pa.array(texts)
    batches = [column.slice(start, BATCH) for start in range(0, len(column), BATCH)]
    parts = spread(partial(_finding, ready, only), batches, engine="local", workers=WORKERS)
    return [(at * BATCH + hit.row, hit) for at, part in enumerate(parts) for hit in part if not hit.partial]


def ours(texts: Sequence[str], ready: Watch, only: Sequence[str] | None) -> Callable[[], set[int]]:
    """Rows that some of our detectors find."""
    return lambda: {row for row, _ in found_by(texts, ready, only)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--size", type=int, default=200_000)
    parser.add_argument("--gsm8k", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    protected = benchmarks(options.gsm8k)
    if options.memory:
        peak(options.memory, protected)
        return
    items = [text for benchmark in protected for _, text in benchmark.items]
    planted = pool(0, options.size, items, EACH)
    texts = [each.question for each in planted]
    size = sum(len(text.split()) for text in texts) / len(texts)
    print(f"{len(texts):,} questions of {size:.0f} words on average against {len(items):,} items")
    started = time.perf_counter()
    ready = watch(protected)
    took = time.perf_counter() - started
    print(f"the benchmark was made ready in {took:.1f} s; boilerplate: {dict(ready.left_out)}")
    methods: dict[str, Callable[[], set[int]]] = {
        "split": lambda: {row for row, text in enumerate(texts) if not text.lower().split()},
        "8-gram set": plain_sets(texts, items),
        **{name: ours(texts, ready, [name]) for name in DETECTORS},
        "those of the funnel": ours(texts, ready, [each for each in DETECTORS if each != "ngram-8"]),
        "all detectors": ours(texts, ready, None),
    }
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    rows: dict[str, set[int]] = {}
    for _ in range(options.rounds):
        for name, method in methods.items():
            started = time.perf_counter()
            rows[name] = method()
            seconds[name].append(time.perf_counter() - started)
    table(planted, rows, seconds)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pool.parquet"
        pq.write_table(pa.table({"question": texts}), path)
        command = [sys.executable, __file__, "--memory", str(path)]
        command += ["--gsm8k", str(options.gsm8k)] if options.gsm8k else []
        print(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())


def table(planted: Sequence[Planted], rows: dict[str, set[int]], seconds: dict[str, list[float]]) -> None:
    """Rates, recall of each kind, and clean questions that were found."""
    kinds = Counter(each.kind for each in planted)
    base = median(seconds["8-gram set"])
    head = ["method", "questions/s (rounds)", "of the 8-gram set", *KINDS, "clean found", "precision"]
    print(f"\n| {' | '.join(head)} |")
    print("|" + " --- |" * (len(KINDS) + 5))
    for name, found in rows.items():
        hit = Counter(planted[row].kind for row in found)
        rates = " / ".join(f"{len(planted) / each:,.0f}" for each in seconds[name])
        recall = " | ".join(f"{hit[kind] / max(1, kinds[kind]):.1%}" for kind in KINDS)
        right = sum(hit[kind] for kind in KINDS)
        precision = f"{right / len(found):.1%}" if found else "–"
        factor = base / median(seconds[name])
        clean = f"{hit['']:,} ({hit[''] / kinds['']:.2%})"
        print(f"| {name} | {rates} | {factor:.2f} | {recall} | {clean} | {precision} |")


def peak(path: Path, protected: Sequence[Benchmark]) -> None:
    """All detectors on a file, and the most memory that took."""
    column = pq.read_table(path)["question"].combine_chunks()
    found_by(column, watch(protected), None)
    mega = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\nmost memory of a process that asks all detectors: {mega:,.0f} MB")


if __name__ == "__main__":
    main()
