"""Checker `gym:TASK`: reasoning-gym's own scorer of that task, strictly.

`Problem.metadata` holds the item's metadata, or the whole item's under the key `metadata`; the gold answer is
the item's (some tasks have none, and score by the metadata alone).
Promises: only a score of exactly 1 is correct; a scorer that raises, or an item that is not whole, is
undecided; the package is loaded in a worker process only, where no answer is run as Python (`gym_scorers`).
Does not: give part of a score; trust two scorers that take wrong answers (see `OURS`).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

from tutelage.errors import UsageError
from tutelage.records import Problem
from tutelage.verify import exact, quantities
from tutelage.verify.answers import last_line, marked_answer
from tutelage.verify.decision import Checker, Decision
from tutelage.verify.gym_scorers import INSTALL, PACKAGE
from tutelage.verify.workers import WorkerPool

PREFIX = "gym:"
LIMIT = 100_000
"""Characters of an answer that a scorer is given."""
OURS: Mapping[str, tuple[Checker, str]] = {
    "gsm_symbolic": (quantities.decide, "its scorer reads the first number of the answer"),
    "game_of_life_halting": (exact.decide, "its scorer takes any text for True"),
}
"""Tasks whose scorer takes wrong answers: judged by our checker instead, and why."""
_LOAD = {"op": "load-gym"}


def require(problem: Problem) -> None:
    """Raise UsageError when the package is missing or no task is named. Does not load the package."""
    if not problem.checker.removeprefix(PREFIX):
        raise UsageError(f"problem {problem.id!r}: checker {problem.checker!r} names no task; use gym:TASK")
    if importlib.util.find_spec(PACKAGE) is None:
        raise UsageError(f"checker {problem.checker!r} needs reasoning-gym: {INSTALL}")


def tagged(answer: str) -> str | None:
    """What the last `<answer>` tags hold: the form that the package's own prompts ask for."""
    close = answer.rfind("</answer>")
    start = answer.rfind("<answer>", 0, close) if close >= 0 else -1
    return answer[start + len("<answer>") : close].strip() if start >= 0 else None


def readings(answer: str) -> list[str]:
    """What may be the answer in a reply: what is tagged; else what is boxed or stated; else the whole text,
    and its last line."""
    found = tagged(answer)
    if found is not None:
        return [found]
    marked = marked_answer(answer)
    if marked is None:
        return list(dict.fromkeys([answer.strip(), last_line(answer)[0]]))
    if marked.how != "answer is":
        return [marked.text]
    # A stated answer ends with its clause ("10, because ..."), but may also be a list with commas.
    line = answer[answer.rfind(marked.text) :].split("\n", 1)[0]
    return list(dict.fromkeys([marked.text, line.strip().removesuffix(".").strip("* ")]))


def decide(problem: Problem, answer: str, pool: WorkerPool) -> Decision:
    """Checker `gym:TASK`. Raises UsageError for a task that reasoning-gym does not have."""
    task = problem.checker.removeprefix(PREFIX)
    metadata = _item(problem.metadata)
    gold = problem.gold if (problem.gold or "").strip() else None
    if gold is None and not metadata:
        return "undecided", "no gold answer", "gym", None
    if not answer or answer.isspace():
        return "incorrect", "no answer", "gym", None
    if task in OURS:
        checker, why = OURS[task]
        status, reason, method, extracted = checker(problem, tagged(answer) or answer, pool)
        return status, f"by our checker {method!r}, because {why}: {reason}", "gym", extracted
    found = readings(answer)
    shown = found[-1]
    if max(map(len, found)) > LIMIT:
        return "undecided", f"the answer has more than {LIMIT:,} characters", "gym", shown
    if gold is not None:  # white space at the ends of a gold answer is no part of it
        found = [gold if each.strip() == gold.strip() else each for each in found]
    entry = {"question": problem.question, "answer": gold, "metadata": metadata}
    reply = pool.ask({"op": "gym", "task": task, "entry": entry, "answers": found}, _LOAD)
    if "failed" in reply:
        return "undecided", reply["failed"], "gym", shown
    scores: list[float | str] = reply["scores"]
    for each, score in zip(found, scores, strict=True):
        if score == 1.0:
            return "correct", "the task's scorer gives 1", "gym", each.strip()
    reasons = [score for score in scores if isinstance(score, str)]
    if reasons:
        return "undecided", reasons[0], "gym", shown
    best = max(score for score in scores if not isinstance(score, str))
    return "incorrect", f"the task's scorer gives {best:.3g}; only 1 counts", "gym", shown


def _item(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The item's own metadata: as they are, or under `metadata` where a whole item was read from a file."""
    inner = metadata.get("metadata")
    return dict(inner) if isinstance(inner, Mapping) else dict(metadata)
