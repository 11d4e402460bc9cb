"""Prices and costs in US dollars, exactly.

Promises: decimals from end to end; a price that is not known makes a cost that is not known (None), never 0;
`upper_bound` is never below what the request can cost as long as the teacher keeps to its token limit.
Does not: know anyone's price list, convert currencies, or hold the budget (the ledger does).
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation

from tutelage.errors import UsageError
from tutelage.ledger import PICO

MILLION = Decimal(1_000_000)
# What chat templates add around a message (roles, markers, a default system text) on top of its own bytes.
TEMPLATE_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens; None: unknown. Build it with `price` to have it checked."""

    prompt: Decimal | None = None
    completion: Decimal | None = None


UNKNOWN = Price()


def dollars(value: Decimal | float | int | str, field: str) -> Decimal:
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
    prompt: Decimal | float | int | str | None, completion: Decimal | float | int | str | None
) -> Price:
    """A checked Price from US dollars per million prompt and completion tokens (None: unknown)."""
    return Price(
        None if prompt is None else dollars(prompt, "price.prompt"),
        None if completion is None else dollars(completion, "price.completion"),
    )


def cost(rate: Price, prompt_tokens: int | None, completion_tokens: int | None) -> Decimal | None:
    """What a reply cost, to a millionth of a millionth of a dollar; None when price or usage is unknown."""
    if rate.prompt is None or rate.completion is None or prompt_tokens is None or completion_tokens is None:
        return None
    exact = (rate.prompt * prompt_tokens + rate.completion * completion_tokens) / MILLION
    return exact.quantize(PICO, ROUND_HALF_EVEN).normalize()


def upper_bound(rate: Price, prompt: str, max_tokens: int | None) -> Decimal | None:
    """The most a request can cost; None when the price or the token limit is unknown.

    A byte-level tokenizer never makes more tokens than there are UTF-8 bytes, so bytes bound the prompt's
    tokens without knowing the tokenizer (about four times too many for English: the price of a hard cap)."""
    prompt_tokens = len(prompt.encode("utf-8", "replace")) + TEMPLATE_TOKENS
    return cost(rate, prompt_tokens, max_tokens)
