"""Markdown tables: numbers with intervals, names that stay text, and a document that is left alone."""

from __future__ import annotations

import html
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from sample import HOSTILE, summary

from tutelage.errors import UsageError
from tutelage.plain import visible
from tutelage.report.tables import insert, markdown

MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def cells(text: str) -> list[list[list[str]]]:
    """The tables of a Markdown text as a renderer sees them: table, row, cell (HTML)."""
    page = MARKDOWN.render(text)
    tables = re.findall(r"<table>(.*?)</table>", page, re.DOTALL)
    return [
        [re.findall(r"<t[hd]>(.*?)</t[hd]>", row, re.DOTALL) for row in re.split("<tr>", table)[1:]]
        for table in tables
    ]


def only_arm(name: str) -> dict[str, Any]:
    found = summary()
    return {
        **found,
        "arms": [{**found["arms"][0], "name": name}],
        "comparisons": [],
        "curve": [],
        "analysis": [],
    }


def test_there_is_a_row_for_every_arm_comparison_and_point() -> None:
    run = summary()
    arms, comparisons, curve, lines, steps = cells(markdown(run))
    assert len(arms) - 1 == len(run["arms"])
    assert len(comparisons) - 1 == len(run["comparisons"])
    assert len(curve) - 1 == len(run["curve"])
    assert len(lines) - 1 == len(run["analysis"][0]["lines"])
    assert len(steps) - 1 == len(run["analysis"][0]["neighbours"])
    for table in (arms, comparisons, curve, lines, steps):
        assert {len(row) for row in table} == {len(table[0])}


def test_every_accuracy_stands_with_its_interval_and_n() -> None:
    run = summary()
    arms, comparisons, curve, lines, _ = cells(markdown(run))
    assert lines[1][4:8] == [
        *("44.0 % [40.0, 48.0]", "16 to 74"),
        *("61 [54, not reached]", "not reached"),
    ]
    for found, (head, *rows) in ((run["arms"], arms), (run["curve"], curve)):
        column, n = head.index("accuracy, 95 % interval"), head.index("n")
        for arm, row in zip(found, rows, strict=True):
            low, high = arm["ci95"]
            assert row[column] == f"{100 * arm['accuracy']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
            assert row[n] == str(arm["n"])
    for found, row in zip(run["comparisons"], comparisons[1:], strict=True):
        low, high = (100 * bound for bound in found["ci95"])
        assert row[0] == f"{found['a']} − {found['b']}"
        assert row[2] == f"{100 * found['difference']:+.1f} [{low:+.1f}, {high:+.1f}]"
        assert row[3] == str(found["n"])


def test_a_number_without_an_interval_is_refused() -> None:
    run = summary()
    del run["arms"][2]["ci95"]
    with pytest.raises(UsageError, match=r"arms\[2\]\.ci95 must be \[lo, hi\]"):
        markdown(run)


def test_small_p_values_are_not_written_as_zero() -> None:
    run = summary()
    run["comparisons"][0]["p"], run["comparisons"][1]["p"] = 1e-9, 0.0313
    rows = cells(markdown(run))[1]
    assert html.unescape(rows[1][4]) == "< 0.001" and rows[2][4] == "0.031"


def test_the_device_versions_and_time_are_told() -> None:
    run = {**summary(), "wall_s": 90, "versions": {"torch": "2.13.0", "numpy": "2.0"}}
    run["arms"][0]["device"] = "CPU, 2 cores"
    first = markdown(run).splitlines()[0]
    assert first == "torch 2.13.0; device: CPU, 2 cores; 1.5 minutes in all."


NASTY = [
    HOSTILE,
    "a | b",
    "[click](https://example.invalid)",
    "![x](https://example.invalid/x.png)",
    "[a][b]",
    "*bold* _it_ ~~gone~~ `code` &lt;b&gt; \\",
    "# head\n- item\n\n| --- |",
]


@pytest.mark.parametrize("name", NASTY, ids=range(len(NASTY)))
def test_hostile_names_stay_text_in_one_cell(name: str) -> None:
    text = markdown(only_arm(name))
    (table,) = cells(text)
    assert html.unescape(table[1][0]) == " ".join(visible(name).split())
    tags = set(re.findall(r"</?(\w+)", MARKDOWN.render(text)))
    assert tags <= {"p", "table", "thead", "tbody", "tr", "th", "td"}


@given(st.text(st.sampled_from("ab|[]()<>*_`~&;\\!#:/-\n "), min_size=1, max_size=20))
def test_any_name_stays_text_in_one_cell(name: str) -> None:
    (table,) = cells(markdown(only_arm(f"x{name}x")))
    assert len(table) == 2 and len(table[1]) == len(table[0])
    assert html.unescape(table[1][0]) == " ".join(f"x{name}x".split())


def test_the_same_summary_gives_the_same_text() -> None:
    assert markdown(summary()) == markdown(summary())


@given(
    before=st.text(st.sampled_from("ab\r\n<!-> |\t")),
    after=st.text(st.sampled_from("ab\r\n<!-> |\t")),
    old=st.text(st.sampled_from("xy\n|")),
    block=st.text(st.sampled_from("01\n|")),
)
def test_text_outside_of_the_block_is_not_touched(before: str, after: str, old: str, block: str) -> None:
    start, end = "<!-- run lab -->", "<!-- end lab -->"
    other = "<!-- run gsm8k -->\nkept\n<!-- end gsm8k -->"
    made = insert(f"{before}{other}{start}{old}{end}{after}", "lab", block)
    assert made == f"{before}{other}{start}\n\n{block.strip()}\n\n{end}{after}"
    assert insert(made, "lab", block) == made


def test_a_block_with_hostile_names_can_be_replaced_again() -> None:
    document = "a\n<!-- run lab -->\n<!-- end lab -->\nz\n"
    hostile = markdown(only_arm("<!-- end lab --> <!-- run lab -->"))
    once = insert(document, "lab", hostile)
    assert insert(once, "lab", "new") == "a\n<!-- run lab -->\n\nnew\n\n<!-- end lab -->\nz\n"


@pytest.mark.parametrize(
    "document",
    [
        "",
        "<!-- run lab -->",
        "<!-- end lab --> <!-- run lab -->",
        "<!-- run lab --><!-- run lab --><!-- end lab -->",
        "<!-- run other --><!-- end other -->",
    ],
)
def test_a_document_without_one_pair_of_lines_is_refused(document: str) -> None:
    with pytest.raises(UsageError, match="needs one line '<!-- run lab -->'"):
        insert(document, "lab", "x")
