"""Why something was left out: one record for every stage that leaves things out.

Promises: a drop names the stage, the rule and the evidence, and, where something else is the reason (a
benchmark item, an earlier record, a trace that supersedes it), that as well, side by side; `write_drops` then
`read_drops` gives back equal drops (Parquet, one Arrow schema).
Does not: decide anything, or delete anything. What was dropped is still in the file it came from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Drop:
    """Why the record `record_id` (a trace, or a problem) was dropped.

    `problem_id` is the problem that the record is or belongs to. `stage` is the part of the funnel
    (`quality`, `decontamination`, ...), `rule` the rule of it that decided, `reason` its evidence in one line
    for people. `score` is what the rule measured, None where it measures nothing. `matched_id` and
    `matched_text` are the item that the record was found too like, of the benchmark or source `benchmark`
    ("" for records of the same pool)."""

    record_id: str
    problem_id: str
    stage: str
    rule: str
    reason: str
    score: float | None = None
    matched_id: str = ""
    matched_text: str = ""
    benchmark: str = ""


def funnel(stages: Iterable[tuple[str, int, Iterable[Drop]]]) -> list[dict[str, Any]]:
    """One JSON-serialisable row `{stage, kept, dropped, reasons: {rule: count}}` for each (name, number kept,
    drops), in order. What entered a stage is `kept + dropped`."""
    rows = []
    for stage, kept, drops in stages:
        reasons = Counter(drop.rule for drop in drops)
        rows.append(funnel_row(stage, kept, reasons))
    return rows


def funnel_row(stage: str, kept: int, reasons: Counter[str]) -> dict[str, Any]:
    """One row of the funnel; rules sorted by how often they decided."""
    ordered = dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))
    return {"stage": stage, "kept": kept, "dropped": reasons.total(), "reasons": ordered}
