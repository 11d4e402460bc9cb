"""The fields that chat, completions and responses share: sampling, limits, and what is not supported.

Promises: numbers are finite and in range; a field that would change the reply and is not supported is refused
by name unless it has the value that changes nothing; a budget that contradicts the request's own limit is
refused, and a default reserve gives way to a small limit.
Does not: read thinking controls (see `fields`).
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tutelage.serve.body import Body, bad, real, shown, whole
from tutelage.serve.fields import Thinking
from tutelage.serve.source import Order

MOST_CHOICES = 128
_MOST_TOKENS = 10**9
_MOST_STOPS, _LONGEST_STOP = 16, 256
# The values that change nothing; any other one is refused.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "best_of": (1,),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "structured_outputs": (),
    "stop_token_ids": ([],),
    "continue_final_message": (False,),
    "use_beam_search": (False,),
}


def refuse_unsupported(body: Body, more: Mapping[str, tuple[Any, ...]]) -> None:
    """Raises Refused(400) for a field that would change the reply and that this server does not have."""
    for name, neutral in {**_NEUTRAL, **more}.items():
        value = body.get(name)
        if value is not None and value not in neutral:
            rest = f"; only {' or '.join(map(shown, neutral))} is accepted" if neutral else ""
            raise bad(name, f"{shown(value)} is not supported by this server{rest}")


def sampling(body: Body) -> dict[str, Any]:
    """How to sample, as fields of an `Order`. A request without a seed gets a random one."""
    top_k = whole(body, "top_k", -1, 10**6) or 0
    seed = whole(body, "seed", -(2**63), 2**64 - 1)
    return {
        "temperature": real(body, "temperature", 0.0, 2.0, 1.0),
        "top_p": _positive(body, "top_p"),
        "top_k": max(top_k, 0),
        "min_p": real(body, "min_p", 0.0, 1.0, 0.0),
        "n": whole(body, "n", 1, MOST_CHOICES) or 1,
        "seed": secrets.randbits(63) if seed is None else seed % 2**63,
        "stop": _stops(body.get("stop")),
    }


def _positive(body: Body, field: str) -> float:
    value = real(body, field, 0.0, 1.0, 1.0)
    if value == 0.0:
        raise bad(field, "is 0, which allows no token; it must be larger, 1 at most")
    return value


def _stops(value: Any) -> tuple[str, ...]:
    given = [value] if isinstance(value, str) else value if value is not None else []
    if not isinstance(given, list) or not all(isinstance(one, str) for one in given):
        raise bad("stop", f"must be a text or a list of texts, not {shown(value)}")
    if len(given) > _MOST_STOPS:
        raise bad("stop", f"holds {len(given)} texts; at most {_MOST_STOPS} are allowed")
    for one in given:
        if len(one) > _LONGEST_STOP:
            raise bad("stop", f"holds a text of {len(one)} characters; at most {_LONGEST_STOP} are allowed")
    return tuple(one for one in given if one)


def bounded(order: Order, thinking: Thinking, body: Body, limits: Sequence[str]) -> Order:
    """`order` under its limits: the policy of `thinking`, and the most tokens of the whole reply by the
    fields `limits` (which must agree).

    Raises Refused(400) where thinking and limit contradict each other. Without a reserve of the client's own
    the answer keeps the default one, less under a small limit."""
    policy = thinking.policy
    given = {name: value for name in limits if (value := whole(body, name, 1, _MOST_TOKENS)) is not None}
    if len(set(given.values())) > 1:
        raise bad(limits[0], f"contradicts {limits[1]}; give one of the two")
    if not given:
        return replace(order, policy=policy)
    name, most = next(iter(given.items()))
    wanted = policy.min_tokens
    if thinking.explicit and policy.max_tokens is not None:
        wanted = max(wanted, policy.max_tokens + policy.grace_tokens)
    control = thinking.name("max_tokens" if wanted > policy.min_tokens else "min_tokens")
    least = policy.answer_reserve if thinking.reserved else 1
    if wanted + least > most and (wanted or thinking.reserved):
        extra = f" and {thinking.name('answer_reserve')} {least}" if thinking.reserved else ""
        blame = control if wanted else thinking.name("answer_reserve")
        grace = f" (with {policy.grace_tokens} of grace)" if policy.grace_tokens else ""
        raise bad(
            blame,
            f"{wanted} tokens of thinking{grace}{extra} leave no room for an answer within {name} {most}",
        )
    if not thinking.reserved:
        # Half of what is left: markers and the close text, of which only the source knows, need some too.
        room = (most - wanted) // 2 if wanted else most // 4
        policy = replace(policy, answer_reserve=min(policy.answer_reserve, max(1, room)))
    return replace(order, policy=policy, max_new_tokens=most)
