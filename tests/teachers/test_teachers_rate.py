"""rate: what servers ask for is understood, and waits stay within their bounds."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.teachers.rate import LONGEST_BACKOFF, backoff, retry_after

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": f"{NOW + timedelta(seconds=90):%a, %d %b %Y %H:%M:%S GMT}"}, 90.0),
        ({"retry-after": f"{NOW - timedelta(days=1):%a, %d %b %Y %H:%M:%S GMT}"}, 0.0),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, NOW) == seconds


@given(st.text())
def test_any_header_is_read_without_an_exception(text: str) -> None:
    found = retry_after({"retry-after": text}, NOW)
    assert found is None or found >= 0


@given(st.integers(1, 10_000), st.floats(0, 100), st.randoms())
def test_backoff_doubles_up_to_a_minute(tries: int, first: float, jitter: random.Random) -> None:
    whole = min(LONGEST_BACKOFF, first * 2.0 ** min(tries - 1, 30))
    assert whole / 2 <= backoff(tries, first, jitter) <= whole
