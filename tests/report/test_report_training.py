"""Training, stages and amounts on page and in tables: true to the numbers; hostile names stay text."""

from __future__ import annotations

import html
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample import HOSTILE, staged

from tutelage.errors import UsageError
from tutelage.report import ladders, plots, training
from tutelage.report.page import page
from tutelage.report.summary import read_arms
from tutelage.report.tables import markdown

WIDTHS = pytest.mark.parametrize("width", [plots.WIDE, plots.NARROW])


def drawn(root: str, kind: str, attribute: str) -> list[float]:
    """An attribute of all shapes whose class begins with `kind`."""
    found = [e for e in ET.fromstring(root).iter() if e.attrib.get("class", "").startswith(kind)]
    return [float(e.attrib[attribute]) for e in found]


def climb(data: dict[str, Any]) -> ladders.Ladder:
    (found,) = ladders.read_ladders(data, read_arms(data))
    return found


@WIDTHS
def test_stages_stand_in_the_recipes_order_with_every_seed_at_its_accuracy(width: int) -> None:
    data = staged()
    found = climb(data)
    assert [rung.name for rung in found.rungs] == data["ladders"][0]["arms"]
    picture = ladders.steps(found, width)
    accuracies = [arm.accuracy for rung in found.rungs for arm in rung.arms]
    heights = drawn(picture, "dot", "cy")
    assert len(heights) == len(accuracies) == 15
    slopes = {
        round((heights[i] - heights[0]) / (accuracies[i] - accuracies[0]))
        for i in range(3, 15)  # far enough from the first one for rounding not to matter
    }
    assert max(slopes) - min(slopes) <= 12 and max(slopes) < 0
    across = drawn(picture, "dot", "cx")
    assert across == sorted(across) and across[0] > 0 and across[-1] < width
    assert len(drawn(picture, "bar95", "x1")) == 15


def test_the_mean_and_the_range_are_those_of_the_seeds() -> None:
    rung = climb(staged()).rungs[2]
    values = [arm.accuracy for arm in rung.arms]
    assert rung.mean == pytest.approx(sum(values) / 3) and rung.range == (min(values), max(values))
    assert list(rung.by_seed) == ["1", "2", "3"]


@WIDTHS
def test_a_doubling_axis_puts_equal_ratios_at_equal_distances(width: int) -> None:
    data = staged()
    doubling, even = ladders.read_against(data, read_arms(data))
    for plot, ratio in ((doubling, 1.0), (even, 4.0)):
        places = sorted(set(drawn(ladders.against(plot, width), "tick", "x1")))
        assert len(places) == 3
        assert (places[2] - places[1]) / (places[1] - places[0]) == pytest.approx(ratio, rel=0.02)


@WIDTHS
def test_one_place_on_an_axis_is_drawn_too(width: int) -> None:
    data = staged()
    data["against"] = [{"title": "t", "axis": "a", "lines": {"one": {"base": 5}}, "logarithmic": True}]
    (plot,) = ladders.read_against(data, read_arms(data))
    assert len(drawn(ladders.against(plot, width), "dot", "cx")) == 3


def test_every_seed_of_a_stage_is_a_line_and_every_validation_has_its_interval() -> None:
    runs = training.read_training(staged())
    stages = training.multiples(runs)
    assert [name for name, _ in stages] == ["mid (mid-train)", "sft", "prefer (dpo)", "reinforce (grpo)"]
    assert [len(pictures) for _, pictures in stages] == [2, 1, 2, 2]
    loss, looks = stages[0][1]
    lines = [e.attrib["class"] for e in ET.fromstring(loss).iter("path")]
    assert lines == ["series seed0", "series seed1", "series seed2"]
    assert len(drawn(looks, "bar95", "y1")) == 30
    assert looks.count("<polygon") == 3, "the validation whose weights were kept is a diamond, once a seed"


def test_what_a_stage_did_not_log_is_left_out() -> None:
    (run, *_) = staged()["training"]
    (_, pictures), *rest = training.multiples(
        training.read_training({"training": [{**run, "validations": []}]})
    )
    assert len(pictures) == 1 and not rest
    silent = {**run, "validations": [], "series": {"unknown": [[1, 2]]}}
    assert training.multiples(training.read_training({"training": [silent]})) == []


def test_what_never_changes_has_a_scale_and_steps_are_whole() -> None:
    row = {"stage": "s", "series": {"drawn/right": [[1, 0.0], [2, 0.0]], "drawn/reward": [[1, -1.0]]}}
    ((_, (reward, right)),) = training.multiples(training.read_training({"training": [row]}))
    for picture, wanted in ((right, {"0 %", "40 %", "1", "2"}), (reward, {"-1.5", "-1", "-0.5", "1"})):
        shown = {element.text for element in ET.fromstring(picture).iter("text")}
        assert wanted <= shown and not shown & {"0.5", "1.5"}


@given(
    st.lists(
        st.tuples(st.integers(1, 10**6), st.floats(-1e6, 1e6)),
        min_size=1,
        max_size=5,
        unique_by=lambda p: p[0],
    )
)
def test_any_finite_log_is_drawn_inside_its_picture(points: list[tuple[int, float]]) -> None:
    row = {"stage": "s", "series": {"loss": [list(point) for point in sorted(points)]}}
    ((_, (picture,)),) = training.multiples(training.read_training({"training": [row]}))
    root = ET.fromstring(picture)
    for element in root.iter("path"):
        for x, y in re.findall(r"[ML](\S+) (\S+)", element.attrib["d"]):
            assert 0 <= float(x) <= 330 and 0 <= float(y) <= 196


def test_a_broken_entry_is_named() -> None:
    data = staged()
    lines = {"l": {"base": "x"}}
    broken: list[tuple[dict[str, Any], str]] = [
        ({"training": [{"stage": 3}]}, r"training\[0\]\.stage must be text"),
        ({"training": [{"stage": "s", "series": {"loss": [[1]]}}]}, r"training\[0\]\.series\.loss must hold"),
        ({"training": [{"stage": "s", "validations": [{"step": 1}]}]}, r"training\[0\]\.validations must be"),
        ({"ladders": [{"title": "t", "arms": ["nobody"]}]}, r"ladders\[0\]\.arms names 'nobody'"),
        ({"ladders": [{"title": "t", "arms": []}]}, r"ladders\[0\]\.arms names no arm"),
        ({"against": [{"title": "t", "axis": "a", "lines": lines}]}, r"against\[0\]\.lines\.l"),
        ({"against": [{"title": "t", "axis": "a", "lines": {}}]}, r"against\[0\]\.lines names no arm"),
    ]
    for part, message in broken:
        with pytest.raises(UsageError, match=message):
            page({**data, **part})


def test_what_was_chosen_on_or_learned_stands_beside_the_number_everywhere() -> None:
    data = staged()
    data["curve"] = [
        {"arm": "base", "method": "natural", "accuracy": 0.3, "ci95": [0.2, 0.4], "n": 9, "chosen_on": 4},
    ]
    for text in (html.unescape(page(data)), markdown(data)):
        assert "trained on 7 of these questions" in text
        assert "chosen on 120 of these questions" in text
        assert "chosen on 4 of these questions" in text
    assert "Not a clean measurement" in page(data)
    clean = {**data, "curve": [], "arms": [{**arm, "chosen_on": 0, "trained_on": 0} for arm in data["arms"]]}
    assert "of these questions" not in page(clean) and "of these questions" not in markdown(clean)


def test_the_tables_have_every_stage_every_amount_and_every_training_run() -> None:
    blocks = markdown(staged()).split("\n\n")
    heads = [block.splitlines()[0] for block in blocks if block.startswith("|")]
    assert any(
        head.startswith("| one stage after the other: after | mean over seeds | range") for head in heads
    )
    assert any(head.startswith("| sample efficiency | traces | arm | mean over seeds") for head in heads)
    (runs,) = [block for block in blocks if block.startswith("| stage | kind")]
    assert len(runs.splitlines()) == 2 + 12
    assert "98.1 % | 10; best " in runs and "no better validation in 3 looks" in runs


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.add(tag)


def tags(text: str) -> set[str]:
    parser = Tags()
    parser.feed(text)
    return parser.seen


def test_hostile_names_stay_text() -> None:
    data = staged()
    text = page(data)
    names = {arm["name"]: f"{arm['name']} {HOSTILE}" for arm in data["arms"]}
    for arm in data["arms"]:
        arm["name"] = names[arm["name"]]
    for row in data["ladders"]:
        row |= {"title": HOSTILE, "arms": [names[name] for name in row["arms"]]}
    for row in data["against"]:
        row |= {"title": HOSTILE, "axis": HOSTILE}
        row["lines"] = {
            f"{line}{HOSTILE}": {names[name]: x for name, x in places.items()}
            for line, places in row["lines"].items()
        }
    for row in data["training"]:
        row |= {"stage": row["stage"] + HOSTILE, "kind": HOSTILE, "stopped": HOSTILE}
    hostile = page(data)
    hostile.encode()
    assert tags(hostile) == tags(text)
    assert "\u202e" not in hostile and "\x1b" not in hostile and "window.hit" in hostile
