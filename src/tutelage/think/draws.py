"""Which id is drawn for which requests, and what is written down about it.

Promises: requests that will draw the same id draw it once; an id depends on its request's sampling, seed,
place and refusals alone, whatever else is decoded.
Does not: run the model, or hold rows (see `engine` and `rows`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tutelage.students.pretrained import Student
from tutelage.think.machine import Step
from tutelage.think.request import Logprob
from tutelage.think.rows import Job, Row
from tutelage.think.sampling import Sampling, choose, uniforms


@dataclass(slots=True)
class Draw:
    """Requests of one row that draw the same id from line `line` of the scores."""

    line: int
    row: Row
    jobs: list[Job]
    banned: tuple[int, ...]


def by_opening(jobs: Sequence[Job]) -> list[list[Job]]:
    """Requests by what is forced first; those that sample at once come first."""
    groups: dict[tuple[int, ...], list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.state.opening, []).append(job)
    return [groups[opening] for opening in sorted(groups, key=len)]


def alike(jobs: list[Job]) -> list[list[Job]]:
    """Requests that will draw the same id: greedy ones, and those of equal sampling, seed and refusals."""
    if len(jobs) == 1:
        return [jobs]
    groups: dict[tuple[Sampling, int, int, int] | None, list[Job]] = {}
    for job in jobs:
        sampling, state = job.request.sampling, job.state
        # One may have begun where another's prompt ends: then their places differ.
        place = (len(state.ids), state.progress.refused)
        key = None if sampling.greedy else (sampling, job.request.seed, *place)
        groups.setdefault(key, []).append(job)
    return list(groups.values())


def pick(draws: Sequence[Draw], lines: Tensor) -> list[int]:
    """An id for each of `draws` from its line of `lines` (draws, vocabulary)."""
    first = [draw.jobs[0] for draw in draws]
    settings = [job.request.sampling for job in first]
    u = np.zeros(len(draws))
    if not all(one.greedy for one in settings):
        u = uniforms(
            [job.request.seed for job in first],
            [len(job.state.ids) for job in first],
            [job.state.progress.refused for job in first],
        )
    return choose(lines, settings, u)


def note(job: Job, told: Tensor, place: int) -> None:
    """Write down the log-probability of the id at `place`, from `told` (vocabulary,), those of its place."""
    if job.logprobs is None or place != len(job.logprobs):
        return
    token, count = job.state.ids[place], job.request.logprobs or 0
    top: tuple[tuple[int, float], ...] = ()
    if count:
        values, ids = told.topk(min(count, len(told)))
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    job.logprobs.append(Logprob(token, float(told[token]), top))


def feeds_again(step: Step) -> bool:
    """Whether the last id that stays is fed once more, because the scores after it are gone."""
    return step.back > 0 and bool(step.banned)


def back_of(step: Step, jobs: Sequence[Job]) -> int:
    """How many tokens to take back: one more than the machine asks where the log-probability is wanted of
    what takes their place, so that the last id that stays is fed again."""
    more = step.back > 0 and not feeds_again(step) and any(job.logprobs is not None for job in jobs)
    return step.back + more


def unusable(student: Student, ends: frozenset[int]) -> Tensor | None:
    """Ids that must never be sampled: padding, unless it also ends replies, and rows of the embedding beyond
    the tokenizer, which could not be decoded."""
    tokenizer: Any = student.tokenizer
    found = list(range(len(tokenizer), int(student.model.config.vocab_size)))
    pad = tokenizer.pad_token_id
    if pad is not None and pad not in ends:
        found.append(pad)
    return torch.tensor(found, device=student.model.device) if found else None
