"""money: exact, and never zero for what is not known."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.errors import UsageError
from tutelage.teachers.money import UNKNOWN, cost, dollars, price, upper_bound


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
