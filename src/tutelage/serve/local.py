"""Replies of a model in this process: the engine in a thread of its own.

Promises: nothing of the model runs on the event loop; the queue is bounded (a full one is 503 with
Retry-After); closing the replies of an order frees their rows before the engine's next step; what is waiting
for a slow reader is at most the rest of its reply; a defect while decoding ends the replies under way with an
error, and the next order is served.
Does not: speak HTTP, or queue fairly between clients.

Pieces cross from the engine's thread to the event loop in batches, some of them a second: waking the loop for
each token would cost more than decoding it with a small model. What has come for one choice since the last
batch is one piece, so a slow client gets fewer and longer ones.

Prompts are encoded in one further thread, with a copy of the tokenizer: a fast tokenizer holds whether it
reads control tokens as such, so two that encode at once could let a user's text through as one.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import math
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, TypeGuard, TypeVar

import torch

from tutelage.errors import TutelageError, UsageError
from tutelage.serve.source import Depth, Ended, Order, Refused, Replies, Said, Score, Turn
from tutelage.serve.stream import shutting_down
from tutelage.students.pretrained import Student
from tutelage.students.recurrent import RecurrentDepthConfig
from tutelage.students.template import markers, render_conversation
from tutelage.think.backend import Backend
from tutelage.think.engine import Completion, Engine, Job, Logprob, Piece, PromptTooLong, Request
from tutelage.think.loops import Loops
from tutelage.think.sampling import Sampling
from tutelage.think.speculation import Speculating
from tutelage.tokens import decode_ids, encode_text

Result = TypeVar("Result")
# The loop is woken for news at most once in TICK seconds, less often the more replies are under way: so many
# chunks a second in all, and no reply waits longer than SLOWEST.
TICK, CHUNKS, SLOWEST = 0.02, 500, 0.1
MAX_QUEUE = 1024
log = logging.getLogger("tutelage.serve")
News = tuple["_Replies", int, Piece | Completion | BaseException]


class Local:
    """A `Source` over `student`. At most `max_batch` replies are decoded together and `max_queue` more wait.
    `threads`: cores for decoding, None: as torch is set. `draft_steps`: decode by self-speculation, drafting
    with so many loops (None: do not). To be made on the event loop that it serves."""

    def __init__(
        self,
        student: Student,
        *,
        name: str,
        max_batch: int = 32,
        max_queue: int = MAX_QUEUE,
        threads: int | None = None,
        draft_steps: int | None = None,
    ) -> None:
        """Raises UsageError for a model that cannot be run, or cannot draft."""
        self.model = name
        self.depth = depth_of(student.model)
        self.thinks = student.template.thinking
        self._student, self._max_batch, self._max_queue = student, max_batch, max_queue
        self._engine = Engine(student, max_batch=max_batch, backend=self._drafting(draft_steps))
        self.context = self._engine.context
        self._tokenizer = copy.deepcopy(student.tokenizer)
        self._reader = ThreadPoolExecutor(1, "tutelage-prompts")
        self._loop = asyncio.get_running_loop()
        self._news: deque[News] = deque()
        self._told = False  # whether the loop knows that there is news
        self._delivered = 0.0
        self._open: set[_Replies] = set()
        self._live = 0
        self._seconds = 1.0  # what a reply takes, a running mean
        self._spelled = lru_cache(maxsize=65536)(lambda token: decode_ids(self._tokenizer, [token]))
        self._closing = False
        self._thread = threading.Thread(
            target=self._drive, args=(threads,), name="tutelage-engine", daemon=True
        )
        self._thread.start()

    async def open(self, order: Order) -> Replies:
        """See `Source.open`."""
        self._admit(order)
        request = await self._in_reader(self._request, order)
        self._admit(order)  # others may have come meanwhile
        replies = _Replies(self, order, len(request.prompt_ids))
        self._live += order.n
        self._open.add(replies)
        try:
            for index in range(order.n):
                one = replace(request, seed=order.choice_seed(index))
                replies.jobs.append(self._engine.submit(one, partial(self._heard, replies, index)))
        except BaseException:
            await replies.aclose()
            raise
        return replies

    async def tokenize(self, prompt: tuple[Turn, ...] | str) -> tuple[int, ...]:
        """See `Source.tokenize`."""
        return await self._in_reader(self._prompt, prompt, _is_chat(prompt))

    async def detokenize(self, ids: tuple[int, ...]) -> str:
        """See `Source.detokenize`."""
        if any(number >= len(self._tokenizer) for number in ids):
            raise Refused(400, f"tokens: {max(ids)} is not an id of this model", param="tokens")
        return await self._in_reader(decode_ids, self._tokenizer, ids)

    def gauges(self) -> Mapping[str, float]:
        """See `Source.gauges`."""
        stats = self._engine.stats
        loops = {} if self.depth is None else {"core_steps_total": stats.core_steps}
        return {
            **loops,
            "rows": stats.rows,
            "queue": stats.waiting,
            "live_replies": self._live,
            "prefilled_tokens_total": stats.prefilled,
            "decoded_tokens_total": stats.decoded,
            "shared_tokens_total": stats.shared,
        }

    async def aclose(self) -> None:
        """See `Source.aclose`."""
        self._closing = True
        for replies in list(self._open):
            replies.fail(shutting_down())
        await asyncio.to_thread(self._thread.join)
        self._reader.shutdown(wait=False)

    def release(self, replies: _Replies) -> None:
        """Cancel what is left of `replies`; called once, by it."""
        for job in replies.jobs:
            self._engine.cancel(job)
        self._live -= replies.order.n
        self._open.discard(replies)
        took = time.monotonic() - replies.began
        self._seconds += 0.1 * (took - self._seconds)

    def _drafting(self, draft_steps: int | None) -> Backend | None:
        if draft_steps is None:
            return None
        if self.depth is None:
            raise UsageError(f"--draft-steps: {self.model} has no loops to draft with; leave it out")
        return Speculating(Loops(self._student.model), draft_steps)

    def _admit(self, order: Order) -> None:
        if self._closing:
            raise shutting_down()
        most = self._max_batch + self._max_queue
        if order.n > most:
            raise Refused(400, f"n: {order.n} is more than the {most} replies that fit here", param="n")
        if self._live + order.n > most:
            seconds = math.ceil(self._seconds * self._live / self._max_batch)
            raise Refused(
                503,
                f"{self._live} replies are under way or wait, and {most} is the most; come again",
                code="queue_full",
                retry_after=min(max(seconds, 1), 60),
            )

    async def _in_reader(self, work: Callable[..., Result], *given: Any) -> Result:
        """`work` off the loop: a long prompt takes a while. One thread, because tokenizers change while they
        encode."""
        return await self._loop.run_in_executor(self._reader, work, *given)

    def _request(self, order: Order) -> Request:
        """Raises UsageError or Refused for what cannot be served."""
        prompt = self._prompt(order.prompt, order.thinks)
        request = Request(
            prompt_ids=prompt,
            policy=order.policy,
            sampling=Sampling(order.temperature, order.top_p, order.top_k, order.min_p),
            seed=order.seed,
            max_new_tokens=order.max_new_tokens,
            stop=order.stop,
            logprobs=order.logprobs,
            thinks=order.thinks and self.thinks,
        )
        try:
            self._engine.check(request)
        except PromptTooLong as error:
            field = "messages" if _is_chat(order.prompt) else "prompt"
            raise Refused(400, str(error), param=field, code="context_length_exceeded") from None
        except UsageError as error:
            raise _blamed(error) from None
        self._check_minimum(order, len(prompt))
        return request

    def _check_minimum(self, order: Order, prompt: int) -> None:
        """The policy's minimum gives way to the room; here it would be a promise that is not kept."""
        policy = order.policy
        if not policy.min_tokens:
            return
        room = min(self.context - prompt, order.max_new_tokens or self.context)
        script = policy.compile(self._tokenizer, self._student.template).script
        most = room - script.overhead - policy.answer_reserve
        if policy.min_tokens > most:
            raise Refused(
                400,
                f"min_thinking_tokens: {policy.min_tokens} is more than the {max(most, 0)} that markers and "
                f"an answer of {policy.answer_reserve} leave of {room} (context {self.context})",
                param="min_thinking_tokens",
            )

    def _prompt(self, prompt: Any, thinks: bool) -> tuple[int, ...]:
        tokenizer, template = self._tokenizer, self._student.template
        if _is_chat(prompt):
            turns = [(turn.role, turn.content) for turn in prompt]
            return tuple(render_conversation(tokenizer, template, turns))
        ids = tuple(encode_text(tokenizer, prompt)) if isinstance(prompt, str) else prompt
        beyond = max(ids, default=0) >= len(tokenizer)
        if not ids or beyond:
            why = f"{max(ids)} is not an id of this model" if beyond else "is empty"
            raise Refused(400, f"prompt: {why}", param="prompt")
        opening = markers(tokenizer, template).open
        if thinks and template.prefill and ids[-len(opening) :] != opening:
            ids += opening
        return ids

    # From here to _deliver: the engine's thread.

    def _drive(self, threads: int | None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        while not self._closing:
            try:
                if not self._engine.step():
                    self._engine.wait(0.1)
            except Exception:  # the engine has told everybody whose reply this ended
                log.exception("a defect while decoding")

    def _heard(self, replies: _Replies, index: int, item: Piece | Completion | BaseException) -> None:
        self._news.append((replies, index, item))
        if not isinstance(item, Piece):  # an end: nothing is gained by waiting for more
            self._loop.call_soon_threadsafe(self._deliver)
        elif not self._told:
            self._told = True
            self._loop.call_soon_threadsafe(self._soon)

    # The loop again.

    def _soon(self) -> None:
        late = self._loop.time() - self._delivered
        tick = min(max(TICK, self._live / CHUNKS), SLOWEST)
        self._loop.call_later(max(tick - late, 0.0), self._deliver)

    def _deliver(self) -> None:
        self._told = False  # first, so that what comes from now on is told again
        self._delivered = self._loop.time()
        for _ in range(len(self._news)):
            replies, index, item = self._news.popleft()
            replies.take(index, item)

    def scores(self, logprobs: Sequence[Logprob]) -> tuple[Score, ...]:
        """Ids spelled out."""
        spelled = self._spelled
        return tuple(
            Score(spelled(one.token), one.logprob, tuple((spelled(token), value) for token, value in one.top))
            for one in logprobs
        )


class _Replies:
    """The replies to one order, as they come from the engine. All methods run on the loop."""

    def __init__(self, source: Local, order: Order, prompt_tokens: int) -> None:
        self.order = order
        self.jobs: list[Job] = []
        self.began = time.monotonic()
        self._source, self._prompt_tokens = source, prompt_tokens
        self._waiting: list[deque[Piece | Completion]] = [deque() for _ in range(order.n)]
        self._left = order.n
        self._failure: BaseException | None = None
        self._news = asyncio.Event()
        self._closed = False

    def take(self, index: int, item: Piece | Completion | BaseException) -> None:
        """What the engine said about choice `index`."""
        if self._closed:
            return
        if isinstance(item, BaseException):
            self.fail(item)
            return
        self._waiting[index].append(item)
        self._news.set()

    def fail(self, failure: BaseException) -> None:
        """End all choices with `failure`."""
        if not isinstance(failure, TutelageError):
            failure = Refused(500, f"decoding failed ({type(failure).__name__}); the server's log says more")
        self._failure = failure
        self._news.set()

    def __aiter__(self) -> AsyncIterator[Said | Ended]:
        return self

    async def __anext__(self) -> Said | Ended:
        while not self._closed:
            for index, waiting in enumerate(self._waiting):
                if waiting:
                    return self._next(index, waiting)
            if self._failure is not None:
                raise self._failure
            if not self._left:
                break
            self._news.clear()
            await self._news.wait()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self._news.set()
            self._source.release(self)

    def _next(self, index: int, waiting: deque[Piece | Completion]) -> Said | Ended:
        """What waits first for choice `index`: as many pieces as belong together, or its end."""
        first = waiting.popleft()
        if isinstance(first, Completion):
            self._left -= 1
            return self._ended(index, first)
        texts, tokens, logprobs = [first.text], first.tokens, list(first.logprobs)
        while waiting:
            more = waiting[0]
            if isinstance(more, Completion) or (more.phase, more.forced) != (first.phase, first.forced):
                break
            waiting.popleft()
            texts.append(more.text)
            tokens += more.tokens
            logprobs += more.logprobs
        scores = self._source.scores(logprobs)
        return Said(index, "".join(texts), first.phase, first.forced, tokens, scores)

    def _ended(self, index: int, completion: Completion) -> Ended:
        assert completion.finish_reason != "cancelled", "only aclose cancels, after which nothing is taken"
        sampled, forced = completion.count("thinking")
        return Ended(
            index=index,
            finish_reason=completion.finish_reason,
            closed_by=completion.closed_by,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=len(completion.ids),
            sampled=sampled,
            forced=forced,
            waits=completion.waits,
            refused=completion.refused,
            cached_tokens=self.jobs[index].cached_tokens,
            core_steps=None if self._source.depth is None else sum(completion.steps),
        )


def depth_of(model: Any) -> Depth | None:
    """The loops of `model`, None where it has none."""
    config = model.config
    if not isinstance(config, RecurrentDepthConfig):
        return None
    return Depth(config.mean_recurrence, config.max_recurrence)


def _blamed(error: UsageError) -> Refused:
    """The engine's words with the fields of a request."""
    message = str(error).removeprefix("thinking policy: ")
    if message.startswith("max_new_tokens"):
        return Refused(400, message.replace("max_new_tokens", "max_tokens"), param="max_tokens")
    if "wait string" in message:
        return Refused(400, message.replace("max_tokens", "thinking_token_budget"), param="thinking_wait")
    if "the close_text;" in message:
        return Refused(400, message, param="thinking_close_text")
    return Refused(400, message)


def _is_chat(prompt: tuple[Turn, ...] | str | tuple[int, ...]) -> TypeGuard[tuple[Turn, ...]]:
    return isinstance(prompt, tuple) and bool(prompt) and isinstance(prompt[0], Turn)
