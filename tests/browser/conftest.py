"""A real browser for the tests of this folder: the system's Chromium, driven by playwright, with no network.

`page` is an empty page under watch: a console error, an uncaught error, a dialog or a request for anything but a local
file fails its test afterwards. `shot(page, name)` keeps a picture in build/screenshots.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # at run time imported where it is used, so that its absence is told in a sentence
    from playwright.sync_api import Browser, Locator, Page

SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"
FLAGS = [
    "--no-sandbox",  # which Chromium refuses to set up for root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test of this folder is in the group."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker("browser")


def find_chromium() -> str:
    named = os.environ.get("TIDEGATE_CHROMIUM")
    for name in [named] if named else ["chromium", "chromium-browser", "google-chrome"]:
        if path := shutil.which(name):
            return path
    found = f"TIDEGATE_CHROMIUM={named} is no program" if named else "no Chromium found"
    pytest.fail(
        f"{found}. Install it (Debian: apt-get install chromium) or set TIDEGATE_CHROMIUM to its path.", pytrace=False
    )


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        pytest.fail("playwright is not installed: make test-browser, or pip install -e '.[browser]'.", pytrace=False)
    chromium = find_chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


class Watch:
    """A page in a context of its own, offline, and the list of what it did wrong."""

    def __init__(self, browser: Browser) -> None:
        self.faults: list[str] = []
        context = browser.new_context(offline=True, viewport={"width": 1200, "height": 800})
        context.on("console", lambda m: self.faults.append(f"console: {m.text}") if m.type == "error" else None)
        context.on("weberror", lambda e: self.faults.append(f"uncaught: {e.error}"))
        context.on("request", lambda r: self._request(r.url))
        context.on("dialog", self._dialog)
        context.route_web_socket(re.compile(""), lambda socket: self._request(socket.url))  # no request to `on`
        self.page = context.new_page()
        self.page.set_default_timeout(10_000)

    def _request(self, address: str) -> None:
        if not re.match(r"(file|data|blob|about):", address):
            self.faults.append(f"request: {address}")

    def _dialog(self, dialog) -> None:
        self.faults.append(f"dialog: {dialog.message}")
        dialog.dismiss()  # or the page would wait for an answer for ever

    def settle(self) -> list[str]:
        """The faults, after what the page had begun was given the time to show."""
        self.page.evaluate("() => new Promise(done => setTimeout(done))")
        return self.faults

    def check(self) -> None:
        found = self.settle().copy()
        self.faults.clear()  # the next test on this page begins with none
        if found:
            pytest.fail("The page is not clean:\n" + "\n".join(found), pytrace=False)


@pytest.fixture(scope="session")
def open_page(browser: Browser) -> Callable[[], Watch]:
    """For pages that several tests share, since they are slow to load: each test must end with `check()`."""
    return lambda: Watch(browser)


@pytest.fixture
def watch(open_page: Callable[[], Watch]) -> Iterator[Watch]:
    """The watch over `page`, for a test that expects a fault: it looks at `faults` and clears them."""
    watch = open_page()
    yield watch
    try:
        watch.check()
    finally:
        watch.page.context.close()


@pytest.fixture
def page(watch: Watch) -> Page:
    return watch.page


@pytest.fixture(scope="session")
def shot() -> Callable[[Page | Locator, str], Path]:
    """shot(page, name) keeps the whole page, or one element of it, as build/screenshots/NAME.png."""

    from playwright.sync_api import Page

    def keep(seen: Page | Locator, name: str) -> Path:
        path = SCREENSHOTS / f"{name}.png"
        seen.screenshot(path=path, **({"full_page": True} if isinstance(seen, Page) else {}))
        return path

    return keep
