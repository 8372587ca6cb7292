"""`made`: runs and their pages, each made once; `page`: one window for all tests of this folder; `show` opens a page in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from tests.helpers.gates_page import EVIL, WORSE, evil_table, extreme, fake, hours_table, steps_table, words_table
from tidegate.inspection import Inspection
from tidegate.training import train

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.helpers.browser import Watch


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], SimpleNamespace]:
    """made(name): an inspection of a tiny run of that kind, and its page. Each is made once."""
    folder, kept = tmp_path_factory.mktemp("gates"), {}

    def run(name: str, table: pl.DataFrame, target: Any, **settings: Any):
        quick = {"hidden_size": 6, "epochs": 1, "baselines": False, "progress": False, "device": "cpu"}
        return train(table, target, out=folder / name, **{**quick, **settings}).inspect(table)

    steps, inputs = steps_table(), {"group": "device", "features": ["x", "y", "colour"]}
    makers: dict[str, Callable[[], Inspection]] = {
        "steps": lambda: run("steps", steps, "class", num_layers=2, **inputs),
        "words": lambda: run("words", words_table(), "slots", num_layers=2),
        "labels": lambda: run("labels", steps, ["wet", "cold", "dark"], **inputs),
        "whole": lambda: run("whole", steps, "who", per="sequence", **inputs),
        "wide": lambda: run("wide", steps, "who", per="sequence", hidden_size=9, **inputs),
        "forecast": lambda: run("forecast", hours_table(), ["load", "wind"], time="hour", horizon=3),
        "one": lambda: run("one", steps[11:], "class", hidden_size=1, **inputs),
        "no target": lambda: replace(made("steps").inspection, outputs=[replace(made("steps").inspection.outputs[0], truth=None)]),
        "evil": lambda: run(WORSE.split("/")[-1] + EVIL.split("/")[0], evil_table(), "class", group="id"),
        "extreme": lambda: extreme(made("steps").inspection),
        "thinned": lambda: fake(made("steps").inspection, 1000, 5, ("", "_reverse")),
        "big": lambda: fake(made("steps").inspection, 10_000, 512),
    }  # fmt: skip

    def made(name: str) -> SimpleNamespace:
        if name not in kept:
            inspection, path = makers[name](), folder / f"{name}.html"
            inspection.write_html(path)
            kept[name] = SimpleNamespace(inspection=inspection, path=path, url=path.as_uri())
        return kept[name]

    return made


@pytest.fixture(scope="session")
def one_window(open_page) -> Iterator[Watch]:
    watch = open_page()
    yield watch
    watch.page.context.close()


@pytest.fixture
def page(one_window) -> Iterator[Page]:
    """The same window for all tests of this folder, since a new one for each would take longer than most of them."""
    page = one_window.page
    yield page
    try:
        one_window.check()
    finally:
        page.goto("about:blank")
        page.mouse.move(0, 0)
        page.set_viewport_size({"width": 1200, "height": 800})
        page.emulate_media(color_scheme="light")


@pytest.fixture
def show(made, page) -> Callable[[str], Inspection]:
    """show(name) opens that page in the watched browser, and returns what it should show."""

    def open_it(name: str) -> Inspection:
        page.goto(made(name).url)
        return made(name).inspection

    return open_it
