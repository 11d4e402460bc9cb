"""A reply played as segments of text, for a driver that decodes by continuing text.

Promises: `segment` is what to do now and `progress` what was done; forced texts count as many tokens as the
driver says they were, and room was kept for as many as were estimated.
Does not: send anything, or recognise a marker in a text: that is the driver's.
"""

from __future__ import annotations

from collections.abc import Callable

from tutelage.think.policy import ThinkingPolicy, check_fit
from tutelage.think.segments import (
    Force,
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


class Play:
    """One reply in the playing: `segment` is what to do now; say what was done with `forced` or `generated`.
    `progress` holds the counts."""

    __slots__ = ("progress", "script", "segment")

    def __init__(self, script: Script, room: int, max_answer: int | None = None) -> None:
        """Raises UsageError as `begin` does."""
        self.script = script
        self._go(begin(script, room, max_answer))

    def forced(self, tokens: int | None = None) -> None:
        """The `Force` segment was written and is `tokens` long (None: as it was estimated)."""
        self._go(after_force(self.script, self.progress, tokens))

    def generated(self, produced: int, stop: Stop, marker: int = 0, begun: str = "") -> None:
        """The `Generate` segment has ended, see `after_generate`. `begun`: the part of the closing marker, in
        its `marker` tokens, that the text ended with when its length was reached."""
        whole = self.script.close
        rest = Span(whole.text[len(begun) :], whole.ids, max(whole.tokens - marker, 0))
        self._go(after_generate(self.script, self.progress, produced, stop, marker, rest))

    def _go(self, progress: Progress) -> None:
        # What is empty need not be forced.
        while isinstance(segment := next_segment(script := self.script, progress), Force):
            if segment.text:
                break
            progress = after_force(script, progress, 0)
        self.progress, self.segment = progress, segment


def play_text(
    policy: ThinkingPolicy,
    room: int,
    count: Callable[[str], int] | None,
    max_answer: int | None,
    prefilled: bool,
    thinks: bool,
) -> Play:
    """See `ThinkingPolicy.segments`."""
    length = count or (lambda text: len(text.encode("utf-8", "replace")))

    def span(text: str) -> Span:
        return Span(text, (), length(text) if text else 0)

    if not thinks:
        refuse_thinking(policy)
        return Play(Script(policy, thinks=False), room, max_answer)
    waits = tuple(span(text) for text in policy.wait_strings)
    if count is not None:  # an estimate in bytes is no reason to refuse
        check_fit(policy, [wait.tokens for wait in waits])
    opening = "" if prefilled else policy.think_open or "<think>"
    script = Script(
        policy, span(opening), span(policy.think_close or "</think>"), waits, span(policy.close_text)
    )
    return Play(script, room, max_answer)
