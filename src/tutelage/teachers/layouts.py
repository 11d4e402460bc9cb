"""Layouts of recorded traces: which columns hold the thinking and the answer.

Layouts (`auto` takes the first whose columns are there)
- `traces`: our own Trace records (problem_id, thinking, answer, ...)
- `generations`: open-r1; a list of texts with inline tags, beside `finish_reasons` and
  `is_reasoning_complete`
- `s1k`: the first s1K; `thinking_trajectories`, a list, and one `attempt`
- `deepseek`, `gemini`: s1K-1.1 (`deepseek_thinking_trajectory`, `deepseek_attempt`) and OpenThoughts
  (`deepseek_reasoning`, `deepseek_solution`)
- `openthoughts`: `reasoning` + `deepseek_solution`
- `messages`: chat messages; thinking in `reasoning_content` (or its other names) or inline
- `conversations`: ShareGPT [{from, value}], inline tags
- `plain`: one column each for thinking and answer, or one for both with inline tags
- `human`: not a file, see `replay`

Does not: read files or match questions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from tutelage.errors import UsageError
from tutelage.teachers import money
from tutelage.teachers.replies import is_truncated, read_message
from tutelage.teachers.tags import Tags, split_tags

Layout = Literal[
    "auto",
    "traces",
    "generations",
    "s1k",
    "deepseek",
    "gemini",
    "openthoughts",
    "messages",
    "conversations",
    "plain",
    "human",
]
Row = Mapping[str, Any]
Columns = Mapping[str, str]
THINKING = (
    "thinking",
    "reasoning_content",
    "reasoning",
    "message_thinking",
    "rationale",
    "chain_of_thought",
)
# `answer` and `solution` come late: beside a model's text they hold the reference answer.
ANSWER = (
    "message_content",
    "response",
    "output",
    "completion",
    "generation",
    "answer",
    "text",
    "solution",
)
_SOLUTION = re.compile(r"<\|(?:begin|end)_of_solution\|>")


@dataclass(frozen=True, slots=True)
class Recording:
    """One recorded attempt: text, and of the rest what the recording tells."""

    thinking: str
    answer: str
    finish_reason: str = "unknown"
    prompt_tokens: int | None = None
    thinking_tokens: int | None = None
    answer_tokens: int | None = None
    cost: Decimal | None = None


Reader = Callable[[Row, Tags, Columns], list[Recording]]


def first_text(row: Row, names: Sequence[str]) -> str:
    """The first of the columns that holds text or a finite number, "" for none. A whole number that a table
    with gaps holds as 18.0 is "18"."""
    for name in names:
        value = row.get(name)
        if isinstance(value, str) and value:
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if isinstance(value, float) and math.isfinite(value):
            return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
    return ""


def turns_of(value: Any) -> list[dict[str, Any]]:
    return [turn for turn in value if isinstance(turn, dict)] if isinstance(value, list) else []


def asked_in(row: Mapping[str, Any]) -> str:
    """The first turn of a conversation that is the user's."""
    for name, role, content in (("messages", "role", "content"), ("conversations", "from", "value")):
        for turn in turns_of(row.get(name)):
            if turn.get(role) in ("user", "human"):
                return first_text(turn, (content,))
    return ""


# --- one reader per layout ---


def _attempts(prefix: str) -> tuple[tuple[str, str], ...]:
    return (
        (f"{prefix}_thinking_trajectory", f"{prefix}_attempt"),
        (f"{prefix}_reasoning", f"{prefix}_solution"),
    )


def _pair(row: Row, pairs: Sequence[tuple[str, str]]) -> list[Recording]:
    for thinking, answer in pairs:
        if isinstance(row.get(answer), str):
            return [_told(row, _text(row.get(thinking)), _bare(row[answer]))]
    return []


def _bare(text: str) -> str:
    """OpenThoughts wraps the answer in solution marks."""
    return _SOLUTION.sub("", text).strip() if "_of_solution|>" in text else text


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _deepseek(row: Row, tags: Tags, columns: Columns) -> list[Recording]:
    return _pair(row, _attempts("deepseek"))


def _gemini(row: Row, tags: Tags, columns: Columns) -> list[Recording]:
    return _pair(row, _attempts("gemini"))


def _openthoughts(row: Row, tags: Tags, columns: Columns) -> list[Recording]:
    return _pair(row, (("reasoning", "deepseek_solution"),))


def _generations(row: Row, tags: Tags, columns: Columns) -> list[Recording]:
    texts = row["generations"] if isinstance(row["generations"], list) else []
    reasons, whole = (_beside(row.get(name), texts) for name in ("finish_reasons", "is_reasoning_complete"))
    found = []
    for text, reason, complete in zip(texts, reasons, whole, strict=True):
        # Older parts of OpenR1-Math have no finish reasons, only whether the thinking came to its end.
        finish = _text(reason) or ("length" if complete is False else "unknown")
        found.append(_tagged(_text(text), tags, finish))
    return found


def _beside(value: Any, texts: Sequence[Any]) -> Sequence[Any]:
    """A list that runs beside `texts`; one None for each where there is none, or of another length."""
    return value if isinstance(value, list) and len(value) == len(texts) else [None] * len(texts)


def _s1k(row: Row, tags: Tags, columns: Columns) -> list[Recording]:
    """All trajectories are tries at the one attempt that stands beside them; s1K has one in each row."""
    thoughts = row["thinking_trajectories"]
    thoughts = thoughts if isinstance(thoughts, list) else [thoughts]
    return [_told(row, _text(thought), _text(row["attempt"])) for thought in thoughts]


def _tagged(text: str, tags: Tags, finish: str) -> Recording:
    thinking, answer = split_tags(text, tags, is_truncated(finish))
    return Recording(thinking, _bare(answer), finish)


def _messages(row: Row, tags: Tags, columns: Columns) -> list[Recording]:
    for turn in reversed(turns_of(row["messages"])):
        if turn.get("role") == "assistant":
            thinking, answer = read_message(turn, tags, _cut_off(row))
            return [_told(row, thinking, _bare(answer))]
    return []


def _conversations(row: Row, tags: Tags, columns: Columns) -> list[Recording]:
    for turn in reversed(turns_of(row["conversations"])):
        if turn.get("from") in ("gpt", "assistant"):
            one = _tagged(_text(turn.get("value")), tags, _text(row.get("finish_reason")) or "unknown")
            return [_told(row, one.thinking, one.answer)]
    return []


def _plain(row: Row, tags: Tags, columns: Columns) -> list[Recording]:
    thinking = first_text(row, (columns["thinking"],) if "thinking" in columns else THINKING)
    answer = first_text(row, (columns["answer"],) if "answer" in columns else ANSWER)
    if not thinking:
        thinking, answer = split_tags(answer, tags, _cut_off(row))
    return [_told(row, thinking, _bare(answer))]


def _cut_off(row: Row) -> bool:
    return is_truncated(_text(row.get("finish_reason")))


def _told(row: Row, thinking: str, answer: str) -> Recording:
    """A recording with the counts and the cost that stand beside the text."""
    cost = row.get("cost")
    sampled, forced = _count(row.get("thinking_sampled")), _count(row.get("thinking_forced")) or 0
    return Recording(
        thinking,
        answer,
        _text(row.get("finish_reason")) or "unknown",
        _count(row.get("prompt_tokens")),
        _count(row.get("thinking_tokens")) if sampled is None else sampled + forced,
        _count(row.get("answer_sampled", row.get("answer_tokens"))),
        money.dollars(cost, "cost") if isinstance(cost, (int, float, str, Decimal)) else None,
    )


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


_READERS: dict[str, Reader] = {
    "traces": _plain,
    "generations": _generations,
    "s1k": _s1k,
    "deepseek": _deepseek,
    "gemini": _gemini,
    "openthoughts": _openthoughts,
    "messages": _messages,
    "conversations": _conversations,
    "plain": _plain,
}
# What a row must have to be read as the layout, tried in this order by `auto`.
_NEEDS: tuple[tuple[Layout, tuple[tuple[str, ...], ...]], ...] = (
    ("traces", (("problem_id", "thinking", "answer"),)),
    ("generations", (("generations",),)),
    ("s1k", (("thinking_trajectories", "attempt"),)),
    ("deepseek", _attempts("deepseek")),
    ("gemini", _attempts("gemini")),
    ("openthoughts", (("reasoning", "deepseek_solution"),)),
    ("messages", (("messages",),)),
    ("conversations", (("conversations",),)),
    ("plain", tuple((name,) for name in ANSWER)),
)


def reader_of(layout: Layout, columns: Columns, row: Row) -> Reader:
    """The reader for a row. Raises UsageError saying which columns are wanted and which are there."""
    there = ", ".join(sorted(row))
    for name in columns.values():
        if name not in row:
            raise UsageError(f"no column {name!r}; there are {there}")
    if {"thinking", "answer"} & columns.keys() and layout in ("auto", "plain"):
        return _plain
    for name, needs in _NEEDS:
        fits = any(all(wanted in row for wanted in names) for names in needs)
        if layout == name and not fits:
            wanted = " or ".join(" + ".join(names) for names in needs)
            raise UsageError(f"layout {layout} needs {wanted}; there are {there}")
        if fits and layout in ("auto", name):
            return _READERS[name]
    raise UsageError(f"no layout fits these columns: {there}; give columns")
