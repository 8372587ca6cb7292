"""A real browser for the tests of this folder: the system's Chromium, driven by playwright, with no network.

`page` is an empty page under watch: a console error, an uncaught error, a dialog or a request for anything but a local
file fails its test afterwards. `shot(page, name)` keeps a picture in build/screenshots.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.helpers.browser import FLAGS, Watch, find_chromium

if TYPE_CHECKING:  # at run time imported where it is used, so that its absence is told in a sentence
    from playwright.sync_api import Browser, Locator, Page

SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test of this folder is in the group."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker("browser")


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
