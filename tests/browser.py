"""A browser window that keeps what a page did: its requests, its dialogs, its errors."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import Browser, Page


class Watch:
    """A window of `chromium`, `width` pixels wide; `settings` go to the browser's context."""

    def __init__(self, browser: Browser, width: int = 1200, **settings: Any) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, **settings)
        self.page: Page = self.context.new_page()
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda message: self.errors.append(message.text))
        self.page.on("dialog", lambda dialog: self.errors.append(f"dialog {dialog.message}"))

    def open(self, address: str) -> Page:
        self.page.goto(address)
        return self.page
