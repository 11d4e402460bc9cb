"""money: exact, and never zero for what is not known."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.errors import UsageError
from tutelage.teachers.money import TEMPLATE_TOKENS, UNKNOWN, Price, cost, dollars, price, upper_bound


def test_cents_per_million_are_exact() -> None:
    assert price(0.14, "0.28").prompt == Decimal("0.14")
    assert cost(price(0.14, 0.28), 1, 1) == Decimal("0.00000042")
    assert cost(price(0, 0), 10, 10) == 0


@pytest.mark.parametrize(
    ("rate", "counts"), [(UNKNOWN, (1, 1)), (price(1, None), (1, 1)), (price(1, 1), (None, 1))]
)
def test_unknown_is_never_zero(rate: Any, counts: Any) -> None:
    assert cost(rate, *counts) is None


@pytest.mark.parametrize("value", ["free", -1, float("nan"), float("inf"), True, "1e9"])
def test_what_is_no_amount_is_refused(value: Any) -> None:
    with pytest.raises(UsageError, match=r"price\.prompt"):
        price(value, 1)
    with pytest.raises(UsageError, match="budget"):
        dollars(value, "budget")


@given(st.text(), st.integers(0, 1000), st.integers(0, 1000))
def test_the_upper_bound_is_above_any_bytewise_tokenizer(text: str, made: int, limit: int) -> None:
    rate = price("0.5", 2)
    tokens = len(text.encode("utf-8", "replace"))
    bound, real = upper_bound(rate, text, limit), cost(rate, tokens, min(made, limit))
    assert bound is not None
    assert real is not None
    assert bound > real
    assert upper_bound(rate, text, None) is None


def test_cached_tokens_have_a_price_of_their_own() -> None:
    assert cost(price(1, 10, "0.1"), 100, 0, cached=60) == Decimal("0.000046")
    assert cost(price(1, 10), 100, 0, cached=60) == Decimal("0.0001"), "an upper bound where it is unknown"
    assert cost(price(1, 10, 0), 100, 0, cached=100) == 0


def test_parts_that_are_more_than_the_whole_cost_no_more_than_the_whole() -> None:
    assert cost(price(1, 0, "0.1"), 10, 0, cached=10**9) == Decimal("0.000001")
    assert cost(price(1, 0), 10, 0, long_writes=10**9, writes=10**9) == Decimal("0.00002")


def test_long_prompts_have_a_price_of_their_own() -> None:
    rate = Price(Decimal(1), Decimal(2), long=price(3, 4), long_from=200)
    assert cost(rate, 200, 1) == Decimal("0.000202")
    assert cost(rate, 201, 1) == Decimal("0.000607")
    assert upper_bound(rate, "x" * 199, 1) == cost(price(3, 4), 199 + TEMPLATE_TOKENS, 1)


def test_a_cached_price_alone_is_refused() -> None:
    with pytest.raises(UsageError, match=r"price\.cached: give the price of other prompt tokens"):
        price(None, 1, 1)


LONG = Price(Decimal(1), Decimal(2), long=price(4, 5), long_from=9)


@given(
    st.text(),
    st.lists(st.integers(0, 400), min_size=3, max_size=3),
    st.sampled_from([price(1, 2), price(1, 2, "0.1"), price(1, 2, 5), LONG]),
)
def test_no_mixture_of_cached_and_written_tokens_is_above_the_bound(
    text: str, parts: list[int], rate: Price
) -> None:
    request = json.dumps({"messages": [text], "cache_control": {"type": "ephemeral", "ttl": "1h"}})
    tokens = len(request.encode("utf-8", "replace"))
    cached, writes, long_writes = parts
    bound = upper_bound(rate, request, 100)
    real = cost(rate, tokens, 100, cached=cached, writes=writes, long_writes=long_writes)
    assert bound is not None
    assert real is not None
    assert bound > real
    # Without the field nothing is written to a cache.
    plain = json.dumps({"messages": [text]})
    tokens = len(plain.encode("utf-8", "replace"))
    assert (upper_bound(rate, plain, 100) or 0) > (cost(rate, tokens, 100, cached=cached) or 0)
