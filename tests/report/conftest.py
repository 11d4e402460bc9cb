"""A real headless chromium for the tests of the page; where there is none they skip and say so."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Error, sync_playwright

_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


# Not for the whole run: while it is open an event loop runs in this thread, and later tests have their own.
@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("no chromium: install Debian's chromium package to run the tests of the page")
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=program, args=_FLAGS)
        except Error as error:
            pytest.skip(f"no chromium: {program} does not start ({str(error).splitlines()[0]})")
        yield browser
        browser.close()
