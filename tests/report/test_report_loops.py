"""Loops in the report: plots over loops and FLOPs, tables, the sentence; nothing of it where no arm loops."""

from __future__ import annotations

import re
from typing import Any

from sample import curve as token_curve
from sample import summary

from tutelage.report import curve
from tutelage.report.lines import read_lines
from tutelage.report.page import page
from tutelage.report.summary import read_curve
from tutelage.report.tables import markdown
from tutelage.report.verdict import looping
from tutelage.report.words import flops


def row(method: str, setting: str, accuracy: float, cost: float, loops: float, **more: Any) -> dict[str, Any]:
    return {
        "arm": "looped",
        "seed": 1,
        "method": method,
        "part": "natural" if method == "natural" else "loops",
        "setting": setting,
        "line": {"loops": "loops", "exit": "exit by kl"}.get(method, ""),
        "sampling": "greedy",
        "accuracy": accuracy,
        "ci95": [accuracy - 0.05, min(1.0, accuracy + 0.05)],
        "n": 400,
        "thinking_tokens_mean": 0.0,
        "flops": cost,
        "loops": loops,
        "problem_set": "abc",
        **more,
    }


def line(unit: str, first: float, last: float, reached: float | None) -> dict[str, Any]:
    return {
        "line": "loops",
        "n": 400,
        "unit": unit,
        "area": {"value": 0.5, "ci95": [0.4, 0.6], "from": first, "to": last},
        "targets": [{"target": 0.5, unit: reached, "ci95": [reached, None]}],
        "control": None,
        "scaling": 20.0,
        "performance": 97.0,
    }


LOOPED = [
    row("natural", "greedy", 0.76, 2.5e7, 8.0),
    row("loops", "1 loop", 0.19, 5.3e6, 1.0, num_steps=1),
    row("loops", "8 loops", 0.76, 2.5e7, 8.0, num_steps=8),
    row("loops", "16 loops", 0.93, 4.8e7, 16.0, num_steps=16),
    row("exit", "exit kl:0.0005", 0.93, 3.1e7, 7.4, exit="kl:0.0005"),
]
SUMMARY = {
    "curve": LOOPED,
    "analysis": [
        {
            "arm": "looped",
            "seed": 1,
            "lines": [line("loops", 1, 16, 5.2)],
            "flops": [line("flops", 5.3e6, 4.8e7, None)],
        }
    ],
}


def labels(drawings: list[Any]) -> list[str]:
    return [re.search('aria-label="([^"]*)"', drawing)[1] for drawing in drawings]  # type: ignore[index]


def test_a_run_without_loops_shows_nothing_of_them() -> None:
    html = page(summary())
    assert "Thinking in loops" not in html and "FLOPs" not in html
    assert "FLOPs" not in markdown(summary())
    points = read_curve({"curve": token_curve((1,), 400)})
    assert curve.loop_panels(points) == curve.compute_panels(points) == []


def test_loops_have_plots_of_their_own_and_no_token_panel() -> None:
    points = read_curve(SUMMARY)
    assert curve.panels(points) == []
    assert labels(curve.loop_panels(points)) == ["Accuracy against loops, seed 1, against loops"]
    (drawing,) = curve.compute_panels(points)
    assert labels([drawing]) == ["Accuracy against FLOPs, seed 1, against FLOPs"]
    assert "looped, 16 loops, seed 1: 93.0\u00a0% [88.0,\u00a098.0] at 48 M FLOPs, n 400" in drawing
    html = page(SUMMARY)
    assert (
        "Thinking in loops" in html and "What this shows:</b> accuracy (upwards) against how much" not in html
    )
    assert html.count("<svg") == 4  # each plot for screens and for phones


def test_all_ways_over_the_same_problems_are_on_one_plot() -> None:
    tokens = [{**row, "flops": 1e6, "problem_set": "abc"} for row in token_curve((1,), 400)]
    other = [{**row, "problem_set": "other"} for row in LOOPED]
    points = read_curve({"curve": LOOPED + tokens})
    (one,) = curve.compute_panels(points)
    assert "looped, 8 loops" in one and all(f"{row['arm']}, " in one for row in tokens)
    assert all(" loop" not in label for label in labels(curve.panels(points)))
    assert len(curve.compute_panels(read_curve({"curve": LOOPED + other}))) == 2


def test_tables_say_loops_and_flops() -> None:
    text = markdown(SUMMARY)
    assert "| loops | FLOPs |" in text and "| 7.4 | 31 M |" in text
    html = page(SUMMARY)
    assert '<td class="n">7.4</td><td class="n">31 M</td>' in html


def test_lines_over_loops_and_flops_name_their_unit() -> None:
    (over_loops,) = read_lines(SUMMARY)
    assert over_loops.span == "1 to 16\u00a0loops"
    assert over_loops.reached == ("5.2 [5.2,\u00a0not reached]\u00a0loops",)
    (over_flops,) = read_lines(SUMMARY, "flops")
    assert over_flops.span == "5.3 M to 48 M\u00a0FLOPs" and over_flops.reached == ("not reached",)


def test_the_sentence_says_what_more_loops_bring_and_cost() -> None:
    told = looping(read_curve(SUMMARY))
    assert told == (
        "Looping, “looped” gives 19.0\u00a0% [14.0,\u00a024.0] with 1 loop and at best 93.0\u00a0% "
        "[88.0,\u00a098.0] with 16 loops for 9.1 times the FLOPs (400 problems)."
    )
    assert told in page(SUMMARY)


def test_flops_in_words() -> None:
    assert [flops(value) for value in (None, 12, 9.5e5, 1.24e6, 3.81e10, 2e13, 5e16)] == [
        *("unknown", "12", "950 k", "1.24 M", "38.1 G", "20 T", "50 P")
    ]
