"""usage: every server's way to count comes out the same, and what is not told is not made up."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.teachers.money import UNKNOWN, price
from tutelage.teachers.usage import NOT_TOLD, Usage, bill, read_usage

PLAIN = {"prompt_tokens": 100, "completion_tokens": 20}


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (PLAIN, Usage(100, 20)),
        # OpenAI, vLLM
        (
            {
                **PLAIN,
                "total_tokens": 120,
                "prompt_tokens_details": {"cached_tokens": 64},
                "completion_tokens_details": {"reasoning_tokens": 15},
            },
            Usage(100, 20, 15, cached=64),
        ),
        # DeepSeek
        (
            {**PLAIN, "prompt_cache_hit_tokens": 64, "prompt_cache_miss_tokens": 36},
            Usage(100, 20, cached=64),
        ),
        # OpenRouter
        (
            {**PLAIN, "cost": 0.95, "prompt_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 9}},
            Usage(100, 20, cached=0, writes=9, charged=Decimal("0.95")),
        ),
        (
            {**PLAIN, "cost": 0.01, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.19}},
            Usage(100, 20, charged=Decimal("0.2")),
        ),
        ({**PLAIN, "cost": 0.01, "is_byok": True}, Usage(100, 20)),
        # Perplexity
        (
            {**PLAIN, "cost": {"total_cost": 0.006, "request_cost": 0.005}},
            Usage(100, 20, charged=Decimal("0.006")),
        ),
        # a server that leaves the thinking out of completion_tokens
        ({**PLAIN, "reasoning_tokens": 30, "total_tokens": 150}, Usage(100, 50, 30)),
        # Anthropic
        ({"input_tokens": 100, "output_tokens": 20}, Usage(100, 20)),
        (
            {
                "input_tokens": 10,
                "cache_read_input_tokens": 60,
                "cache_creation_input_tokens": 30,
                "cache_creation": {"ephemeral_5m_input_tokens": 20, "ephemeral_1h_input_tokens": 10},
                "output_tokens": 20,
            },
            Usage(100, 20, cached=60, writes=20, long_writes=10),
        ),
        ({"input_tokens": 5, "cache_creation_input_tokens": None, "output_tokens": 2}, Usage(5, 2)),
        ({"prompt_tokens": True, "completion_tokens": -1, "cost": "free"}, NOT_TOLD),
        ({"prompt_tokens": 10**30, "cost": True, "prompt_tokens_details": []}, NOT_TOLD),
        ({"cost": -1}, NOT_TOLD),
        (None, NOT_TOLD),
        ([], NOT_TOLD),
    ],
)
def test_counts_come_out_the_same_from_every_server(told: Any, expected: Usage) -> None:
    assert read_usage(told) == expected


NAMES = st.sampled_from(
    ["prompt_tokens", "input_tokens", "cost", "is_byok", "cost_details", "total_cost", "cache_creation"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=2),
    lambda inner: st.dictionaries(NAMES, inner) | st.lists(inner, max_size=2),
    max_leaves=6,
)


@given(st.dictionaries(NAMES, VALUES))
def test_any_usage_is_read_without_an_exception(told: dict[str, Any]) -> None:
    found = read_usage(told)
    bill(UNKNOWN, found)
    bill(price(1, 2), found)


def test_a_known_price_decides_and_the_servers_figure_stands_in_for_an_unknown_one() -> None:
    used = read_usage({**PLAIN, "cost": 0.95})
    assert bill(price(1, 10), used) == Decimal("0.0003")
    assert bill(UNKNOWN, used) == Decimal("0.95")
    assert bill(UNKNOWN, read_usage(PLAIN)) is None
    # Half a price is no price, and none that the server could be asked to fill in.
    assert bill(price(1, None), used) is None


def test_the_parts_of_a_prompt_cost_what_they_cost() -> None:
    """A reply of claude-sonnet-4-5 by Anthropic's price list, in dollars per million: prompt 3, cached 0.30,
    written for five minutes 3.75 and for an hour 6, completion 15."""
    used = Usage(1000, 100, cached=600, writes=200, long_writes=100)
    by_hand = (100 * 3 + 600 * Decimal("0.3") + 200 * Decimal("3.75") + 100 * 6 + 100 * 15) / Decimal(10**6)
    assert bill(price(3, 15, "0.3"), used) == by_hand
