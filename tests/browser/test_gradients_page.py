"""gradients.html in a browser: everything on it can be read, also by keyboard and in the dark, and nothing is asked for."""

from __future__ import annotations

import pytest

import tidegate
from tests.helpers.tables import QUICK, signal_table
from tidegate.inspection import measure_gradients

NAME = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    table = signal_table(8).rename({"label": NAME})
    folder = tmp_path_factory.mktemp("flow") / "run"
    run = tidegate.train(table, target=NAME, group="device", time="t", log_gates=True, out=folder, **QUICK)
    return measure_gradients(run, table, progress=False)


@pytest.fixture
def shown(flow, page, tmp_path):
    path = tmp_path / "gradients.html"
    flow.write_html(path)
    page.goto(path.as_uri())
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_says_and_draws_all_three_cells(flow, shown, shot, scheme):
    shown.emulate_media(color_scheme=scheme)
    text = shown.inner_text("body")
    for sentence, _ in flow.sentences:
        assert sentence in text
    for name in ("GRU", "LSTM", "plain RNN"):
        assert name in shown.locator("svg").first.text_content()
    assert NAME in text  # a column with the name of a script is a name
    assert shown.locator("script").count() == 0
    shot(shown, f"gradients/{scheme}")
    room = shown.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert room <= 0


def test_it_fits_a_phone(shown, shot):
    shown.set_viewport_size({"width": 360, "height": 740})
    shot(shown, "gradients/360")
    assert shown.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


def test_a_definition_shows_when_its_mark_has_the_focus(flow, shown):
    hidden = flow.sentences[0][1]
    note = shown.get_by_text(hidden, exact=False).first
    assert not note.is_visible()
    for _ in range(20):
        shown.keyboard.press("Tab")
        if note.is_visible():
            break
    assert note.is_visible()


def test_the_gates_over_the_epochs_are_drawn(shown):
    assert "The gates over the epochs of training" in shown.inner_text("body")
    drawn = " ".join(shown.locator("svg").all_text_contents())
    for name in ("Mean gates", "update z", "reset r", "Memory length in steps"):
        assert name in drawn
