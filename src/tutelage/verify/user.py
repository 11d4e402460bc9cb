"""A user's own checker: a function `check(problem, trace)` in a file or a module.

Named in `Problem.checker` as `path/to/file.py:function`, `package.module:function` or
`package.module.function`. It may return a
Verdict, a bool, or a score: 1 is correct, 0 is incorrect, anything between is undecided with the score in the
reason.
Promises: `is_user_checker` and `absolute` run none of the user's code; a file or function that is
missing is a UsageError that names it; an exception in the function becomes an undecided verdict with a
one-line reason.
Does not: limit time or memory (`workers` does). Relative paths are meant from the current directory.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import math
import sys
import traceback
from collections.abc import Callable
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any

from tutelage.errors import UsageError
from tutelage.records import Problem, Trace, Verdict, stable_hash
from tutelage.verify.decision import Decision
from tutelage.verify.workers import WorkerPool

Check = Callable[[Problem, Trace], Any]


def split(checker: str) -> tuple[str, str]:
    """The file or module of a user function, and the function's name; both "" for any other checker."""
    place, colon, function = checker.rpartition(":")
    if not colon and all(part.isidentifier() for part in checker.split(".")):
        place, _, function = checker.rpartition(".")
        place = "" if function == "py" else place  # a file without a function
    return (place, function) if place and function.isidentifier() else ("", "")


def is_user_checker(checker: str) -> bool:
    """True for the spelling of a user function."""
    return bool(split(checker)[0])


def absolute(checker: str, base: Path) -> str:
    """`checker` with a relative file path made absolute from `base`; any other checker unchanged."""
    place, function = split(checker)
    if place.endswith(".py") and not Path(place).is_absolute():
        return f"{(base / place).resolve()}:{function}"
    return checker


def one_line(error: BaseException, limit: int = 300) -> str:
    """An exception as one line, with the last place of the traceback that is not ours."""
    text = " ".join(f"{type(error).__name__}: {error}".split())[:limit]
    frames = traceback.extract_tb(error.__traceback__)
    outside = [frame for frame in frames if "tutelage/verify" not in frame.filename]
    return f"{text} ({Path(outside[-1].filename).name} line {outside[-1].lineno})" if outside else text


@lru_cache(maxsize=64)
def load_function(checker: str) -> Check:
    """Import the function that `checker` names. Runs the module's code.

    Raises UsageError when the file, module or function is missing, or importing it raises."""
    place, function = split(checker)
    try:
        if place.endswith(".py"):
            path = Path(place).resolve()
            if not path.is_file():
                raise UsageError(f"checker {checker!r}: no file {path}")
            name = f"user_checker_{stable_hash(str(path))}"
            module = sys.modules.get(name)
            if module is None:
                spec = importlib.util.spec_from_file_location(name, path)
                if spec is None or spec.loader is None:
                    raise UsageError(f"checker {checker!r}: {path} is not a Python file")
                module = importlib.util.module_from_spec(spec)
                sys.modules[name] = module
                sys.path.append(str(path.parent))
                try:
                    spec.loader.exec_module(module)
                except BaseException:
                    del sys.modules[name]
                    raise
        else:
            module = importlib.import_module(place)
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(f"checker {checker!r}: cannot be imported, {one_line(error)}") from error
    found = getattr(module, function, None)
    if not callable(found):
        raise UsageError(f"checker {checker!r}: {place} has no function {function!r}")
    check: Check = found
    return check


def as_verdict(result: Any, problem: Problem, trace: Trace) -> Verdict:
    """The Verdict that a checker's `result` means."""

    def verdict(status: Any, reason: str) -> Verdict:
        return Verdict(trace.id, problem.id, status, reason, "user", trace.answer.strip()[:1000] or None)

    if isinstance(result, Verdict):
        if result.status not in ("correct", "incorrect", "undecided"):
            return verdict("undecided", f"the checker returned the status {str(result.status)[:40]!r}")
        return dataclasses.replace(result, trace_id=trace.id, problem_id=problem.id)
    item = getattr(result, "item", None)  # numpy and torch scalars
    value = item() if callable(item) else result
    if not isinstance(value, bool | int | float):
        return verdict(
            "undecided", f"the checker returned {type(result).__name__}, not a verdict, bool or score"
        )
    score = float(value)
    if math.isnan(score) or not 0 <= score <= 1:
        return verdict("undecided", f"the checker returned {score:g}, outside 0..1")
    if score in (0.0, 1.0):
        return verdict("correct" if score else "incorrect", "decided by the user's checker")
    return verdict("undecided", f"the checker's score is {score:g}, between 0 and 1")


def run(checker: str, problem: Problem, trace: Trace) -> Verdict:
    """Call the user's function on one trace; an exception in it is an undecided verdict."""
    check = load_function(checker)
    try:
        return as_verdict(check(problem, trace), problem, trace)
    except Exception as error:  # noqa: BLE001 - reported in the verdict
        reason = f"the checker raised {one_line(error)}"
        return Verdict(trace.id, problem.id, "undecided", reason, "user", None)


def run_score(checker: str, problem: Problem, trace: Trace) -> float:
    """What the user's function returns for one trace, as a number: a Verdict is 1 when correct, else 0.

    Raises ValueError for what is not a finite number, or an undecided Verdict, and what the function
    raises."""
    result = load_function(checker)(problem, trace)
    if isinstance(result, Verdict):
        if result.status not in ("correct", "incorrect"):
            raise ValueError(f"undecided: {result.reason}")
        return float(result.status == "correct")
    item = getattr(result, "item", None)  # numpy and torch scalars
    value = item() if callable(item) else result
    if not isinstance(value, bool | int | float) or not math.isfinite(value):
        raise ValueError(f"returned {str(value)[:40]!r}, not a finite number")
    return float(value)


def load_request(checker: str) -> dict[str, str]:
    """What tells a worker to load the function. Names the current directory, because a worker that serves
    a whole process may have started in another."""
    folder = Path.cwd()
    return {"op": "load-user", "checker": absolute(checker, folder), "folder": str(folder)}


def decide(problem: Problem, trace: Trace, pool: WorkerPool) -> Decision:
    """Call the user's function in a worker process. It sees the whole trace."""
    reply = _ask("user", problem.checker, problem, trace, pool)
    if "failed" in reply:
        return "undecided", f"the checker: {reply['failed']}", "user", None
    found = Verdict(**reply["verdict"])
    return found.status, found.reason, found.method, found.extracted


def score(function: str, problem: Problem, trace: Trace, pool: WorkerPool) -> float | str:
    """What `function` returns for one trace (see `run_score`), in a worker process; text says why there is no
    number. Raises UsageError when it cannot be loaded."""
    reply = _ask("user-score", function, problem, trace, pool)
    return f"{function}: {reply['failed']}" if "failed" in reply else float(reply["score"])


def _ask(op: str, function: str, problem: Problem, trace: Trace, pool: WorkerPool) -> dict[str, Any]:
    load = load_request(function)
    told = {"op": op, "checker": load["checker"], "problem": to_json(problem), "trace": to_json(trace)}
    return pool.ask(told, load)


def to_json(record: Problem | Trace | Verdict) -> dict[str, Any]:
    """A record as JSON-serialisable fields."""
    row = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    for name in ("metadata", "settings"):
        if name in row:
            row[name] = dict(row[name])
    if row.get("cost") is not None:
        row["cost"] = str(row["cost"])
    return row


def problem_from_json(row: dict[str, Any]) -> Problem:
    """The Problem that `to_json` wrote."""
    return Problem(**{**row, "parents": tuple(row["parents"])})


def trace_from_json(row: dict[str, Any]) -> Trace:
    """The Trace that `to_json` wrote."""
    spans = tuple((start, stop) for start, stop in row["forced_spans"])
    cost = None if row["cost"] is None else Decimal(row["cost"])
    return Trace(**{**row, "forced_spans": spans, "cost": cost})
