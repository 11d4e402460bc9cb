"""Prices and costs in US dollars, exactly.

Promises: decimals from end to end; a price that is not known makes a cost that is not known (None), never 0;
`upper_bound` is never below what the request can cost as long as the teacher keeps to its token limit.
Does not: know anyone's price list (see `prices`), convert currencies, or hold the budget (the ledger does).
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation

from tutelage.errors import UsageError
from tutelage.ledger import PICO

Amount = Decimal | float | int | str
MILLION = Decimal(1_000_000)
# What chat templates add around a message (roles, markers, a default system text) on top of its own bytes.
TEMPLATE_TOKENS = 128
# What writing to a prompt cache costs, as a share of the prompt price: Anthropic's price list, for five
# minutes and for an hour. Servers that write their caches unasked (OpenAI, DeepSeek) report no writes.
WRITE, LONG_WRITE = Decimal("1.25"), Decimal(2)


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens; None: unknown. Build it with `price` to have it checked.

    Where `cached` is unknown, cached prompt tokens cost what other prompt tokens cost: an upper bound.
    `long`: the price of requests whose prompt has more than `long_from` tokens (None: the same)."""

    prompt: Decimal | None = None
    completion: Decimal | None = None
    cached: Decimal | None = None
    long: Price | None = None
    long_from: int = 0


UNKNOWN = Price()


def dollars(value: Amount, field: str) -> Decimal:
    """`value` as a decimal; floats by their shortest spelling, so 0.14 is 0.14.

    Raises UsageError, naming `field`, for what is not a finite number of at least 0."""
    try:
        amount = Decimal(str(value))
    except InvalidOperation:
        amount = Decimal("NaN")
    if isinstance(value, bool) or not amount.is_finite() or not 0 <= amount < MILLION:
        raise UsageError(f"{field}: {value!r} is not an amount of US dollars")
    return amount


def price(
    prompt: Amount | None,
    completion: Amount | None,
    cached: Amount | None = None,
    field: str = "price",
) -> Price:
    """A checked Price from US dollars per million prompt, completion and cached tokens (None: unknown).

    Raises UsageError; its message begins with `field`."""
    if cached is not None and prompt is None:
        raise UsageError(f"{field}.cached: give the price of other prompt tokens beside it, as prompt")
    return Price(
        None if prompt is None else dollars(prompt, f"{field}.prompt"),
        None if completion is None else dollars(completion, f"{field}.completion"),
        None if cached is None else dollars(cached, f"{field}.cached"),
    )


def cost(
    rate: Price,
    prompt_tokens: int | None,
    completion_tokens: int | None,
    *,
    cached: int | None = None,
    writes: int | None = None,
    long_writes: int | None = None,
) -> Decimal | None:
    """What a reply cost, to a millionth of a millionth of a dollar; None when price or usage is unknown.

    `cached`, `writes` and `long_writes` are the parts of `prompt_tokens` that were read from a cache or
    written to one (None: not told, so none)."""
    if prompt_tokens is None or completion_tokens is None:
        return None
    rate = _for_length(rate, prompt_tokens)
    if rate.prompt is None or rate.completion is None:
        return None
    left = prompt_tokens
    exact = rate.completion * completion_tokens
    parts = (
        (long_writes, rate.prompt * LONG_WRITE),
        (writes, rate.prompt * WRITE),
        (cached, rate.prompt if rate.cached is None else rate.cached),
    )
    for count, each in parts:  # the dearest first, should a server's parts be more than its whole
        part = min(count or 0, left)
        exact += each * part
        left -= part
    exact = (exact + rate.prompt * left) / MILLION
    return exact.quantize(PICO, ROUND_HALF_EVEN).normalize()


def upper_bound(rate: Price, prompt: str, max_tokens: int | None) -> Decimal | None:
    """The most a request can cost; None when the price or the token limit is unknown.

    A byte-level tokenizer never makes more tokens than there are UTF-8 bytes, so bytes bound the prompt's
    tokens without knowing the tokenizer (about four times too many for English: the price of a hard cap). A
    request that asks for a prompt cache may have all of it written there at the highest price."""
    tokens = len(prompt.encode("utf-8", "replace")) + TEMPLATE_TOKENS
    rate = _for_length(rate, tokens)
    if rate.prompt is None:
        return None
    factor = LONG_WRITE if '"cache_control":' in prompt else Decimal(1)
    dearest = max(rate.prompt * factor, rate.cached or Decimal(0))
    return cost(Price(dearest, rate.completion), tokens, max_tokens)


def _for_length(rate: Price, prompt_tokens: int) -> Price:
    return rate.long if rate.long is not None and prompt_tokens > rate.long_from else rate
