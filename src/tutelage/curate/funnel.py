"""The funnel: how many were kept and dropped at each stage, and why.

Promises: counts only what it is given, reasons sorted by how often they occur. Does not: decide anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from tutelage.curate.decontaminate import Drop
from tutelage.curate.rejection import TraceDrop


def funnel(stages: Iterable[tuple[str, int, Iterable[Drop | TraceDrop]]]) -> list[dict[str, Any]]:
    """One JSON-serialisable row `{stage, kept, dropped, reasons: {rule: count}}` for each (name, number kept,
    drops), in order. What entered a stage is `kept + dropped`."""
    rows = []
    for stage, kept, drops in stages:
        reasons = Counter(drop.rule for drop in drops)
        ordered = dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))
        rows.append({"stage": stage, "kept": kept, "dropped": reasons.total(), "reasons": ordered})
    return rows
