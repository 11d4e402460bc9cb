"""What loops do, on page and in tables: true to the numbers, every seed drawn, hostile texts stay text."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import Any

import pytest
from looped import DEPTHS, EXIT, STEPS, hostile, looped

from tutelage.errors import UsageError
from tutelage.report import depth_plots as plots
from tutelage.report.depth_section import section, tables
from tutelage.report.depths import read_depths
from tutelage.report.page import page
from tutelage.report.tables import markdown

SEEDS = ["1", "2", "3"]


def shapes(root: str, kind: str) -> list[ET.Element]:
    return [each for each in ET.fromstring(root).iter() if each.attrib.get("class", "").startswith(kind)]


def tips(root: str) -> list[str]:
    return [each.text or "" for each in ET.fromstring(root).iter() if each.tag.endswith("title")]


def test_every_depth_has_a_picture_with_every_seed_at_every_number_of_passes() -> None:
    runs = read_depths(looped())
    drawn = plots.curves(runs, SEEDS)
    assert len(drawn) == len(DEPTHS) + 1
    for group, picture in zip([*DEPTHS, None], drawn, strict=True):
        assert len(tips(picture)) == 3 * len(STEPS)
        assert len(shapes(picture, "series seed")) == 3
        assert len(shapes(picture, "series hollow")) == 2, "the two models of fixed depth"
        (stop,) = shapes(picture, "stop")
        marked = {
            text.text: float(text.attrib["x"])
            for text in shapes(picture, "soft")
            if text.text in map(str, STEPS)
        }
        assert float(stop.attrib["x1"]) == pytest.approx(marked["8"], abs=0.1)
        at = runs[1].cell(group, 12)
        assert at is not None
        assert any(f"12 passes: {100 * at.value.mean:.1f}\u00a0%" in tip for tip in tips(picture))


def test_a_dot_stands_higher_where_the_accuracy_is() -> None:
    (run,) = read_depths(looped(seeds=(1,)))
    picture = plots.curves([run], ["1"])[1]
    dots = [float(each.attrib["cy"]) for each in shapes(picture, "dot")]
    values = [cell.value.mean for cell in run.cells if cell.group == DEPTHS[1]]
    assert sorted(range(7), key=lambda i: -dots[i]) == sorted(range(7), key=lambda i: values[i])


def test_tables_hold_the_numbers_with_intervals_and_n() -> None:
    data = looped()
    accuracy, fixed, examples, exits, states = tables(data)
    first = data["depths"][0]["accuracy"][3]
    told = f"{100 * first['accuracy']:.1f} % [{100 * first['ci95'][0]:.1f}, {100 * first['ci95'][1]:.1f}]"
    (row,) = [line for line in accuracy.splitlines() if line.startswith("| 4 | 1 |")]
    assert told in row and row.endswith("| 200 |")
    assert accuracy.count("| all |") == 3
    assert "equal-flops (1.12 M parameters)" in fixed and "[" in fixed
    assert "| 4 | 2 |" in examples and "enough" in examples
    assert f"{EXIT}, at most 16" in exits and "-1.2 [-3.0, +0.5]" in exits
    assert "path orbits" in states and "same prediction" in states
    assert accuracy in markdown(data) and states in markdown(data)
    assert tables({}) == [] and section({}) == ""


def test_what_a_run_did_not_measure_is_left_out() -> None:
    data = looped(seeds=(1,), examples=False)
    one = data["depths"][0]
    for name in ("baselines", "differences", "exits", "positions", "heat", "restarts"):
        one[name] = []
    one["paths"] = {}
    html = section(data)
    assert html.count("<svg") == len(DEPTHS) + 1
    assert "When tokens leave" not in html and "Where do the states go" not in html
    assert len(tables(data)) == 1


def test_the_heat_map_says_passes_in_figures_and_marks_the_answer() -> None:
    html = section(looped())
    blocks = re.findall(r'<div class="heat-block">.*?</div>', html, flags=re.S)
    assert len(blocks) == 3
    tokens = looped()["depths"][0]["heat"][1]["tokens"]
    assert re.findall(r"<sub>(\d+)</sub>", blocks[1]) == [str(passes) for _, passes, _ in tokens]
    before, _, after = blocks[1].partition('<span class="turn"')
    assert before.count("<sub>") == 12 and after.count("<sub>") == 2
    levels = [int(level) for level in re.findall(r'class="tok h(\d)"', blocks[1])]
    assert levels == sorted(levels) and levels[0] == 0 and levels[-1] == 7


def test_hostile_texts_stay_text() -> None:
    html = page(hostile())
    root = html.partition('<section id="state">')[2].partition("</section>")[0]
    assert root and "<script>window" not in html and "<img" not in html and "<b>bold" not in html
    assert "\x1b" not in html and "\u202e" not in html
    for picture in re.findall(r"<svg.*?</svg>", root, flags=re.S):
        assert not [
            each for each in ET.fromstring(picture).iter() if each.tag.split("}")[-1] in ("script", "img")
        ]
    assert "<script>" not in markdown(hostile()).replace("\\<", "")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda one: one["accuracy"][2].pop("ci95"), r"depths\[0\].accuracy\[2\].ci95 must be \[lo, hi\]"),
        (lambda one: one["accuracy"][2].update(accuracy="x"), r"accuracy\[2\].accuracy must be a number"),
        (lambda one: one.pop("trained_mean"), r"depths\[0\].trained_mean must be a number"),
        (lambda one: one["differences"].pop(), r"baselines\[11\] has no entry among the differences"),
        (lambda one: one["heat"][0].update(tokens=[["a", "b"]]), r"heat\[0\].tokens must hold"),
        (lambda one: one["paths"]["tokens"][1].update(at=[[0, 1]]), r"tokens\[1\].at must hold at least two"),
        (lambda one: one["paths"]["tokens"][1].update(at=[[0, 1], [float("nan"), 2]]), r"tokens\[1\].at"),
    ],
)
def test_a_broken_entry_is_named(change: Any, said: str) -> None:
    data = looped(seeds=(1,))
    change(data["depths"][0])
    with pytest.raises(UsageError, match=said):
        section(data)
