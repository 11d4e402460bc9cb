r"""From an answer to a verdict: the cheap certain checks first, math-verify and user code in killable
workers.

`Problem.checker` chooses: `exact`, `number`, `math`, or a user's function (`file.py:function`).
Promises: one verdict per trace, in the order of the traces, whatever the text; a time-out, a crash or
something unparseable is `undecided` with the reason, never `incorrect`; a missing gold answer is never
counted right; unknown checkers and missing user functions are a UsageError before the first trace is read.
Only the answer is judged: the thinking is never searched, and how the reply ended (`finish_reason`) is not
consulted.
Does not: filter or repair; `undecided` is for a person, or a judge, to settle.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from concurrent.futures import Future, ThreadPoolExecutor

from tutelage.errors import UsageError
from tutelage.records import Problem, Status, Trace, Verdict
from tutelage.verify import exact, user
from tutelage.verify.answers import last_line, marked_answer
from tutelage.verify.numbers import Found, first_number, last_number, only_number
from tutelage.verify.workers import WorkerPool

Progress = Callable[[int, int, str], None]
CHECKERS = ("exact", "number", "math")
MATH_LIMIT = 4000
"""Characters of an answer that are given to math-verify; a longer marked answer is not judged, of a
longer last line only the end is read."""
_LINE_LIMIT = 100_000
_SHOWN = 1000
_LOAD_MATH = {"op": "load-math"}

Decision = tuple[Status, str, str, str | None]
"""status, reason, method, extracted"""


def verify(*, answer: str, gold: str | None, kind: str = "number", seconds: float = 5.0) -> Verdict:
    """The verdict on one answer text; `kind` is a checker name as in `Problem.checker`.

    Starts a worker process for `math` where the numbers alone do not decide, and for user functions; use
    `judge` for more than a few."""
    problem = Problem(id="", question="", gold=gold, checker=kind)
    trace = Trace(id="", problem_id="", sample=0, maker="", answer=answer)
    with WorkerPool(seconds=seconds) as pool:
        require_checkers([problem], pool)
        return check_trace(problem, trace, pool)


def judge(
    problems: Mapping[str, Problem],
    traces: Iterable[Trace],
    *,
    seconds: float = 5.0,
    workers: int = 1,
    progress: Progress | None = None,
) -> Iterator[Verdict]:
    """Verdicts on `traces`, in their order; `problems` is by id. `seconds` is the wall time for one verdict
    that needs a worker process, `workers` how many of those run at once.

    Raises UsageError for an unknown checker, a user function that cannot be loaded (both before the first
    trace is read), and a trace whose problem is not in `problems`."""
    total = len(traces) if isinstance(traces, Sized) else 0
    with WorkerPool(workers, seconds) as pool:
        require_checkers(problems.values(), pool)
        for done, verdict in enumerate(_verdicts(problems, traces, pool, workers), start=1):
            if progress is not None:
                progress(done, total, verdict.status)
            yield verdict


def _verdicts(
    problems: Mapping[str, Problem], traces: Iterable[Trace], pool: WorkerPool, workers: int
) -> Iterator[Verdict]:
    def check(trace: Trace) -> Verdict:
        problem = problems.get(trace.problem_id)
        if problem is None:
            raise UsageError(f"trace {trace.id!r} answers problem {trace.problem_id!r}, which is not there")
        return check_trace(problem, trace, pool)

    if workers == 1:
        yield from map(check, traces)
        return
    waiting: deque[Future[Verdict]] = deque()
    executor = ThreadPoolExecutor(workers, thread_name_prefix="verify")
    try:
        for trace in traces:
            waiting.append(executor.submit(check, trace))
            if len(waiting) >= 8 * workers:  # bounds memory, keeps the order
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BaseException:
        pool.close()  # a caller that stops early does not wait for hung workers
        raise
    finally:
        executor.shutdown(cancel_futures=True)


def require_checkers(problems: Iterable[Problem], pool: WorkerPool) -> None:
    """Raise UsageError unless every checker of `problems` is known, and every user function can be loaded."""
    seen: set[str] = set()
    for problem in problems:
        checker = problem.checker
        if checker in seen:
            continue
        seen.add(checker)
        if checker in CHECKERS:
            continue
        if not user.is_user_checker(checker):
            known = ", ".join(CHECKERS)
            raise UsageError(
                f"problem {problem.id!r}: unknown checker {checker!r}; use {known}, or file.py:function"
            )
        pool.load({"op": "load-user", "checker": checker})


def check_trace(problem: Problem, trace: Trace, pool: WorkerPool) -> Verdict:
    """The verdict on one trace by its problem's checker. Raises UsageError for an unknown checker or a user
    function that cannot be loaded; nothing else."""
    start = time.perf_counter()
    if user.is_user_checker(problem.checker):
        verdict = _by_user(problem, trace, pool)
        status, reason, method, extracted = (
            verdict.status,
            verdict.reason,
            verdict.method,
            verdict.extracted,
        )
    else:
        status, reason, method, extracted = _decide(problem, trace.answer, pool)
    shown = None if extracted is None else extracted[:_SHOWN]
    return Verdict(trace.id, problem.id, status, reason, method, shown, time.perf_counter() - start)


def _decide(problem: Problem, answer: str, pool: WorkerPool) -> Decision:
    kind, gold = problem.checker, problem.gold
    if kind not in CHECKERS:
        raise UsageError(f"problem {problem.id!r}: unknown checker {kind!r}")
    if gold is None or not gold.strip():
        return "undecided", "no gold answer", kind, None
    if not answer or answer.isspace():
        return "incorrect", "no answer", kind, None
    if kind == "exact":
        found = exact.candidates(answer)[-1]
        if exact.equal(answer, gold):
            return "correct", "same text", "exact", found
        return "incorrect", "the text differs", "exact", found
    if kind == "number":
        return _by_number(gold, answer)
    return _by_math(gold, answer, pool)


def extract_number(answer: str) -> tuple[Found | None, str]:
    """The number that `answer` gives as its result, and how it was found; None when there is none."""
    marked = marked_answer(answer)
    if marked is not None:
        if marked.how == "boxed":
            return only_number(marked.text), "boxed"
        clause = marked.text.rsplit("=", 1)[-1]
        found = first_number(clause)
        if found is not None:
            return found, marked.how
    return last_number(answer), "last number"


def _by_number(gold: str, answer: str) -> Decision:
    marked = marked_answer(gold)
    wanted = only_number(marked.text if marked is not None else gold)
    if wanted.value is None:
        return (
            "undecided",
            f"the gold answer {wanted.text[:80]!r} is not a number: {wanted.problem}",
            "number",
            None,
        )
    found, how = extract_number(answer)
    if found is None:
        return "incorrect", "no number in the answer", "number", None
    if found.value is None:
        if found.problem == "no number":
            return "incorrect", f"no number in the answer ({how})", "number", found.text
        return "undecided", f"{how}: {found.problem}", "number", found.text
    if found.value == wanted.value:
        return "correct", f"{how}: equal", "number", found.text
    return "incorrect", f"{how}: not equal to {wanted.text[:80]}", "number", found.text


def _by_math(gold: str, answer: str, pool: WorkerPool) -> Decision:
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


def _by_user(problem: Problem, trace: Trace, pool: WorkerPool) -> Verdict:
    checker = problem.checker
    request = {
        "op": "user",
        "checker": checker,
        "problem": user.to_json(problem),
        "trace": user.to_json(trace),
    }
    reply = pool.ask(request, {"op": "load-user", "checker": checker})
    if "failed" in reply:
        reason = f"the checker: {reply['failed']}"
        return Verdict(trace.id, problem.id, "undecided", reason, "user", None)
    return Verdict(**reply["verdict"])
