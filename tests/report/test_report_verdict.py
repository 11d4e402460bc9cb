"""The three sentences and the rule for where waiting stops helping."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sample import summary

from tutelage.report.summary import Point, read_arms, read_comparisons, read_curve
from tutelage.report.verdict import best_arm, shown, thinking, three_sentences, waiting_stops


def comparison(a: str, b: str, seed: int, lo: float, hi: float) -> dict[str, Any]:
    return {"a": a, "b": b, "seed": seed, "difference": (lo + hi) / 2, "ci95": [lo, hi], "n": 400, "p": 0.01}


def point(waits: float, accuracy: float, method: str = "wait", half: float = 0.05, **rest: Any) -> Point:
    row = {"arm": "d", "method": method, "seed": 1, "waits": waits, "wait": "Wait", "accuracy": accuracy}
    row |= {"ci95": [accuracy - half, accuracy + half], "n": 400, "thinking_tokens_mean": 50 * (1 + waits)}
    return read_curve({"curve": [row | rest]})[0]


def test_the_sample_reads_as_three_plain_sentences() -> None:
    data = summary()
    told = three_sentences(read_arms(data), read_comparisons(data), read_curve(data), "")
    assert len(told) == 3
    assert told[0].startswith(
        "The student with the highest measured accuracy, “teacher”, answers 82.9\u00a0%"
    )
    assert "[79.2,\u00a086.6] and" in told[0]
    assert "400 test problems" in told[0]
    assert "the base it started from answers 8.1\u00a0%" in told[0]
    assert "“teacher” beats “human-terse” (+43.0 and +41.0 points)" in told[1]
    assert "not shown: “drafting” against “careless-filtered” (−3.0 and +2.0 points)" in told[1]
    assert "“drafting” think on when it wants to stop shows no further gain after 1 wait" in told[2]


def test_a_difference_that_holds_on_one_seed_only_is_not_shown() -> None:
    rows = [comparison("x", "y", 1, 0.02, 0.1), comparison("x", "y", 2, -0.01, 0.07)]
    text = shown(read_comparisons({"comparisons": rows}))
    assert "No difference is shown on every seed" in text
    assert "not shown: “x” against “y” (+6.0 and +3.0 points) (differences on the same 400 problems)" in text
    assert "beats" not in text


def test_a_difference_in_the_other_direction_is_said_to_be_worse() -> None:
    rows = [comparison("x", "y", 1, -0.1, -0.02), comparison("x", "z", 1, -0.1, 0.02)]
    text = shown(read_comparisons({"comparisons": rows}))
    assert "“x” is worse than “y” (−6.0 points)" in text
    assert "not shown: “x” against “z”" in text


def test_what_holds_only_without_a_correction_is_not_shown() -> None:
    rows = [
        comparison("x", "y", 1, 0.001, 0.1),
        comparison("z", "y", 1, 0.05, 0.1),
        comparison("y", "v", 1, -0.1, -0.01),
    ]
    corrected = [row | {"p_holm": p} for row, p in zip(rows, (0.4, 0.01, 0.05), strict=True)]
    text = shown(read_comparisons({"comparisons": corrected}))
    assert (
        "excludes zero: “z” beats “y” (+7.5 points); only without a correction for 3 comparisons (Holm)"
        in text
    )
    assert "(Holm): “x” beats “y” (+5.1 points) and “y” is worse than “v” (−5.5 points)" in text
    assert "every comparison" not in text and "not shown" not in text
    alone = shown(read_comparisons({"comparisons": corrected[:1]}))
    assert alone.startswith("No difference is shown; only without a correction for 1 ")


def test_an_interval_that_touches_zero_is_not_shown() -> None:
    rows = [comparison("x", "y", 1, 0.0, 0.1)]
    assert read_comparisons({"comparisons": rows})[0].direction == 0


def test_opposite_results_on_two_seeds_are_not_shown() -> None:
    rows = [comparison("x", "y", 1, 0.02, 0.1), comparison("x", "y", 2, -0.1, -0.02)]
    assert "No difference is shown" in shown(read_comparisons({"comparisons": rows}))


def test_waiting_stops_at_the_first_point_no_later_one_rises_above() -> None:
    rows = [point(0, 0.5, "natural"), point(1, 0.6), point(2, 0.64), point(4, 0.62)]
    assert waiting_stops(rows) == rows[1]
    steeper = [point(0, 0.5, "natural"), point(1, 0.6), point(2, 0.7), point(4, 0.8)]
    assert waiting_stops(steeper) == steeper[3]


def test_waiting_that_only_hurts_stops_at_the_unforced_point() -> None:
    rows = [point(0, 0.5, "natural"), point(1, 0.4), point(2, 0.3)]
    assert waiting_stops(rows) == rows[0]
    assert "shows no gain" in thinking(rows)


def test_waiting_until_a_minimum_is_no_number_of_waits() -> None:
    rows = [point(0, 0.5, "natural"), point(1, 0.6), point(2, 0.64)]
    least = replace(point(0, 0.9), waits=None, minimum=64.0)
    assert waiting_stops([*rows, least]) == waiting_stops(rows) == rows[1]


def test_one_setting_has_no_place_where_waiting_stops() -> None:
    assert waiting_stops([point(2, 0.5)]) is None
    assert waiting_stops([point(0, 0.5, "natural")]) is None


def test_without_waits_or_a_curve_the_bill_is_told() -> None:
    data = summary()
    assert three_sentences(read_arms(data), [], [], "It cost $1.")[-1] == "It cost $1."
    assert three_sentences([], [], [], "") == []


def test_the_lowest_arm_stands_in_for_a_missing_base() -> None:
    arms = [arm for arm in summary()["arms"] if arm["name"] != "base"]
    assert "the weakest, “answer-only”," in best_arm(read_arms({"arms": arms}))
