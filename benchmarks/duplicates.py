"""Near-duplicates among a million short texts: time, memory and recall on planted pairs.

    python benchmarks/duplicates.py [--size 1000000] [--peer 100000]

The texts: two sentences each of 200,000 (so that many pairs share one, a hard case for a sketch), in random
order; 50,000 of them have a partner in which the last words are others, so many that the Jaccard similarity
of the runs of three words is as little above 0.8 as whole words allow. Recall is the share of those pairs of
which the later one is dropped; a drop of any other text is counted as wrong unless its own similarity, worked
out on the words, is 0.8 or more (it always is: drops are confirmed). rensa's own deduplicator, one text at a
time from Python, runs beside it on `--peer` of the texts.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from string import ascii_lowercase
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import pyarrow as pa
from questions import question

from tutelage.curate.duplicates import Sketches, repeated
from tutelage.engines import spread
from tutelage.questions import words

PLANTED = 50_000
SENTENCES = 200_000
NEAR = 0.8
BATCH = 16_384
WORKERS = 2


def texts(size: int, seed: int) -> tuple[list[str], dict[int, int], list[float]]:
    """The texts, the earlier row for each planted later one, and the similarities of those pairs."""
    rng = random.Random(f"duplicates-{seed}")
    sentences = [question(rng, 1) for _ in range(SENTENCES)]
    planted = min(PLANTED, size // 4)
    made = [" ".join(rng.sample(sentences, 2)) for _ in range(size - planted)]
    pairs, likeness = [], []
    for at in rng.sample(range(len(made)), planted):
        found = words(made[at])
        runs = len(found) - 2
        changed = int(runs * (1 - NEAR) / (1 + NEAR))
        while changed and (runs - changed) / (runs + changed) < NEAR:
            changed -= 1
        other = ["".join(rng.choices(ascii_lowercase, k=8)) for _ in range(changed)]
        text = " ".join(found[: len(found) - changed] + other)
        one, two = (frozenset(zip(each, each[1:], each[2:], strict=False)) for each in (found, words(text)))
        likeness.append(len(one & two) / len(one | two))
        pairs.append((at, text))
    order = list(range(len(made) + planted))
    rng.shuffle(order)
    place = {old: new for new, old in enumerate(order)}
    everything = made + [text for _, text in pairs]
    shuffled = [everything[old] for old in order]
    both = {}
    for number, (at, _) in enumerate(pairs):
        if likeness[number] < NEAR:  # a run that a text has twice makes the rule of thumb wrong
            continue
        one, two = sorted((place[at], place[len(made) + number]))
        both[two] = one
    return shuffled, both, [each for each in likeness if each >= NEAR]


@contextmanager
def _sketching() -> Any:
    yield Sketches.of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--size", type=int, default=1_000_000)
    parser.add_argument("--peer", type=int, default=100_000)
    options = parser.parse_args()
    made, planted, likeness = texts(options.size, 0)
    long = sum(len(text.split()) for text in made[:10_000]) / min(10_000, len(made))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{len(made):,} texts of {long:.0f} words on average, {len(planted):,} planted pairs of similarity "
        f"{min(likeness):.3f} to {max(likeness):.3f}; {before:,.0f} MB before"
    )
    started = time.perf_counter()
    column = pa.array(made)
    batches = [column.slice(start, BATCH) for start in range(0, len(column), BATCH)]
    parts = list(spread(_sketching, batches, engine="local", workers=WORKERS))
    sketched = time.perf_counter() - started
    drops = repeated([str(row) for row in range(len(made))], made, Sketches.join(parts), near=NEAR)
    took = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    dropped = {int(drop.record_id) for drop in drops}
    found = sum(row in dropped for row in planted)
    print(
        f"tutelage: {took:.1f} s ({sketched:.1f} s of it sketches), {len(made) / took:,.0f} texts/s; "
        f"{len(drops):,} dropped; recall {found / len(planted):.2%}; most memory {peak:,.0f} MB"
    )
    peer(made[: options.peer])


def peer(made: list[str]) -> None:
    """rensa's deduplicator: shingles in Python, sketches and pairs in Rust."""
    from rensa import RMinHash, RMinHashDeduplicator

    started = time.perf_counter()
    keeper = RMinHashDeduplicator(NEAR, 64, use_lsh=True, num_bands=16)
    kept = 0
    for row, text in enumerate(made):
        found = text.lower().split()
        sketch = RMinHash(64, 42)
        sketch.update([" ".join(found[at : at + 3]) for at in range(max(1, len(found) - 2))])
        kept += keeper.add(str(row), sketch)
    took = time.perf_counter() - started
    rate = len(made) / took
    print(f"rensa, text by text, {len(made):,} texts: {rate:,.0f} texts/s, {len(made) - kept:,} dropped")


if __name__ == "__main__":
    main()
