r"""From an answer to a verdict: one checker per kind of answer, chosen by name.

`Problem.checker` names it: a key of `CHECKERS`, `gym:TASK`, or a user's function (`file.py:function`,
`package.module:function` or `package.module.function`).
Promises: one verdict per trace, in the order of the traces, whatever the text; a time-out, a crash or
something unparseable is `undecided` with the reason, never `incorrect`; a missing gold answer is never
counted right; unknown checkers and missing user functions are a UsageError before the first trace is read.
Only the answer is judged: the thinking is never searched, and how the reply ended (`finish_reason`) is not
consulted.
Does not: filter or repair; `undecided` is for a person, or a judge, to settle.
"""

from __future__ import annotations

import importlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from tutelage.errors import UsageError
from tutelage.records import Problem, Trace, Verdict
from tutelage.verify import choices, exact, mathematics, quantities, user
from tutelage.verify.decision import Checker, Decision
from tutelage.verify.workers import WorkerPool

Progress = Callable[[int, int, str], None]
GYM = "gym:"
_SHOWN = 1000


def _module(name: str, checker: str) -> Any:
    """A checker's module that is loaded when it is first used, because it needs an extra or is slow to
    load. It has `decide` (a Checker) and may have `require(problem)`, which raises UsageError."""
    try:
        return importlib.import_module(f"tutelage.verify.{name}")
    except ModuleNotFoundError as error:
        raise UsageError(f"checker {checker!r} is not available here: no module {error.name}") from error


def _code(problem: Problem, answer: str, pool: WorkerPool, /) -> Decision:
    decision: Decision = _module("code", problem.checker).decide(problem, answer, pool)
    return decision


def _gym(problem: Problem, answer: str, pool: WorkerPool, /) -> Decision:
    decision: Decision = _module("gym", problem.checker).decide(problem, answer, pool)
    return decision


CHECKERS: Mapping[str, Checker] = {
    "exact": exact.decide,
    "number": quantities.decide,
    "math": mathematics.decide,
    "choice": choices.decide,
    "code": _code,
    GYM: _gym,
}
"""Every checker but the user's own functions, which see the whole trace (`user.decide`)."""
_LATER = {"code": "code", GYM: "gym"}


def _key(checker: str) -> str:
    return GYM if checker.startswith(GYM) else checker


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
    """Raise UsageError unless every checker of `problems` is known and can run here: extras are installed,
    every user function can be loaded."""
    seen: set[str] = set()
    for problem in problems:
        checker = problem.checker
        if checker in seen:
            continue
        seen.add(checker)
        key = _key(checker)
        if key in _LATER:
            require = getattr(_module(_LATER[key], checker), "require", None)
            if require is not None:
                require(problem)
        elif key in CHECKERS:
            continue
        elif user.is_user_checker(checker):
            pool.load({"op": "load-user", "checker": checker})
        else:
            raise _unknown(problem)


def _unknown(problem: Problem) -> UsageError:
    known = ", ".join(f"{name}TASK" if name == GYM else name for name in CHECKERS)
    return UsageError(
        f"problem {problem.id!r}: unknown checker {problem.checker!r}; use {known}, or file.py:function"
    )


def check_trace(problem: Problem, trace: Trace, pool: WorkerPool) -> Verdict:
    """The verdict on one trace by its problem's checker. Raises UsageError for an unknown checker or a user
    function that cannot be loaded; nothing else."""
    start = time.perf_counter()
    decide = CHECKERS.get(_key(problem.checker))
    if decide is not None:
        status, reason, method, extracted = decide(problem, trace.answer, pool)
    elif user.is_user_checker(problem.checker):
        status, reason, method, extracted = user.decide(problem, trace, pool)
    else:
        raise _unknown(problem)
    shown = None if extracted is None else extracted[:_SHOWN]
    return Verdict(trace.id, problem.id, status, reason, method, shown, time.perf_counter() - start)
