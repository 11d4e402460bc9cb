"""Two files of verdicts, compared question by question.

Promises: refuses files that do not cover the same questions; an undecided answer counts as not right and
is counted. Does not: judge, or compute statistics (see `measure.compare`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tutelage.errors import UsageError
from tutelage.measure.compare import compare
from tutelage.records import Verdict, read_records


def compare_files(a: Path, b: Path, *, seed: int = 0) -> dict[str, Any]:
    """`measure.compare.compare` of the verdicts in `a` and `b` (files, or folders that evaluate
    wrote), and `undecided`: how many in each.

    Raises UsageError for files that are no verdicts, are empty, or do not cover the same questions."""
    names = [a.stem, b.stem] if a.stem != b.stem else [str(a), str(b)]
    scores: list[dict[str, list[float]]] = []
    undecided = []
    for path in (a, b):
        verdicts = read_records(path / "verdicts.parquet" if path.is_dir() else path, Verdict)
        if not verdicts:
            raise UsageError(f"{path}: holds no verdicts")
        by_problem: dict[str, list[float]] = {}
        for verdict in verdicts:
            by_problem.setdefault(verdict.problem_id, []).append(float(verdict.status == "correct"))
        scores.append(by_problem)
        undecided.append(sum(verdict.status == "undecided" for verdict in verdicts))
    found = compare(names[0], names[1], scores[0], scores[1], 0, bootstrap_seed=seed)
    del found["seed"]  # of training, which verdicts do not tell
    return {**found, "undecided": undecided}
