"""Decoding under thinking policies: many requests, one model, one loop.

Promises: every request is decoded under its own policy, sampling and seed, and its reply does not depend on
what else is in the batch (float32: greedy ids are the same alone and together); forced ids are fed, never
prefilled again; a slot that falls free is filled at the next step, nobody waits for the slowest; requests of
one prompt are computed once for as long as they write the same (see `rows`), so that a whole curve of budgets
and waits costs one long trace and the answers; what cannot be served is refused, with the reason,
before anything is decoded. `submit` and `cancel` may be called from any thread; a cancelled request is gone
before the next step.
Does not: tokenise questions, load models, or speak HTTP. The weights are read when the engine is built: after
training, build another.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tutelage.errors import UsageError
from tutelage.students.pretrained import Student
from tutelage.students.recurrent import RecurrentDepthForCausalLM
from tutelage.think.backend import Backend, HuggingFace, Scores
from tutelage.think.begun import take_up
from tutelage.think.draws import Draw, alike, back_of, by_opening, feeds_again, note, pick, unusable
from tutelage.think.effort import Effort, check_effort
from tutelage.think.loops import Loops
from tutelage.think.loops_forward import base_model
from tutelage.think.machine import Machine, State, Step
from tutelage.think.policy import ThinkingPolicy
from tutelage.think.request import Completion, FinishReason, Logprob, Piece, PromptTooLong, Request
from tutelage.think.rows import Job, Listen, Row, Table
from tutelage.think.text import Stream

__all__ = ["Completion", "Engine", "Job", "Logprob", "Piece", "PromptTooLong", "Request", "Stats"]

Progress = Callable[[int, int, str], None]
_Kind = tuple[tuple[int, ...], Effort]  # of requests that share a row: the prompt, and how deep
# Most prompt tokens that are prefilled between two steps, beyond the first prompt: bounds how long the
# others pause.
_PREFILL_TOKENS = 2_048


@dataclass(slots=True)
class Stats:
    """Tokens that went through the model: of prompts (`prefilled`) and one by one (`decoded`); those that
    further requests of a row had for nothing (`shared`); `steps` of the engine's loop; `core_steps`, where
    the model has a loop of its own: its passes times tokens; `rows` and `waiting` requests now."""

    prefilled: int = 0
    decoded: int = 0
    shared: int = 0
    steps: int = 0
    rows: int = 0
    waiting: int = 0
    core_steps: int = 0


class Engine:
    """A student that decodes requests, `max_batch` rows at a time. One thread drives it."""

    def __init__(self, student: Student, *, max_batch: int = 32, backend: Backend | None = None) -> None:
        """`backend` None: `Loops` for a recurrent-depth model, `HuggingFace` for others. Raises UsageError
        that names a model that cannot be run."""
        if max_batch < 1:
            raise UsageError(f"max_batch is {max_batch}; it must be at least 1")
        self.student = student
        self._backend = _backend_for(student.model) if backend is None else backend
        self._table = Table(self._backend, max_batch)
        self._machines: dict[tuple[ThinkingPolicy, bool], Machine] = {}
        self._forbidden = unusable(student, self._machine(ThinkingPolicy(), False).end)
        self._inbox: deque[Job] = deque()
        self._waiting: deque[Job] = deque()
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._news = threading.Event()
        self._counts = Stats()
        self.context = self._backend.context

    @property
    def stats(self) -> Stats:
        """Counts so far, and of now."""
        waiting = len(self._waiting) + len(self._inbox)
        return replace(
            self._counts,
            rows=len(self._table.rows),
            waiting=waiting,
            core_steps=self._backend.core_steps,
        )

    def check(self, request: Request) -> None:
        """Raises UsageError that says why `request` cannot be served, PromptTooLong where the prompt is to
        blame."""
        self._start(request)

    def submit(self, request: Request, listen: Listen | None = None) -> Job:
        """Queue `request`. `listen` is told, in the thread that drives the engine, every piece, and at last
        the completion, or the error that ended it. Raises as `check` does."""
        return self.submit_all([request], listen)[0]

    def submit_all(self, requests: Sequence[Request], listen: Listen | None = None) -> list[Job]:
        """Queue `requests` together: those with equal prompts are sure to be prefilled once. Nothing is
        queued if one of them cannot be served."""
        jobs = []
        for request in requests:
            stream = None
            if listen is not None or request.stop:
                stream = Stream(self.student.tokenizer, request.stop)
            logprobs: list[Logprob] | None = None if request.logprobs is None else []
            job = Job(request, self._start(request), listen, stream, logprobs)
            if request.choose_wait is not None:
                job.state.choose_wait = partial(_chosen_wait, job, request.choose_wait)
            jobs.append(job)
        for job in jobs:
            if job.state.finished:  # what was begun was the whole reply
                self._finish(job)
        with self._lock:
            self._inbox.extend(job for job in jobs if not job.over)
        self._news.set()
        return jobs

    def cancel(self, job: Job) -> None:
        """Give `job` up: it is told "cancelled" with what it has written, and its slot is free, before the
        next step. Nothing happens when it is over."""
        job.cancelled = True
        self._news.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Sleep until something was submitted or cancelled, or `timeout` seconds; for the thread that drives
        the engine, when `step` had nothing to do."""
        return self._news.wait(timeout)

    def generate(
        self,
        requests: Sequence[Request],
        progress: Progress | None = None,
        each: Callable[[int, Completion], None] | None = None,
    ) -> list[Completion]:
        """Completions in the order of `requests`. Raises UsageError, before anything is decoded, for a
        request that cannot be served, with its number. `progress` is told (replies done, all, a note), `each`
        (a request's number, its completion) as soon as it is over."""
        for number, request in enumerate(requests):
            try:
                self.check(request)
            except UsageError as error:
                raise type(error)(f"request {number}: {error}") from error
        jobs = self.submit_all(requests)
        running = list(enumerate(jobs))
        try:
            while running:
                over = [(number, job) for number, job in running if job.over]
                if over:
                    running = [(number, job) for number, job in running if not job.over]
                    for number, job in over:
                        if each is not None and job.completion is not None:
                            each(number, job.completion)
                    if progress is not None:
                        progress(len(jobs) - len(running), len(jobs), f"{len(running)} replies being decoded")
                if running:
                    self.step()
        except BaseException:
            for job in jobs:
                self.cancel(job)
            raise
        for job in jobs:
            if job.error is not None:
                raise job.error
        return [job.completion for job in jobs if job.completion is not None]

    def step(self) -> bool:
        """Fill free slots, and decode one token for every row. False: there is nothing to do."""
        with self._turn, torch.inference_mode():
            self._news.clear()
            self._drain()
            try:
                self._admit()
                if not self._table.rows:
                    return bool(self._waiting)
                self._decode()
            except Exception as error:
                self._fail(error)
                raise
            return True

    def _machine(self, policy: ThinkingPolicy, thinks: bool) -> Machine:
        key = (policy, thinks)
        if key not in self._machines:
            template = self.student.template
            if not thinks:  # all is answer: nothing has to be reserved for it
                template, policy = replace(template, thinking=False), replace(policy, answer_reserve=1)
            if len(self._machines) > 1000:  # policies come from clients
                self._machines.clear()
            self._machines[key] = policy.compile(self.student.tokenizer, template)
        return self._machines[key]

    def _start(self, request: Request) -> State:
        check_effort(request.policy.effort, self._backend.max_steps, self.student.name)
        machine = self._machine(request.policy, request.thinks)
        prompt, most = request.prompt_ids, request.max_new_tokens
        vocabulary = int(self.student.model.config.vocab_size)
        if min(request.given) < 0 or max(request.given) >= vocabulary:
            raise UsageError(f"the prompt holds an id that is not in the model's vocabulary of {vocabulary}")
        room = self.context - len(prompt)
        limited = most is not None and most <= room
        try:
            state = machine.start(min(room, most or room), prompt[-1], request.max_answer)
        except UsageError as error:
            if limited:
                raise UsageError(f"max_new_tokens is {most}: {error}") from error
            raise PromptTooLong(
                f"the prompt is {len(prompt)} tokens long, the model's context {self.context}: {error}"
            ) from error
        if request.begun:
            take_up(state, request.begun)
        return state

    def _drain(self) -> None:
        """Take in what was submitted, and throw out what was cancelled."""
        with self._lock:
            fresh = list(self._inbox)
            self._inbox.clear()
        self._waiting.extend(fresh)
        jobs = [*self._waiting, *(job for row in self._table.rows for job in _all_jobs(row))]
        if any(job.cancelled or job.over for job in jobs):
            for job in jobs:
                if job.cancelled and not job.over:
                    self._finish(job, "cancelled")
            self._waiting = deque(job for job in self._waiting if not job.over)
            self._table.forget_over()

    def _admit(self) -> None:
        """Rows for what is parked, then for what waits, first come, first served."""
        table = self._table
        table.unpark()
        groups: dict[_Kind, list[Job]] = {}
        fresh: list[_Kind] = []
        total = 0
        while self._waiting:
            request = self._waiting[0].request
            prompt = request.given
            kind = (prompt, request.policy.effort)
            if kind not in groups and table.like(*kind) is None:
                if len(fresh) == table.free or (fresh and total + len(prompt) > _PREFILL_TOKENS):
                    break
                total += len(prompt)
                fresh.append(kind)
            groups.setdefault(kind, []).append(self._waiting.popleft())
        if fresh:
            self._prefill(fresh, groups)
        for kind, jobs in groups.items():
            row = table.like(*kind)
            if row is None:  # it was over in the meantime
                self._waiting.extendleft(reversed(jobs))
            else:
                for group in by_opening(jobs):
                    table.join(row, group)
                self._have(jobs, len(kind[0]) - 1)

    def _prefill(self, fresh: Sequence[_Kind], groups: dict[_Kind, list[Job]]) -> None:
        """New rows for the prompts and efforts `fresh`, with their requests, which leave `groups`."""
        handles, scores = self._backend.prefill([prompt for prompt, _ in fresh], [deep for _, deep in fresh])
        self._counts.prefilled += sum(len(prompt) for prompt, _ in fresh)
        rows = []
        for handle, kind in zip(handles, fresh, strict=True):
            self._have(groups[kind][1:], len(kind[0]))
            rows.append(self._table.prefilled(handle, groups.pop(kind)))
        for row in rows:
            row.jobs, *others = by_opening(row.jobs)
            for group in others:
                # Where log-probabilities are wanted, the prompt's last token is fed again to score the first.
                tells = any(job.logprobs is not None for job in group)
                self._table.part(row, group, int(tells), ())
        asked = [k for k, row in enumerate(rows) if not row.due or row.tells]
        if len(asked) < len(rows):
            scores = Scores(scores.logits[asked], scores.states[asked])
        self._choose([rows[k] for k in asked], scores)

    def _have(self, jobs: Sequence[Job], tokens: int) -> None:
        for job in jobs:
            job.cached_tokens = tokens
        self._counts.shared += tokens * len(jobs)

    def _decode(self) -> None:
        """Feed every row one id; then let those that have no more recorded ids choose theirs."""
        rows = list(self._table.rows)
        tokens = {row.handle: row.next_id for row in rows}
        wanted = [row for row in rows if row.due == 1 or row.tells]
        scores = self._backend.decode(tokens, [row.handle for row in wanted])
        for row in rows:
            row.length += 1
            self._counts.shared += len(row.jobs) - 1
        self._counts.decoded += len(rows)
        self._counts.steps += 1
        self._choose(wanted, scores)

    def _choose(self, rows: Sequence[Row], scores: Scores) -> None:
        """Choose the next id of `rows` with their scores, and let their requests finish or part."""
        if not rows:
            return
        logits = scores.logits  # (rows, vocabulary)
        telling = {
            line: logits[line].log_softmax(dim=-1) for line, row in enumerate(rows) if row.tells
        }  # what the model would write, before anything is forbidden
        if self._forbidden is not None:
            logits.index_fill_(1, self._forbidden, -torch.inf)
        draws: list[Draw] = []
        for line, row in enumerate(rows):
            if row.due:  # forced ids whose log-probability is wanted
                for job in row.jobs:
                    note(job, telling[line], len(job.state.ids) - row.due)
                self._push(row.jobs)
                continue
            if row.banned:
                logits[line, list(row.banned)] = -torch.inf
            for job in row.jobs:
                if job.request.choose_wait is not None:
                    job.hidden = scores.states[line]
            draws += [Draw(line, row, jobs, row.banned) for jobs in alike(row.jobs)]
        parts: dict[Row, dict[Step, list[Job]]] = {draw.row: {} for draw in draws}
        order = [draw.line for draw in draws]
        # Not by their number alone: one row may draw twice where another does not draw.
        lines = logits if order == list(range(len(rows))) else logits[order]
        while draws:
            again: list[Draw] = []
            for k, (draw, token) in enumerate(zip(draws, pick(draws, lines), strict=True)):
                fates = self._offer(draw.jobs, token, lines[k], telling.get(draw.line))
                for step, jobs in fates.items():
                    if step.feed:
                        parts[draw.row].setdefault(step, []).extend(jobs)
                    else:
                        again.append(Draw(draw.line, draw.row, jobs, step.banned))
            draws = again
            if draws:  # refused, and masked: once more from the same scores
                lines = logits[[draw.line for draw in draws]]
                for k, draw in enumerate(draws):
                    lines[k, list(draw.banned)] = -torch.inf
        for row, ways in parts.items():
            self._go_on(row, ways)

    def _offer(
        self, jobs: Sequence[Job], token: int, line: Tensor, told: Tensor | None
    ) -> dict[Step, list[Job]]:
        """Offer `token` to the machines of `jobs`; those that go on, by what is to be done. `told`: the
        log-probabilities at this place."""
        fates: dict[Step, list[Job]] = {}
        for job in jobs:
            state = job.state
            place = len(state.ids)
            try:
                step = state.step(token, line if state.wants_scores else None)
            except Exception as error:  # noqa: BLE001 - a caller's choose_wait may fail in any way
                job.error = error
                self._tell(job, error)
                continue
            if job.logprobs is not None and step.back:
                del job.logprobs[len(state.ids) - (0 if feeds_again(step) else len(step.feed)) :]
            if told is not None and not step.back and len(state.ids) > place:
                note(job, told, place)
            if step.done or (job.stream is not None and step.feed and self._stopped(job)):
                self._finish(job)
            else:
                fates.setdefault(step, []).append(job)
        return fates

    def _go_on(self, row: Row, ways: dict[Step, list[Job]]) -> None:
        """Part the requests of `row` by what their machines want next."""
        if not ways:
            row.jobs = []
            self._table.drop(row)
            return
        # What stays keeps the whole row, so it should be what takes nothing back.
        stays, *leave = sorted(ways.items(), key=lambda way: way[0].back)
        for step, jobs in leave:
            self._table.part(row, jobs, back_of(step, jobs), step.banned)
        step, row.jobs = stays
        row.banned = step.banned
        self._table.take_back(row, back_of(step, row.jobs))

    def _stopped(self, job: Job) -> bool:
        """Stream what `job` has written; whether a stop string ended its answer."""
        assert job.stream is not None
        for piece in job.stream.push(job.state, job.logprobs):
            self._tell(job, piece)
        if job.stream.stopped is None or job.over:
            return job.over
        job.state.end()
        return True

    def _push(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            if job.stream is not None:
                self._stopped(job)

    def _finish(self, job: Job, reason: FinishReason | None = None) -> None:
        stream, state, progress = job.stream, job.state, job.state.progress
        stop = None
        if stream is not None:
            for piece in [*stream.push(state, job.logprobs), *stream.finish()]:
                self._tell(job, piece)
            stop = stream.stopped
        if job.over:
            return
        passes = self._table.passes(job)
        first = len(job.request.prompt_ids) - 1
        steps = tuple(passes[first : first + len(state.ids)])
        job.completion = Completion(
            ids=tuple(state.ids),
            forced=bytes(state.forced),
            phases=bytes(state.phases),
            finish_reason=reason or ("stop" if stop is not None else progress.finish_reason),
            closed_by=progress.closed_by,
            written=dict(progress.written),
            by_force=dict(progress.forced),
            refused=progress.refused,
            waits=progress.waits,
            stop=stop,
            logprobs=tuple(job.logprobs or ()),
            steps=steps + (0,) * (len(state.ids) - len(steps)) if self._backend.max_steps else (),
            core_steps=sum(passes),
        )
        self._tell(job, job.completion)

    def _tell(self, job: Job, news: Piece | Completion | BaseException) -> None:
        if job.listen is None:
            return
        try:
            job.listen(news)
        except Exception as error:  # noqa: BLE001 - whatever a listener does, the other requests go on
            job.listen = None
            job.error = job.error or error

    def _fail(self, error: Exception) -> None:
        """The model failed: everything that was under way is over."""
        rows = self._table.rows
        for job in [*self._waiting, *(job for row in rows for job in _all_jobs(row))]:
            if not job.over:
                job.error = error
                self._tell(job, error)
        self._waiting.clear()
        self._table.forget_over()


def _backend_for(model: Any) -> Backend:
    return Loops(model) if isinstance(base_model(model), RecurrentDepthForCausalLM) else HuggingFace(model)


def _chosen_wait(job: Job, choose_wait: Callable[[Tensor, int], int | None]) -> int | None:
    assert job.hidden is not None
    return choose_wait(job.hidden, job.state.progress.waits)


def _all_jobs(row: Row) -> list[Job]:
    return [*row.jobs, *(job for child in row.parked for job in child.jobs)]
