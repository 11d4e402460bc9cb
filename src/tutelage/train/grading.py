"""Where replies are graded: rewards beside decoding, each with a deadline.

Promises: grading starts when a reply is handed in, in threads beside the caller; no call is waited for longer
than its seconds (and what a worker process may take to start); what is late, raises, or cannot be told comes
back without a reward and with the reason, and is never guessed; a verdict is made once per reply.
Does not: end a Python function of the caller's own that hangs (it is abandoned; one that may hang belongs
into a `file.py:function`, which runs in a process that is killed).
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Self

from tutelage.errors import UsageError
from tutelage.records import Problem, Trace, Verdict
from tutelage.train.rewards import Check, Reward, Unrewarded, Weighted, right
from tutelage.verify.user import one_line
from tutelage.verify.workers import START_SECONDS


@dataclass(frozen=True, slots=True)
class Graded:
    """What became of one reply. `reward` None: there is none, and `why` says so. `right`: by its verdict
    where there is one, else whether the reward is above 0. `parts` are the named parts of the reward,
    `method` the path that decided ("" where no verdict was asked for)."""

    reward: float | None
    right: bool
    parts: dict[str, float]
    method: str = ""
    why: str = ""
    late: bool = False


def once(check: Check) -> Check:
    """`check`, asked once for the reply that a thread is working on."""
    held = threading.local()

    def found(problem: Problem, trace: Trace) -> Verdict:
        if getattr(held, "trace", None) is not trace:
            held.verdict = check(problem, trace)
            held.trace = trace
        verdict: Verdict = held.verdict
        return verdict

    return found


@dataclass(slots=True)
class Ticket:
    """A reply that was handed in."""

    problem: Problem
    trace: Trace
    done: threading.Event = field(default_factory=threading.Event)
    begun: float | None = None
    found: Graded | BaseException | None = None


class Grader:
    """Grades with `reward` in `workers` threads. `check` None: the reward asks for no verdict. `seconds` is
    the time for one reply, `grace` what the start of a worker process may add. Use as a context manager."""

    def __init__(
        self,
        reward: Reward,
        check: Check | None = None,
        *,
        workers: int = 2,
        seconds: float = 10.0,
        grace: float = START_SECONDS,
    ) -> None:
        if workers < 1 or seconds <= 0:
            raise UsageError(
                f"rewards need at least 1 worker and more than 0 seconds, not {workers}, {seconds}"
            )
        self.reward, self.check = reward, check
        self.seconds, self.limit = seconds, seconds + grace
        self._queue: SimpleQueue[Ticket | None] = SimpleQueue()
        self._workers = workers
        self._started = 0
        self._busy: list[Ticket] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, problem: Problem, trace: Trace) -> Ticket:
        """Hand in one reply."""
        while self._started < self._workers:
            self._start()
        ticket = Ticket(problem, trace)
        self._queue.put(ticket)
        return ticket

    def results(self, tickets: Sequence[Ticket]) -> list[Graded]:
        """What became of `tickets`, in their order. Raises UsageError when a checker or a reward cannot be
        used at all."""
        return [self._result(ticket) for ticket in tickets]

    def close(self) -> None:
        """Let the threads end after what they are at."""
        for _ in range(self._started):
            self._queue.put(None)
        self._started = 0

    def _start(self) -> None:
        self._started += 1
        threading.Thread(target=self._work, name="rewards", daemon=True).start()

    def _work(self) -> None:
        while (ticket := self._queue.get()) is not None:
            with self._lock:
                ticket.begun = time.monotonic()
                self._busy.append(ticket)
            try:
                found: Graded | BaseException = self._grade(ticket.problem, ticket.trace)
            except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
                found = error
            with self._lock:
                if ticket.done.is_set():  # given up; another thread has taken this one's place
                    return
                self._busy.remove(ticket)
                ticket.found = found
                ticket.done.set()

    def _result(self, ticket: Ticket) -> Graded:
        while not ticket.done.wait(self._give_up()):
            pass
        if isinstance(ticket.found, BaseException):
            raise ticket.found
        assert ticket.found is not None
        return ticket.found

    def _give_up(self) -> float:
        """Give up what has run out of time; seconds until this is to be looked at again."""
        with self._lock:
            now = time.monotonic()
            for ticket in [each for each in self._busy if now - (each.begun or now) >= self.limit]:
                self._busy.remove(ticket)
                ticket.found = Graded(None, False, {}, why=f"no reward within {self.limit:g} s", late=True)
                ticket.done.set()
                self._started -= 1
                self._start()
            first = min((each.begun or now for each in self._busy), default=now)
            return max(0.01, min(self.limit, first + self.limit - now))

    def _grade(self, problem: Problem, trace: Trace) -> Graded:
        started = time.monotonic()
        verdict: Verdict | None = None
        parts: dict[str, float] = {}
        reward: float | None = None
        why = ""
        try:
            verdict = self.check(problem, trace) if self.check else None
            if isinstance(self.reward, Weighted):
                parts = self.reward.each(problem, trace)
                reward = self.reward.total(parts)
            else:
                reward = float(self.reward(problem, trace))
            if not math.isfinite(reward):
                reward, why = None, f"the reward is {reward}"
        except Unrewarded as error:
            why = str(error)
        except UsageError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a user's function raises is counted
            why = f"the reward raised {one_line(error)}"
        good = reward is not None and (reward > 0 if verdict is None else bool(right(verdict, trace)))
        late = reward is None and time.monotonic() - started >= self.seconds
        return Graded(
            reward, good, parts if reward is not None else {}, verdict.method if verdict else "", why, late
        )
