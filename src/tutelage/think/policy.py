"""The thinking policy: how long a model thinks, as a pure function from progress to the next segment.

Promises: thinking never exceeds `max_tokens`; it never ends before `min_tokens` while room remains; the
answer always has its reserve; an impossible policy is refused when it is built, with the reason. Everything
here is a frozen value or a pure function; no model, tokenizer, clock or randomness is involved.
Does not: choose tokens (see `machine` for the token-level view, `engine` for decoding) or look at any text.

A policy is played as segments: `Generate` until the model tries to close its thinking (or a limit is
reached), `Force` some ids, `Done`. After each segment `after_generate` or `after_force` gives the new
progress and `next_segment` what to do next. A model in a loop, a server and a proxy that sends text
completions all play the same segments.

The idea of ending and prolonging thinking by force is budget forcing (Muennighoff et al. 2025, "s1: Simple
test-time scaling", section 3.1); `refuse_closes` is its number of ignored closes. Differences: the budget
holds for the whole turn, and a minimum in tokens may be asked for as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from tutelage.errors import UsageError
from tutelage.tokens import Markers

Phase = Literal["open", "thinking", "close", "answer", "end"]
Stop = Literal["close", "end", "length"]
ClosedBy = Literal["model", "budget", "none"]
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class ThinkingPolicy:
    """How long to think. All counts are tokens of thinking, sampled and forced, markers not included.

    A close that the model makes by itself (its closing marker, or an end of text inside thinking) is
    *refused* while thinking is shorter than `min_tokens` or fewer than `refuse_closes` closes were refused,
    never when that would break the maximum. A refused close becomes the `wait` string (several are used in
    rotation) while fewer than `max_waits` were written (None: as many as needed); after that, or where
    `wait` is None, it is masked: the next best token is taken. At `max_tokens` (None: as long as there is
    room) thinking is closed by force. `close_text` is forced after every closing marker that we write.
    `answer_reserve` tokens of the room stay for the answer, `close_text` not included.

    Raises UsageError for a policy that cannot be kept.
    """

    min_tokens: int = 0
    max_tokens: int | None = None
    refuse_closes: int = 0
    wait: str | tuple[str, ...] | None = None
    max_waits: int | None = None
    close_text: str = ""
    answer_reserve: int = 32

    def __post_init__(self) -> None:
        if isinstance(self.wait, list):
            object.__setattr__(self, "wait", tuple(self.wait))
        for name in ("min_tokens", "max_tokens", "refuse_closes", "max_waits", "answer_reserve"):
            value = getattr(self, name)
            optional = name in ("max_tokens", "max_waits")
            if not (value is None and optional) and (not isinstance(value, int) or isinstance(value, bool)):
                raise UsageError(f"thinking policy: {name} must be a whole number, not {value!r}")
            if value is not None and value < 0:
                raise UsageError(f"thinking policy: {name} is {value}; it must not be negative")
        if self.answer_reserve < 1:
            raise UsageError("thinking policy: answer_reserve is 0, which leaves no room for an answer")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise UsageError(
                f"thinking policy: min_tokens {self.min_tokens} is larger than max_tokens {self.max_tokens}"
            )
        if self.max_tokens == 0 and self.refuse_closes:
            raise UsageError("thinking policy: refuse_closes needs room to think, but max_tokens is 0")
        if self.wait is not None and (not self.wait_strings or not all(self.wait_strings)):
            raise UsageError("thinking policy: wait is empty; write None for masking without a string")
        if self.max_waits is not None and self.wait is None:
            raise UsageError("thinking policy: max_waits counts wait strings, but wait is None")

    @property
    def wait_strings(self) -> tuple[str, ...]:
        """The wait strings in rotation order; empty when closes are masked."""
        if self.wait is None:
            return ()
        return (self.wait,) if isinstance(self.wait, str) else self.wait

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-serialisable values, the same after a round through JSON."""
        fields = asdict(self)
        if isinstance(self.wait, tuple):
            fields["wait"] = list(self.wait)
        return fields

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ThinkingPolicy:
        """The inverse of `to_dict`. Raises UsageError that names an unknown field."""
        unknown = sorted(set(fields) - set(cls.__dataclass_fields__))
        if unknown:
            known = ", ".join(cls.__dataclass_fields__)
            raise UsageError(f"thinking policy: unknown field {unknown[0]!r}; known: {known}")
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class Script:
    """A policy written in one tokenizer's ids. `open` is forced first (empty where the prompt ends with it);
    an empty `close` means that the model does not think: the whole reply is the answer."""

    policy: ThinkingPolicy
    open: tuple[int, ...]
    close: tuple[int, ...]
    end: frozenset[int]
    waits: tuple[tuple[int, ...], ...]
    close_text: tuple[int, ...]

    @property
    def overhead(self) -> int:
        """Most ids of a reply that are neither thinking nor answer by the model."""
        return len(self.open) + len(self.close) + len(self.close_text)


def write_script(
    policy: ThinkingPolicy, markers: Markers, encode: Callable[[str], Sequence[int]], prefilled: bool = True
) -> Script:
    """`policy` in token ids; `encode` turns plain text into ids. `prefilled`: the prompt ends with the
    opening marker.

    Raises UsageError when the policy asks for thinking from a model that has no thinking markers, or a wait
    string is no token at all, or does not fit into the maximum."""
    waits = tuple(tuple(encode(text)) for text in policy.wait_strings)
    if not markers.close:
        asked = [name for name in ("min_tokens", "refuse_closes", "close_text") if getattr(policy, name)]
        if asked:
            raise UsageError(
                f"thinking policy: {asked[0]} is set, but this template has thinking switched off"
            )
        return Script(policy, (), (), markers.end, (), ())
    for text, ids in zip(policy.wait_strings, waits, strict=True):
        if not ids:
            raise UsageError(f"thinking policy: the wait string {text!r} has no tokens in this tokenizer")
        if policy.max_tokens is not None and policy.refuse_closes and len(ids) >= policy.max_tokens:
            raise UsageError(
                f"thinking policy: the wait string {text!r} is {len(ids)} tokens long and does not fit into "
                f"max_tokens {policy.max_tokens}"
            )
    # Where the marker is text of several tokens it ends its line; the text after it then starts the next one.
    close_text = tuple(encode(policy.close_text)) if policy.close_text else ()
    return Script(policy, () if prefilled else markers.open, markers.close, markers.end, waits, close_text)


@dataclass(frozen=True, slots=True)
class Generate:
    """Let the model write at most `at_most` tokens, until it attempts a `close` (closing marker or end of
    text while thinking) or an `end` (of text, while answering). What matched is not part of the segment.
    With `mask_first` the first token may not start what `until` names."""

    phase: Literal["thinking", "answer"]
    until: Literal["close", "end"]
    at_most: int
    mask_first: bool = False


@dataclass(frozen=True, slots=True)
class Force:
    """Write `ids`, which count for `phase`."""

    phase: Phase
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Done:
    """The reply is over: `stop` by the model's own end of text, or `length`."""

    finish_reason: FinishReason


Segment = Generate | Force | Done


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a reply is. `room` bounds the whole reply in tokens, `max_answer` the sampled answer."""

    room: int
    max_answer: int | None = None
    stage: Literal["open", "thinking", "waiting", "closing", "close_text", "answer", "done"] = "open"
    used: int = 0
    refused: int = 0
    waits: int = 0
    masked: bool = False
    written: Mapping[Phase, int] = field(default_factory=dict)
    forced: Mapping[Phase, int] = field(default_factory=dict)
    closed_by: ClosedBy = "none"
    close_ids: tuple[int, ...] = ()
    finish_reason: FinishReason = "length"

    @property
    def thinking(self) -> int:
        """Thinking tokens so far, sampled and forced."""
        return self.written.get("thinking", 0)


def begin(script: Script, room: int, max_answer: int | None = None) -> Progress:
    """The start of a reply of at most `room` tokens, all included.

    Raises UsageError when the markers, `close_text` and the answer's reserve do not fit into the room."""
    needed = script.overhead + min(script.policy.answer_reserve, max_answer or script.policy.answer_reserve)
    if room < needed:
        raise UsageError(
            f"{max(room, 0)} tokens of room are left after the prompt, but markers and the answer's "
            "reserve need "
            f"{needed}; use a shorter prompt, a smaller answer_reserve or a model with a longer context"
        )
    if max_answer is not None and max_answer < 1:
        raise UsageError(f"max_answer_tokens is {max_answer}; it must be at least 1")
    return Progress(room, max_answer, "open" if script.close else "answer")


def cap(script: Script, progress: Progress) -> int:
    """The most thinking tokens this reply may have: the policy's maximum, or what the room leaves."""
    policy = script.policy
    reserve = min(policy.answer_reserve, progress.max_answer or policy.answer_reserve)
    left = progress.room - script.overhead - reserve
    return left if policy.max_tokens is None else min(policy.max_tokens, left)


def next_segment(script: Script, progress: Progress) -> Segment:
    """What to do now."""
    match progress.stage:
        case "open":
            return Force("open", script.open)
        case "waiting":
            return Force("thinking", script.waits[progress.waits % len(script.waits)])
        case "closing":
            return Force("close", progress.close_ids)
        case "close_text":
            return Force("answer", script.close_text)
        case "thinking":
            return Generate("thinking", "close", cap(script, progress) - progress.thinking, progress.masked)
        case "answer":
            left = progress.room - progress.used
            most = left if progress.max_answer is None else min(left, progress.max_answer)
            return Generate("answer", "end", most)
        case "done":
            return Done(progress.finish_reason)


def after_force(script: Script, progress: Progress, ids: Sequence[int]) -> Progress:
    """Progress once the `Force` segment that `next_segment` gave has been written."""
    segment = next_segment(script, progress)
    assert isinstance(segment, Force) and tuple(ids) == segment.ids
    new = _wrote(progress, segment.phase, len(ids), forced=True)
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
    script: Script, progress: Progress, produced: int, stop: Stop, marker: int = 0
) -> Progress:
    """Progress once a `Generate` segment has ended: `produced` tokens were kept, and the model attempted a
    `close`, attempted the `end` of text, or reached the segment's `length`.

    `marker`: how many ids of the closing marker the model wrote in this segment, not counted in `produced`:
    on `close` those that completed it, on `length` those it had begun with (only the rest of it is then
    forced)."""
    phase: Phase = "answer" if progress.stage == "answer" else "thinking"
    new = replace(_wrote(progress, phase, produced), masked=False)
    if phase == "answer":
        if stop == "end":
            return replace(_wrote(new, "end", 1), stage="done", finish_reason="stop")
        return replace(new, stage="done", finish_reason="length")
    if stop == "length":
        rest = script.close[marker:]
        return replace(_wrote(new, "close", marker), stage="closing", closed_by="budget", close_ids=rest)
    return _close_attempt(script, new, stop, marker)


def _close_attempt(script: Script, progress: Progress, stop: Stop, marker: int) -> Progress:
    policy = script.policy
    short = progress.thinking < min(policy.min_tokens, cap(script, progress))
    if short or progress.refused < policy.refuse_closes:
        refused = replace(progress, refused=progress.refused + 1)
        waits_left = bool(script.waits) and (policy.max_waits is None or progress.waits < policy.max_waits)
        if not waits_left:
            return replace(refused, masked=True)
        # A wait string must leave at least one token to go on with; otherwise it would only spoil the
        # thought.
        length = len(script.waits[progress.waits % len(script.waits)])
        if progress.thinking + length < cap(script, progress):
            return replace(refused, stage="waiting")
        if short:
            return replace(refused, masked=True)
    closed = replace(progress, closed_by="model")
    if stop == "close":  # the model wrote the marker itself
        return replace(_wrote(closed, "close", marker), stage="answer")
    return replace(closed, stage="closing", close_ids=script.close)


def _think(script: Script, progress: Progress) -> Progress:
    """Back to thinking, or straight to the close where no room is left."""
    if progress.thinking < cap(script, progress):
        return replace(progress, stage="thinking")
    return replace(progress, stage="closing", closed_by="budget", close_ids=script.close)


def _wrote(progress: Progress, phase: Phase, count: int, forced: bool = False) -> Progress:
    if not count:
        return progress
    written = {**progress.written, phase: progress.written.get(phase, 0) + count}
    by_force = dict(progress.forced)
    if forced:
        by_force[phase] = by_force.get(phase, 0) + count
    return replace(progress, used=progress.used + count, written=written, forced=by_force)
