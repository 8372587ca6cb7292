"""The pictures on the page of the gates have the colours of the values."""

from __future__ import annotations

import re
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


def test_wrong_predictions_are_marked_below_and_counted_and_no_others(show, page):
    shown, red = show("labels"), rgb("#c92a2a")
    for output in shown.outputs:
        wrong = [truth != guess for truth, guess in zip(output.truth, output.values, strict=True)]
        P = len(wrong)
        assert [colour[:3] == red for colour in pixels(page, f"prediction: {output.name}", range(P), P, -2)] == wrong
        label = page.locator(".row .label", has_text=f"prediction: {output.name}").inner_text()
        assert (f"✗ {sum(wrong)} of {P} wrong" if any(wrong) else "none wrong") in label
    assert {a == b for o in shown.outputs for a, b in zip(o.truth, o.values, strict=True)} == {True, False}


def test_each_class_has_its_colour_wherever_it_is_drawn_and_all_are_named_below(show, page):
    shown = show("steps")
    (output,) = shown.outputs
    P, colours = len(shown.drawn), {}
    for name, values in (("true", output.truth), ("prediction", output.values)):
        for value, colour in zip(values, pixels(page, name, range(P), P, 3), strict=True):
            colours.setdefault(value, set()).add(tuple(colour[:3]))
    assert colours.keys() == {"up", "down"}
    swatches = page.evaluate(
        "() => Object.fromEntries([...document.querySelectorAll('.classes > span')].map((s) => [s.textContent, getComputedStyle(s.firstChild).backgroundColor]))"
    )
    for value, swatch in swatches.items():
        assert tuple(map(int, re.findall(r"\d+", swatch))) in colours[value]
    assert {*swatches} == {"up", "down"}
    assert {*map(rgb_of, swatches.values())} == {tuple(rgb("#80e6ff")), tuple(rgb("#ffc05d"))}


def rgb_of(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)))


def test_a_name_of_a_class_is_whole_or_keeps_both_ends_and_is_never_cut_to_nonsense(show, page):
    shown = show("words")
    page.evaluate(
        """() => {
          window.drawn = [];
          const before = CanvasRenderingContext2D.prototype.fillText;
          CanvasRenderingContext2D.prototype.fillText = function (text, ...at) { window.drawn.push(text); before.call(this, text, ...at); };
        }"""
    )
    for width in (1100, 500, 360):
        page.set_viewport_size({"width": width, "height": 740})
        page.wait_for_function("count => window.drawn.length > count", arg=page.evaluate("() => window.drawn.length"))
    drawn = page.evaluate("() => window.drawn")
    words = {str(v) for column in shown.columns for v in column.values} | {"B-", "name", "B-name", "O", "–"}
    assert {"B-name", "O"} <= {*drawn}
    for text in drawn:
        start, _, end = text.partition("…")
        assert text in words or (
            len(start + end) >= 4 and any(w.startswith(start) and w.endswith(end) for w in words)
        ), text


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
