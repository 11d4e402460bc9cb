"""Where replies come from: what the HTTP side asks, what it is told, and the one protocol between them.

Promises: nothing here depends on HTTP, on a model or on torch; `Said` pieces of one choice come in order, the
tokens of all of them add up to the counts of its `Ended`, and every choice ends with exactly one `Ended`.
Does not: parse requests (see `fields`, `chat`) or make replies (see `local` for an engine of our own,
`upstream` for a proxy).
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from tutelage.errors import TutelageError
from tutelage.think.policy import ThinkingPolicy
from tutelage.think.segments import ClosedBy

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Depth:
    """Loops of a recurrent-depth model: passes of its core where nobody says how many, and the most."""

    mean: int
    most: int


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation, without what an assistant thought: that never enters a later prompt."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Order:
    """What one HTTP request asks for: `n` replies to one prompt.

    `prompt`: a conversation (the chat template is applied), or a raw prompt as text or ids. `thinks` False:
    no markers are written or looked for, the whole reply is the answer (a raw prompt without thinking
    fields). `max_new_tokens` bounds the whole reply, thinking and markers included; None: what the context
    leaves. `stop` strings act on the answer only. `logprobs`: so many alternatives beside each chosen token;
    None: no log-probabilities at all."""

    prompt: tuple[Turn, ...] | str | tuple[int, ...]
    policy: ThinkingPolicy = field(default_factory=ThinkingPolicy)
    thinks: bool = True
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    n: int = 1
    seed: int = 0
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None

    def choice_seed(self, index: int) -> int:
        """The seed of choice `index`. Choice 0 has the order's own, so that it is the same for every `n`."""
        if index == 0:
            return self.seed
        digest = hashlib.blake2b(f"{self.seed}:{index}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True, slots=True)
class Score:
    """One token of a reply with its natural-log probability, and the likeliest alternatives at its place."""

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Said:
    """A piece of choice `index`: whole characters, one phase, all forced (written by us) or all sampled.
    `tokens` of it; `scores` one per token where log-probabilities were asked for."""

    index: int
    text: str
    phase: Literal["thinking", "answer"]
    forced: bool = False
    tokens: int = 0
    scores: tuple[Score, ...] = ()


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of choice `index`. `completion_tokens`: all tokens of the reply with its markers and its end,
    sampled and forced; `sampled` and `forced` of them are thinking. `cached_tokens` of the prompt were not
    computed for this order alone; `reprefilled`: tokens that a proxy had to send again to continue;
    `core_steps`: passes of the core behind the reply's tokens, None for a model without loops."""

    index: int
    finish_reason: Literal["stop", "length"]
    closed_by: ClosedBy
    prompt_tokens: int
    completion_tokens: int
    sampled: int = 0
    forced: int = 0
    waits: int = 0
    refused: int = 0
    cached_tokens: int = 0
    reprefilled: int = 0
    core_steps: int | None = None


class Refused(TutelageError):
    """A request that cannot be served, in the words and with the status that the client gets.

    `param`: the field that is to blame; `code`: OpenAI's word for it; `retry_after`: seconds, for 429 and
    503."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.retry_after = retry_after


class Replies(Protocol):
    """The pieces of an order's choices as they come; those of different choices interleave.

    (An async generator that was never started does not run its `finally`: one that holds something must
    have been started, or be a class.)"""

    def __aiter__(self) -> AsyncIterator[Said | Ended]: ...
    async def __anext__(self) -> Said | Ended: ...
    async def aclose(self) -> None:
        """Cancel what is still running, at the next step. Harmless when all has ended."""
        ...


class Source(Protocol):
    """A model that answers orders. `model` is its name, `context` the tokens that prompt and reply share,
    `thinks` whether it has thinking in tokens to control at all, `depth` its loops (None: it has none)."""

    model: str
    context: int
    thinks: bool
    depth: Depth | None

    async def open(self, order: Order) -> Replies:
        """Start `order`.

        Whatever must become an HTTP status is raised here, before the first piece: UsageError (400) or
        Refused. What fails later is raised from the iterator."""
        ...

    async def tokenize(self, prompt: tuple[Turn, ...] | str) -> tuple[int, ...]:
        """Ids of a prompt. Raises Refused(501) where the source cannot tell."""
        ...

    async def detokenize(self, ids: tuple[int, ...]) -> str:
        """Text of ids. Raises Refused(501) where the source cannot tell."""
        ...

    def gauges(self) -> Mapping[str, float]:
        """Numbers of now for /metrics, by Prometheus name without its prefix: `rows`, `queue`, ..."""
        ...

    async def aclose(self) -> None:
        """Cancel everything and free the model."""
        ...
