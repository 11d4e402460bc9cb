"""The drawings as text: well-formed, escaped, true to their numbers."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample import HOSTILE, summary

from tutelage.report import curve, plots, svg, words
from tutelage.report.summary import read_arms, read_comparisons, read_curve, read_funnel


def parsed(drawing: str) -> ET.Element:
    return ET.fromstring(drawing)  # raises on anything that is not well-formed


def numbers(root: ET.Element, tag: str, kind: str, attribute: str) -> list[float]:
    return [float(e.attrib[attribute]) for e in root.iter(tag) if e.attrib["class"].startswith(kind)]


@pytest.mark.parametrize("width", [plots.WIDE, plots.NARROW])
def test_hostile_names_are_text_in_every_plot(width: int) -> None:
    data = summary()
    for row in data["arms"]:
        row["name"] += HOSTILE
    for row in data["comparisons"]:
        row["a"] += HOSTILE
    for row in data["curve"]:
        row["arm"] += HOSTILE
        row["wait"] = HOSTILE
    for row in data["funnel"]:
        row["stage"] += HOSTILE
        row["reasons"] = {HOSTILE: 5}
    panel = curve.WIDE if width == plots.WIDE else curve.NARROW
    drawings = [
        plots.ladder(read_arms(data), width),
        plots.forest(read_comparisons(data), width),
        plots.funnel(read_funnel(data), width),
        *curve.panels(read_curve(data), panel),
    ]
    allowed = {"svg", "text", "line", "rect", "path", "circle", "polygon", "title"}
    for drawing in drawings:
        assert {element.tag for element in parsed(drawing).iter()} <= allowed


def test_the_ladder_is_sorted_and_its_dots_stand_at_their_accuracies() -> None:
    arms = read_arms(summary())
    root = parsed(plots.ladder(arms))
    names = [e.text for e in root.iter("text") if e.attrib["class"] == "strong"]
    assert names[0] == "teacher"
    assert names[-1] == "base"
    dots = numbers(root, "circle", "dot", "cx")
    tips = [e.text or "" for e in root.iter("title")]
    shares = [float(tip.split(": ")[1].split("\u00a0")[0]) for tip in tips]
    slopes = {
        round((dots[i] - dots[0]) / (shares[i] - shares[0]), 1)
        for i in range(1, len(dots))
        if abs(shares[i] - shares[0]) > 5
    }
    assert len(slopes) == 1
    los = numbers(root, "line", "whisker", "x1")
    his = numbers(root, "line", "whisker", "x2")
    assert all(lo < dot < hi for lo, dot, hi in zip(los, dots, his, strict=True))
    assert len(dots) == len(arms)


def test_the_forest_has_a_zero_line_and_hollow_dots_where_the_interval_crosses_it() -> None:
    rows = read_comparisons(summary())
    root = parsed(plots.forest(rows))
    (zero,) = numbers(root, "line", "zero", "x1")
    dots = list(root.iter("circle"))
    assert [("weak" in e.attrib["class"]) for e in dots] == [row.direction == 0 for row in rows]
    assert all((float(e.attrib["cx"]) > zero) == (r.difference > 0) for e, r in zip(dots, rows, strict=True))


def test_the_funnel_draws_counts_to_one_scale() -> None:
    root = parsed(plots.funnel(read_funnel(summary())))
    kept = numbers(root, "rect", "bar kept", "width")
    assert kept[1] / kept[0] == pytest.approx(2871 / 3000, abs=1e-3)
    assert kept[3] / kept[0] == pytest.approx(2400 / 3000, abs=1e-3)


def texts(root: ET.Element, kind: str) -> list[str]:
    return [e.text or "" for e in root.iter("text") if e.attrib["class"].startswith(kind)]


def test_what_is_cut_short_and_what_is_prolonged_stand_apart_beside_the_unforced_model() -> None:
    """Two seeds with two parts each."""
    capped, extended, *_ = drawings = [parsed(each) for each in curve.panels(read_curve(summary()))]
    assert len(drawings) == 4
    assert [texts(root, "strong")[0] for root in drawings] == [
        f"seed {seed}, {part}" for seed in (1, 2) for part in ("thinking cut short", "prolonged or repeated")
    ]
    both = {"unforced, greedy", "unforced, sampled", "teacher: unforced, greedy"}
    assert set(texts(capped, "name")) == {*both, "budget", "teacher: budget"}
    more = {"wait “Wait”", "wait “Hmm”", "majority vote", "end suppressed"}
    assert set(texts(extended, "name")) == {*both, *more}


def test_panels_share_their_axes_and_mark_where_waiting_stops() -> None:
    drawings = [parsed(drawing) for drawing in curve.panels(read_curve(summary()))]
    heights = [[text for text in texts(root, "soft") if "%" in text] for root in drawings]
    assert heights == [heights[0]] * 4
    places = [[text for text in texts(root, "soft") if "%" not in text] for root in drawings]
    assert places[0] == places[2] and places[1] == places[3]
    for root in drawings[1::2]:
        assert len(numbers(root, "line", "stop", "x1")) == 1
        assert "waiting stops helping here" in texts(root, "stopnote")
    for root in drawings[::2]:
        assert not texts(root, "stopnote")


def test_methods_that_the_page_has_never_heard_of_are_drawn_and_named() -> None:
    data = summary()
    point = data["curve"][2]
    data["curve"] += [
        {**point, "method": name, "part": part, "budget": None, "setting": f"asked for {asked}"}
        for name, part in (("by request", "capped"), ("by tournament", "extended"))
        for asked in (16, 32)
    ]
    capped, extended, *_ = [parsed(each) for each in curve.panels(read_curve(data))]
    assert "by request" in texts(capped, "name") and "by request" not in texts(extended, "name")
    assert "by tournament" in texts(extended, "name")
    assert any("asked for 32" in (tip.text or "") for tip in capped.iter("title"))


def test_votes_over_cut_thoughts_are_lines_of_their_own_in_the_part_of_the_cut() -> None:
    data = summary()
    point = data["curve"][2]
    data["curve"] += [
        {**point, "method": "vote", "part": "capped", "votes": 4, "budget": b, "thinking_tokens_mean": 4 * b}
        for b in (32, 2, 0)
    ]
    capped, extended, *_ = [parsed(each) for each in curve.panels(read_curve(data))]
    assert "majority vote of 4" in texts(capped, "name")
    (line,) = [e.attrib["d"] for e in capped.iter("path") if e.attrib["class"].startswith("series m-vote")]
    places = [float(place[1:]) for place in line.split()[::2]]
    assert places == sorted(places)  # from few tokens to many, also from a budget of none
    assert "majority vote" in texts(extended, "name")


def test_a_curve_of_one_part_has_one_panel_a_seed() -> None:
    data = summary()
    data["curve"] = [row for row in data["curve"] if row["method"] in ("natural", "budget")]
    assert len(curve.panels(read_curve(data))) == 2
    data["curve"] = [row for row in data["curve"] if row["method"] == "natural"]
    assert len(curve.panels(read_curve(data))) == 2


def test_points_without_token_counts_are_not_drawn() -> None:
    data = summary()
    for row in data["curve"]:
        row["thinking_tokens_mean"] = None
    assert curve.panels(read_curve(data)) == []


def test_a_budget_of_zero_tokens_has_a_place_on_the_axis() -> None:
    data = summary()
    data["curve"][2] |= {"budget": 0, "thinking_tokens_mean": 0.0}
    root = parsed(curve.panels(read_curve(data))[0])
    assert "0" in [e.text for e in root.iter("text")]


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(2, 8))
def test_ticks_are_even_and_cover_the_range(lo: float, span: float, about: int) -> None:
    marks = svg.ticks(lo, lo + span, about)
    assert marks[0] <= lo + 1e-6 * span
    assert marks[-1] >= lo + span * (1 - 1e-6)
    assert 2 <= len(marks) <= 2 * about + 3
    assert marks == sorted(set(marks))


@given(st.text(), st.floats(20, 300))
def test_elided_text_fits_and_says_that_it_was_cut(content: str, width: float) -> None:
    shown = svg.elide(content, width)
    assert svg.text_width(shown) <= width + 7
    assert shown.endswith("…") or shown == svg.visible(content).replace("\n", " ")


def test_a_megabyte_of_label_is_cut_quickly() -> None:
    assert len(svg.elide("x" * 1_000_000, 100)) < 30


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (words.amount(None), "unknown"),
        (words.amount(1_240_000), "1.24 M"),
        (words.amount(12_400), "12,400"),
        (words.amount(3.14), "3.1"),
        (words.dollars(None), "price unknown"),
        (words.dollars(0), "$0"),
        (words.dollars(12.3), "$12.30"),
        (words.dollars(0.0042), "$0.0042"),
        (words.duration(42), "42 s"),
        (words.duration(425.2), "7 min 05 s"),
        (words.duration(7380), "2 h 03 min"),
        (words.points(-0.0300), "−3.0"),
        (words.points(-0.0001), "0.0"),
        (words.p_value(1e-9), "p < 0.001"),
        (words.p_value(None), ""),
        (words.listing(["a", "b", "c", "d", "e", "f"]), "a, b, c, d and 2 more"),
    ],
)
def test_numbers_in_words(shown: str, expected: str) -> None:
    assert shown == expected
