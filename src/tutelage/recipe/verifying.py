"""What `tutelage verify` does: judge a file of answers, judge traces, check gold answers.

Promises: answers and traces are judged by the stage `verify`, so that a verb and a recipe cannot differ; a
judge stage that stopped early still gives its counts, in the error; nothing is left behind of the tables made
from a file of answers.
Does not: judge (see `recipe.jobs.judging` and the room `verify`).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tutelage.errors import PartialError, UsageError
from tutelage.problems.answers import read_answers
from tutelage.problems.files import read_problems
from tutelage.recipe.collecting import SERVERS, teacher_settings
from tutelage.recipe.given import column_pairs, questions_file
from tutelage.recipe.single import run_single
from tutelage.recipe.stage import Progress
from tutelage.records import Problem, Trace, Verdict, read_records, write_records
from tutelage.verify import agreement
from tutelage.verify.gold import check_gold
from tutelage.verify.workers import SECONDS

SHOWN = 20
JUDGE_TOKENS = 2048
"""Enough to think briefly, and a bound for what one look can cost."""


def judge_settings(judge: str | None, url: str | None, given: Mapping[str, Any]) -> dict[str, Any] | None:
    """The settings of a judge written as `openai:MODEL` and the like (see `collecting.teacher_settings`);
    None where there is none. `given` are those with an option of their own. Raises UsageError."""
    if judge is None:
        named = {"url": url, **given}
        if option := next((name for name, value in named.items() if value is not None), None):
            said = f"--judge-{option.replace('_', '-')} is for a judge"
            raise UsageError(f"tutelage verify: {said}; give --judge openai:MODEL as well")
        return None
    if judge.partition(":")[0] not in SERVERS:
        known = ", ".join(f"{name}:MODEL" for name in SERVERS)
        raise UsageError(f"tutelage verify: --judge {judge}: write one of {known}")
    return teacher_settings(judge, url, {"max_tokens": JUDGE_TOKENS, **given})


def verify_answers(
    source: Path,
    *,
    answer: str,
    gold: str,
    kind: str,
    question: str = "",
    identity: str = "",
    out: Path | None = None,
    settings: Mapping[str, Any],
    ledger: Path | None = None,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Verdicts on the rows of a file: the counts, the seconds, and the verdicts, as rows {id, status, reason,
    method, extracted} in the order of the file, or with `out` the place where they are.

    Raises UsageError, and PartialError with the same document when a judge stopped early."""
    if settings.get("judge") is not None and ledger is None and out is None:
        raise UsageError("tutelage verify: --judge needs --out or --ledger, where its paid replies are kept")
    start = time.perf_counter()
    problems, traces = read_answers(
        source, answer=answer, gold=gold, kind=kind, question=question, identity=identity
    )
    with tempfile.TemporaryDirectory(prefix="tutelage-verify-") as name:
        folder = Path(name)
        write_records(folder / "problems.parquet", problems, Problem)
        write_records(folder / "traces.parquet", traces, Trace)
        inputs = {each: str(folder / f"{each}.parquet") for each in ("problems", "traces")}
        rows = len(problems)
        del problems, traces

        def document(result: Mapping[str, Any]) -> dict[str, Any]:
            counts = {key: value for key, value in result["metrics"].items() if key != "traces"}
            seconds = round(time.perf_counter() - start, 3)
            told = str(out) if out is not None else _told(folder / "verdicts.parquet")
            return {"rows": rows, **counts, "seconds": seconds, "verdicts": told}

        try:
            result = run_single(
                "verify",
                settings,
                out or folder / "verdicts.parquet",
                inputs=inputs,
                ledger=ledger,
                overrides=overrides,
                progress=progress,
            )
        except PartialError as error:
            if error.done:
                raise PartialError(str(error), done=document(error.done)) from error
            raise
        return document(result)


def _told(path: Path) -> list[dict[str, Any]]:
    return [
        {
            "id": each.problem_id,
            "status": each.status,
            "reason": each.reason,
            "method": each.method,
            "extracted": each.extracted,
        }
        for each in read_records(path, Verdict)
    ]


def verify_records(
    problems: str,
    traces: Path,
    *,
    out: Path,
    settings: Mapping[str, Any],
    checker: str | None = None,
    columns: Sequence[str] | None = None,
    ledger: Path | None = None,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Verdicts on traces as collect writes them: the stage's metrics and outputs. Raises what it raises."""
    questions = questions_file(problems, out, checker=checker, columns=columns)
    return run_single(
        "verify",
        settings,
        out,
        inputs={"problems": str(questions), "traces": str(traces)},
        ledger=ledger,
        overrides=overrides,
        progress=progress,
    )


def check_gold_file(
    source: str,
    *,
    checker: str | None = None,
    columns: Sequence[str] | None = None,
    seconds: float | None = None,
    tolerance: float | None = None,
    workers: int = 1,
    allow_weaker_sandbox: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """`{"checked": n, "failed": [{"id", "gold", "test", "reason"}, ...]}` for the gold answers of a file of
    problems. Raises UsageError."""
    problems = read_problems(source, columns=column_pairs(columns) or None, checker=checker or "number")
    if tolerance is not None:
        problems = [replace(each, metadata={"tolerance": tolerance, **each.metadata}) for each in problems]
    found = check_gold(
        problems,
        seconds=SECONDS if seconds is None else seconds,
        workers=workers,
        allow_weaker_sandbox=allow_weaker_sandbox,
        progress=progress,
    )
    failed = [
        {"id": each.problem_id, "gold": each.gold, "test": each.test, "reason": each.reason} for each in found
    ]
    return {"checked": len(problems), "failed": failed}


def counts_text(counts: Mapping[str, Any]) -> str:
    """The counts of `verify_answers`, or the metrics of the stage, for people."""
    total = counts.get("rows", counts.get("traces", 0))
    said = ", ".join(f"{counts[name]:,} {name}" for name in ("correct", "incorrect", "undecided"))
    took = f" ({counts['seconds']:.1f} s)" if "seconds" in counts else ""
    lines = [f"{total:,} judged: {said}{took}"]
    lines.append(
        "decided by: " + (", ".join(f"{k} {v:,}" for k, v in counts["methods"].items()) or "nothing")
    )
    lines += [f"undecided, {count:,}: {reason}" for reason, count in counts["undecided_reasons"].items()]
    if judge := counts.get("judge"):
        cost = f"${judge['dollars']}" if judge["dollars"] is not None else "cost unknown"
        lines.append(f"judge {judge['model']}: {judge['replies']:,} replies, {cost}")
        for name, looks in judge.items():
            if isinstance(looks, Mapping):
                lines.append(f"  {name}: " + ", ".join(f"{value:,} {key}" for key, value in looks.items()))
    if "agreement" in counts:
        lines.append(agreement.as_text(counts["agreement"], SHOWN))
    return "\n".join(lines)


def gold_text(document: Mapping[str, Any]) -> str:
    """What `check_gold_file` found, for people."""
    failed = document["failed"]
    lines = [
        f"{each['id']}  {each['gold']!r:.60}  {each['test']}: {' '.join(each['reason'].split())}"
        for each in failed
    ]
    count = len({each["id"] for each in failed})
    return "\n".join([*lines, f"{document['checked']:,} gold answers checked, {count:,} fail"])
