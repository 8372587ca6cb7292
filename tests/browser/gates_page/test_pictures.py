"""The pictures on the page of the gates have the colours of the values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    pass
from tests.helpers.gates_page import DIVERGING, MAPS, ROWS, VIRIDIS, go, pixels, rgb


@pytest.mark.parametrize("name", ["steps", "words", "thinned"])
def test_the_cells_of_a_heat_map_have_the_colours_of_the_values_in_the_order_of_the_units(show, page, name):
    shown = show(name)
    P, rng = len(shown.drawn), np.random.default_rng(5)
    for k, layer in enumerate(shown.layers):
        page.locator(".bar select").first.select_option(str(k))
        for which in MAPS:
            for _ in range(6):
                p, row = int(rng.integers(P)), int(rng.integers(layer.statistics.units))
                value = float(getattr(layer.gates, which)[shown.drawn[p], layer.statistics.order[row]])
                stops = DIVERGING if which in ("candidate", "hidden") else VIRIDIS
                at = (value + 1) / 2 if stops is DIVERGING else value
                ends = np.linspace(0, 1, len(stops))
                colour = [np.interp(at, ends, channel) for channel in zip(*map(rgb, stops), strict=True)]
                (found,) = pixels(page, ROWS[which], [p], P, row)
                assert found[:3] == pytest.approx(colour, abs=4), (which, p, row)  # 256 colours a scale


def test_both_ends_of_the_colour_scales_are_reached(show, page):
    shown = show("extreme")
    row = shown.layers[0].statistics.order.tolist().index(0)
    for which in MAPS:
        stops = DIVERGING if which in ("candidate", "hidden") else VIRIDIS
        for found, end in zip(pixels(page, ROWS[which], [0, 1], 4, row), (stops[0], stops[-1]), strict=True):
            assert found[:3] == pytest.approx(rgb(end), abs=1), (which, end)


@pytest.mark.parametrize("name", ["steps", "words", "whole", "forecast"])
def test_the_strip_is_strongest_at_the_step_that_the_prediction_leans_on_most(show, page, name):
    shown = show(name)
    P = len(shown.drawn)
    for p in {0, 1, P // 2, P - 1}:
        go(page, shown, p, 0)
        strip = [alpha for *_, alpha in pixels(page, "prediction leans on", range(P), P, 5)]
        leans = shown.lean.steps[0 if shown.per == "sequence" else p]
        assert strip == pytest.approx(255 * leans / leans.max(), abs=2)
        assert np.argmax(strip) == np.argmax(leans)


def test_wrong_predictions_are_underlined_and_no_others(show, page):
    shown, red = show("labels"), rgb("#c92a2a")
    for output in shown.outputs:
        wrong = [truth != guess for truth, guess in zip(output.truth, output.values, strict=True)]
        P = len(wrong)
        assert [colour[:3] == red for colour in pixels(page, f"prediction: {output.name}", range(P), P, -2)] == wrong
    assert {a == b for o in shown.outputs for a, b in zip(o.truth, o.values, strict=True)} == {True, False}


def test_dark_mode_repaints_the_pictures(show, page, shot):
    show("extreme")
    paper = "() => getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(paper)
    # The middle of the scale is light on light paper, dark on dark.
    cells = "[...document.querySelectorAll('.map canvas')[3].getContext('2d').getImageData(0, 0, 4, 3).data]"
    brightness = f"{cells}.reduce((sum, v) => sum + v)"
    was = page.evaluate(f"() => {brightness}")
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"was => {brightness} < was - 255", arg=was)
    assert page.evaluate(paper) != light
    shot(page, "gates/extreme-dark")
