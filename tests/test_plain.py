"""Hostile text made plain: nothing hidden, nothing that ends its cell or its fence."""

from __future__ import annotations

import html
import re

from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from tutelage.plain import fenced, some, table, visible

MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])


@given(st.text(st.sampled_from("ab|[]()<>*_`~&$\\!#:/-\n "), min_size=1, max_size=20))
def test_any_text_stays_text_in_one_cell(text: str) -> None:
    page = MARKDOWN.render(table(("a", "b"), [(f"x{text}x", "y")]))
    cells = re.findall(r"<td>(.*?)</td>", page, re.DOTALL)
    assert [html.unescape(each) for each in cells] == [" ".join(f"x{text}x".split()), "y"]


@given(st.text(st.sampled_from("a`~\n "), max_size=30))
def test_a_fence_holds_any_text_as_it_is(text: str) -> None:
    first, *rest = MARKDOWN.parse(fenced(text, "json") + "\n\nafter")
    assert first.type == "fence" and first.info == "json"
    assert first.content.rstrip("\n") == text.rstrip("\n")
    assert [token.content for token in rest if token.type == "inline"] == ["after"]


@given(st.text())
def test_what_is_visible_hides_and_reorders_nothing(text: str) -> None:
    shown = visible(text)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", shown)
    assert visible(shown) == shown
    shown.encode()


def test_a_few_names_and_how_many_more() -> None:
    assert some(["a", "b"]) == "a, b"
    assert some(["a", "b", "c"], most=2) == "a, b and 1 more"
