"""A pilot says what the rest will cost, with its interval, and makes no number up."""

from __future__ import annotations

from decimal import Decimal
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tutelage.measure.statistics import cluster_bootstrap, wilson
from tutelage.records import Problem, Trace
from tutelage.teachers.pilot import Intervals, dollars, measure, spread

INTERVALS = Intervals(
    share=lambda k, n: (wilson(k, n).lo, wilson(k, n).hi),
    mean=lambda values: (
        cluster_bootstrap(list(values), bounds=None).lo,
        cluster_bootstrap(list(values), bounds=None).hi,
    ),
)


def traces(*costs: str | None) -> list[Trace]:
    return [
        Trace(f"t{n}", f"p{n}", 0, "m", "", cost=None if cost is None else Decimal(cost))
        for n, cost in enumerate(costs)
    ]


def test_the_rest_is_projected_with_its_interval() -> None:
    found = measure(
        traces(*["0.01", "0.03"] * 10), 2000, ["correct"] * 8 + ["undecided"] * 12, 980, INTERVALS
    )
    assert found.cost == Decimal("0.4") and found.projected == Decimal("19.6")
    assert found.projected_ci is not None and 14 < found.projected_ci[0] < 19.6 < found.projected_ci[1] < 25
    assert found.per_correct == Decimal("0.05") and found.tokens == 100
    told = found.to_json()
    assert told["projected"] == "19.6" and told["cost_per_correct"] == "0.05" and told["share_correct"] == 0.4
    cost, share = found.lines()
    assert cost.startswith("20 replies for $0.40, $0.020 each; the 980 left will cost about $19.60 (95 %")
    assert share.startswith("8 of 20 correct (40%; 95 % interval 22% to 61%), so $0.050 per verified trace")


def test_an_unknown_price_is_said_and_tokens_are_projected() -> None:
    found = measure(traces("0.01", None), 300, ["correct", "correct"], 10, INTERVALS)
    assert (found.cost, found.projected, found.projected_ci, found.per_correct) == (None, None, None, None)
    assert "the price is unknown; about 1,500 completion tokens for the 10 left" in found.lines()[0]
    assert "$" not in " ".join(found.lines())
    nothing = measure(traces(None), None, [], 10, INTERVALS)
    assert nothing.lines() == [
        "1 replies; the price is unknown, so nothing is projected",
        "no reply of the pilot has a gold answer to be judged by",
    ]


def test_no_correct_reply_has_no_price_per_verified_trace() -> None:
    found = measure(traces("0.01"), 10, ["incorrect"], 10, INTERVALS)
    assert found.per_correct is None and found.to_json()["cost_per_correct"] is None
    assert "with none correct, look at the settings and the checker" in found.lines()[1]
    assert measure([], 0, [], 5, INTERVALS).to_json()["projected"] is None


@given(st.integers(0, 300), st.integers(1, 50))
def test_the_rows_are_spread_evenly_and_are_the_same_ones_each_time(count: int, rows: int) -> None:
    problems = [Problem(f"p{n}", "?") for n in range(count)]
    found = spread(problems, rows)
    places = [int(problem.id[1:]) for problem in found]
    assert len(found) == min(rows, count) and found == spread(problems, rows)
    assert places == sorted(set(places)) and places[:1] == [0][:count]
    gaps = {after - before for before, after in pairwise(places)}
    assert max(gaps, default=0) - min(gaps, default=0) <= 1


@given(st.decimals(min_value="1e-12", max_value="1e6", places=12))
def test_a_small_amount_never_reads_as_nothing(amount: Decimal) -> None:
    shown = Decimal(dollars(amount)[1:])
    assert shown > 0 and abs(shown - amount) <= amount / 10
