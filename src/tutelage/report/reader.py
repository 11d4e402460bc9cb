"""The traces as data for the page's reader: inert JSON that cannot become markup.

Promises: whatever a model wrote, the result is ASCII, holds no `<`, `>` or `&`, and parses back; control
and reordering characters are shown as symbols; forced spans are cut by Python's characters, so that
the browser's UTF-16 never shifts a mark. A span outside its text is refused.
Does not: choose traces; the caller hands in those worth reading.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from tutelage.errors import UsageError
from tutelage.plain import visible

_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})
STATUSES = ("correct", "incorrect", "undecided")


def reader_data(traces: Sequence[Mapping[str, Any]], start: Sequence[tuple[str, str]] = ()) -> Markup:
    """JSON `{sides, problems, traces, start}`: a side is an arm of one seed, `start` the two sides shown
    first (those of `start` that exist, given as (arm, seed) pairs). Questions are stored once each.

    Raises UsageError for a trace without problem id or arm, an unknown status, or a broken forced span."""
    sides: dict[tuple[str, str], int] = {}
    problems: dict[str, dict[str, Any]] = {}
    place: dict[str, int] = {}
    rows = []
    for index, trace in enumerate(traces):
        where = f"traces[{index}]"
        for key in ("problem_id", "arm"):
            if trace.get(key) in (None, ""):
                raise UsageError(f"report: {where}.{key} is missing")
        side = (visible(trace["arm"]), visible(trace.get("seed", "")))
        name = str(trace["problem_id"])
        if name not in problems:
            place[name] = len(problems)
            problems[name] = {
                "id": visible(name),
                "question": visible(trace.get("question") or ""),
                "gold": None if trace.get("gold") is None else visible(trace["gold"]),
                "difficulty": None if trace.get("difficulty") is None else visible(trace["difficulty"]),
            }
        status = trace.get("status", "undecided")
        if status not in STATUSES:
            raise UsageError(f"report: {where}.status is {status!r:.60}; expected {', '.join(STATUSES)}")
        rows.append(
            {
                "p": place[name],
                "s": sides.setdefault(side, len(sides)),
                "thinking": segments(
                    str(trace.get("thinking") or ""), trace.get("forced_spans") or (), where
                ),
                "answer": visible(trace.get("answer") or ""),
                "status": status,
                "reason": visible(trace.get("reason") or ""),
                "tokens": _tokens(trace.get("thinking_tokens"), where),
                "closed": visible(trace.get("closed_by") or ""),
            }
        )
    chosen = [sides[side] for side in start if side in sides]
    data = {
        "sides": [f"{arm} · seed {seed}" if seed else arm for arm, seed in sides],
        "problems": list(problems.values()),
        "traces": rows,
        "start": chosen if len(chosen) == 2 else [0, min(1, len(sides) - 1)],
    }
    return Markup(json.dumps(data, ensure_ascii=True, allow_nan=False).translate(_ESCAPES))


def segments(thinking: str, spans: Sequence[Sequence[int]], where: str) -> list[list[Any]]:
    """`thinking` as pieces [text, forced], forced 1 inside `spans` (half-open character ranges), else 0."""
    pieces: list[list[Any]] = []
    at = 0
    for span in sorted(tuple(span) for span in spans):
        if len(span) != 2 or not 0 <= span[0] <= span[1] <= len(thinking):
            raise UsageError(
                f"report: {where}: forced span {list(span)} does not fit {len(thinking)} characters of text"
            )
        first, last = max(at, span[0]), max(at, span[1])
        pieces += [[visible(thinking[at:first]), 0], [visible(thinking[first:last]), 1]]
        at = last
    pieces.append([visible(thinking[at:]), 0])
    return [piece for piece in pieces if piece[0]]


def _tokens(value: object, where: str) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise UsageError(f"report: {where}.thinking_tokens must be a number, not {value!r:.60}")
    return value
