"""The evidence of a curation on disk: drops as Parquet, and one JSON document that the page is drawn from.

Promises: `write_drops` then `read_drops` gives back equal drops; which drops and records are shown as samples
depends on their ids alone; histograms are of all records, not of samples.
Does not: decide, or draw (see `report.curation`).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from tutelage.curate.drops import Drop
from tutelage.errors import StorageError, UsageError
from tutelage.records import clean_text, stable_hash
from tutelage.report.svg import ticks

SAMPLES = 3
KEPT = 6
_TEXT = 1200
_BINS = 24
_SCHEMA = pa.schema(
    [(each.name, pa.float64() if each.name == "score" else pa.string()) for each in fields(Drop)],
    metadata={"tutelage.record": "Drop", "tutelage.version": "1"},
)


def write_drops(path: Path, drops: Sequence[Drop]) -> None:
    """Write the drops, whole or not at all. Raises StorageError when the disk refuses."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    columns = {
        each.name: [
            clean_text(value) if isinstance(value := getattr(drop, each.name), str) else value
            for drop in drops
        ]
        for each in fields(Drop)
    }
    try:
        pq.write_table(pa.table(columns, schema=_SCHEMA), partial, compression="zstd")
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StorageError(f"{path}: cannot write ({error.strerror or error})") from error


def read_drops(path: Path, about: str | None = None) -> list[Drop]:
    """The drops of a file; with `about` those whose record or problem has that id.

    Raises UsageError when the file is missing or holds something else."""
    if not path.is_file():
        raise UsageError(f"{path}: no such file; curate writes it")
    try:
        data = ds.dataset(path, format="parquet")
        if missing := [name for name in _SCHEMA.names if name not in data.schema.names]:
            raise UsageError(f"{path}: not a table of drops (no column {missing[0]!r})")
        wanted = None
        if about is not None:
            wanted = (ds.field("record_id") == about) | (ds.field("problem_id") == about)
        table = data.to_table(columns=_SCHEMA.names, filter=wanted)
    except (pa.ArrowInvalid, OSError) as error:
        raise UsageError(f"{path}: not a readable Parquet file ({error})") from error
    return [Drop(**row) for row in table.to_pylist()]


def shown_drops(drops: Iterable[Drop], each: int = SAMPLES) -> list[Drop]:
    """A few drops of every stage and rule, in the order in which those first occur."""
    groups: dict[tuple[str, str], list[Drop]] = {}
    for drop in drops:
        groups.setdefault((drop.stage, drop.rule), []).append(drop)
    return [
        drop
        for group in groups.values()
        for drop in sorted(group, key=lambda drop: stable_hash(drop.record_id))[:each]
    ]


def shown_records(ids: Sequence[str], each: int = KEPT) -> list[str]:
    """A few of the kept records."""
    return sorted(ids, key=stable_hash)[:each]


@dataclass(frozen=True, slots=True)
class Texts:
    """What is shown of a record: its question, and the beginning of its thinking and answer."""

    question: str
    text: str

    @staticmethod
    def of(question: str, thinking: str, answer: str) -> Texts:
        """The beginnings."""
        both = f"{thinking}\n\n{answer}" if thinking.strip() else answer
        return Texts(question[:_TEXT], both[:_TEXT])


def sample_rows(drops: Sequence[Drop], texts: Mapping[str, Texts]) -> list[dict[str, Any]]:
    """The `samples` of the document."""
    return [
        {
            **{each.name: getattr(drop, each.name) for each in fields(Drop)},
            "question": texts[drop.record_id].question,
            "text": texts[drop.record_id].text,
        }
        for drop in drops
        if drop.record_id in texts
    ]


def histogram(before: Sequence[int], after: Sequence[int], unit: str) -> dict[str, Any]:
    """The `lengths` of the document: counts between round edges; what is beyond the 99th percentile of all
    lengths is in the last bin."""
    if not before:
        return {}
    ordered = sorted(before)
    top = max(1, ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))])
    edges = ticks(0, top, _BINS)
    counts = [_binned(values, edges) for values in (before, after)]
    return {"unit": unit, "edges": edges, "before": counts[0], "after": counts[1]}


def _binned(values: Sequence[int], edges: Sequence[float]) -> list[int]:
    step, last = edges[1] - edges[0], len(edges) - 2
    found = Counter(min(last, int(value / step)) for value in values)
    return [found[at] for at in range(last + 1)]


def shares(domains: Mapping[str, str], chosen: Sequence[str]) -> dict[str, dict[str, int]]:
    """The `domains` of the document: problems of each label among the candidates, and among the chosen."""
    before, after = Counter(domains.values()), Counter(domains[name] for name in chosen)
    ordered = sorted(before, key=lambda name: (-before[name], name))
    return {
        "before": {name: before[name] for name in ordered},
        "after": {name: after[name] for name in ordered},
    }
