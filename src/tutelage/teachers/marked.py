"""The text of a decoded reply: thinking, answer, and which characters of the thinking were forced.

Promises: spans are character ranges of the thinking as it is given, in order and apart; a character made of
several tokens is in a span whole or not at all.
Does not: decode a model, or count (see `think.engine.Completion`).
"""

from __future__ import annotations

from typing import Any

from tutelage.think.machine import PHASES
from tutelage.think.request import Completion
from tutelage.tokens import decode_ids

_THINKING, _ANSWER = PHASES.index("thinking"), PHASES.index("answer")


def reply_texts(tokenizer: Any, reply: Completion) -> tuple[str, str, tuple[tuple[int, int], ...]]:
    """(thinking, answer, forced spans of the thinking)."""
    thinking, spans = _marked_text(tokenizer, reply)
    answer = [token for token, phase in zip(reply.ids, reply.phases, strict=True) if phase == _ANSWER]
    said = decode_ids(tokenizer, answer)
    if reply.stop is not None:  # the ids hold the stop string, and what stood behind it in the same id
        said = said[: said.rindex(reply.stop)]
    return thinking, said.strip(), spans


def trace_fields(tokenizer: Any, reply: Completion) -> dict[str, Any]:
    """What a reply is by itself, as the fields of a `Trace`: its texts, its counts, and how it ended."""
    thinking, answer, spans = reply_texts(tokenizer, reply)
    sampled, forced = reply.count("thinking")
    answered, prompted = reply.count("answer")
    return {
        "answer": answer,
        "thinking": thinking,
        "thinking_sampled": sampled,
        "thinking_forced": forced,
        "answer_sampled": answered,
        "answer_forced": prompted,
        "forced_spans": spans,
        "finish_reason": reply.finish_reason,
        "closed_by": reply.closed_by,
    }


def _marked_text(tokenizer: Any, reply: Completion) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The thinking as text without white space at its ends, and where it was forced (character ranges)."""
    ids = [
        (token, forced)
        for token, forced, phase in zip(reply.ids, reply.forced, reply.phases, strict=True)
        if phase == _THINKING
    ]
    whole = decode_ids(tokenizer, [token for token, _ in ids])
    text = whole.strip()
    lead = len(whole) - len(whole.lstrip())
    spans: list[tuple[int, int]] = []
    start = 0
    for index in range(1, len(ids) + 1):
        if index < len(ids) and ids[index][1] == ids[start][1]:
            continue
        if ids[start][1]:
            # Ends are found by decoding the prefix: a character may be made of several tokens.
            first, last = (
                min(max(len(decode_ids(tokenizer, [token for token, _ in ids[:end]])) - lead, 0), len(text))
                for end in (start, index)
            )
            if last > first:
                spans.append((first, last))
        start = index
    return text, tuple(spans)
