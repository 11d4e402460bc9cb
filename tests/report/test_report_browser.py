"""The page in a real browser: hostile text stays text, nothing leaves the page, the reader works."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser
from sample import HOSTILE, summary, traces

from browser import Watch
from tutelage.report import render


@pytest.fixture
def watch(chromium: Browser) -> Iterator[Watch]:
    watcher = Watch(chromium)
    yield watcher
    watcher.context.close()


def poison(value: Any) -> Any:
    """The same structure with the hostile text appended to every string that is shown."""
    if isinstance(value, dict):
        return {key: item if key in {"method", "status"} else poison(item) for key, item in value.items()}
    if isinstance(value, list):
        return [poison(item) for item in value]
    return f"{value} {HOSTILE}" if isinstance(value, str) else value


@pytest.mark.slow
def test_hostile_text_never_becomes_markup_nor_runs_nor_reaches_the_network(
    watch: Watch, tmp_path: Path
) -> None:
    data = poison(summary())
    data["settings"][HOSTILE] = {HOSTILE: [HOSTILE]}
    data["funnel"][1]["reasons"] = {HOSTILE: 3}
    data["curve"][0]["closed_by"] = {HOSTILE: 3}
    rows = poison(traces())
    rows[0] |= {"problem_id": HOSTILE, "forced_spans": [[2, 60]], "thinking": HOSTILE}
    clean, dirty = tmp_path / "clean.html", tmp_path / "dirty.html"
    render(summary(), traces(), clean)
    render(data, rows, dirty)
    tags = "[...new Set([...document.querySelectorAll('*')].map(e => e.tagName.toLowerCase()))].sort()"
    expected = watch.open(clean.as_uri()).evaluate(tags)
    page = watch.open(dirty.as_uri())
    for select in ("#side-a", "#side-b"):
        for index in range(page.locator(f"{select} option").count()):
            page.select_option(select, index=index)
    page.wait_for_timeout(150)
    assert page.evaluate("window.hit") is None
    assert page.evaluate(tags) == expected
    assert page.locator("img, iframe, b:text-is('bold'), [onerror], [onload], a").count() == 0
    assert page.locator("style").count() == 1
    assert page.locator("script").count() == 2
    assert "<img src=x" in page.locator("#pane-a").inner_text()
    assert watch.requests == [clean.as_uri(), dirty.as_uri()]
    assert watch.errors == []


def test_reordering_and_control_characters_are_shown_as_symbols(watch: Watch, tmp_path: Path) -> None:
    rows = traces(count=1)
    for row in rows:
        row |= {"answer": "pay \u202e001\u202c \x00 \ud83d end", "forced_spans": []}
    render(summary(), rows, tmp_path / "r.html")
    shown = watch.open((tmp_path / "r.html").as_uri()).locator("#pane-a .text").last.inner_text()
    assert shown == "pay ⟨U+202E⟩001⟨U+202C⟩ ␀ \ufffd end"


@pytest.fixture
def listener() -> Iterator[tuple[str, list[str]]]:
    """A real server on loopback and the paths it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def test_the_policy_forbids_what_an_injected_script_would_try(
    watch: Watch, tmp_path: Path, listener: tuple[str, list[str]]
) -> None:
    address, asked = listener
    render(summary(), traces(), tmp_path / "r.html")
    page = watch.open((tmp_path / "r.html").as_uri())
    page.evaluate(
        "(address) => { const s = document.createElement('script'); s.textContent = 'window.hit=1';"
        " document.body.append(s); const i = document.createElement('img');"
        " i.src = address + '/x.png'; fetch(address).catch(() => 0);"
        " i.onerror = () => { window.blocked = true; };"
        " document.body.append(i); }",
        address,
    )
    page.wait_for_function("window.blocked === true")
    assert page.evaluate("window.hit") is None
    assert asked == []
    assert sum("Content Security Policy" in error for error in watch.errors) >= 2


def test_the_reader_sets_two_arms_side_by_side(watch: Watch, tmp_path: Path) -> None:
    render(summary(), traces(), tmp_path / "r.html")
    page = watch.open((tmp_path / "r.html").as_uri())
    assert page.locator("#pane-a h3").inner_text() == "A · teacher · seed 1"  # the first comparison
    assert page.locator("#pane-b h3").inner_text() == "B · human-terse · seed 1"
    page.select_option("#side-b", label="drafting · seed 2")
    assert page.locator("#pane-b h3").inner_text() == "B · drafting · seed 2"
    # The mark holds exactly the forced word although an astral character stands before it.
    assert page.locator("#pane-b mark").all_inner_texts() == ["Wait"]
    assert page.locator("#pane-a mark").count() == 0
    assert "Ada gives 3 stones" in page.locator("#problem").inner_text()
    page.click("#next")
    assert "Ada gives 4 stones" in page.locator("#problem").inner_text()
    page.click("#previous")
    assert page.locator("#previous").is_disabled()


def test_the_filter_leaves_only_the_questions_asked_for(watch: Watch, tmp_path: Path) -> None:
    render(summary(), traces(), tmp_path / "r.html")
    page = watch.open((tmp_path / "r.html").as_uri())
    for choice, (a, b) in {"a": (True, False), "b": (False, True), "neither": (False, False)}.items():
        page.select_option("#filter", choice)
        labels = page.locator("#question option").all_inner_texts()
        wanted = f"A {'right' if a else 'wrong'}, B {'right' if b else 'wrong'}"
        assert all(label.endswith(wanted) for label in labels)
        assert labels or "No question fits" in page.locator("#problem").inner_text()
    page.select_option("#filter", "forced")
    assert page.locator("#question option").count() == 0
    page.select_option("#side-a", label="drafting · seed 1")
    assert page.locator("#question option").count() == 12


def test_several_attempts_at_one_question_can_be_turned(watch: Watch, tmp_path: Path) -> None:
    rows = traces(count=1)
    second = dict(rows[0], answer="another attempt")
    render(summary(), [*rows, second], tmp_path / "r.html")
    page = watch.open((tmp_path / "r.html").as_uri())
    page.get_by_role("button", name="attempt 1 of 2").click()
    assert "another attempt" in page.locator("#pane-a").inner_text()


def test_a_megabyte_of_thinking_opens_at_once_and_is_all_there(watch: Watch, tmp_path: Path) -> None:
    rows = traces(count=1)
    rows[0] |= {"thinking": "<b>" * 350_000, "forced_spans": [[0, 30]]}
    render(summary(), rows, tmp_path / "r.html")
    page = watch.open((tmp_path / "r.html").as_uri())
    assert len(page.locator("#pane-a .text").first.inner_text()) == 20_000
    page.get_by_role("button", name="show all 1,050,000 characters").click()
    length = "document.querySelector('#pane-a .text').textContent.length"
    assert page.evaluate(length) == 1_050_000


@pytest.mark.parametrize("width", [1200, 420])
def test_nothing_sticks_out_and_no_two_labels_of_a_plot_collide(
    chromium: Browser, tmp_path: Path, width: int
) -> None:
    watcher = Watch(chromium, width)
    render(summary(), traces(), tmp_path / "r.html")
    page = watcher.open((tmp_path / "r.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == width
    collisions = page.evaluate(
        """() => [...document.querySelectorAll('svg')].filter(s => s.getClientRects().length).flatMap(svg => {
          const labels = [...svg.querySelectorAll('text')].filter(t => t.textContent.trim()
            && !t.classList.contains('count'));
          const boxes = labels.map(t => [t.textContent, t.getBoundingClientRect()]);
          const slack = 3;
          return boxes.flatMap(([name, a], i) => boxes.slice(i + 1).filter(([, b]) =>
            a.left + slack < b.right && b.left + slack < a.right
            && a.top + slack < b.bottom && b.top + slack < a.bottom).map(([other]) => name + ' / ' + other));
        })"""
    )
    assert collisions == []
    outside = page.evaluate(
        """() => [...document.querySelectorAll('svg text')].filter(t => t.getClientRects().length
          && (t.getBoundingClientRect().right > innerWidth || t.getBoundingClientRect().left < 0))
          .map(t => t.textContent)"""
    )
    assert outside == []
    small = page.evaluate(
        """() => [...document.querySelectorAll('svg text')].filter(t => t.getClientRects().length
          && t.textContent && t.getBoundingClientRect().height < 11).map(t => t.textContent)"""
    )
    assert small == []
    watcher.context.close()


def test_without_scripts_everything_but_the_reader_is_there(chromium: Browser, tmp_path: Path) -> None:
    watcher = Watch(chromium, java_script_enabled=False)
    render(summary(), traces(), tmp_path / "r.html")
    page = watcher.open((tmp_path / "r.html").as_uri())
    assert page.locator("noscript").is_visible()
    assert not page.locator("#reader-app").is_visible()
    assert page.locator("svg.wide").first.is_visible()
    page.get_by_text("The numbers").first.click()
    assert page.locator("#ladder table").is_visible()
    watcher.context.close()
