"""Every control of thinking that a request may carry, under all its names, in one place.

Promises: a control is enforced or refused with a 400 that names it, never ignored; the same control given
twice with different values is refused; a field that looks like a control of thinking and is not known is
refused; a harmless unknown field is let pass.
Does not: check budgets against the room that a prompt leaves (the source does).

Names. The maximum is `thinking_token_budget` (0: no thinking; -1: no limit), as in vLLM. Read as the same:
`thinking_budget`, `thinking_budget_tokens`, `reasoning_budget_tokens` (llama.cpp), `reasoning_max_tokens`
(FastDeploy), `custom_params.thinking_budget` (SGLang), `nvext.max_thinking_tokens` (NIM),
`thinking.budget_tokens` (Anthropic), `reasoning.max_tokens` (OpenRouter). Switches: `enable_thinking`,
`chat_template_kwargs.enable_thinking` and `.thinking`, `thinking.type`, `reasoning.enabled`. Effort words:
`reasoning_effort`, `reasoning.effort`, in tokens or in loops as the server's table is (see `efforts`). How
deep a recurrent-depth model thinks about each token: see `loops`. The model's name may carry a suffix, for
clients that cannot send fields: `name@think=256,min=64,wait=Wait|Hmm,refuse=2` or `name@steps=8`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tutelage.errors import UsageError
from tutelage.serve.body import Body, bad, flag, shown, table, text, whole
from tutelage.serve.efforts import UNLIMITED, Efforts
from tutelage.serve.loops import CONTROLS, SUFFIXES, read_loop_suffix, read_loops, settled
from tutelage.serve.source import Depth, Refused
from tutelage.think.policy import ThinkingPolicy

_MOST = 10**9
_LONGEST_TEXT = 1000
Show = Literal["split", "tags", "hide"]

_SUFFIX = ("think", "min", "wait", "refuse", "waits", "close", "grace", "reserve", *SUFFIXES)
# Words in a field's name that make it look like a control of thinking.
_SUSPECT = ("think", "reason", "budget", "effort", "num_steps", "recurren", "loop", "exit", "continuous")
_NOT_CONTROLS = frozenset({"metadata", "user", "messages", "input", "prompt", "tools", "logit_bias", "stop"})


@dataclass(frozen=True, slots=True)
class Thinking:
    """What a request says about thinking. `stated`: some control of thinking in tokens was given, so a reply
    that has none to control is refused. `explicit`: the maximum is a number that the client gave (not an
    effort word); `reserved`: the answer's reserve is. `blame` names the fields in errors. `show`: thinking in
    fields of its own, between tags in the content, or left out."""

    policy: ThinkingPolicy = field(default_factory=ThinkingPolicy)
    stated: bool = False
    explicit: bool = False
    reserved: bool = False
    show: Show = "split"
    blame: Mapping[str, str] = field(default_factory=dict)

    def name(self, control: str) -> str:
        """The field that the client used for `control`."""
        return self.blame.get(control, control)


def split_model(asked: str | None, model: str) -> dict[str, str]:
    """The suffix controls of a model's name, empty without. Raises Refused(404) for another model."""
    if asked is None or asked == model:
        return {}
    if not asked.startswith(f"{model}@"):
        raise Refused(
            404,
            f"model: {shown(asked)} is not served here; use {shown(model)}",
            param="model",
            code="model_not_found",
        )
    found: dict[str, str] = {}
    for item in asked[len(model) + 1 :].split(","):
        name, equals, value = item.partition("=")
        if name not in _SUFFIX or not equals or not value or name in found:
            raise bad("model", f"suffix {shown(item)}: write {'=..., '.join(_SUFFIX)}=..., each at most once")
        found[name] = value
    return found


def thinking(body: Body, suffix: Mapping[str, str], efforts: Efforts, depth: Depth | None = None) -> Thinking:
    """What `body` and the model's `suffix` say about thinking, of a model with loops where there is a
    `depth`. Raises Refused(400)."""
    if "extra_body" in body:
        raise bad(
            "extra_body",
            "is not a field of the request but an argument of openai-python, which puts what it holds beside "
            "`model`; do so too",
        )
    claims = _Claims(depth)
    _maximum(body, claims, efforts)
    _details(body, claims)
    read_loops(body, "", claims.add, depth)
    for holder in _LOOPS_IN:
        read_loops(table(body, holder), f"{holder}.", claims.add, depth)
    _suffix(suffix, claims, efforts)
    _suspects(body, claims)
    return claims.thinking(_show(body))


class _Claims:
    """What each field says about each control; two that differ are refused."""

    def __init__(self, depth: Depth | None) -> None:
        self.depth = depth
        self.values: dict[str, Any] = {}
        self.blame: dict[str, str] = {}
        self.known: set[str] = set()
        self.words = False

    def add(self, control: str, path: str, value: Any) -> None:
        if control in self.values and self.values[control] != value:
            raise bad(path, f"contradicts {self.blame[control]}; give one of the two")
        self.values[control] = value
        self.blame.setdefault(control, path)

    def thinking(self, show: Show) -> Thinking:
        given = dict(self.values)
        switched_on = given.pop("on", None)
        most = given.pop("max_tokens", None)
        if switched_on and most == 0:
            raise bad(self.blame["on"], f"asks for thinking, but {self.blame['max_tokens']} allows none")
        if most is not None and most != UNLIMITED:
            given["max_tokens"] = most
        if isinstance(given.get("wait"), list):
            given["wait"] = tuple(given["wait"])
        try:
            policy = ThinkingPolicy(**given)
        except UsageError as error:
            raise self._renamed(error) from None
        return Thinking(
            settled(policy, self.depth),
            stated=any(control not in CONTROLS for control in self.values),
            explicit=most not in (None, UNLIMITED, 0) and not self.words,
            reserved="answer_reserve" in given,
            show=show,
            blame=self.blame,
        )

    def _renamed(self, error: UsageError) -> Refused:
        """The policy's own words, with the fields that the client used."""
        message = str(error).removeprefix("thinking policy: ")
        found: list[tuple[int, str]] = []  # where in the message, which field
        for control, path in self.blame.items():
            # "wait" and "close" are words of English too: only the subject of the sentence is the field.
            pattern = rf"\b{control}\b" if "_" in control else rf"^{control}\b"
            if match := re.search(pattern, str(error).removeprefix("thinking policy: ")):
                found.append((match.start(), path))
                message = re.sub(pattern, path, message)
        blamed = min(found)[1] if found else None
        return Refused(400, message, param=blamed and blamed.partition(" ")[0])


def _maximum(body: Body, claims: _Claims, efforts: Efforts) -> None:
    def budget(holder: Body, name: str, path: str) -> None:
        value = whole(holder, name, UNLIMITED, _MOST, path)
        if value is not None:
            claims.add("max_tokens", path, value)

    def switch(holder: Body, name: str, path: str) -> None:
        value = flag(holder, name, None, path)
        if value is False:
            claims.add("max_tokens", path, 0)
        elif value is True:
            claims.add("on", path, True)

    for name in (
        "thinking_token_budget",
        "thinking_budget",
        "thinking_budget_tokens",
        "reasoning_budget_tokens",
        "reasoning_max_tokens",
    ):
        budget(body, name, name)
    switch(body, "enable_thinking", "enable_thinking")
    for holder, readers in _HOLDERS.items():
        inside = table(body, holder)
        for name, kind in readers.items():
            path = f"{holder}.{name}"
            if kind == "budget":
                budget(inside, name, path)
            elif kind == "switch":
                switch(inside, name, path)
            elif kind == "effort" and (word := text(inside, name, path)) is not None:
                _effort(word, path, claims, efforts)
            elif kind == "type" and (word := text(inside, name, path)) is not None:
                if word not in ("enabled", "disabled", "adaptive"):
                    raise bad(path, f'must be "enabled", "disabled" or "adaptive", not {shown(word)}')
                switch({name: word != "disabled"}, name, path)
    if (word := text(body, "reasoning_effort")) is not None:
        _effort(word, "reasoning_effort", claims, efforts)


# Objects with fields of theirs that control thinking. Other fields in them that look so are refused.
_HOLDERS: dict[str, dict[str, str]] = {
    "thinking": {"type": "type", "budget_tokens": "budget"},
    "reasoning": {
        "effort": "effort",
        "max_tokens": "budget",
        "enabled": "switch",
        "exclude": "show",
        "summary": "none",
    },
    "custom_params": {"thinking_budget": "budget", **dict.fromkeys(CONTROLS, "loops")},
    "nvext": {"max_thinking_tokens": "budget"},
    "chat_template_kwargs": {
        "enable_thinking": "switch",
        "thinking": "switch",
        "thinking_budget": "budget",
        "reasoning_effort": "effort",
        **dict.fromkeys(CONTROLS, "loops"),
    },
}
_LOOPS_IN = tuple(holder for holder, readers in _HOLDERS.items() if "loops" in readers.values())


def _effort(word: str, path: str, claims: _Claims, efforts: Efforts) -> None:
    if word not in efforts.words:
        raise bad(path, f"{shown(word)} is not known; use one of {', '.join(efforts.words)}")
    if efforts.unit == "loops":
        claims.add("num_steps", path, efforts.words[word])
        return
    claims.add("max_tokens", path, efforts.words[word])
    claims.words = True


def _details(body: Body, claims: _Claims) -> None:
    """The controls beside the maximum; they have our names alone."""
    for name, control, low in (
        ("min_thinking_tokens", "min_tokens", 0),
        ("thinking_max_waits", "max_waits", 0),
        ("thinking_refuse_closes", "refuse_closes", 0),
        ("thinking_grace_tokens", "grace_tokens", 0),
        ("answer_reserve", "answer_reserve", 1),
    ):
        if (value := whole(body, name, low, _MOST)) is not None:
            claims.add(control, name, value)
    for name, control in (("thinking_close", "close"), ("thinking_close_text", "close_text")):
        if (words := text(body, name)) is not None:
            claims.add(control, name, _short(name, words))
    wait = body.get("thinking_wait")
    if isinstance(wait, str):
        claims.add("wait", "thinking_wait", _short("thinking_wait", wait))
    elif isinstance(wait, list) and wait and all(isinstance(one, str) for one in wait) and len(wait) <= 64:
        claims.add("wait", "thinking_wait", [_short("thinking_wait", one) for one in wait])
    elif wait is not None:
        raise bad("thinking_wait", f"must be a text, a list of 1 to 64 texts, or null, not {shown(wait)}")


def _short(name: str, words: str) -> str:
    if len(words) > _LONGEST_TEXT:
        raise bad(name, f"is {len(words)} characters long; at most {_LONGEST_TEXT} are allowed")
    return words


def _suffix(suffix: Mapping[str, str], claims: _Claims, efforts: Efforts) -> None:
    def count(low: int) -> Callable[[str, str], int]:
        def read(path: str, value: str) -> int:
            if not value.removeprefix("-").isdecimal() or not low <= int(value[:12]) <= _MOST:
                raise bad("model", f"suffix {path}={shown(value)}: write a whole number, at least {low}")
            return int(value)

        return read

    readers: dict[str, tuple[str, Callable[[str, str], Any]]] = {
        "think": ("max_tokens", count(UNLIMITED)),
        "min": ("min_tokens", count(0)),
        "refuse": ("refuse_closes", count(0)),
        "waits": ("max_waits", count(0)),
        "grace": ("grace_tokens", count(0)),
        "reserve": ("answer_reserve", count(1)),
        "close": ("close", _short),
        "wait": ("wait", lambda path, value: value.split("|") if "|" in value else _short(path, value)),
    }
    for name, value in suffix.items():
        path = f"model (suffix {name})"
        if name == ("steps" if efforts.unit == "loops" else "think") and value in efforts.words:
            _effort(value, path, claims, efforts)
        elif name in SUFFIXES:
            read_loop_suffix(name, value, claims.add, claims.depth)
        else:
            control, read = readers[name]
            claims.add(control, path, read(name, value))


def _show(body: Body) -> Show:
    """How thinking is shown: `reasoning_format`, `reasoning.exclude`, `include_reasoning`."""
    words: set[Show] = set()
    shape = text(body, "reasoning_format")
    if shape is not None:
        match shape:
            case "split" | "tags" | "hide":
                words.add(shape)
            case _:
                raise bad("reasoning_format", f'must be "split", "tags" or "hide", not {shown(shape)}')
    if flag(table(body, "reasoning"), "exclude", path="reasoning.exclude"):
        words.add("hide")
    if flag(body, "include_reasoning", True) is False:
        words.add("hide")
    if len(words) > 1:
        raise bad("reasoning_format", "contradicts reasoning.exclude or include_reasoning; give one of them")
    return words.pop() if words else "split"


_KNOWN = frozenset(
    {
        "thinking_token_budget",
        "thinking_budget",
        "thinking_budget_tokens",
        "reasoning_budget_tokens",
        "reasoning_max_tokens",
        "reasoning_effort",
        "reasoning_format",
        "include_reasoning",
        "enable_thinking",
        "min_thinking_tokens",
        "thinking_wait",
        "thinking_max_waits",
        "thinking_refuse_closes",
        "thinking_close",
        "thinking_grace_tokens",
        "thinking_close_text",
        "answer_reserve",
        *CONTROLS,
        *_HOLDERS,
    }
)


def _suspects(body: Body, claims: _Claims) -> None:
    """Refuse what looks like a control of thinking and is none of ours, one level deep."""
    if body.get("reasoning_budget_message") is not None:
        raise bad(
            "reasoning_budget_message",
            "text before the closing marker is not written here; thinking_close_text is text after it",
        )
    for name, value in body.items():
        if value is None or name in _NOT_CONTROLS:
            continue
        if name not in _KNOWN and _suspect(name):
            raise bad(name, f"is not a control of thinking that this server has; known: {_names()}")
        if isinstance(value, dict):
            for inner, given in value.items():
                known = inner in _HOLDERS.get(name, {})
                odd = name in ("thinking", "reasoning") or _suspect(inner)
                if odd and not known and given is not None:
                    raise bad(f"{name}.{inner}", f"is not a control that this server has; known: {_names()}")


def _suspect(name: str) -> bool:
    return any(part in name.lower() for part in _SUSPECT)


def _names() -> str:
    ours = ("thinking_", "min_", "reasoning_e", *CONTROLS)
    return ", ".join(sorted(name for name in _KNOWN if name.startswith(ours)))
