"""What the engine is asked and what it tells: a request, the reply, and the pieces of it as they come.

Promises: frozen values that compare by content.
Does not: decode, or read text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from tutelage.errors import UsageError
from tutelage.think.policy import ThinkingPolicy
from tutelage.think.sampling import Sampling
from tutelage.think.segments import ClosedBy, Phase

FinishReason = Literal["stop", "length", "cancelled"]


class PromptTooLong(UsageError):
    """The prompt leaves too little of the model's context for a reply."""


@dataclass(frozen=True, slots=True)
class Request:
    """One reply to be made.

    `max_answer` bounds the sampled answer and `max_new_tokens` the whole reply, both None: as long as the
    context allows. `stop` strings end the answer; they are not looked for in thinking, nor in what is forced.
    `logprobs`: so many of the best ids beside each id's own log-probability, None: none of it. `choose_wait`:
    (last hidden state (width,), waits so far) -> index into the policy's wait strings, for a refused close;
    None: let it close after all, unless it comes before the policy's minimum.
    `thinks` False: no markers, the whole reply is the answer, whatever the model's template says.
    `begun`: ids of the reply that were written earlier; it goes on after them (see `begun`), and they are
    part of the completion. Neither `stop` nor `logprobs` goes with them."""

    prompt_ids: tuple[int, ...]
    policy: ThinkingPolicy = field(default_factory=ThinkingPolicy)
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    max_answer: int | None = None
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    choose_wait: Callable[[Tensor, int], int | None] | None = None
    thinks: bool = True
    begun: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise UsageError("the prompt is empty")
        for name, least in (("max_answer", 1), ("max_new_tokens", 1), ("logprobs", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"{name} is {value}; it must be at least {least}")
        if not all(self.stop):
            raise UsageError("stop holds an empty string; leave it out")
        if self.choose_wait is not None and not self.policy.wait_strings:
            raise UsageError("choose_wait picks among wait strings, but the policy's wait is None")
        if self.begun and (self.stop or self.logprobs is not None):
            raise UsageError("begun: a reply that goes on cannot have stop strings or log-probabilities")

    @property
    def given(self) -> tuple[int, ...]:
        """All ids that are there before the first step: the prompt and what was begun."""
        return self.prompt_ids + self.begun


@dataclass(frozen=True, slots=True)
class Logprob:
    """The model's natural-log probability of id `token` at its place, before temperature and truncation, and
    the best ids there with theirs. For a forced id: how likely the model was to write it by itself."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """One reply. `ids`, `forced` (1 where we wrote the id), `phases` (indices into machine.PHASES) and, where
    asked for, `logprobs` run in step. `written` and `by_force` count ids per phase, sampled and forced
    together, and forced alone. `stop`: the stop string that ended it; `ids` hold it, the pieces do not.

    Of a model with loops, `steps` run in step with `ids` too: the passes of the core that the token before
    each id was given, whose scores that id was chosen from (0: a forced id at whose place nothing was
    computed). `core_steps`: the passes of all tokens that this reply needed if it had been alone, the
    prompt's included; those that were taken back are not counted. Without loops they are () and 0."""

    ids: tuple[int, ...]
    forced: bytes
    phases: bytes
    finish_reason: FinishReason
    closed_by: ClosedBy
    written: Mapping[Phase, int]
    by_force: Mapping[Phase, int]
    refused: int
    waits: int
    stop: str | None = None
    logprobs: tuple[Logprob, ...] = ()
    steps: tuple[int, ...] = ()
    core_steps: int = 0

    def count(self, phase: Phase) -> tuple[int, int]:
        """Sampled and forced ids of `phase`."""
        forced = self.by_force.get(phase, 0)
        return self.written.get(phase, 0) - forced, forced


@dataclass(frozen=True, slots=True)
class Piece:
    """Streamed text of one phase, all forced or all sampled, and how many `tokens` came with it (`logprobs`
    of each where asked for)."""

    text: str
    phase: Literal["thinking", "answer"]
    forced: bool
    tokens: int
    logprobs: tuple[Logprob, ...] = ()
