"""What a server says a reply used: tokens of each kind, and what it charged.

Promises: never raises; what is not told, or is no count, is None, never 0; `prompt` holds the cached tokens
and the cache writes too, and `completion` the thinking, whichever way the server adds up.
Does not: know prices (see `money` and `prices`).
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from tutelage.errors import UsageError
from tutelage.teachers import money

_MOST_TOKENS = 2**53


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one reply; None: not told. `cached`, `writes` (written to a cache for five minutes) and
    `long_writes` (for an hour) are parts of `prompt`, `reasoning` is the part of `completion` that is
    thinking. `charged` is the server's own figure in US dollars."""

    prompt: int | None = None
    completion: int | None = None
    reasoning: int | None = None
    cached: int | None = None
    writes: int | None = None
    long_writes: int | None = None
    charged: Decimal | None = None


NOT_TOLD = Usage()


def bill(rate: money.Price, used: Usage) -> Decimal | None:
    """What a reply cost in US dollars, None when it cannot be known.

    A known price decides, because the user gave it, budgets reserve with it, and every cost can be worked out
    again from the counts. Only where there is none does the server's own figure count: it is what will be on
    the bill, and better than "unknown". It needs no mark beside it: the raw reply in the ledger holds it."""
    if rate.prompt is None and rate.completion is None:
        return used.charged
    return money.cost(
        rate,
        used.prompt,
        used.completion,
        cached=used.cached,
        writes=used.writes,
        long_writes=used.long_writes,
    )


def read_usage(told: Any) -> Usage:
    """The `usage` of a reply of OpenAI-like servers or of messages servers."""
    if not isinstance(told, dict):
        return NOT_TOLD
    if "input_tokens" in told and "prompt_tokens" not in told:
        return _messages(told)
    prompt, completion = _count(told.get("prompt_tokens")), _count(told.get("completion_tokens"))
    reasoning = _first(
        _in(told, "completion_tokens_details", "reasoning_tokens"), told.get("reasoning_tokens")
    )
    # Some servers leave the thinking out of completion_tokens; their total gives it away.
    total = _count(told.get("total_tokens"))
    if reasoning and prompt is not None and completion is not None:
        completion += reasoning if total == prompt + completion + reasoning else 0
    details = "prompt_tokens_details"
    return Usage(
        prompt,
        completion,
        reasoning,
        # DeepSeek names its cache hits apart; both counts are parts of prompt_tokens.
        cached=_first(_in(told, details, "cached_tokens"), told.get("prompt_cache_hit_tokens")),
        writes=_count(_in(told, details, "cache_write_tokens")),
        charged=_charged(told),
    )


def _messages(told: dict[str, Any]) -> Usage:
    """There `input_tokens` are those that touched no cache; reads and writes stand beside them."""
    fresh = _count(told.get("input_tokens"))
    cached = _count(told.get("cache_read_input_tokens"))
    written = _count(told.get("cache_creation_input_tokens"))
    hour = _count(_in(told, "cache_creation", "ephemeral_1h_input_tokens")) or 0
    return Usage(
        None if fresh is None else fresh + (cached or 0) + (written or 0),
        _count(told.get("output_tokens")),
        _count(_in(told, "output_tokens_details", "thinking_tokens")),
        cached=cached,
        writes=None if written is None else max(0, written - hour),
        long_writes=None if written is None else min(hour, written),
        charged=_charged(told),
    )


def _charged(told: dict[str, Any]) -> Decimal | None:
    """OpenRouter: `cost`, in credits of one US dollar; with a key of one's own for the provider behind it
    (`is_byok`) that is the fee alone, and the provider charges the rest. Perplexity: a dict with a total."""
    cost = told.get("cost")
    if isinstance(cost, dict):
        return _dollars(cost.get("total_cost"))
    amount = _dollars(cost)
    if amount is None or told.get("is_byok") is not True:
        return amount
    behind = _dollars(_in(told, "cost_details", "upstream_inference_cost"))
    return None if behind is None else amount + behind


def _dollars(value: Any) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return money.dollars(value, "usage.cost")
    except UsageError:
        return None


def _in(told: dict[str, Any], group: str, name: str) -> Any:
    inner = told.get(group)
    return inner.get(name) if isinstance(inner, dict) else None


def _first(*values: Any) -> int | None:
    return next((found for value in values if (found := _count(value)) is not None), None)


def _count(value: Any) -> int | None:
    good = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_TOKENS
    return value if good else None
