"""What a tokenizer's own chat template makes of a whole conversation with thinking in it.

The project renders replies itself (`students.template`), so training does not suffer from such a template.
The model's users do: other programs (servers, trainers, evaluation harnesses) render whole conversations with
the template that is saved with the model, and with many templates the thinking is then gone, or not what was
trained.

Promises: the thinking goes in both ways in which the field writes it, as `reasoning_content` and with its
markers inside `content`; what happened to it is said in words, separately for the last turn, where the loss
would be, and for earlier turns, where leaving it out is often meant.
Does not: change a template, or judge what happens to system messages and tools.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from jinja2.exceptions import TemplateError

from tutelage.errors import UsageError
from tutelage.students.template import Template

Fate = Literal["kept", "deleted", "changed", "doubled", "without its markers", "refused"]
WAYS = ("content", "reasoning_content")
_QUESTION, _LATER = "tutelage question slot", "tutelage later question slot"
# Blank lines, indentation and runs of spaces: what a template that "cleans" would alter.
_THINKING = "tutelage thought slot:  first\n\n  second < third & fourth"
_ANSWER = "tutelage answer slot"


@dataclass(frozen=True, slots=True)
class Conversation:
    """What became of the thinking, by the way in which it was given (`content`, `reasoning_content`): in the
    last turn and in an earlier one. `marker_given`: a prompt by the template ends with the opening marker
    (None: there is no chat template, and no fate)."""

    last: dict[str, Fate]
    earlier: dict[str, Fate]
    marker_given: bool | None

    @property
    def faithful(self) -> bool:
        """Whether one of the two ways keeps the thinking of the last turn: most templates know `content`
        alone, some want `reasoning_content`. Earlier turns may go without, as Qwen3 means it."""
        return self.marker_given is None or "kept" in self.last.values()


def converse(tokenizer: Any, template: Template) -> Conversation:
    """Try the tokenizer's chat template on conversations of one and of two questions."""
    if not getattr(tokenizer, "chat_template", None):
        return Conversation({}, {}, None)
    last, earlier = {}, {}
    for way in WAYS:
        reply = _reply(template, way)
        begun = [{"role": "user", "content": _QUESTION}, reply]
        last[way] = _fate(tokenizer, template, begun)
        earlier[way] = _fate(tokenizer, template, [*begun, {"role": "user", "content": _LATER}])
    return Conversation(last, earlier, _marker_given(tokenizer, template))


def refuse_conversation(found: Conversation, name: str) -> None:
    """Raise UsageError, with the model's name and what its chat template did, unless that is faithful."""
    if found.faithful:
        return
    did = "; ".join(f"thinking in {way}: {told(found.last[way])}" for way in WAYS)
    raise UsageError(
        f"{name}: the tokenizer's chat template loses the thinking of a whole conversation ({did}), so "
        "programs that use this template would not show, serve or train what is learned here; give the model "
        "another chat template, or set chat_template: any"
    )


def told(fate: Fate) -> str:
    """A fate in words."""
    return {
        "kept": "kept",
        "deleted": "the template deletes it",
        "changed": "the template changes its text",
        "doubled": "the template writes it or its opening marker twice",
        "without its markers": "kept, but not between the markers that are trained",
        "refused": "the template refuses it",
    }[fate]


def _reply(template: Template, way: str) -> dict[str, str]:
    if way == "reasoning_content":
        return {"role": "assistant", "reasoning_content": _THINKING, "content": _ANSWER}
    whole = f"{template.think_open}\n{_THINKING}\n{template.think_close}\n\n{_ANSWER}"
    return {"role": "assistant", "content": whole}


def _fate(tokenizer: Any, template: Template, messages: list[dict[str, str]]) -> Fate:
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, enable_thinking=True))
    except (TemplateError, ValueError, TypeError, KeyError):
        return "refused"  # a template may trip over a message that it does not expect in any of these ways
    reply = text.partition(_QUESTION)[2].partition(_LATER)[0]
    if _THINKING not in reply:
        return "changed" if "tutelage thought slot" in reply else "deleted"
    before, _, after = reply.partition(_THINKING)
    between = after.partition(_ANSWER)[0]
    if reply.count(_THINKING) > 1 or before.count(template.think_open) > 1:
        return "doubled"
    # s1's markers begin with a token that also begins the turn, so the last one counts.
    opened = before.rstrip().endswith(template.think_open)
    closed = between.strip().startswith(template.think_close)
    return "kept" if opened and closed else "without its markers"


def _marker_given(tokenizer: Any, template: Template) -> bool:
    try:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": _QUESTION}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=True,
        )
    except (TemplateError, ValueError, TypeError, KeyError):
        return False
    return str(text).rstrip().endswith(template.think_open)
