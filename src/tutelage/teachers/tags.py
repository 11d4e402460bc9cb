"""Inline thinking tags: which part of a text is thinking, which is the answer.

Promises: never raises; linear time; no text is lost but the tags and white space at the ends of the parts;
opener + thinking + closer + answer reads back as (thinking, answer) for every thinking and answer without
white space at their ends, where the thinking holds no copy of its own closer and does not begin with its own
opener, and the answer holds no tag at all.
Does not: know the fields of a reply (see `replies`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

Tags = Sequence[tuple[str, str]]
TAGS: tuple[tuple[str, str], ...] = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
)


@lru_cache(maxsize=64)
def _marks(pairs: tuple[tuple[str, str], ...]) -> re.Pattern[str]:
    # Longer marks first: of two tags where one begins like the other, the whole one is meant.
    words = sorted({word for pair in pairs for word in pair}, key=len, reverse=True)
    return re.compile("|".join(re.escape(word) for word in words))


def split_tags(text: str, tags: Tags = TAGS, truncated: bool = False) -> tuple[str, str]:
    """(thinking, answer) of a text with inline thinking tags; ("", text) when it has none.

    - a block anywhere is thinking; several are joined by a blank line;
    - no opener before the first closer (a template wrote it): all before the closer is thinking;
    - no closer: the rest is thinking where the text begins with the opener or was `truncated` by the token
      limit, else the opener is only mentioned and stays in the answer.
    Both parts come without surrounding white space when tags were found."""
    closer_of = {opener: closer for opener, closer in tags if opener and closer}
    if not closer_of:
        return "", text
    marks = _marks(tuple(closer_of.items()))
    last = {closer: text.rfind(closer) for closer in closer_of.values()}
    thinking: list[str] = []
    answer: list[str] = []
    here, nothing_yet = 0, True
    while mark := marks.search(text, here):
        word, before = mark.group(), text[here : mark.start()]
        here = mark.end()
        nothing_yet = nothing_yet and not before.strip()
        closer = closer_of.get(word)
        if closer is None and not thinking and not answer:  # a template wrote the opener
            thinking.append(before)
            nothing_yet = True
        elif closer is not None and last[closer] >= here:
            end = text.find(closer, here)
            answer.append(before)
            thinking.append(text[here:end].strip().removeprefix(word))
            here = end + len(closer)
        elif closer is not None and (truncated or nothing_yet):
            answer.append(before)
            thinking.append(text[here:])
            here = len(text)
        else:  # only mentioned
            answer.append(before + word)
            nothing_yet = False
    if not thinking:
        return "", text
    answer.append(text[here:])
    parts = [part.strip() for part in thinking]
    return "\n\n".join(part for part in parts if part), "".join(answer).strip()
