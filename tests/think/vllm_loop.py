"""vLLM's two model runners as far as a logits processor sees them: a batch whose rows come, go, move and are
preempted, with prompts in parts and ids that are only filled in when they are needed.

Its own names stand for vLLM's: `BatchUpdate` and `Move` for the first runner's interface, `States` and
`Context` for the second's. The model is a function from ids to scores.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tutelage.think.sampling import Sampling, choose

Model = Callable[[Sequence[int]], Tensor]


class Move(enum.Enum):
    UNIDIRECTIONAL = 1
    SWAP = 2


@dataclass(frozen=True)
class BatchUpdate:
    batch_size: int
    removed: Sequence[int]
    added: Sequence[tuple[int, Any, list[int] | None, list[int]]]
    moved: Sequence[tuple[int, int, Move]]


@dataclass(frozen=True)
class Context:
    idx_mapping_np: Any
    expanded_idx_mapping: Tensor
    input_ids: Tensor
    pos: Tensor


def params(extra: dict[str, Any] | None = None, **more: Any) -> Any:
    """Sampling parameters with vLLM's defaults."""
    values = {
        "extra_args": extra,
        "temperature": 0.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "seed": None,
        "max_tokens": 60,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "thinking_token_budget": None,
        "all_stop_token_ids": set(),
    }
    return SimpleNamespace(**values | more)


def config(folder: Any, context: int = 200, **more: Any) -> Any:
    model = SimpleNamespace(
        tokenizer=str(folder), tokenizer_revision=None, max_model_len=context, skip_tokenizer_init=False
    )
    values = {"model_config": model, "speculative_config": None, "additional_config": {}}
    return SimpleNamespace(**values | {"parallel_config": SimpleNamespace()} | more)


@dataclass(eq=False)
class Job:
    """A request. `computed`: how many of its ids the model has seen since it entered the batch."""

    params: Any
    prompt: list[int]
    output: list[int] = field(default_factory=list)
    computed: int = 0
    slot: int = -1
    finished: bool = False

    @property
    def ids(self) -> list[int]:
        return self.prompt + self.output


class Loop:
    """Runs `jobs` to their ends; `chaos` moves, preempts and splits at random."""

    def __init__(
        self, processor: Any, model: Model, ends: frozenset[int], batch: int, chaos: random.Random | None
    ) -> None:
        self.processor, self.model, self.ends, self.batch, self.chaos = processor, model, ends, batch, chaos
        self.rows: list[Job | None] = []
        self.preempted = 0

    def happens(self, share: float) -> bool:
        return self.chaos is not None and self.chaos.random() < share

    def run(self, jobs: Sequence[Job]) -> list[list[int]]:
        waiting = list(jobs)
        for _ in range(5000):
            if not waiting and not any(self.rows):
                return [job.output for job in jobs]
            self.step(waiting)
        raise AssertionError("the loop does not end")

    def step(self, waiting: list[Job]) -> None:
        raise NotImplementedError

    def ready(self, job: Job) -> bool:
        """Let the model see more of `job`; whether that was all of it."""
        left = len(job.ids) - job.computed
        part = self.chaos.randint(1, left) if self.chaos and self.happens(0.3) and left > 1 else left
        job.computed += part
        return part == left

    def sampled(self, logits: Tensor, job: Job, row: int) -> int:
        heat = job.params.temperature
        u = np.array([random.Random(f"{job.params.seed}/{len(job.output)}").random()])
        return choose(logits[row][None], [Sampling(temperature=heat)], u)[0]

    def take(self, job: Job, token: int) -> None:
        job.output.append(token)
        job.finished = token in self.ends or len(job.output) == job.params.max_tokens


class FirstRunner(Loop):
    """The interface of `vllm.v1.sample.logits_processor`."""

    def step(self, waiting: list[Job]) -> None:
        removed, added, moved = list[int](), list[Any](), list[Any]()
        for index, job in enumerate(self.rows):
            if job is not None and job.finished:
                removed.append(index)
                self.rows[index] = None
            elif job is not None and self.happens(0.08):
                removed.append(index)
                self.rows[index], job.computed = None, 0
                self.preempted += 1
                waiting.append(job)
        while waiting and sum(map(bool, self.rows)) < self.batch and not self.happens(0.3):
            job = waiting.pop(0)
            free = next((i for i, one in enumerate(self.rows) if one is None), len(self.rows))
            if free == len(self.rows):
                self.rows.append(None)
            self.rows[free] = job
            if free in removed:  # replaced, not removed
                removed.remove(free)
            added.append((free, job.params, job.prompt, job.output))
        while None in self.rows:  # condense: the last one moves into the hole
            last = len(self.rows) - 1
            hole = self.rows.index(None)
            if hole != last and self.rows[last] is not None:
                self.rows[hole] = self.rows[last]
                moved.append((last, hole, Move.UNIDIRECTIONAL))
                if hole in removed:  # of what stood there, nothing else is said
                    removed.remove(hole)
            self.rows.pop()
        if len(self.rows) > 1 and self.happens(0.3):
            assert self.chaos is not None
            one, other = self.chaos.sample(range(len(self.rows)), 2)
            self.rows[one], self.rows[other] = self.rows[other], self.rows[one]
            moved.append((one, other, Move.SWAP))
        changed = bool(removed or added or moved)
        jobs = [job for job in self.rows if job is not None]
        # Asynchronous scheduling: while the batch is made up, the last ids are not known yet.
        hidden = [job.output.pop() if job.output and job.computed else None for job in jobs]
        for job, token in zip(jobs, hidden, strict=True):
            job.output += [-1] * (token is not None)
        update = BatchUpdate(len(jobs), sorted(removed, reverse=True), added, moved) if changed else None
        self.processor.update_state(update)
        if not jobs:
            return
        for job, token in zip(jobs, hidden, strict=True):
            if token is not None:
                job.output[-1] = token
        whole = [self.ready(job) for job in jobs]
        logits = torch.stack([self.model(job.ids[: job.computed]) for job in jobs])
        logits = self.processor.apply(logits)
        for row, job in enumerate(jobs):
            if whole[row]:
                self.take(job, self.sampled(logits, job, row))


class SecondRunner(Loop):
    """The interface of `vllm.v1.worker.gpu.sample.logits_processor`."""

    def __init__(
        self, make: Callable[[Any], Any], model: Model, ends: frozenset[int], batch: int, chaos: Any
    ):
        self.states = SimpleNamespace(
            prompt_len=SimpleNamespace(np=np.zeros(batch, dtype=np.int32)),
            prefill_len=SimpleNamespace(np=np.zeros(batch, dtype=np.int32)),
            all_token_ids=SimpleNamespace(gpu=torch.zeros(batch, 400, dtype=torch.int32)),
        )
        super().__init__(make(self.states), model, ends, batch, chaos)
        self.rows = [None] * batch

    def step(self, waiting: list[Job]) -> None:
        for slot, job in enumerate(self.rows):
            if job is not None and (job.finished or self.happens(0.08)):
                self.rows[slot] = None
                if not job.finished:
                    job.computed = 0
                    self.preempted += 1
                    waiting.append(job)
        while waiting and None in self.rows and not self.happens(0.3):
            job = waiting.pop(0)
            free = [slot for slot, one in enumerate(self.rows) if one is None]
            slot = self.chaos.choice(free) if self.chaos else free[0]
            self.rows[slot] = job
            self.states.prompt_len.np[slot] = len(job.prompt)
            self.states.prefill_len.np[slot] = len(job.ids)
            self.states.all_token_ids.gpu[slot, : len(job.ids)] = torch.tensor(job.ids)
            self.processor.add_request(slot, job.params)
        jobs = [(slot, job) for slot, job in enumerate(self.rows) if job is not None]
        if self.chaos:
            self.chaos.shuffle(jobs)
        if not jobs:
            return
        whole = [self.ready(job) for _, job in jobs]
        logits = torch.stack([self.model(job.ids[: job.computed]) for _, job in jobs])
        slots = np.array([slot for slot, _ in jobs])
        logits = self.processor.apply(
            logits,
            Context(
                slots,
                torch.from_numpy(slots),
                torch.tensor([job.ids[job.computed - 1] for _, job in jobs]),
                torch.tensor([job.computed - 1 for _, job in jobs]),
            ),
        )
        for row, (slot, job) in enumerate(jobs):
            if whole[row]:
                self.take(job, self.sampled(logits, job, row))
                self.states.all_token_ids.gpu[slot, len(job.ids) - 1] = job.output[-1]
