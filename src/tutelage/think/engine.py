"""Decoding under a thinking policy: many requests, one model, one loop.

Promises: every request is decoded under its own policy, sampling and seed, and its reply does not depend on
what else is in the batch (float32: greedy ids are the same alone and together); forced ids are fed, never
prefilled again; samples of one prompt share its prefill; finished rows leave the batch and waiting requests
take their place.
Does not: tokenise questions, detokenise replies, or speak HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from tutelage.errors import UsageError
from tutelage.think.backend import Batch, check_model
from tutelage.think.machine import Machine, State, build
from tutelage.think.policy import ThinkingPolicy
from tutelage.think.sampling import Sampling, choose, uniforms
from tutelage.think.segments import ClosedBy, FinishReason, Phase
from tutelage.tokens import Markers

Progress = Callable[[int, int, str], None]
Encode = Callable[[str], Sequence[int]]
# Dropping finished rows copies the cache of the others, which costs about ten steps of what it saves at this
# share.
_CROWDED = 0.75


@dataclass(frozen=True, slots=True)
class Completion:
    """One reply. `ids`, `forced` (1 where we wrote the id) and `phases` (indices into machine.PHASES) run in
    step. `written` and `by_force` count ids per phase, sampled and forced together, and forced alone."""

    ids: tuple[int, ...]
    forced: bytes
    phases: bytes
    finish_reason: FinishReason
    closed_by: ClosedBy
    written: Mapping[Phase, int]
    by_force: Mapping[Phase, int]
    refused: int
    waits: int

    def count(self, phase: Phase) -> tuple[int, int]:
        """Sampled and forced ids of `phase`."""
        forced = self.by_force.get(phase, 0)
        return self.written.get(phase, 0) - forced, forced


@dataclass(frozen=True, slots=True)
class Request:
    """One reply to be made. `max_answer` bounds the sampled answer and `max_new_tokens` the whole reply,
    both None: as long as the context allows."""

    prompt_ids: tuple[int, ...]
    policy: ThinkingPolicy = field(default_factory=ThinkingPolicy)
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    max_answer: int | None = None
    max_new_tokens: int | None = None


def generate(
    model: Any,
    requests: Sequence[Request],
    markers: Markers,
    *,
    encode: Encode,
    prefilled: bool = True,
    forbid: Sequence[int] = (),
    max_batch: int = 64,
    progress: Progress | None = None,
) -> list[Completion]:
    """Completions in the order of `requests`.

    `encode` turns wait strings and close texts into ids; `prefilled`: prompts end with the opening marker;
    `forbid`: ids that are never sampled (padding, ids beyond the tokenizer). At most `max_batch` rows are
    decoded together.

    Raises UsageError, before anything is decoded, for a model that cannot be run here, for a policy that
    cannot be kept, and for a prompt that leaves too little room."""
    if max_batch < 1:
        raise UsageError(f"max_batch is {max_batch}; it must be at least 1")
    rows = _rows(requests, markers, encode, prefilled, check_model(model))
    contexts = [[*request.prompt_ids, *row.ids] for request, row in zip(requests, rows, strict=True)]
    # Rows of one length prefill without padding, and equal prompts come to lie side by side.
    waiting = [i for i, row in enumerate(rows) if not row.finished]
    waiting.sort(key=lambda i: (len(contexts[i]), contexts[i], i), reverse=True)
    total, over = len(rows), len(rows) - len(waiting)
    pending: list[list[int]] = [[] for _ in rows]
    with torch.inference_mode():
        batch = Batch(model)
        slots: list[
            int
        ] = []  # the request of each row of the batch; finished ones stay until dropping them pays
        while waiting or slots:
            alive = [k for k, i in enumerate(slots) if not rows[i].finished]
            refill = bool(waiting) and len(alive) <= max_batch // 2
            if len(alive) < len(slots) and (refill or len(alive) <= _CROWDED * len(slots)):
                batch.keep(alive)
                slots = [slots[k] for k in alive]
            if refill:
                fresh = [waiting.pop() for _ in range(min(len(waiting), max_batch - len(slots)))]
                batch.admit([contexts[i] for i in fresh])
                slots += fresh
            if not slots:
                break
            feed = _choose(
                batch,
                [rows[i] for i in slots],
                [requests[i] for i in slots],
                [pending[i] for i in slots],
                forbid,
            )
            running = sum(not rows[i].finished for i in slots)
            if progress is not None and total - len(waiting) - running > over:
                over = total - len(waiting) - running
                progress(over, total, f"{running} replies being decoded")
            if running:
                batch.decode(feed)
    return [_completion(row) for row in rows]


def _rows(
    requests: Sequence[Request], markers: Markers, encode: Encode, prefilled: bool, context: int
) -> list[State]:
    machines: dict[ThinkingPolicy, Machine] = {}
    rows = []
    for number, request in enumerate(requests):
        if request.policy not in machines:
            machines[request.policy] = build(request.policy, markers, encode, prefilled=prefilled)
        if not request.prompt_ids:
            raise UsageError(f"request {number}: the prompt is empty")
        room = context - len(request.prompt_ids)
        if request.max_new_tokens is not None:
            room = min(room, request.max_new_tokens)
        try:
            rows.append(machines[request.policy].start(room, request.prompt_ids[-1], request.max_answer))
        except UsageError as error:
            raise UsageError(f"request {number}: {error}") from error
    return rows


def _choose(
    batch: Batch,
    rows: Sequence[State],
    requests: Sequence[Request],
    pending: Sequence[list[int]],
    forbid: Sequence[int],
) -> list[int]:
    """What to feed every row next (0 for finished ones): its pending id, or a sampled one that its policy
    takes."""
    logits = batch.logits  # (rows, vocabulary)
    if forbid:
        logits[:, list(forbid)] = -torch.inf
    feed, todo = [0] * len(rows), []
    banned: dict[int, tuple[int, ...]] = {}
    for k, row in enumerate(rows):
        if pending[k]:
            feed[k] = pending[k].pop(0)
        elif not row.finished:
            todo.append(k)
            banned[k] = row._banned
    while todo:
        for k in todo:
            if banned[k]:
                logits[k, list(banned[k])] = -torch.inf
        settings = [requests[k].sampling for k in todo]
        u = np.zeros(len(todo))
        if not all(one.greedy for one in settings):
            steps, attempts = [len(rows[k].ids) for k in todo], [rows[k].progress.refused for k in todo]
            u = uniforms([requests[k].seed for k in todo], steps, attempts)
        picked = choose(logits if len(todo) == len(rows) else logits[todo], settings, u)
        again = []
        for k, token in zip(todo, picked, strict=True):
            step = rows[k].step(token, logits[k])
            if step.done:
                continue
            if step.back:
                batch.withdraw(k, step.back)
            if step.feed:
                feed[k] = step.feed[0]
                pending[k].extend(step.feed[1:])
            else:
                banned[k] = step.banned
                again.append(k)
        todo = again
    return feed


def _completion(row: State) -> Completion:
    progress = row.progress
    return Completion(
        ids=tuple(row.ids),
        forced=bytes(row.forced),
        phases=bytes(row.phases),
        finish_reason=progress.finish_reason,
        closed_by=progress.closed_by,
        written=dict(progress.written),
        by_force=dict(progress.forced),
        refused=progress.refused,
        waits=progress.waits,
    )
