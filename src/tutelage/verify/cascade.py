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

import atexit
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from tutelage.errors import UsageError
from tutelage.records import Problem, Trace, Verdict
from tutelage.verify import choices as choice
from tutelage.verify import exact, mathematics, quantities, user
from tutelage.verify.decision import Checker, Decision
from tutelage.verify.workers import SECONDS, WorkerPool

Progress = Callable[[int, int, str], None]
GYM = "gym:"
_SHOWN = 1000


def _code(problem: Problem, answer: str, pool: WorkerPool, /) -> Decision:
    from tutelage.verify import code  # loaded when first used: most runs judge no program

    return code.decide(problem, answer, pool)


def _gym(problem: Problem, answer: str, pool: WorkerPool, /) -> Decision:
    from tutelage.verify import gym

    return gym.decide(problem, answer, pool)


CHECKERS: Mapping[str, Checker] = {
    "exact": exact.decide,
    "number": quantities.decide,
    "math": mathematics.decide,
    "choice": choice.decide,
    "code": _code,
    GYM: _gym,
}
"""Every checker but the user's own functions, which see the whole trace (`user.decide`)."""
_QUICK = frozenset({"exact", "number", "math", "choice"})
"""Checkers that decide most answers in microseconds; the rest they ask a worker."""


def _key(checker: str) -> str:
    return GYM if checker.startswith(GYM) else checker


_shared: WorkerPool | None = None
_shared_lock = threading.Lock()


def _shared_pool() -> WorkerPool:
    """The pool of this process, made when first needed, closed at exit."""
    global _shared
    with _shared_lock:
        if _shared is None:
            _shared = WorkerPool(max(1, min(4, os.cpu_count() or 1)))
            atexit.register(_shared.close)
        return _shared


def verify(
    *,
    answer: str,
    gold: str | None,
    kind: str = "number",
    tolerance: float | str | None = None,
    choices: Sequence[str] | Mapping[str, str] | None = None,
    metadata: Mapping[str, Any] | None = None,
    seconds: float = SECONDS,
    allow_weaker_sandbox: bool = False,
) -> Verdict:
    """The verdict on one answer text; `kind` is a checker name as in `Problem.checker`.

    `tolerance` is for `number`, `choices` for `choice`; whatever else a checker reads goes into `metadata`.
    `seconds` is the wall time of a verdict that needs a worker process, `allow_weaker_sandbox` is for
    `code`. Worker processes are shared by all calls in this process and end with it; a forked child starts
    its own. Callable from any thread, and from async code, where it blocks as long as it takes:
    `await asyncio.to_thread(verify, answer=..., gold=...)` keeps the loop free. Raises UsageError for an
    unknown kind or an option that cannot be meant."""
    options = dict(metadata or {})
    if tolerance is not None:
        options[quantities.TOLERANCE] = tolerance
    if choices is not None:
        options[choice.CHOICES] = choices
    problem = Problem(id="", question="", gold=gold, checker=kind, metadata=options)
    trace = Trace(id="", problem_id="", sample=0, maker="", answer=answer)
    pool = _shared_pool()
    if seconds != pool.seconds or allow_weaker_sandbox:
        pool = pool.within(seconds, allow_weaker_sandbox=allow_weaker_sandbox)
    return check_trace(problem, trace, pool)


def judge(
    problems: Mapping[str, Problem],
    traces: Iterable[Trace],
    *,
    seconds: float = SECONDS,
    workers: int = 1,
    allow_weaker_sandbox: bool = False,
    pool: WorkerPool | None = None,
    progress: Progress | None = None,
) -> Iterator[Verdict]:
    """Verdicts on `traces`, in their order; `problems` is by id. `seconds` is the wall time for one verdict
    that needs a worker process, `workers` how many of those run at once, `allow_weaker_sandbox` is for the
    checker `code`. A `pool` that is handed in is used with its own seconds and choice of sandbox, and left
    open, so that the next call finds its workers started.

    Raises UsageError for an unknown checker, a user function that cannot be loaded (both before the first
    trace is read), and a trace whose problem is not in `problems`."""
    total = len(traces) if isinstance(traces, Sized) else 0
    used = pool or WorkerPool(workers, seconds, allow_weaker_sandbox=allow_weaker_sandbox)
    try:
        require_checkers(problems.values(), used)
        for done, verdict in enumerate(_verdicts(problems, traces, used, workers, pool is None), start=1):
            if progress is not None:
                progress(done, total, verdict.status)
            yield verdict
    finally:
        if pool is None:
            used.close()


class _NeedsWorker(Exception):
    """A quick checker would ask a worker."""


class _NoPool(WorkerPool):
    """Stands in for a pool where a verdict is wanted only if it needs no worker."""

    def ask(self, request: Mapping[str, Any], load: Mapping[str, Any]) -> dict[str, Any]:
        raise _NeedsWorker


def _verdicts(
    problems: Mapping[str, Problem], traces: Iterable[Trace], pool: WorkerPool, workers: int, own: bool
) -> Iterator[Verdict]:
    def problem_of(trace: Trace) -> Problem:
        problem = problems.get(trace.problem_id)
        if problem is None:
            raise UsageError(f"trace {trace.id!r} answers problem {trace.problem_id!r}, which is not there")
        return problem

    if workers == 1:
        for trace in traces:
            yield check_trace(problem_of(trace), trace, pool)
        return
    none = _NoPool()
    waiting: deque[Verdict | Future[Verdict]] = deque()
    executor = ThreadPoolExecutor(workers, thread_name_prefix="verify")
    try:
        for trace in traces:
            problem = problem_of(trace)
            waiting.append(
                _at_once(problem, trace, none) or executor.submit(check_trace, problem, trace, pool)
            )
            while waiting and (len(waiting) >= 8 * workers or isinstance(waiting[0], Verdict)):
                first = waiting.popleft()  # bounds memory, keeps the order
                yield first if isinstance(first, Verdict) else first.result()
        for each in waiting:
            yield each if isinstance(each, Verdict) else each.result()
    except BaseException:
        if own:
            pool.close()  # a caller that stops early does not wait for hung workers
        raise
    finally:
        executor.shutdown(cancel_futures=True)


def _at_once(problem: Problem, trace: Trace, none: WorkerPool) -> Verdict | None:
    """The verdict where it takes no worker; handing such a trace to a thread would cost more than judging."""
    if problem.checker not in _QUICK:
        return None
    try:
        return check_trace(problem, trace, none)
    except _NeedsWorker:
        return None


def require_checkers(problems: Iterable[Problem], pool: WorkerPool) -> None:
    """Raise UsageError unless every checker of `problems` is known and can run here (extras are installed,
    user functions can be loaded), and the options in `metadata` can be meant."""
    seen: set[str] = set()
    for problem in problems:
        checker = problem.checker
        if problem.metadata:
            quantities.tolerance(problem)
            if checker == "choice":
                choice.options(problem)
        if checker in seen:
            continue
        seen.add(checker)
        if checker == "code":
            from tutelage.verify import code

            code.require(problem, pool)
        elif checker.startswith(GYM):
            from tutelage.verify import gym

            gym.require(problem)
        elif checker in CHECKERS:
            continue
        elif user.is_user_checker(checker):
            pool.load(user.load_request(checker))
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
