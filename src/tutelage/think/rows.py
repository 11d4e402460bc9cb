"""Who shares a row: the requests that have written the same so far, and what happens where they part.

Promises: requests with equal prompts and efforts are one row, prefilled once, for as long as they write the
same ids; where they part the row is forked, which copies its cache and computes nothing again. There are
never more rows than slots: a part that finds no slot is parked at the row it came from, whose cache holds its
prefix, and goes on in the next slot that falls free, at the latest in that row's own when it ends. Parking
costs no memory and loses nothing; only what a row takes back (a closing marker that was begun and refused) is
fed again to what was parked behind it.
Does not: sample, or call the model but to fork, withdraw and free.

What a row is to be fed next needs no queue: it is what its first request has recorded (`prompt` and `ids`)
beyond the `length` tokens that the cache holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from tutelage.think.backend import Backend
from tutelage.think.effort import Effort
from tutelage.think.machine import State
from tutelage.think.request import Completion, Logprob, Piece, Request
from tutelage.think.text import Stream

Listen = Callable[[Piece | Completion | BaseException], None]


@dataclass(slots=True, eq=False)
class Job:
    """One request on its way. `completion` when it is over, or `error`; `cached_tokens` of its prompt were
    computed for another request."""

    request: Request
    state: State
    listen: Listen | None = None
    stream: Stream | None = None
    logprobs: list[Logprob] | None = None
    hidden: Tensor | None = None
    cancelled: bool = False
    cached_tokens: int = 0
    completion: Completion | None = None
    error: BaseException | None = None

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self.completion is not None or self.error is not None


@dataclass(slots=True, eq=False)
class Row:
    """Requests that have written the same so far. The cache holds `length` tokens of them in the backend's
    row `handle`, None while parked. `banned` must not be sampled next. `parked`: parts without a slot, each a
    prefix of what this row's cache holds."""

    jobs: list[Job]
    length: int
    handle: int = -1
    banned: tuple[int, ...] = ()
    parked: list[Row] = field(default_factory=list)

    @property
    def prompt(self) -> tuple[int, ...]:
        """What all its requests were given: the prompt, and what was begun of the reply."""
        return self.jobs[0].request.given

    @property
    def effort(self) -> Effort:
        """How deep all its requests think about each token."""
        return self.jobs[0].request.policy.effort

    @property
    def due(self) -> int:
        """How many recorded ids are still to be fed; with 0 the next one has to be sampled."""
        first = self.jobs[0]
        return len(first.request.prompt_ids) + len(first.state.ids) - self.length

    @property
    def next_id(self) -> int:
        """The first of them."""
        prompt = self.jobs[0].request.prompt_ids
        place = self.length - len(prompt)
        return self.jobs[0].state.ids[place] if place >= 0 else prompt[self.length]

    @property
    def tells(self) -> bool:
        """Whether some request wants log-probabilities."""
        return any(job.logprobs is not None for job in self.jobs)


class Table:
    """The rows that a backend has, `most` at a time."""

    def __init__(self, backend: Backend, most: int) -> None:
        self._backend = backend
        self._most = most
        self.rows: list[Row] = []

    @property
    def free(self) -> int:
        """Slots that no row has."""
        return self._most - len(self.rows)

    def prefilled(self, handle: int, jobs: list[Job]) -> Row:
        """A new row of `jobs` whose prompt the backend holds as `handle`."""
        row = Row(jobs, len(jobs[0].request.given), handle)
        self.rows.append(row)
        return row

    def like(self, prompt: tuple[int, ...], effort: Effort) -> Row | None:
        """A row of that prompt and effort whose cache still holds it, but for its last token."""
        return next(
            (
                row
                for row in self.rows
                if row.prompt == prompt and row.length >= len(prompt) and row.effort == effort
            ),
            None,
        )

    def passes(self, job: Job) -> Sequence[int]:
        """The core passes behind each token that the cache holds of `job`; empty where it holds none."""
        for row in self.rows:
            if job in row.jobs:
                return self._backend.passes(row.handle)
            for child in row.parked:
                if job in child.jobs:
                    return self._backend.passes(row.handle)[: child.length]
        return ()

    def join(self, row: Row, jobs: list[Job]) -> None:
        """A new row of `jobs`, with the prompt of `row`: a copy but for the prompt's last token, which is fed
        again to score what follows it."""
        self._split(row, Row(jobs, len(row.prompt) - 1))

    def part(self, row: Row, jobs: list[Job], back: int, banned: tuple[int, ...]) -> None:
        """`jobs` leave `row` and go on by themselves, `back` tokens before its end."""
        self._split(row, Row(jobs, row.length - back, banned=banned))

    def take_back(self, row: Row, count: int) -> None:
        """Withdraw the last `count` tokens of `row`."""
        if count:
            self._backend.withdraw(row.handle, count)
            row.length -= count
            for child in row.parked:
                child.length = min(child.length, row.length)

    def unpark(self) -> int:
        """Give free slots to what is parked; how many were given."""
        given = 0
        for row in list(self.rows):
            while row.parked and self.free:
                child = row.parked.pop(0)
                child.handle = self._backend.fork(row.handle, child.length)
                self.rows.append(child)
                given += 1
        return given

    def drop(self, row: Row) -> None:
        """`row` is over. The longest of what is parked there goes on in its place."""
        if not row.parked:
            self._backend.free(row.handle)
            self.rows.remove(row)
            return
        heir = max(row.parked, key=lambda child: child.length)
        heir.handle = row.handle
        heir.parked = [child for child in row.parked if child is not heir]
        if row.length > heir.length:
            self._backend.withdraw(row.handle, row.length - heir.length)
        self.rows[self.rows.index(row)] = heir

    def forget_over(self) -> None:
        """Take requests that are over out of their rows."""
        for row in list(self.rows):
            for child in row.parked:
                child.jobs = [job for job in child.jobs if not job.over]
            row.parked = [child for child in row.parked if child.jobs]
            row.jobs = [job for job in row.jobs if not job.over]
            if not row.jobs:
                self.drop(row)

    def _split(self, row: Row, child: Row) -> None:
        if self.free:
            child.handle = self._backend.fork(row.handle, child.length)
            self.rows.append(child)
        else:
            row.parked.append(child)
