"""The fields that say how deep a recurrent-depth model thinks about each token.

Promises: read in one place, for chats, completions and responses alike; what no model of this server can do
is refused by the name that the client used, never ignored.
Does not: know what an exit means (see `think.effort`), or read budgets in tokens (see `fields`).

Names: `num_steps` (passes of the core), `exit` ("kl:5e-4,min=2") and `continuous`, at the top level, in
`chat_template_kwargs` or in `custom_params`. In the suffix of a model's name: `steps=8`, `exit=kl:5e-4|min=2`
(there a comma ends the item) and `continuous=true`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from tutelage.serve.body import Body, bad, flag, shown, text, whole
from tutelage.serve.source import Depth
from tutelage.think.effort import USAGE
from tutelage.think.policy import ThinkingPolicy

CONTROLS = ("num_steps", "exit", "continuous")
SUFFIXES = ("steps", "exit", "continuous")
_LONGEST = 100
Add = Callable[[str, str, Any], None]  # control, the client's field, value


def read_loops(holder: Body, prefix: str, add: Add, depth: Depth | None) -> None:
    """What `holder` says, an object of the body whose fields are called `prefix` + name. Raises
    Refused(400)."""
    for name in CONTROLS:
        if depth is None and holder.get(name) not in (None, False):
            raise no_loops(f"{prefix}{name}")
    if depth is None:
        return
    if (steps := whole(holder, "num_steps", 1, depth.most, f"{prefix}num_steps")) is not None:
        add("num_steps", f"{prefix}num_steps", steps)
    if (words := text(holder, "exit", f"{prefix}exit")) is not None:
        add("exit", f"{prefix}exit", _exit(f"{prefix}exit", words))
    if (goes_on := flag(holder, "continuous", None, f"{prefix}continuous")) is not None:
        add("continuous", f"{prefix}continuous", goes_on)


def read_loop_suffix(name: str, value: str, add: Add, depth: Depth | None) -> None:
    """What the suffix `name`, one of SUFFIXES, says. Raises Refused(400)."""
    path = f"model (suffix {name})"
    if depth is None:
        raise no_loops("model", f"suffix {name} ")
    if name == "steps":
        if not value.isdecimal() or not 1 <= int(value[:12]) <= depth.most:
            raise bad("model", f"suffix steps={shown(value)}: write a whole number, 1 to {depth.most}")
        add("num_steps", path, int(value))
    elif name == "exit":
        add("exit", path, _exit("model", value.replace("|", ",")))
    elif value in ("true", "false"):
        add("continuous", path, value == "true")
    else:
        raise bad("model", f"suffix continuous={shown(value)}: write true or false")


def settled(policy: ThinkingPolicy, depth: Depth | None) -> ThinkingPolicy:
    """`policy` with the number of steps that it means for a model of that depth written out, so that those
    who ask for the same share what is computed."""
    if depth is None:
        return policy
    return replace(policy, num_steps=policy.effort.bound(depth.mean, depth.most))


def told_loops(policy: ThinkingPolicy, core_steps: int | None) -> Mapping[str, Any]:
    """What a reply tells of its loops: what was asked, what was done; nothing for a model without."""
    if core_steps is None:
        return {}
    return {
        "num_steps": policy.num_steps,
        "exit": policy.exit,
        "continuous": policy.continuous,
        "core_steps": core_steps,
    }


def no_loops(path: str, what: str = "") -> Exception:
    """The refusal of a model that is passed through once."""
    return bad(path, f"{what}cannot be enforced: this model has no loops (it is not of recurrent depth)")


def _exit(path: str, words: str) -> str:
    if not words.strip() or len(words) > _LONGEST:
        raise bad(path, f"{shown(words)} is not readable; {USAGE}")
    return words
