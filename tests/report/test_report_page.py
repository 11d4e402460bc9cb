"""The page without a browser: what is in it, what is left out, what is refused."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample import HOSTILE, summary, traces

from tutelage.errors import StorageError, UsageError
from tutelage.report import render
from tutelage.report.page import page
from tutelage.report.reader import reader_data, segments


def test_the_page_has_every_section_of_a_full_run() -> None:
    html = page(summary(), traces())
    for section in ("task", "ladder", "differences", "thinking", "funnel", "cost", "reader", "made"):
        assert f'<section id="{section}">' in html
    assert html.count("What this shows:") == 9
    assert "price unknown" in html
    assert "7 min 12 s of wall time in 2 attempts" in html
    assert "careless teacher: verified" in html
    assert "problems.steps" in html
    assert "torch" in html


def test_sections_without_data_are_left_out() -> None:
    full = summary()
    small = {key: full[key] for key in ("arms", "comparisons", "wall_s")}
    html = page(small)
    for section in ("task", "thinking", "funnel", "reader", "made"):
        assert f'id="{section}"' not in html
    assert "<script" not in html
    assert 'id="ladder"' in html
    assert "<h1>" in page({})


def test_a_run_with_one_seed_and_no_optional_keys_renders() -> None:
    arm = {"name": "base", "seed": 0, "accuracy": 0.03, "ci95": [0.01, 0.06], "n": 200, "samples": 200}
    html = page({"arms": [arm]})
    assert "3.0\u00a0%" in html
    assert "unknown" in html  # token counts nobody gave are not zeros


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("arms", {"accuracy": None}, r"arms\[0\]\.accuracy must be a number"),
        ("arms", {"accuracy": float("nan")}, r"arms\[0\]\.accuracy must be a number"),
        ("arms", {"ci95": None}, r"arms\[0\]\.ci95 must be \[lo, hi\]"),
        ("arms", {"name": 3}, r"arms\[0\]\.name must be text"),
        ("comparisons", {"difference": "big"}, r"comparisons\[0\]\.difference"),
        ("curve", {"method": None}, r"curve\[0\]\.method must be text"),
        ("curve", {"empty": "few"}, r"curve\[0\]\.empty must be a number"),
        ("curve", {"closed_by": {"model": "x"}}, r"curve\[0\]\.closed_by\.model"),
        ("funnel", {"kept": None}, r"funnel\[0\]\.kept"),
    ],
)
def test_a_broken_entry_is_refused_by_its_path(section: str, change: dict[str, Any], message: str) -> None:
    data = summary()
    data[section][0] |= change
    with pytest.raises(UsageError, match=message):
        page(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"area": {"value": 0.5, "from": 1, "to": 2}}, r"analysis\[0\]\.lines\[0\]\.area\.ci95 must be"),
        ({"area": {"value": 0.5, "ci95": [None, 1], "from": 1, "to": 2}}, r"area\.ci95 must be \[lo, hi\]"),
        ({"targets": [{"target": 0.5, "tokens": 3}]}, r"lines\[0\]\.targets\.ci95 must be"),
        ({"scaling": "steep"}, r"lines\[0\]\.scaling must be a number"),
    ],
)
def test_a_broken_line_is_refused_by_its_path(change: dict[str, Any], message: str) -> None:
    data = summary()
    data["analysis"][0]["lines"][0] |= change
    with pytest.raises(UsageError, match=message):
        page(data)


def cells(html: str, title: str) -> list[list[str]]:
    """The rows of the table below the summary line `title`, as text."""
    table = html.split(f"<summary>{title}")[1].split("</table>")[0]
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in table.split("<tr>")[1:]]
    return [[unescape(cell).replace("\u00a0", " ") for cell in row] for row in rows]


def test_the_censoring_table_counts_replies_and_their_shares() -> None:
    data = summary()
    data["curve"][2] |= {
        "closed_by": {"model": 100, "budget": 240, "eos": 40, "room": 20},
        "finished": {"stop": 390, "length": 10},
        "empty": 4,
    }
    head, *rows = cells(page(data), "Who ended the thinking")
    assert head[3:] == ["model", "budget", "end of text", "out of room", "answer cut short", "answer empty"]
    assert rows[2][3:] == ["100 (25 %)", "240 (60 %)", "40 (10 %)", "20 (5 %)", "10 (2 %)", "4 (1 %)"]
    assert rows[0][3:] == ["388 (97 %)", "12 (3 %)", "0 (0 %)", "0 (0 %)", "", ""]  # nobody told is no zero


def test_lines_stand_with_their_intervals_and_what_was_not_reached() -> None:
    head, first, second = cells(page(summary()), "Whole lines")
    assert head[4:8] == ["area", "over tokens", "tokens to 50.0 %", "tokens to 90.0 %"]
    assert first[4:] == [
        *("44.0 % [40.0, 48.0]", "16 to 74", "61 [54, not reached]", "not reached"),
        *("100.0 %", "+13.2", "60.0 %"),
    ]
    assert second[4:] == ["one place only", "", "", "not reached", "", "", "72.0 %"]


def test_steps_along_a_line_stand_with_their_intervals() -> None:
    _, row = cells(page(summary()), "Is each step along a line real?")
    assert row == [
        *("drafting, at most 32 tokens", "at most 16 tokens", "1"),
        *("+14.0", "[8.0, 20.0]", "400", "< 0.001", "0.002"),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"status": "great"}, r"traces\[0\]\.status"),
        ({"arm": None}, r"traces\[0\]\.arm is missing"),
        ({"forced_spans": [[5, 2]]}, r"forced span \[5, 2\]"),
        ({"forced_spans": [[0, 10_000]]}, r"forced span \[0, 10000\]"),
        ({"thinking_tokens": "many"}, r"traces\[0\]\.thinking_tokens"),
    ],
)
def test_a_broken_trace_is_refused_by_its_path(change: dict[str, Any], message: str) -> None:
    rows = traces(count=1)
    rows[0] |= change
    with pytest.raises(UsageError, match=message):
        page({}, rows)


def test_the_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "report.html"
    render(summary(), traces(), target)
    assert target.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert [p.name for p in target.parent.iterdir()] == ["report.html"]
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(StorageError, match="cannot write the report"):
        render(summary(), [], blocker / "report.html")


def test_the_page_names_no_address_and_no_inline_handler() -> None:
    html = page(summary(), traces())
    assert "http:" not in html
    assert "https:" not in html
    assert "unsafe" not in html
    assert not re.search(r"\son[a-z]+=|\sstyle=|url\(", html)


text = st.text(st.characters(exclude_categories=())) | st.just(HOSTILE)


@settings(max_examples=60, deadline=None)
@given(text, text, st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=3))
def test_reader_data_is_inert_and_parses_back_for_any_text(
    thinking: str, answer: str, raw: list[tuple[int, int]]
) -> None:
    spans = [sorted(min(edge, len(thinking)) for edge in pair) for pair in raw]
    row = {"problem_id": "p", "arm": "a", "thinking": thinking, "answer": answer, "forced_spans": spans}
    data = reader_data([row])
    assert data.isascii()
    assert not set("<>&") & set(data)
    parsed = json.loads(data)["traces"][0]
    assert not re.search("[\x00\u202e\ud800-\udfff]", parsed["answer"])
    forced = {index for a, b in spans for index in range(a, b)}
    pieces = segments(thinking, spans, "t")
    assert parsed["thinking"] == pieces
    if not re.search("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", thinking):
        flags = [flag for piece, flag in pieces for _ in piece]
        assert "".join(piece for piece, _ in pieces) == thinking
        assert flags == [int(index in forced) for index in range(len(thinking))]
