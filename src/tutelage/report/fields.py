"""Fields of summary.json, read one by one: a missing section is an empty one, a broken entry is named.

Promises: what comes out is of the kind asked for, or a UsageError says where it stands (`arms[3].accuracy`);
no number without an interval where one is asked for (`measured`).
Does not: know what the sections mean (see `summary`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tutelage.errors import UsageError
from tutelage.plain import visible


def entries(summary: Mapping[str, Any], section: str) -> list[tuple[str, Mapping[str, Any]]]:
    """The objects of a section, each with where it stands; none where there is no such section."""
    rows = summary.get(section) or []
    if not isinstance(rows, Sequence) or isinstance(rows, str):
        raise UsageError(f"summary: {section} must be a list")
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise UsageError(f"summary: {section}[{index}] must be an object")
    return [(f"{section}[{index}]", row) for index, row in enumerate(rows)]


def measured(
    summary: Mapping[str, Any], section: str
) -> list[tuple[str, Mapping[str, Any], tuple[float, float]]]:
    """The entries of a section whose numbers carry `ci95`."""
    found = []
    for where, row in entries(summary, section):
        ci = row.get("ci95")
        if not isinstance(ci, Sequence) or len(ci) != 2 or not all(map(is_number, ci)):
            raise UsageError(f"summary: {where}.ci95 must be [lo, hi]: no number without an interval")
        found.append((where, row, (float(ci[0]), float(ci[1]))))
    return found


def text_at(row: Mapping[str, Any], key: str, where: str) -> str:
    """`row[key]`, a text, free of control characters."""
    value = row.get(key)
    if not isinstance(value, str):
        raise UsageError(f"summary: {where}.{key} must be text, not {value!r:.60}")
    return visible(value)


def number_at(row: Mapping[str, Any], key: str, where: str) -> float:
    """`row[key]`, a finite number. Raises UsageError that names `where` it should be."""
    value = row.get(key)
    if not is_number(value):
        raise UsageError(f"summary: {where}.{key} must be a number, not {value!r:.60}")
    return float(value)  # type: ignore[arg-type]


def number_or_none(row: Mapping[str, Any], key: str, where: str) -> float | None:
    """`row[key]`, a finite number, or None where it is missing."""
    return None if row.get(key) is None else number_at(row, key, where)


def count_at(row: Mapping[str, Any], key: str, where: str) -> int | None:
    """`row[key]` as a whole number, or None where it is missing."""
    value = number_or_none(row, key, where)
    return None if value is None else int(value)


def counts_at(row: Mapping[str, Any], key: str, where: str) -> dict[str, float]:
    """`row[key]`, counts by name; none where it is missing."""
    counts = row.get(key) or {}
    if not isinstance(counts, Mapping):
        raise UsageError(f"summary: {where}.{key} must map names to counts")
    return {visible(name): number_at(counts, name, f"{where}.{key}") for name in counts}


def is_number(value: object) -> bool:
    """Whether `value` is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
