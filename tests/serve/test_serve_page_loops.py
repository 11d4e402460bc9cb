"""The page before a model with loops: a control of them appears, is sent, and what was made is told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from page_server import PageServer, card, delta, ended
from playwright.sync_api import Browser, Page, expect

from browser import Watch


@pytest.fixture
def deep_server() -> Iterator[PageServer]:
    served = PageServer()
    threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield served
    served.shutdown()
    served.server_close()


@pytest.fixture
def deep_watch(chromium: Browser) -> Iterator[Watch]:
    watcher = Watch(chromium)
    yield watcher
    watcher.context.close()


def opened(watch: Watch, server: PageServer, **more: Any) -> Page:
    server.models = [card("deep", **more) | {"loops": {"mean": 8, "max": 64}}]
    page = watch.open(server.address)
    expect(page.locator("#model option")).to_have_count(1)
    return page


def reply(steps: int) -> list[bytes]:
    told = {"used": 0, "sampled": 0, "forced": 0, "waits": 0, "refused": 0, "closed_by": "none"}
    return [delta(answer="7"), *ended(completion_tokens=10, core_steps=10 * steps, **told)]


def asked(page: Page) -> None:
    page.fill("#question", "How many?")
    page.get_by_role("button", name="Ask").click()
    for state in page.locator(".pane:visible .state").all():
        expect(state).to_contain_text("Done", timeout=20_000)


def test_loops_are_set_sent_and_told(deep_watch: Watch, deep_server: PageServer) -> None:
    page = opened(deep_watch, deep_server, thinks=False)
    side = page.locator("fieldset").first
    expect(side.locator(".depth")).to_be_visible()
    expect(side.locator(".tokens")).to_be_hidden()
    assert side.locator("[name=steps]").input_value() == "8"
    side.locator("[name=loops]").fill("24")
    assert side.locator("[name=steps]").input_value() == "24"
    side.locator("[name=exit]").select_option("kl:5e-4")
    deep_server.replies = [reply(24)]
    asked(page)
    assert deep_server.asked[0]["num_steps"] == 24 and deep_server.asked[0]["exit"] == "kl:5e-4"
    assert "thinking_token_budget" not in deep_server.asked[0]
    pane = page.locator(".pane").first
    expect(pane.locator("h2")).to_have_text("Reply · 24 loops at most, kl:5e-4")
    expect(pane.locator("dl")).to_contain_text("the core was passed 240 times, 24.0 for each token")
    expect(pane.locator(".text.thinking")).to_be_hidden()
    assert not deep_watch.errors


@pytest.mark.slow
def test_two_depths_are_compared(deep_watch: Watch, deep_server: PageServer) -> None:
    page = opened(deep_watch, deep_server, thinks=False)
    page.get_by_label("Compare two settings").check()
    deep_server.replies = [reply(8), reply(2)]
    asked(page)
    assert sorted(body["num_steps"] for body in deep_server.asked) == [2, 8]
    assert all("exit" not in body for body in deep_server.asked)
    page.locator("[name=steps]").first.fill("65")
    page.get_by_role("button", name="Ask").click()
    assert len(deep_server.asked) == 2, "more than the model makes is not even sent"


def test_thinking_in_tokens_stands_beside_the_loops(deep_watch: Watch, deep_server: PageServer) -> None:
    page = opened(deep_watch, deep_server)
    side = page.locator("fieldset").first
    expect(side.locator(".tokens")).to_be_visible()
    side.locator("[name=budget]").fill("64")
    deep_server.by_budget = {64: reply(8)}
    asked(page)
    assert deep_server.asked[0]["num_steps"] == 8
    expect(page.locator(".pane h2").first).to_have_text("Reply · at most 64 tokens, 8 loops")


def test_a_model_without_loops_is_asked_for_none(deep_watch: Watch, deep_server: PageServer) -> None:
    page = deep_watch.open(deep_server.address)
    expect(page.locator("#model option")).to_have_count(1)
    expect(page.locator(".depth").first).to_be_hidden()
    page.locator("[name=budget]").first.fill("64")
    deep_server.by_budget = {64: reply(1)}
    asked(page)
    assert "num_steps" not in deep_server.asked[0]
