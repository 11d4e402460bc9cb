"""One reply, token by token: the machine that an engine asks what to do with each sampled id.

Promises: it plays exactly the segments of `policy`; every id of the reply is labelled sampled or forced and
belongs to one phase, and the labels add up to the policy's own counts; a closing marker of several tokens is
recognised however it is split over steps, also where it began in a forced string; a marker in the prompt or
in the answer changes nothing.
Does not: hold a model, a cache or randomness, or detokenise.

How an engine drives a `Row`:
    while not row.finished:
        if row.pending: feed row.pending.pop(0) to the model
        else: sample (ids in row.mask excluded), then `fed = row.offer(token)`;
              drop the last `row.back` ids from the cache, then feed `fed` - or sample again if it is AGAIN.

    >>> markers = Markers(open=(), close=(1,), end=frozenset({2}))
    >>> script = write_script(ThinkingPolicy(max_tokens=2), markers, encode=lambda text: [])
    >>> row = Row(script, room=40, last_prompt_id=0)
    >>> [row.offer(7), row.offer(8), row.pending]  # two thoughts are allowed, then the close is forced
    [7, 8, [1]]
"""

from __future__ import annotations

from collections.abc import Sequence

from tutelage.think.policy import (
    Done,
    Force,
    Generate,
    Phase,
    Progress,
    Script,
    Stop,
    ThinkingPolicy,
    after_force,
    after_generate,
    begin,
    next_segment,
    write_script,
)
from tutelage.tokens import Markers

__all__ = ["AGAIN", "OVER", "PHASES", "Markers", "Row", "ThinkingPolicy", "write_script"]

AGAIN = -1
"""`offer`: the token was refused; sample again from the same scores without the ids in `mask`."""
OVER = -2
"""`offer`: the reply is complete; nothing is left to feed."""
PHASES: tuple[Phase, ...] = ("open", "thinking", "close", "answer", "end")
_THINKING, _CLOSE, _ANSWER, _END = 1, 2, 3, 4


class Row:
    """The state of one reply. `ids`, `phases` (indices into PHASES) and `forced` (0 or 1) run in step;
    `pending` are forced ids already in `ids` that the model has not been fed yet; `progress` holds the
    policy's counts."""

    __slots__ = (
        "_answering",
        "_count",
        "_limit",
        "_script",
        "back",
        "finished",
        "forced",
        "ids",
        "last_prompt_id",
        "mask",
        "pending",
        "phases",
        "progress",
    )

    def __init__(self, script: Script, room: int, last_prompt_id: int, max_answer: int | None = None) -> None:
        """`room`: most ids of the reply; `last_prompt_id` is fed again where the first close is withdrawn.

        Raises UsageError when markers and answer do not fit into the room."""
        self._script = script
        self.last_prompt_id = last_prompt_id
        self.ids: list[int] = []
        self.phases = bytearray()
        self.forced = bytearray()
        self.pending: list[int] = []
        self.mask: tuple[int, ...] = ()
        self.back = 0
        self.finished = False
        self._settle(begin(script, room, max_answer))

    def offer(self, token: int) -> int:
        """Take a sampled id. Returns the id to feed next, AGAIN or OVER; sets `back` and `mask`."""
        script = self._script
        self.back = 0
        if self._answering:
            if token in script.end:
                self._record(token, _END)
                return self._ended(self._count, "end")
            self._record(token, _ANSWER)
            self._count += 1
            return self._ended(self._count, "length") if self._count == self._limit else token
        if token in script.end:
            return self._attempt(token, "end", 0)
        close = script.close
        if token == close[-1] and (len(close) == 1 or self._tail(len(close) - 1) == close[:-1]):
            return self._attempt(token, "close", min(len(close) - 1, self._count))
        self.mask = ()
        self._record(token, _THINKING)
        self._count += 1
        if self._count == self._limit:
            begun = self._begun()
            self._label(begun, _CLOSE)
            self._settle(after_generate(script, self.progress, self._count - begun, "length", begun))
        return token

    def replay(self, recorded: Sequence[int], forced: Sequence[int]) -> None:
        """Take over another reply to the same prompt, with the same seed and sampling, as far as this policy
        writes the same. Valid only if that reply refused no close (a masked close leaves no sign in its
        ids). What is pending afterwards belongs into the prefill: `pending` is left empty."""
        for token, by_force in zip(recorded, forced, strict=True):
            if self.finished:
                break
            if self.pending:
                if self.pending[0] != token:
                    break
                self.pending.pop(0)
            elif by_force or self.offer(token) != token or self.back:
                break  # also where a wait string that took the place of the marker begins with the same id
        self.pending.clear()
        self.back = 0

    def _attempt(self, token: int, stop: Stop, own: int) -> int:
        """The model tries to stop thinking; `own` ids of its marker were fed before this one in this
        segment."""
        kept = self._count - own
        first = self.ids[-own] if own else token
        before = self.mask if kept == 0 else ()
        marker = own + 1 if stop == "close" else 0
        progress = after_generate(self._script, self.progress, kept, stop, marker)
        if stop == "close" and progress.closed_by == "model":
            self._label(own, _CLOSE)
            self._record(token, _CLOSE)
            self._settle(progress)
            return token
        self._withdraw(own)
        self._settle(progress)
        if self.pending:  # a wait string, or the marker that an end of text stands for
            self.back = own
            return self.pending.pop(0)
        # Masked. All first ids tried at this place stay masked, so that this ends after a few tries.
        self.mask = tuple({*before, *self._script.end, self._script.close[0], first})
        if not own:
            return AGAIN
        # The scores of that place are gone: feed the last kept id once more in its own place.
        self.back = own + 1
        return self.ids[-1] if self.ids else self.last_prompt_id

    def _ended(self, produced: int, stop: Stop) -> int:
        self._settle(after_generate(self._script, self.progress, produced, stop))
        return OVER

    def _settle(self, progress: Progress) -> None:
        """Record forced segments until the model has to write something, or it is done."""
        while isinstance(segment := next_segment(self._script, progress), Force):
            phase = PHASES.index(segment.phase)
            for token in segment.ids:
                self._record(token, phase, forced=1)
            self.pending += segment.ids
            progress = after_force(self._script, progress, segment.ids)
        self.progress = progress
        self.mask = ()
        self._count = 0
        self._limit = segment.at_most if isinstance(segment, Generate) else 0
        self._answering = isinstance(segment, Generate) and segment.phase == "answer"
        self.finished = isinstance(segment, Done)

    def _record(self, token: int, phase: int, forced: int = 0) -> None:
        self.ids.append(token)
        self.phases.append(phase)
        self.forced.append(forced)

    def _label(self, count: int, phase: int) -> None:
        for i in range(len(self.ids) - count, len(self.ids)):
            self.phases[i] = phase

    def _withdraw(self, count: int) -> None:
        if count:
            del self.ids[-count:], self.phases[-count:], self.forced[-count:]

    def _tail(self, width: int) -> tuple[int, ...]:
        """The last `width` ids of the thinking, () when it is shorter."""
        if len(self.ids) < width or self.phases[-width] != _THINKING:
            return ()
        return tuple(self.ids[-width:])

    def _begun(self) -> int:
        """How many of the last ids are the beginning of a closing marker, written in this segment."""
        close = self._script.close
        widest = min(len(close) - 1, self._count)
        return next((k for k in range(widest, 0, -1) if self._tail(k) == close[:k]), 0)
