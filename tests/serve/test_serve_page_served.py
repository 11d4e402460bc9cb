"""The page as `tutelage serve` gives it out: a real model, in a real browser."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect
from served import Server, wait_until

from browser import Watch

pytestmark = [pytest.mark.xdist_group("server"), pytest.mark.slow]


@pytest.fixture
def watch(chromium: Browser) -> Iterator[Watch]:
    watcher = Watch(chromium)
    yield watcher
    watcher.context.close()


@pytest.fixture
def page(watch: Watch, server: Server) -> Page:
    page = watch.open(server.url)
    expect(page.locator("#model option")).to_have_text([server.model])  # without the names with settings
    page.get_by_label("Longest reply").fill("200")
    page.get_by_label("Temperature").fill("1")
    page.get_by_label("Seed").fill("3")
    return page


def ask(page: Page, outcome: str = "Done") -> None:
    page.fill("#question", "What is 3 + 4?")
    page.get_by_role("button", name="Ask").click()
    for state in page.locator(".pane:visible .state").all():
        expect(state).to_contain_text(outcome, timeout=20_000)


def texts(page: Page, kind: str) -> list[str]:
    return list(page.locator(f".text.{kind}").evaluate_all("all => all.map(box => box.textContent)"))


def test_a_short_budget_is_the_beginning_of_a_long_one(watch: Watch, page: Page) -> None:
    page.get_by_label("Compare two settings").check()
    for side, budget in enumerate(("32", "96")):
        page.locator("[name=budget]").nth(side).fill(budget)
        page.locator("[name=least]").nth(side).fill(budget)
    ask(page)
    short, long = texts(page, "thinking")
    assert len(short) > 8
    assert long.startswith(short.rstrip("\ufffd"))
    assert len(long) > len(short)
    assert page.locator("h3 span").all_inner_texts() == ["· 32 of 32 tokens", "· 96 of 96 tokens"]
    assert page.locator("dl").get_by_text("the budget", exact=True).count() == 2
    assert watch.errors == []
    assert all(url.startswith(page.url) for url in watch.requests)


def test_the_wait_string_is_marked_as_forced(watch: Watch, page: Page) -> None:
    page.get_by_label("Temperature").fill("2")  # where every token, the closing marker too, comes up
    page.get_by_label("Longest reply").fill("1500")
    page.locator("[name=budget]").first.fill("1024")
    page.locator("[name=refuse]").first.fill("1")
    page.locator("[name=least]").first.fill("1024")
    page.locator("[name=wait]").first.fill("Wait, ")
    ask(page)
    marks = page.locator(".text.thinking mark").evaluate_all("all => all.map(mark => mark.textContent)")
    assert marks
    assert {mark.lstrip("\ufffd") for mark in marks} == {"Wait, "}  # what was half a character before it
    facts = dict(zip(page.locator("dt").all_inner_texts(), page.locator("dd").all_inner_texts(), strict=True))
    forced = 6 * len(marks)  # each byte is a token of this model's
    assert facts["Thinking"] == f"1,024 tokens: {1024 - forced:,} by the model, {forced:,} forced"
    word = "wait string" if len(marks) == 1 else "wait strings"
    assert facts["Refused"].endswith(f", {len(marks)} {word} written")


def test_what_cannot_be_enforced_is_said_in_the_servers_words(page: Page) -> None:
    page.locator("[name=budget]").first.fill("16")
    page.locator("[name=least]").first.fill("32")
    ask(page, outcome="Failed")
    expect(page.get_by_role("alert").filter(visible=True)).to_have_text(
        "No reply (400): min_thinking_tokens 32 is larger than thinking_token_budget 16"
    )


@pytest.mark.parametrize("way", ["stop", "leave"])
def test_stopping_or_leaving_frees_the_rows(page: Page, server: Server, survives: None, way: str) -> None:
    page.get_by_label("Compare two settings").check()
    page.get_by_label("Longest reply").fill("")
    for side in (0, 1):
        page.locator("[name=budget]").nth(side).fill("")
        page.locator("[name=least]").nth(side).fill("8000")
    page.locator("[name=budget]").nth(1).fill("8001")
    ask(page, outcome="Thinking")
    assert server.rows() >= 1
    if way == "stop":
        page.get_by_role("button", name="Stop").click()
        expect(page.locator(".state").first).to_contain_text("Stopped after")
    else:
        page.goto("about:blank")
    wait_until(lambda: server.rows() == 0, 10, "the rows are free")
