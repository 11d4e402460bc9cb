"""A thinking policy as segments: the primitive that engines, servers and proxies all play.

Promises: thinking never exceeds the maximum plus the grace; it never ends before the minimum while room
remains; the answer always has its reserve; forced and sampled tokens are counted apart and add up. Everything
is a frozen value or a pure function, whatever the unit of text is: ids (`machine`) or strings (`play`).
Does not: choose tokens, recognise markers, or look at any text.

A reply is a sequence of `Generate` (until the model tries to close its thinking, or a limit is reached),
`Force` (write this) and `Done`. After each one `after_generate` or `after_force` gives the new progress, and
`next_segment` what to do next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from tutelage.errors import UsageError
from tutelage.think.policy import ThinkingPolicy

Phase = Literal["open", "thinking", "close", "answer", "end"]
Stop = Literal["close", "end", "length", "newline", "rank", "stop"]
ClosedBy = Literal["model", "budget", "grace", "eos", "room", "none"]
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Span:
    """Something to write: its text (for proxies), its ids (for engines), its length in tokens."""

    text: str = ""
    ids: tuple[int, ...] = ()
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Script:
    """A policy with what it may write. `open` is forced first (empty where the prompt ends with it); without
    `thinks` the whole reply is the answer."""

    policy: ThinkingPolicy
    open: Span = Span()
    close: Span = Span()
    waits: tuple[Span, ...] = ()
    close_text: Span = Span()
    thinks: bool = True

    @property
    def overhead(self) -> int:
        """Most tokens of a reply that are neither thinking nor answer by the model."""
        return self.open.tokens + self.close.tokens + self.close_text.tokens


@dataclass(frozen=True, slots=True)
class Generate:
    """Let the model write at most `at_most` tokens, until it attempts a `close` (closing marker or end of
    text while thinking) or an `end` (of text, while answering). What matched is not part of the segment.
    `newline`: a close, or the end of a line, whose line break belongs to the segment; `rank`: a close, or a
    place where the closing marker is among the policy's K best next tokens. With `mask_first` the first
    token may not start what `until` names."""

    phase: Literal["thinking", "answer"]
    until: Literal["close", "newline", "rank", "end"]
    at_most: int
    mask_first: bool = False


@dataclass(frozen=True, slots=True)
class Force:
    """Write `span`, which counts for `phase`."""

    phase: Phase
    span: Span

    @property
    def text(self) -> str:
        """What to write, for proxies."""
        return self.span.text

    @property
    def ids(self) -> tuple[int, ...]:
        """What to write, for engines."""
        return self.span.ids


@dataclass(frozen=True, slots=True)
class Done:
    """The reply is over: `stop` by the model's own end of text or a stop string, or `length`."""

    finish_reason: FinishReason


Segment = Generate | Force | Done


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a reply is. `room` bounds the whole reply in tokens, `max_answer` the sampled answer."""

    room: int
    max_answer: int | None = None
    stage: Literal["open", "thinking", "waiting", "grace", "closing", "close_text", "answer", "done"] = "open"
    used: int = 0
    refused: int = 0
    waits: int = 0
    wait: int = 0
    masked: bool = False
    written: Mapping[Phase, int] = field(default_factory=dict)
    forced: Mapping[Phase, int] = field(default_factory=dict)
    closed_by: ClosedBy = "none"
    rest: Span = Span()
    finish_reason: FinishReason = "length"

    @property
    def thinking(self) -> int:
        """Thinking tokens so far, sampled and forced."""
        return self.written.get("thinking", 0)


def begin(script: Script, room: int, max_answer: int | None = None) -> Progress:
    """The start of a reply of at most `room` tokens, all included.

    Raises UsageError when the markers, `close_text` and the answer's reserve do not fit into the room."""
    if max_answer is not None and max_answer < 1:
        raise UsageError(f"max_answer_tokens is {max_answer}; it must be at least 1")
    needed = script.overhead + _reserve(script, max_answer)
    if room < needed:
        raise UsageError(
            f"{max(room, 0)} tokens of room are left after the prompt, but markers and the answer's "
            "reserve need "
            f"{needed}; use a shorter prompt, a smaller answer_reserve or a model with a longer context"
        )
    return Progress(room, max_answer, "open" if script.thinks else "answer")


def cap(script: Script, progress: Progress) -> int:
    """Thinking tokens at which thinking is to end: the policy's maximum, or what the room leaves."""
    left, most = _left(script, progress), script.policy.max_tokens
    return left if most is None else min(most, left)


def ceiling(script: Script, progress: Progress) -> int:
    """The most thinking tokens this reply may have, grace included."""
    left, most = _left(script, progress), script.policy.max_tokens
    return left if most is None else min(most + script.policy.grace_tokens, left)


def _left(script: Script, progress: Progress) -> int:
    return progress.room - script.overhead - _reserve(script, progress.max_answer)


def _reserve(script: Script, max_answer: int | None) -> int:
    reserve = script.policy.answer_reserve
    return reserve if max_answer is None else min(reserve, max_answer)


def next_segment(script: Script, progress: Progress) -> Segment:
    """What to do now."""
    match progress.stage:
        case "open":
            return Force("open", script.open)
        case "waiting":
            return Force("thinking", script.waits[progress.wait])
        case "closing":
            return Force("close", progress.rest)
        case "close_text":
            return Force("answer", script.close_text)
        case "thinking":
            return Generate("thinking", "close", cap(script, progress) - progress.thinking, progress.masked)
        case "grace":
            until: Literal["newline", "rank"] = "newline" if script.policy.rank is None else "rank"
            return Generate("thinking", until, ceiling(script, progress) - progress.thinking)
        case "answer":
            left = progress.room - progress.used
            most = left if progress.max_answer is None else min(left, progress.max_answer)
            return Generate("answer", "end", most)
        case "done":
            return Done(progress.finish_reason)


def after_force(script: Script, progress: Progress, tokens: int | None = None) -> Progress:
    """Progress once the `Force` segment that `next_segment` gave has been written; `tokens`: how many it
    really was (None: as the script says)."""
    segment = next_segment(script, progress)
    assert isinstance(segment, Force)
    length = segment.span.tokens if tokens is None else tokens
    new = _wrote(progress, segment.phase, length, forced=True)
    match progress.stage:
        case "open":
            return _think(script, new)
        case "waiting":
            return _think(script, replace(new, waits=progress.waits + 1))
        case "closing":
            return replace(new, stage="close_text")
        case _:
            return replace(new, stage="answer")


def after_generate(
    script: Script,
    progress: Progress,
    produced: int,
    stop: Stop,
    marker: int = 0,
    rest: Span | None = None,
    choose_wait: Callable[[], int | None] | None = None,
    stays: bool = False,
) -> Progress:
    """Progress once a `Generate` segment has ended: `produced` tokens were kept, and the model attempted a
    `close`, attempted the `end` of text, reached the segment's `length`, a `newline` or a `rank` that was
    looked for, or a `stop` string in its answer.

    `marker`: how many tokens of the closing marker the model wrote in this segment, not counted in
    `produced`: on `close` those that completed it, else those it had begun with, and then `rest` is what is
    still to be written of it. `choose_wait`: the index of the wait string for a refused close, None to let it
    close after all where the minimum allows (without `choose_wait`: in rotation). `stays`: what was written
    of a refused marker cannot be taken back, and is thinking."""
    phase: Phase = "answer" if progress.stage == "answer" else "thinking"
    new = replace(_wrote(progress, phase, produced), masked=False)
    if phase == "answer":
        if stop == "end":
            new = _wrote(new, "end", 1)
        return replace(new, stage="done", finish_reason="length" if stop == "length" else "stop")
    if stop in ("close", "end"):
        return _close_attempt(script, new, stop, marker, choose_wait, max(marker - 1, 0) if stays else 0)
    # A marker that has begun is thinking again until it is completed.
    begun = _wrote(new, "thinking", marker)
    if stop == "length" and progress.stage == "thinking" and _may_linger(script, begun):
        return replace(begun, stage="grace")
    lingered = progress.stage == "grace" and stop in ("newline", "rank")
    by: ClosedBy = "grace" if lingered else _limit(script, progress)
    return replace(
        _wrote(new, "close", marker),
        stage="closing",
        closed_by=by,
        rest=script.close if rest is None else rest,
    )


def interrupt(script: Script, progress: Progress, produced: int, wait: int | None) -> Progress:
    """Progress where the driver itself ends a `Generate` of thinking after `produced` tokens: to put in wait
    string number `wait`, unasked (whether it fits is the driver's to see), or, None, to close by force as at
    the maximum."""
    new = replace(_wrote(progress, "thinking", produced), masked=False)
    if wait is None:
        return replace(new, stage="closing", closed_by="budget", rest=script.close)
    return replace(new, stage="waiting", wait=wait)


def _close_attempt(
    script: Script,
    progress: Progress,
    stop: Stop,
    marker: int,
    choose_wait: Callable[[], int | None] | None,
    stays: int,
) -> Progress:
    policy, most = script.policy, cap(script, progress)
    short = progress.thinking < min(policy.min_tokens, most)
    # At the maximum nothing is refused any more: what follows would break it.
    if progress.stage == "thinking" and (short or progress.refused < policy.refuse_closes):
        refused = _wrote(replace(progress, refused=progress.refused + 1), "thinking", stays)
        waits_left = bool(script.waits) and (policy.max_waits is None or progress.waits < policy.max_waits)
        if not waits_left:
            return replace(refused, masked=True)
        index = progress.waits if choose_wait is None else choose_wait()
        if index is not None:
            index %= len(script.waits)
            # A wait string must leave at least one token to go on with; otherwise it would only spoil the
            # thought.
            if refused.thinking + script.waits[index].tokens < most:
                return replace(refused, stage="waiting", wait=index)
        if short:
            return replace(refused, masked=True)
    if stop == "close":  # the model wrote the marker itself
        return replace(_wrote(progress, "close", marker), stage="answer", closed_by="model")
    return replace(progress, stage="closing", closed_by="eos", rest=script.close)


def _think(script: Script, progress: Progress) -> Progress:
    """Back to thinking, or on to the close where no room is left."""
    if progress.thinking < cap(script, progress):
        return replace(progress, stage="thinking")
    if _may_linger(script, progress):
        return replace(progress, stage="grace")
    return replace(progress, stage="closing", closed_by=_limit(script, progress), rest=script.close)


def _may_linger(script: Script, progress: Progress) -> bool:
    """Whether a place to close may be looked for beyond the maximum."""
    return script.policy.grace_tokens > 0 and progress.thinking < ceiling(script, progress)


def _limit(script: Script, progress: Progress) -> ClosedBy:
    """Which of the two limits ends the thinking of this reply."""
    most = script.policy.max_tokens
    if most is None or ceiling(script, progress) < most + script.policy.grace_tokens:
        return "room"
    return "budget"


def _wrote(progress: Progress, phase: Phase, count: int, forced: bool = False) -> Progress:
    if not count:
        return progress
    written = {**progress.written, phase: progress.written.get(phase, 0) + count}
    by_force = dict(progress.forced)
    if forced:
        by_force[phase] = by_force.get(phase, 0) + count
    return replace(progress, used=progress.used + count, written=written, forced=by_force)


def refuse_thinking(policy: ThinkingPolicy) -> None:
    """Raises UsageError where `policy` asks for thinking, for models that do not."""
    asked = [name for name in ("min_tokens", "refuse_closes", "close_text") if getattr(policy, name)]
    if asked:
        raise UsageError(f"thinking policy: {asked[0]} is set, but this template has thinking switched off")
