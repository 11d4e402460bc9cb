"""One reply, token by token: the machine that an engine asks what to do with each sampled id.

Promises: it plays exactly the segments of the policy; every id of the reply is labelled sampled or forced and
belongs to one phase, and the labels add up to the policy's own counts; a closing marker of several tokens is
recognised however it is split over steps, also where it began in a forced string; a marker in the prompt or
in the answer changes nothing.
Does not: hold a model, a cache or randomness, or detokenise a reply.

A policy is compiled once per tokenizer, and started once per reply. How an engine drives it:

    machine = policy.compile(tokenizer)
    state = machine.start(room, prompt[-1])
    feed prompt and state.opening to the model
    while not state.finished:
        sample an id (those in the last step's `banned` excluded)
        step = state.step(id)
        take the last step.back ids out of the cache, then feed step.feed; where that is nothing, sample again

No model is needed to see it work:

    >>> from tutelage.lab.tokenizer import build_tokenizer
    >>> from tutelage.think import ThinkingPolicy
    >>> tokenizer = build_tokenizer()
    >>> close, = tokenizer.convert_tokens_to_ids(["</think>"])
    >>> state = ThinkingPolicy(max_tokens=2).compile(tokenizer).start(room=64, last_prompt_id=0)
    >>> state.step(7).feed, state.step(8).feed == (8, close)  # two thoughts are allowed, then it is closed
    ((7,), True)
    >>> [state.progress.written[phase] for phase in ("thinking", "close")], bytes(state.forced)
    ([2, 1], b'\\x00\\x00\\x01')
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from tutelage.errors import UsageError
from tutelage.students.template import Template, markers
from tutelage.think.policy import ThinkingPolicy, check_fit
from tutelage.think.segments import (
    Done,
    Force,
    Generate,
    Phase,
    Progress,
    Script,
    Span,
    Stop,
    after_force,
    after_generate,
    begin,
    next_segment,
    refuse_thinking,
)
from tutelage.tokens import Markers, Tokenizer, decode_ids, encode_text

PHASES: tuple[Phase, ...] = ("open", "thinking", "close", "answer", "end")
_THINKING, _CLOSE, _ANSWER, _END = 1, 2, 3, 4


class Step(NamedTuple):
    """What an engine does after it offered a sampled id. `back`: first take that many ids, fed earlier, out
    of the cache; `feed`: then feed these, in order (the offered id first where it was taken; forced ones
    follow), or, where there are none and it is not `done`, sample again from the same scores; `banned`: ids
    that must not be sampled next; `done`: the reply is complete, and nothing more need be fed."""

    feed: tuple[int, ...] = ()
    banned: tuple[int, ...] = ()
    back: int = 0
    done: bool = False


@dataclass(frozen=True, slots=True)
class Machine:
    """A policy in one tokenizer's ids. `breaks_line` tells whether an id's text holds a line break."""

    script: Script
    end: frozenset[int]
    breaks_line: Callable[[int], bool] = field(compare=False)

    @property
    def policy(self) -> ThinkingPolicy:
        """What is played."""
        return self.script.policy

    @property
    def close(self) -> tuple[int, ...]:
        """The closing marker; empty for a template without thinking."""
        return self.script.close.ids

    def start(
        self, room: int, last_prompt_id: int, max_answer: int | None = None, append_only: bool = False
    ) -> State:
        """The state of a new reply of at most `room` ids, `max_answer` of them sampled answer.
        `last_prompt_id` is fed again where the first close is withdrawn. `append_only`: for drivers that
        cannot take ids back: what was written of a refused marker stays, as thinking.

        Raises UsageError when markers and the answer's reserve do not fit into the room."""
        return State(self, room, last_prompt_id, max_answer, append_only)


def compile_policy(policy: ThinkingPolicy, tokenizer: Tokenizer, template: Template | None) -> Machine:
    """See `ThinkingPolicy.compile`."""
    mine = (policy.think_open, policy.think_close)
    if template is None:
        template = Template()
        if policy.think_open is not None and policy.think_close is not None:
            template = Template(think_open=policy.think_open, think_close=policy.think_close)
    elif policy.think_open is not None and mine != (template.think_open, template.think_close):
        raise UsageError(
            f"thinking policy: its markers {mine[0]!r} and {mine[1]!r} are not those that this model speaks, "
            f"{template.think_open!r} and {template.think_close!r}; leave them out"
        )
    return build(
        policy,
        markers(tokenizer, template),
        lambda text: _known(tokenizer, text, "close_text" if text == policy.close_text else "wait string"),
        prefilled=template.prefill,
        breaks_line=lru_cache(maxsize=4096)(lambda token: "\n" in decode_ids(tokenizer, [token])),
    )


def _known(tokenizer: Tokenizer, text: str, what: str) -> list[int]:
    """Ids of `text`, which is `what`. Raises UsageError where the tokenizer cannot write it: another text
    would be forced."""
    ids = encode_text(tokenizer, text)
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is not None and unknown in ids:
        raise UsageError(
            f"thinking policy: this tokenizer has no tokens for {text!r}, the {what}; "
            "use a text that it knows"
        )
    return ids


def build(
    policy: ThinkingPolicy,
    marks: Markers,
    encode: Callable[[str], Sequence[int]],
    *,
    prefilled: bool = True,
    breaks_line: Callable[[int], bool] = lambda token: False,
) -> Machine:
    """`policy` with the markers given as ids; `encode` turns plain text into ids. Raises UsageError as
    `ThinkingPolicy.compile`."""

    def span(ids: Sequence[int], text: str = "") -> Span:
        return Span(text, tuple(ids), len(ids))

    if not marks.close:
        refuse_thinking(policy)
        return Machine(Script(policy, thinks=False), marks.end, breaks_line)
    waits = tuple(span(encode(text), text) for text in policy.wait_strings)
    check_fit(policy, [wait.tokens for wait in waits])
    script = Script(
        policy,
        span(() if prefilled else marks.open),
        span(marks.close),
        waits,
        # Where the marker is text of several tokens it ends its line; this then starts the next one.
        span(encode(policy.close_text) if policy.close_text else (), policy.close_text),
    )
    return Machine(script, marks.end, breaks_line)


class State:
    """One reply. `ids`, `phases` (indices into PHASES) and `forced` (0 or 1) run in step; `opening` are the
    ids forced before the first sampled one; `progress` holds the policy's counts; `finished`: no more steps.
    `choose_wait` gives the index of the wait string for a refused close (None: in rotation); where it returns
    None, the close is not refused after all, unless it comes before the minimum."""

    __slots__ = (
        "_answering",
        "_append_only",
        "_banned",
        "_close",
        "_count",
        "_end",
        "_last_prompt_id",
        "_limit",
        "_newline",
        "choose_wait",
        "finished",
        "forced",
        "ids",
        "machine",
        "opening",
        "phases",
        "progress",
        "wants_scores",
    )

    def __init__(
        self, machine: Machine, room: int, last_prompt_id: int, max_answer: int | None, append_only: bool
    ) -> None:
        self.machine = machine
        self.ids: list[int] = []
        self.phases = bytearray()
        self.forced = bytearray()
        self.choose_wait: Callable[[], int | None] | None = None
        self._append_only = append_only
        self._last_prompt_id = last_prompt_id
        self._close, self._end = machine.close, machine.end
        self._banned: tuple[int, ...] = ()
        self.opening = self._settle(begin(machine.script, room, max_answer))

    @property
    def settled(self) -> int:
        """How many of `ids` cannot be withdrawn any more (a marker that has begun may be)."""
        return len(self.ids) - (0 if self._answering else min(self._begun(len(self._close) - 1), self._count))

    @property
    def closing(self) -> int | None:
        """The id that would complete a close by the model now; None while it is answering."""
        if self._answering or self.finished or not self._close:
            return None
        lead = self._close[:-1]
        return self._close[-1] if not lead or self._tail(len(lead)) == lead else None

    def step(self, token: int, scores: Any = None) -> Step:
        """Take a sampled id. `scores` (vocabulary,), as it was drawn from, are read while `wants_scores`
        (a tensor or an array)."""
        if self._answering:
            if token in self._end:
                self._record(token, _END)
                return self._stopped("end")
            self._record(token, _ANSWER)
            self._count += 1
            return self._stopped("length") if self._count == self._limit else Step((token,))
        if token in self._end:
            return self._attempt(token, "end", 0)
        close = self._close
        if token == close[-1] and (len(close) == 1 or self._tail(len(close) - 1) == close[:-1]):
            return self._attempt(token, "close", min(len(close) - 1, self._count))
        if self.wants_scores and self._ranks(scores):
            return Step(self._cut("rank"))
        self._banned = ()
        self._record(token, _THINKING)
        self._count += 1
        broke = self._newline and self.machine.breaks_line(token)
        if self._count == self._limit or (broke and self.progress.stage == "grace"):
            return Step((token, *self._cut("newline" if broke else "length")))
        return Step((token,))

    def end(self) -> None:
        """The answer is over by a stop string: nothing more is wanted. Only while answering."""
        assert self._answering and not self.finished
        self._stopped("stop")

    def _attempt(self, token: int, stop: Stop, own: int) -> Step:
        """The model tries to stop thinking; `own` ids of its marker were fed before this one in this
        segment."""
        takes_back = 0 if self._append_only else own
        kept = self._count - own
        marker = own + 1 if stop == "close" else 0
        progress = after_generate(
            self.machine.script,
            self.progress,
            kept,
            stop,
            marker,
            choose_wait=self.choose_wait,
            stays=self._append_only,
        )
        if stop == "close" and progress.closed_by == "model":
            self._label(own, _CLOSE)
            self._record(token, _CLOSE)
            return Step((token, *self._settle(progress)))
        first = self.ids[-takes_back] if takes_back else token
        banned = self._banned if self._count == takes_back else ()
        if takes_back:
            del self.ids[-takes_back:], self.phases[-takes_back:], self.forced[-takes_back:]
        forced = self._settle(progress)
        if forced:  # a wait string, or the marker that an end of text stands for
            return Step(forced, back=takes_back)
        # Masked. All first ids tried at this place stay banned, so that this ends after a few tries.
        own_first = () if self._append_only and len(self._close) > 1 else (self._close[0],)
        self._banned = tuple(sorted({*banned, *self._end, *own_first, first}))
        if not takes_back:
            return Step(banned=self._banned)
        # The scores of that place are gone: feed the last kept id once more in its own place.
        last = self.ids[-1] if self.ids else self._last_prompt_id
        return Step((last,), self._banned, takes_back + 1)

    def _cut(self, stop: Stop) -> tuple[int, ...]:
        """Thinking ends here, or goes on into its grace. Returns what is forced."""
        begun = self._begun(min(len(self._close) - 1, self._count))
        rest = self._close[begun:]
        progress = after_generate(
            self.machine.script, self.progress, self._count - begun, stop, begun, Span("", rest, len(rest))
        )
        if progress.stage == "closing":
            self._label(begun, _CLOSE)
        return self._settle(progress)

    def _ranks(self, scores: Any) -> bool:
        """Whether what is still to come of the closing marker is among the K best next ids."""
        if scores is None:
            raise UsageError("close rank:K needs the next-token scores; this driver does not have them")
        mine = scores[self._close[self._begun(min(len(self._close) - 1, self._count))]]
        return int((scores > mine).sum()) < (self.machine.policy.rank or 0)

    def _stopped(self, stop: Stop) -> Step:
        self._settle(after_generate(self.machine.script, self.progress, self._count, stop))
        return Step(done=True)

    def _settle(self, progress: Progress) -> tuple[int, ...]:
        """Record forced segments until the model has to write something, or it is done; returns them."""
        script = self.machine.script
        forced: tuple[int, ...] = ()
        while isinstance(segment := next_segment(script, progress), Force):
            phase = PHASES.index(segment.phase)
            for token in segment.ids:
                self._record(token, phase, forced=1)
            forced += segment.ids
            progress = after_force(script, progress)
        self.progress = progress
        self._banned = ()
        self._count = 0
        self._limit = segment.at_most if isinstance(segment, Generate) else 0
        self._answering = isinstance(segment, Generate) and segment.phase == "answer"
        self._newline = self.machine.policy.close == "newline" and not self._answering
        self.wants_scores = isinstance(segment, Generate) and segment.until == "rank"
        self.finished = isinstance(segment, Done)
        return forced

    def _record(self, token: int, phase: int, forced: int = 0) -> None:
        self.ids.append(token)
        self.phases.append(phase)
        self.forced.append(forced)

    def _label(self, count: int, phase: int) -> None:
        for i in range(len(self.ids) - count, len(self.ids)):
            self.phases[i] = phase

    def _tail(self, width: int) -> tuple[int, ...]:
        """The last `width` ids of the thinking, () when it is shorter."""
        if len(self.ids) < width or self.phases[-width] != _THINKING:
            return ()
        return tuple(self.ids[-width:])

    def _begun(self, widest: int) -> int:
        """How many of the last ids, `widest` at most, are the beginning of a closing marker."""
        close = self._close
        return next((k for k in range(widest, 0, -1) if self._tail(k) == close[:k]), 0)
