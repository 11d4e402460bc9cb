"""When to try again: what a server asks for, and how long to wait when it asks for nothing.

Does not: sleep or count.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

LONGEST_BACKOFF = 60.0


def retry_after(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Seconds that the server asks to wait, at least 0; None when it does not ask or cannot be understood.

    Reads `retry-after-ms`, then `retry-after` in seconds or as a date (RFC 9110 section 10.2.3). The names of
    `headers` are lower-case."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        text = headers.get(name, "").strip()
        try:
            seconds = float(text) * unit
        except ValueError:
            continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    try:
        until = parsedate_to_datetime(headers.get("retry-after", ""))
    except (ValueError, TypeError, OverflowError):
        return None
    if until.tzinfo is None:
        until = until.replace(tzinfo=UTC)
    return max(0.0, (until - (now or datetime.now(UTC))).total_seconds())


def backoff(tries: int, first: float, jitter: random.Random) -> float:
    """Seconds before try number `tries` + 1: `first` doubled each time up to a minute, of which a random half
    is taken off so that many clients do not come back together."""
    whole = min(LONGEST_BACKOFF, first * 2.0 ** min(tries - 1, 30))
    return whole * jitter.uniform(0.5, 1.0)
