r"""Where the final answer stands in a reply.

Promises: linear time on any text; looks only at the answer it is given (never at the thinking); says how the
answer was found. Order of trust: the last non-empty `\boxed{}`, then `#### 72`, then "answer is X" or
"Answer: X" (also `A: X` at the start of a line).
Does not: judge; the caller falls back to the last number or the last line when nothing is marked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

How = Literal["boxed", "####", "answer is"]

_BOX = re.compile(r"\\(?:boxed|fbox)\s{0,4}(\{|(?=\d))")
_BARE = re.compile(r"[\d.,]+")
_BRACE = re.compile(r"\\[{}\\]|[{}]")
_HASHES = re.compile(r"####[ \t]*")
_AFTER = re.compile(r"[\s:]{0,10}\**[ \t]*(?=\S)")
_ANSWER = re.compile(r"(?<!\w)answer\b[^\n.:=]{0,60}?(?:\bis\b|:|=)" + _AFTER.pattern, re.IGNORECASE)
_CLAUSE = re.compile(r"\n|\.(?=\s|$)|;|,(?=\s+[A-Za-z])|\s+(?:because|since|as|so)\b|\s\(", re.IGNORECASE)
_TRIES = 20
_WORDS = 200
_INDENT = 100
_LINE = 2000
_BOX_LIMIT = 100_000
_TAIL = 200_000


@dataclass(frozen=True, slots=True)
class Answer:
    """The final answer as written, and how it was marked. `closed` is False for a box that is never closed
    (then the answer is the rest of its line)."""

    text: str
    how: How
    closed: bool = True


def boxes(text: str) -> Iterator[Answer]:
    r"""The contents of the last `\boxed{}`s that are not empty, braces balanced, last first."""
    if "\\" not in text:
        return
    end = len(text)
    for _ in range(_TRIES):
        at = max(text.rfind("\\boxed", 0, end), text.rfind("\\fbox", 0, end))
        if at < 0:
            return
        end = at
        match = _BOX.match(text, at)
        if match is None:
            continue
        if not match[1]:
            line = _BARE.match(text, match.end())
            yield Answer(line[0] if line else "", "boxed")
            continue
        depth, close = 1, -1
        for brace in _BRACE.finditer(text, match.end(), match.end() + _BOX_LIMIT):
            depth += {"{": 1, "}": -1}.get(brace[0], 0)
            if depth == 0:
                close = brace.start()
                break
        content = text[match.end() : close] if close >= 0 else _never_closed(text, match.end())
        if content.strip():
            yield Answer(content.strip(), "boxed", close >= 0)


def last_boxed(text: str) -> Answer | None:
    r"""The content of the last `\boxed{}` that is not empty; None when there is none."""
    return next(boxes(text), None)


def _never_closed(text: str, start: int) -> str:
    """The rest of the line; all that was looked at where the line is so long that it may yet be closed."""
    line = _line_from(text, start)
    return text[start : start + _BOX_LIMIT + 1] if len(line) >= _LINE else line


def _line_from(text: str, start: int) -> str:
    stop = text.find("\n", start)
    return text[start : min(stop if stop >= 0 else len(text), start + _LINE)].rstrip(" $")


def last_hashes(text: str) -> Answer | None:
    """What follows the last `####` on its line; a Markdown heading (`#### Step 3: add`) is no answer."""
    end = len(text)
    for _ in range(_TRIES):
        at = text.rfind("####", 0, end)
        if at < 0:
            return None
        end = at
        if at and text[at - 1] == "#":
            continue
        match = _HASHES.match(text, at)
        line = _line_from(text, match.end()).strip() if match else ""
        if line and not re.match(r"(?i)(?:step|final|solution|answer|\d+[.)]\s)", line):
            return Answer(line, "####")
    return None


def _after_statement(text: str, at: int) -> int:
    """Where the answer begins that `answer is`, `Answer:` or `A:` at `at` states; -1 when it states none."""
    if text[at + 1] == ":":
        start = max(0, at - _INDENT)
        indent = text[start:at].rpartition("\n")
        if indent[2].strip(" \t") or not (indent[1] or start == 0):
            return -1  # inside a line
        match = _AFTER.match(text, at + 2)
    else:
        match = _ANSWER.match(text, at)
    return match.end() if match is not None else -1


def last_stated(text: str) -> Answer | None:
    """What follows the last "answer is" or "Answer:", up to the end of the clause."""
    tail = text[-_TAIL:]
    offset = len(text) - len(tail)
    lower = tail.lower()
    if len(lower) != len(tail):  # some capitals have longer small forms: the places would not fit
        lower = tail
    end = len(lower)
    for _ in range(_WORDS):  # backwards from word to word: the answer is near the end
        at = end = max(lower.rfind("answer", 0, end), lower.rfind("a:", 0, end))
        if at < 0:
            return None
        begin = _after_statement(text, offset + at)
        if begin >= 0:
            clause = _CLAUSE.split(text[begin : begin + _LINE], maxsplit=1)[0].strip().strip("*").strip()
            if clause:
                return Answer(clause, "answer is")
    return None


def marked_answer(text: str) -> Answer | None:
    """The marked final answer of `text` by the order of trust; None when nothing is marked."""
    return last_boxed(text) or last_hashes(text) or last_stated(text)


def last_line(text: str, limit: int = _LINE) -> tuple[str, bool]:
    """The last non-empty line, at most its last `limit` characters; True when it was cut."""
    tail = text[-(limit + 1) :]
    stripped = tail.rstrip()
    if not stripped and len(text) > len(tail):
        stripped = text.rstrip()[-(limit + 1) :]
    line = stripped.rsplit("\n", 1)[-1]
    cut = len(line) > limit
    return (line[-limit:] if cut else line).strip(), cut
