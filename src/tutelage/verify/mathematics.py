r"""Checker `math`: mathematical equality, the certain cases first, the rest by math-verify in a worker.

Promises: never raises; a time-out, a crash or something unparseable is `undecided` with the reason.
Does not: import sympy or math-verify (`symbolic` does, inside the worker process).
"""

from __future__ import annotations

from tutelage.records import Problem
from tutelage.verify.answers import last_line, marked_answer
from tutelage.verify.decision import Decision, before_judging
from tutelage.verify.numbers import only_number
from tutelage.verify.workers import WorkerPool

MATH_LIMIT = 4000
"""Characters of an answer that are given to math-verify; a longer marked answer is not judged, of a
longer last line only the end is read."""
_LINE_LIMIT = 100_000
_LOAD_MATH = {"op": "load-math"}


def decide(problem: Problem, answer: str, pool: WorkerPool) -> Decision:
    """Checker `math`. Asks a worker only where the numbers alone do not decide."""
    if (early := before_judging(problem, answer, "math")) is not None:
        return early
    gold = problem.gold or ""
    marked = marked_answer(answer)
    line = marked.text if marked is not None else last_line(answer, _LINE_LIMIT)[0]
    how = marked.how if marked is not None else "last line"
    marked_gold = marked_answer(gold)
    wanted = marked_gold.text if marked_gold is not None else gold.strip()
    # Only a "yes" about two plain numbers ends here: a "no" may be a percentage or a rounded decimal.
    wanted_number, number = only_number(wanted, equations=False), only_number(line, equations=False)
    same_unit = ("%" in wanted) == ("%" in line)
    if same_unit and wanted_number.value is not None and number.value == wanted_number.value:
        return "correct", f"{how}: equal numbers", "number", line
    cut = marked is None and len(line) > MATH_LIMIT
    if cut:
        line = line[-MATH_LIMIT:]
    if len(line) > MATH_LIMIT:
        reason = f"{how}: {len(line):,} characters; more than {MATH_LIMIT:,} are not judged"
        return "undecided", reason, "math", line
    if len(wanted) > MATH_LIMIT:
        return "undecided", f"the gold answer has {len(wanted):,} characters", "math", line
    reply = pool.ask({"op": "math", "gold": wanted, "answer": line}, _LOAD_MATH)
    if "failed" in reply:
        return "undecided", f"{how}: {reply['failed']}", "math", line
    status, reason = reply["status"], reply["reason"]
    if cut and status == "incorrect":
        return "undecided", f"{how}, only its last {len(line):,} characters: {reason}", "math", line
    return status, f"{how}{' (cut)' if cut else ''}: {reason}", "math", line
