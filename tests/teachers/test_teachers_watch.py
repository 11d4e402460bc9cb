"""watch: the line that people see while money is spent."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tutelage.ledger import Settled
from tutelage.teachers.watch import Watch, _dollars, _short


def got(watch: Watch, cost: str | None, count: int = 1) -> None:
    for _ in range(count):
        watch.got(Settled("done", "", 10, 100, None if cost is None else Decimal(cost)))
    watch.done += count


def test_the_note_says_how_fast_how_many_how_dear_and_what_failed() -> None:
    watch = Watch(100)
    watch.note(0.0)
    got(watch, "0.01", 20)
    watch.at_once, watch.limit = 48, 64
    watch.errors.update({"429": 3, "timeout": 1})
    assert watch.note(2.0) == (
        "10 replies/s · 1.0k tokens/s · 48 at once · $0.20 of about $1.00 · 429 x3, timeout x1"
    )


def test_an_unknown_cost_stays_unknown() -> None:
    watch = Watch(10)
    got(watch, "0.01")
    got(watch, None)
    assert (watch.spent, watch.projected) == (None, None)
    assert "cost unknown" in watch.note()


def test_what_the_ledger_held_is_not_projected() -> None:
    watch = Watch(100)
    watch.tick(90)
    got(watch, "0.5", 5)
    assert watch.projected == Decimal("5.0")
    got(watch, "0.5", 5)
    assert watch.projected == watch.spent
    assert "of about" not in watch.note()


def test_progress_is_told_seldom_but_at_once_for_a_note_and_at_the_end() -> None:
    seen: list[Any] = []
    watch = Watch(1000, lambda *told: seen.append(told))
    for _ in range(500):
        watch.tick(1)
    assert len(seen) < 100
    watch.tick(0, "rate limited, waiting 3 s")
    assert seen[-1] == (500, 1000, "rate limited, waiting 3 s")
    watch.tick(500)
    assert seen[-1][:2] == (1000, 1000)


@given(st.floats(0, 1e12))
def test_numbers_are_short(number: float) -> None:
    assert len(_short(number)) <= 9


def test_dollars_show_what_matters() -> None:
    amounts = {"0": "0.00", "0.00012345": "0.00012", "0.0123": "0.012", "0.5": "0.50", "12.346": "12.35"}
    assert [_dollars(Decimal(text)) for text in amounts] == list(amounts.values())
