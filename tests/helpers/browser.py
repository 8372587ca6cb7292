"""The system's Chromium, and a page under watch."""

from __future__ import annotations

import os
import re
import shutil
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

FLAGS = [
    "--no-sandbox",  # which Chromium refuses to set up for root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def find_chromium() -> str:
    named = os.environ.get("TIDEGATE_CHROMIUM")
    for name in [named] if named else ["chromium", "chromium-browser", "google-chrome"]:
        if path := shutil.which(name):
            return path
    found = f"TIDEGATE_CHROMIUM={named} is no program" if named else "no Chromium found"
    pytest.fail(
        f"{found}. Install it (Debian: apt-get install chromium) or set TIDEGATE_CHROMIUM to its path.", pytrace=False
    )


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
