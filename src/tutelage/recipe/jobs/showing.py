"""Rows for the report's reader of traces.

Promises: the problems are chosen evenly over difficulties, before anyone has looked at the replies.
Does not: read files or draw.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tutelage.records import Problem, Trace, Verdict


def choose_shown(problems: Sequence[Problem], count: int) -> list[str]:
    """Ids of `count` problems for the reader, in turn from every difficulty (where problems have one)."""
    groups: dict[int | float | str | None, list[str]] = {}
    for problem in problems:
        groups.setdefault(_difficulty(problem), []).append(problem.id)
    order = sorted(groups, key=lambda level: (level is not None, level if isinstance(level, int) else 0))
    turns = (groups[level][turn] for turn in range(count) for level in order if turn < len(groups[level]))
    return [problem_id for problem_id, _ in zip(turns, range(count), strict=False)]


def reader_rows(
    arm: str,
    seed: int | None,
    pairs: Iterable[tuple[Trace, Verdict]],
    problems: Mapping[str, Problem],
    wanted: set[str],
) -> Iterator[dict[str, Any]]:
    """What `arm` wrote for the problems `wanted`, as `report.render` takes it."""
    for trace, verdict in pairs:
        if trace.problem_id not in wanted:
            continue
        problem = problems[trace.problem_id]
        yield {
            "problem_id": problem.id,
            "question": problem.question,
            "gold": problem.gold,
            "difficulty": _difficulty(problem),
            "arm": arm,
            "seed": seed,
            "thinking": trace.thinking,
            "answer": trace.answer,
            "status": verdict.status,
            "reason": verdict.reason,
            "forced_spans": [list(span) for span in trace.forced_spans],
            "thinking_tokens": trace.thinking_tokens,
            "closed_by": trace.closed_by,
        }


def _difficulty(problem: Problem) -> int | float | str | None:
    """The problem's difficulty, if it is a level; reasoning-gym writes the settings of its task there."""
    level = problem.metadata.get("difficulty")
    return level if isinstance(level, int | float | str) else None
