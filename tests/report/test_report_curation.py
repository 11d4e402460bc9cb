"""The page of a curation run: true to its document, inert whatever texts say, readable on phones."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from html import unescape
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from curated import document, poison
from hypothesis import given, settings
from hypothesis import strategies as st
from playwright.sync_api import Browser
from sample import HOSTILE

from browser import Watch
from tutelage.errors import StorageError, UsageError
from tutelage.plain import visible
from tutelage.report import words
from tutelage.report.curation import DOMAINS, curation_page, render_curation
from tutelage.report.curation_samples import TEXT, cut, marked


class Tags(HTMLParser):
    """Every tag that opens, the attributes, and whether all that open close in order."""

    VOID = frozenset({"meta", "line", "rect"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def section(html: str, name: str) -> str:
    return html.partition(f'<section id="{name}">')[2].partition("</section>")[0]


def rows(html: str) -> list[list[str]]:
    """The cells of every table row, as text."""
    found = [re.findall(r"<td[^>]*>(.*?)</td>", row, flags=re.S) for row in html.split("<tr")[1:]]
    return [[unescape(cell).replace("\u00a0", " ") for cell in row] for row in found if row]


def change(path: str, value: Any) -> dict[str, Any]:
    """The document with one entry replaced; `path` is like funnel.0.kept."""
    data = copy.deepcopy(document())
    *way, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    place: Any = data
    for step in way:
        place = place[step]
    place[last] = value
    return data


def test_the_top_says_what_came_in_what_stayed_and_what_dropped_most() -> None:
    top = unescape(curation_page(document()).partition("</header>")[0]).replace("\u00a0", " ")
    assert "Of 59,000 traces (54,210 problems) in s1-59k, 1,000 (1.7 %) were kept" in top
    # 27,000 of 58,000 is no majority.
    assert (
        "The largest part of the rest was dropped by difficulty (27,000), then by selection (15,121)," in top
    )
    assert "Method s1, seed 3, target 1,000 traces, done in 1 min 34 s." in top
    assert "812 records have no domain" in top
    half = curation_page(change("funnel.4.dropped", 200_000))
    assert "Most of the rest was dropped by difficulty (200,000)" in half


def test_every_section_is_there_and_one_without_data_is_not() -> None:
    every = ("task", "funnel", "domains", "lengths", "benchmarks", "dropped", "kept", "made")
    html = curation_page(document())
    assert re.findall(r'<section id="(\w+)">', html) == list(every)
    small = {key: document()[key] for key in ("title", "source", "method", "seed", "kept")}
    html = curation_page(small)
    assert "<section" not in html and "<svg" not in html
    assert "no target" in html
    for left_out in ("domains", "lengths", "benchmarks", "detectors", "samples", "kept_samples"):
        empty: Any = [] if isinstance(document()[left_out], list) else {}
        found = re.findall(r'<section id="(\w+)">', curation_page(change(left_out, empty)))
        gone = {"samples": "dropped", "kept_samples": "kept"}.get(left_out, left_out)
        assert set(every) - set(found) == {gone} - {"benchmarks", "detectors"}


def test_stages_and_rules_stand_with_counts_and_shares_of_what_came_in() -> None:
    funnel = rows(section(curation_page(document()), "funnel"))
    assert funnel[0] == ["quality", "7,419", "12.6 %", "59,000"]
    assert funnel[1] == ["no-answer", "5,230", "8.9 %", ""]
    assert funnel[-1] == ["not-chosen", "15,121", "93.8 %", ""]
    assert len(funnel) == sum(1 + len(step["reasons"]) for step in document()["funnel"])


def test_shares_of_domains_are_drawn_to_scale_and_the_small_ones_are_one_row() -> None:
    html = section(curation_page(document()), "domains")
    table = rows(html)
    assert len(table) == DOMAINS and table[-1][0] == f"{31 - DOMAINS + 1} others"
    before, after = document()["domains"].values()
    assert [sum(int(row[i].replace(",", "")) for row in table) for i in (1, 3)] == [
        sum(before.values()),
        sum(after.values()),
    ]
    share = before["Algebra"] / sum(before.values())
    assert table[0][:3] == ["Algebra", f"{before['Algebra']:,}", f"{100 * share:.1f} %"]
    wide, narrow = re.findall(r"<svg.*?</svg>", html, flags=re.S)
    for picture in (wide, narrow):
        for kind, column in (("before", 2), ("after", 4)):
            widths = [
                float(w) for w in re.findall(rf'width="([\d.]+)" height="11.0" class="bar {kind}"', picture)
            ]
            shares = [float(row[column].removesuffix(" %")) for row in table]
            assert [w / widths[0] * shares[0] for w in widths] == pytest.approx(shares, abs=0.15)
    assert "The share of" in html and "that of Algebra fell most, from" in html


def test_lengths_are_shares_of_each_side_and_the_middle_is_named() -> None:
    html = section(curation_page(document()), "lengths")
    table = rows(html)
    assert table[4] == ["2,000 to 3,000", "14,800", "25.1 %", "92", "9.2 %"]
    assert "has 3,000 to 4,000 tokens before, 6,000 to 8,000 after" in html
    wide, narrow = re.findall(r"<svg.*?</svg>", html, flags=re.S)
    for picture in (wide, narrow):
        tall = [float(h) for h in re.findall(r'height="([\d.]+)" class="bar after"', picture)]
        assert [h / max(tall) for h in tall] == pytest.approx(
            [n / 221 for n in (0, 0, 8, 41, 92, 141, 203, 221, 190, 104)], abs=0.01
        )


def test_a_hit_stands_beside_the_item_with_shared_words_marked_on_both_sides() -> None:
    html = section(curation_page(document()), "dropped")
    (hit,) = [
        part
        for part in html.split("<details>")
        if "<b>decontamination</b>: ngram (301 dropped, 1 shown)" in part
    ]
    assert "Score 0.62." in hit and "8 of 13 runs" in hit and "kinematics-500" in hit and "test/118" in hit
    ours, theirs = hit.split('<div class="pane">')[1:]
    assert "</mark> and <mark>travels 228 km at a mean speed of 76 km/h</mark>, with <mark>a stop" in ours
    assert "train leaves at 9:40, travels 228 km at a mean speed of 76 km/h</mark> and makes <mark>" in theirs
    assert "An express <mark>train leaves" in theirs
    solved = html.split("<b>difficulty</b>")[1]
    assert "<mark>" not in solved and 'class="sides"' not in solved
    order = re.findall(r"<b>(\w+)</b>: ([\w-]+)", html)
    assert order == [
        ("quality", "loops"),
        ("decontamination", "ngram"),
        ("duplicates", "near"),
        ("difficulty", "solved"),
    ]


text = st.text(
    st.sampled_from("abcd1 .\n文字") | st.characters(exclude_categories=()), max_size=80
) | st.just(HOSTILE)


@settings(max_examples=150, deadline=None)
@given(text, text)
def test_marks_leave_the_text_as_it_is_and_are_the_same_from_both_sides(one: str, other: str) -> None:
    sides = [marked(one, other), marked(other, one)]
    for pieces, whole in zip(sides, (one, other), strict=True):
        assert "".join(piece for piece, _ in pieces) == visible(whole)
        assert all(a[1] != b[1] for a, b in pairwise(pieces))
    words = [
        {
            w.casefold()
            for piece, mark in side
            if mark
            for w in re.findall(r"[^\W_\u3040-\u9fff]+|[\u3040-\u9fff]", piece)
        }
        for side in sides
    ]
    assert words[0] == words[1]
    assert marked(one, "") == ([(visible(one), False)] if one else [])


def test_words_count_alone_when_they_tell_something_and_short_ones_in_a_row() -> None:
    assert marked("it is of the sea", "of the sea it") == [("it is ", False), ("of the sea", True)]
    assert marked("so 47 apples are", "Apples: 47") == [("so ", False), ("47 apples", True), (" are", False)]
    assert marked("求出火车到达", "火车到站") == [("求出", False), ("火车到", True), ("达", False)]
    assert marked("a_b", "") == [("a_b", False)]


def test_a_long_text_is_cut_and_says_so() -> None:
    html = curation_page(document())
    assert f"… [{120_000 - TEXT:,} more characters]" in html
    assert cut("x" * 5, 5) == "xxxxx" and cut("x" * 6, 5) == "xxxxx … [1 more characters]"
    huge = change("samples.1.matched_text", "a1 " * 3_000_000)
    huge["samples"][1]["question"] = huge["kept_samples"][0]["text"] = "<b>\x00\u202e" * 2_000_000
    huge["notes"] = ["n" * 1_000_000]
    assert len(curation_page(huge)) < len(html) + 40_000


def test_no_text_becomes_markup_and_nothing_is_asked_for() -> None:
    clean, dirty = Tags(curation_page(document())), Tags(html := curation_page(poison(document())))
    assert (dirty.wrong, dirty.open) == ([], []) == (clean.wrong, clean.open)
    tags, expected = ([tag for tag, _ in each.seen if tag != "mark"] for each in (dirty, clean))
    assert tags == expected
    assert not {name for _, attrs in dirty.seen for name in attrs} & {
        "style",
        "src",
        "href",
        "onload",
        "onerror",
    }
    assert {"script", "img", "a", "link"}.isdisjoint(tag for tag, _ in dirty.seen)
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", html)
    assert "&lt;script&gt;window.hit=1" in html and "{{ 7*7 }}" in html
    plain = curation_page(document())
    assert "http:" not in plain and "https:" not in plain and "unsafe" not in plain and "url(" not in plain
    assert "default-src 'none'; style-src" in unescape(plain)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("title", None, r"^curation.json: title must be text"),
        ("source", {}, r"^curation.json: source.traces must be a number"),
        ("kept.traces", -1, r"kept.traces must be a whole number"),
        ("seed", 1.5, r"seed must be a whole number"),
        ("target", "many", r"target must be a number"),
        ("notes", "one", r"notes must be a list"),
        ("funnel.2.kept", None, r"funnel\[2\].kept must be a number"),
        ("funnel.2.kept", -336, r"funnel\[2\]: no count can be less than 0"),
        ("funnel.2.reasons", {"a\nb": "x"}, r"funnel\[2\].reasons.a b must be a number"),
        ("domains.after", {"Algebra": -1}, r"domains: no count"),
        ("domains", [1], r"domains must be an object"),
        ("lengths.edges", [0, 1], r"lengths.edges must have one entry more"),
        ("lengths.edges", list(range(10, -1, -1)), r"lengths.edges must rise"),
        ("lengths.edges", [*range(10), float("inf")], r"lengths.edges must be a number"),
        ("lengths.unit", None, r"lengths.unit must be text"),
        ("benchmarks.1.items", "x", r"benchmarks\[1\].items must be a number"),
        ("detectors.0.hits", None, r"detectors\[0\].hits must be a number"),
        ("samples.1.rule", None, r"samples\[1\].rule must be text"),
        ("samples.1.score", "high", r"samples\[1\].score must be a number"),
        ("samples.1.matched_text", [1], r"samples\[1\].matched_text must be text"),
        ("kept_samples.3.record_id", 7, r"kept_samples\[3\].record_id must be text"),
    ],
)
def test_a_broken_entry_is_named_in_one_line(path: str, value: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        curation_page(change(path, value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "edit",
    [
        lambda d: d.update(source={"name": "nothing", "traces": 0, "problems": 0}),
        lambda d: d.update(kept={"traces": 0, "problems": 0}, domains={"before": {"a": 3}, "after": {}}),
        lambda d: d.update(lengths={"unit": "words", "edges": [0, 1], "before": [0], "after": [0]}),
        lambda d: d["funnel"].append({"stage": "none", "kept": 0, "dropped": 0, "reasons": {}}),
    ],
)
def test_a_run_of_nothing_has_a_page(edit: Callable[[dict[str, Any]], None]) -> None:
    data = document()
    edit(data)
    html = curation_page(data)
    assert not re.search(r"\b(nan|inf)\b", html)
    assert Tags(html).wrong == []


def test_the_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "curation.html"
    render_curation(document(), target)
    assert target.read_text(encoding="utf-8") == curation_page(document())
    assert target.read_text(encoding="utf-8").startswith("<!doctype html>")
    before = target.read_bytes()
    with pytest.raises(UsageError):
        render_curation({}, target)
    assert target.read_bytes() == before
    assert [each.name for each in target.parent.iterdir()] == ["curation.html"]
    with pytest.raises(StorageError, match="cannot write the report"):
        render_curation(document(), target / "below.html")


@pytest.mark.parametrize("width", [1200, 400])
def test_in_a_browser_nothing_sticks_out_collides_runs_or_is_fetched(
    chromium: Browser, tmp_path: Path, width: int
) -> None:
    watcher = Watch(chromium, width)
    path = tmp_path / "curation.html"
    for data in (document(), poison(document())):
        render_curation(data, path)
        page = watcher.open(path.as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate("window.hit") is None
        fills = page.evaluate(
            "['before', 'after'].map(kind => getComputedStyle(document.querySelector('.bar.' + kind)).fill)"
        )
        assert len({*fills, "rgb(0, 0, 0)"}) == 3, "two colours of the style sheet"
        assert page.locator("script, img, a, b:text-is('bold')").count() == 0
        sticking_out, colliding = page.evaluate(
            """() => {
              const labels = [...document.querySelectorAll('svg')].map(svg =>
                [...svg.querySelectorAll('text')]
                  .filter(t => t.getClientRects().length && t.textContent.trim())
                  .map(t => [t.textContent, t.getBoundingClientRect()]));
              const out = labels.flat().filter(([, box]) => box.right > innerWidth || box.left < 0);
              const hits = labels.flatMap(each => each.flatMap(([name, a], i) => each.slice(i + 1)
                .filter(([, b]) => a.left + 3 < b.right && b.left + 3 < a.right
                  && a.top + 3 < b.bottom && b.top + 3 < a.bottom).map(([other]) => name + ' / ' + other)));
              return [out.map(([name]) => name), hits];
            }"""
        )
        assert (sticking_out, colliding) == ([], [])
    assert set(watcher.requests) == {path.as_uri()}
    assert watcher.errors == []
    watcher.context.close()


def test_a_check_speaks_of_what_was_found_and_of_nothing_dropped() -> None:
    told = document()
    told |= {
        "method": "check",
        "source": {"name": "train.jsonl", "traces": 200, "problems": 200},
        "kept": {"traces": 190, "problems": 190},
        "funnel": [
            {"stage": "decontamination", "kept": 190, "dropped": 10, "reasons": {"ngram-13": 7, "fuzzy": 3}}
        ],
    }
    html = curation_page(told)
    assert f"Of 200 rows of train.jsonl, 10 ({words.percent(0.05)}) have something in common" in html
    assert "ngram-13 (7) and fuzzy (3)" in html
    assert not section(html, "funnel") and "Examples of what was found" in html
    assert "Examples of what was dropped" in curation_page(document())
