"""How a conversation becomes token ids, and how a reply's ids become thinking and answer again.

Promises: what a user or a teacher wrote stays text (a control token's spelling inside a question, a system
message, a thought or an answer never becomes that control token); the prompt of training is the prompt of
inference, id for id; `split_completion` undoes `render_completion` for texts without white space at their
ends.
Does not: load tokenizers or models, hold what an assistant thought in earlier turns, or decide how long to
think.

Markers. Where the tokenizer has a token spelled like the marker, that one id is the marker. Where the marker
begins with such a token (s1's "<|im_start|>think"), the rest of it is text that ends its line. Where it is
text only (SmolLM2), it stands on lines of its own: "<think>\\n" and "\\n</think>\\n". The newlines keep its
ids the same in every context: byte-level BPE would merge " </think>" or ")</think>" with what stands before
it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from jinja2.exceptions import TemplateError

from tutelage.errors import UsageError
from tutelage.tokens import Markers, decode_ids, encode_text

# Stand-ins for the texts while the chat template is rendered; plain words, so that no template alters them.
_SLOTS = {"question": "tutelageslotquestion", "answer": "tutelageslotanswer"}
_SLOT = "tutelageslot{}end"
# One message for all that is trained to reason (Phi-4-reasoning has one too; the words are ours): long
# thoughts have room to explore, and what follows them is one worked answer.
REASONING_SYSTEM = (
    "You are a careful problem solver. Reply in two parts. First the thought: explore the problem "
    "systematically, work step by step, check each result, and when something does not fit go back and try "
    "another way. Then the solution: only what the thought has shown to be right, in clear steps, with the "
    "final answer at its end."
)


@dataclass(frozen=True, slots=True)
class Template:
    """What surrounds the texts. `system`: the system message, None for the chat template's own default.
    `thinking` off: no markers, the whole reply is the answer. `prefill`: the prompt ends with the opening
    marker, so that it is not learned; otherwise the reply starts with it (the engine then writes it, it is
    still not sampled)."""

    system: str | None = None
    think_open: str = "<think>"
    think_close: str = "</think>"
    thinking: bool = True
    prefill: bool = True

    def __post_init__(self) -> None:
        if self.thinking and not (self.think_open.strip() and self.think_close.strip()):
            raise UsageError("template: think_open and think_close must not be empty while thinking is on")
        if self.thinking and self.think_open == self.think_close:
            raise UsageError(
                f"template: think_open and think_close are both {self.think_open!r}; they must differ"
            )

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-serialisable values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Template:
        """The inverse of `to_dict`. Raises UsageError that names an unknown field."""
        unknown = sorted(set(fields) - set(cls.__dataclass_fields__))
        if unknown:
            raise UsageError(
                f"template: unknown field {unknown[0]!r}; known: {', '.join(cls.__dataclass_fields__)}"
            )
        return cls(**fields)


def render_prompt(tokenizer: Any, template: Template, question: str) -> list[int]:
    """Ids of everything before the reply to one question.

    Raises UsageError when the chat template refuses the system message or drops the question."""
    return render_conversation(tokenizer, template, [("user", question)])


def render_conversation(tokenizer: Any, template: Template, turns: Sequence[tuple[str, str]]) -> list[int]:
    """Ids of everything before the next reply. `turns` are (role, text); the template's own system message
    comes first where the conversation brings none.

    Raises UsageError when the chat template refuses these roles or drops one of the texts."""
    if template.system is not None and not any(role == "system" for role, _ in turns):
        turns = [("system", template.system), *turns]
    ids: list[int] = []
    for piece in _frame(tokenizer, template, tuple(role for role, _ in turns), _state(tokenizer)):
        ids += encode_text(tokenizer, turns[piece][1]) if isinstance(piece, int) else piece
    return ids


def before_question(tokenizer: Any, template: Template) -> int:
    """How many ids of `render_prompt` stand before the question's own.

    Raises UsageError as `render_prompt` does."""
    roles = ("user",) if template.system is None else ("system", "user")
    texts = [template.system or ""] * (len(roles) - 1)
    count = 0
    for piece in _frame(tokenizer, template, roles, _state(tokenizer)):
        if piece == len(texts):
            break
        count += len(encode_text(tokenizer, texts[piece]) if isinstance(piece, int) else piece)
    return count


def _state(tokenizer: Any) -> tuple[Any, ...]:
    """What a tokenizer's renderings depend on and a caller may change: part of the key of what is kept."""
    return getattr(tokenizer, "chat_template", None), tokenizer.eos_token_id, len(tokenizer)


@lru_cache(maxsize=256)
def _frame(
    tokenizer: Any, template: Template, roles: tuple[str, ...], state: tuple[Any, ...]
) -> tuple[tuple[int, ...] | int, ...]:
    """The prompt's ids around the texts, and the number of the turn where its text goes: rendering is slow,
    and the same for all conversations of these roles."""
    slots = [_SLOT.format(number) for number in range(len(roles))]
    messages = [{"role": role, "content": slot} for role, slot in zip(roles, slots, strict=True)]
    if getattr(tokenizer, "chat_template", None):
        frame = _apply(tokenizer, messages, template.thinking)
    else:
        frame = "\n\n".join(slots) + "\n"
    # Some templates (R1 distillations) open the thinking themselves; the marker is ours to write, once.
    bare = frame.rstrip()
    if bare.endswith(template.think_open):
        frame = bare[: -len(template.think_open)]
    pieces: list[tuple[int, ...] | int] = []
    for number, piece in enumerate(re.split(_SLOT.format(r"(\d+)"), frame)):
        if number % 2:
            pieces.append(int(piece))
        elif piece:
            pieces.append(tuple(tokenizer(piece, add_special_tokens=False)["input_ids"]))
    if [piece for piece in pieces if isinstance(piece, int)] != list(range(len(roles))):
        raise UsageError(
            f"the tokenizer's chat template drops or moves one of the messages ({', '.join(roles)}); "
            "use fewer roles or another template"
        )
    if template.thinking and template.prefill:
        pieces.append(markers(tokenizer, template).open)
    return tuple(pieces)


def render_completion(tokenizer: Any, template: Template, thinking: str, answer: str) -> list[int]:
    """Ids of a whole reply, with its end-of-turn token: what a student is trained to write.

    Raises UsageError when there is thinking and the template has thinking switched off."""
    if not template.thinking:
        if thinking.strip():
            raise UsageError(
                "template: thinking is switched off, but the reply holds thinking; drop one of them"
            )
        return [*encode_text(tokenizer, answer.strip()), end_of_turn(tokenizer)]
    marks = markers(tokenizer, template)
    return [
        *(() if template.prefill else marks.open),
        *encode_text(tokenizer, thinking.strip()),
        *marks.close,
        *encode_text(tokenizer, answer.strip()),
        end_of_turn(tokenizer),
    ]


def markers(tokenizer: Any, template: Template) -> Markers:
    """The ids that delimit thinking, and those that end a reply. Without thinking `open` and `close` are
    empty."""
    return _markers(tokenizer, template, _state(tokenizer))


@lru_cache(maxsize=64)
def _markers(tokenizer: Any, template: Template, state: tuple[Any, ...]) -> Markers:
    ends = {end_of_turn(tokenizer)}
    if tokenizer.eos_token_id is not None:
        ends.add(tokenizer.eos_token_id)
    # Instruction models keep the pretraining end as a second one and sometimes write it (SmolLM2, Qwen).
    ends |= {number for text, number in tokenizer.get_added_vocab().items() if text == "<|endoftext|>"}
    if not template.thinking:
        return Markers(open=(), close=(), end=frozenset(ends))
    return Markers(
        open=_marker(tokenizer, template.think_open, ""),
        close=_marker(tokenizer, template.think_close, "\n"),
        end=frozenset(ends),
    )


def _marker(tokenizer: Any, marker: str, before: str) -> tuple[int, ...]:
    """Ids of `marker`; as text it stands on lines of its own, after `before`."""
    added = tokenizer.get_added_vocab()
    if marker in added:
        return (added[marker],)
    lead = max((token for token in added if token and marker.startswith(token)), key=len, default="")
    if lead:
        return (added[lead], *encode_text(tokenizer, f"{marker[len(lead) :]}\n"))
    return tuple(encode_text(tokenizer, f"{before}{marker}\n"))


def split_completion(tokenizer: Any, template: Template, completion: Sequence[int]) -> tuple[str, str]:
    """Thinking text and answer text of a reply's ids, white space at their ends removed.

    The first closing marker counts; without one everything is thinking and the answer is empty."""
    marks = markers(tokenizer, template)
    ids = list(completion)
    if ids and ids[-1] in marks.end:
        ids.pop()
    if not template.thinking:
        return "", decode_ids(tokenizer, ids).strip()
    if tuple(ids[: len(marks.open)]) == marks.open:
        ids = ids[len(marks.open) :]
    at = find(ids, marks.close)
    if at < 0:
        return decode_ids(tokenizer, ids).strip(), ""
    answer = ids[at + len(marks.close) :]
    return decode_ids(tokenizer, ids[:at]).strip(), decode_ids(tokenizer, answer).strip()


def end_of_turn(tokenizer: Any) -> int:
    """The id that ends the assistant's turn: the first added token after its text in the chat template, else
    the tokenizer's end of text. Raises UsageError when there is neither."""
    return _end_of_turn(tokenizer, _state(tokenizer))


@lru_cache(maxsize=64)
def _end_of_turn(tokenizer: Any, state: tuple[Any, ...]) -> int:
    if getattr(tokenizer, "chat_template", None):
        turns = [
            {"role": "user", "content": _SLOTS["question"]},
            {"role": "assistant", "content": _SLOTS["answer"]},
        ]
        rendered = _apply(tokenizer, turns, True, generation_prompt=False)
        tail = rendered.rpartition(_SLOTS["answer"])[2]
        added = set(tokenizer.get_added_vocab().values())
        for number in tokenizer(tail, add_special_tokens=False)["input_ids"]:
            if number in added:
                return int(number)
    if tokenizer.eos_token_id is None:
        raise UsageError(
            "the tokenizer has no end-of-text token, so a reply could never end; set its eos_token"
        )
    return int(tokenizer.eos_token_id)


def find(ids: Sequence[int], marker: Sequence[int]) -> int:
    """Where `marker` first starts in `ids`, -1 when it does not."""
    width = len(marker)
    return next((i for i in range(len(ids) - width + 1) if tuple(ids[i : i + width]) == tuple(marker)), -1)


def _apply(
    tokenizer: Any, messages: list[dict[str, str]], thinking: bool, generation_prompt: bool = True
) -> str:
    try:
        # `enable_thinking` is the switch that hybrid models' templates read (Qwen3); others do not look at
        # it.
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=generation_prompt, enable_thinking=thinking
        )
    except TemplateError as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"the tokenizer's chat template refuses these messages: {line}") from error
    return str(text)
