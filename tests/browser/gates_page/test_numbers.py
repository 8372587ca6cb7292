"""The numbers on the page of the gates are those of the trace and of the table."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    pass
from tests.helpers.gates_page import SHOWN, go, number, percent, places, read


@pytest.mark.parametrize("name", ["steps", "words", "whole", "forecast", "one", "thinned"])
def test_the_numbers_beside_the_pictures_are_those_of_the_trace(show, page, name):
    shown = show(name)
    for k, unit, p in places(shown):
        layer, t = shown.layers[k], shown.drawn[p]
        go(page, shown, p, unit, k)
        now = read(page)
        assert (now.unit, now.chosen, now.layer, now.slider) == (unit, unit, str(k), p)
        assert now.title.startswith(f"step {t + shown.first:,} of {shown.length:,}")
        assert now.said == now.title
        expected = {
            "z": layer.gates.update, "r": layer.gates.reset, "n": layer.gates.candidate, "h": layer.gates.hidden,
            "before": layer.before,
        }  # fmt: skip
        for which, values in expected.items():
            assert number(getattr(now, which)) == pytest.approx(float(values[t, unit]), abs=SHOWN), (k, unit, p, which)
        z, r = float(layer.gates.update[t, unit]), float(layer.gates.reset[t, unit])
        for text, share in zip(now.edges, (z, 1 - z, r), strict=True):
            printed = int(re.search(r"\d+", text).group())
            assert abs(printed - 100 * share) < 1.1, text
        if layer.statistics.units > 1:
            means = [number(v) for v in re.findall(r"[zr] (−?\d\.\d\d)", now.told)]
            assert means == pytest.approx(
                [float(layer.gates.update[t].mean()), float(layer.gates.reset[t].mean())], abs=0.006
            )


@pytest.mark.parametrize("name", ["steps", "words", "thinned"])
def test_the_equations_as_printed_add_up_to_what_they_say(show, page, name):
    shown = show(name)
    known = {"sigma": lambda v: 1 / (1 + math.exp(-v)), "tanh": math.tanh, "__builtins__": {}}
    for k, unit, p in places(shown):
        go(page, shown, p, unit, k)
        layer, t, H = shown.layers[k], shown.drawn[p], shown.layers[k].statistics.units
        lines = read(page).equations.splitlines()
        assert [line[:2].strip() for line in lines[::2]] == ["r", "z", "n", "h′"]
        for line in lines[1::2]:
            _, formula, value = line.replace("−", "-").replace("·", "*").replace("σ", "sigma").split("=")
            # Each number in it is off by up to half of its last digit; no slope of a cell is above 1.
            assert eval(formula, known) == pytest.approx(float(value), abs=0.003), line
        for j, gate in enumerate((0, 1)):  # r and z: what comes from the input, and what from the state
            given, state = (float(part[t, gate * H + unit]) for part in (layer.input_part, layer.state_part))
            a, sign, b = re.search(r"σ\((−?[\d.]+) ([+−]) ([\d.]+)\)", lines[2 * j + 1]).groups()
            assert number(a) == pytest.approx(given, abs=SHOWN)
            assert number(b) * (1 if sign == "+" else -1) == pytest.approx(state, abs=2 * SHOWN)
        a, _, inside = re.search(r"tanh\((−?[\d.]+) \+ ([\d.]+)·\(?(−?[\d.]+)\)?\)", lines[5]).groups()
        assert number(a) == pytest.approx(float(layer.input_part[t, 2 * H + unit]), abs=SHOWN)
        assert number(inside) == pytest.approx(float(layer.gates.recurrent[t, unit]), abs=SHOWN)


@pytest.mark.parametrize("name", ["steps", "words", "whole", "no target"])
def test_the_classes_shown_are_the_most_probable_and_the_true_one(show, page, name):
    shown = show(name)
    (output,) = shown.outputs
    for p in range(len(shown.drawn)):
        go(page, shown, p, 0)
        at = 0 if shown.per == "sequence" else p
        facts = {head: text for head, text in read(page).facts if head != "words"}
        told = facts["prediction (of the whole sequence)" if shown.per == "sequence" else "prediction"]
        assert [line.strip() for line in told.splitlines()] == [
            f"{c} {percent(round(v, 4))}" for c, v in output.top[at]
        ]
        if output.truth is None:
            assert facts["true"] == "not in this table"
        else:
            assert facts["true"] == f"{output.truth[at]} {'✓' if output.truth[at] == output.values[at] else '✗'}"


def test_the_inputs_shown_are_those_of_the_table_and_what_is_missing_is_called_missing(show, page):
    shown = show("steps")
    assert np.isnan(shown.columns[1].values).any()
    for p in range(len(shown.drawn)):
        go(page, shown, p, 0)
        facts = dict(read(page).facts)
        for column in shown.columns[:2]:
            if np.isnan(column.values[p]):
                assert facts[column.name] == "missing"
            else:
                assert number(facts[column.name]) == pytest.approx(column.values[p], rel=1e-4)
        assert facts["colour"] == shown.columns[2].values[p]
        shares = shown.lean.columns[p] / shown.lean.columns[p].sum()
        best = max(range(3), key=lambda c: shares[c])
        name, told = facts["leans on"].splitlines()[0].rsplit(" ", 1)
        assert (name, abs(float(told[:-1]) - 100 * shares[best]) < 1.1) == (shown.columns[best].name, True)


def test_the_numbers_predicted_stand_beside_the_true_ones(show, page):
    shown = show("forecast")
    for p in (0, 7, len(shown.drawn) - 1):
        go(page, shown, p, 0)
        rows = {row[0]: row[1:] for row in read(page).facts if len(row) == 3}
        assert rows.pop("") == ["predicted (the next 3 steps)", "true"]
        for output in shown.outputs:
            for told, values in zip(rows[output.name], (output.values[p], output.truth[p]), strict=True):
                for text, value in zip(told.split(", "), values, strict=True):
                    assert (
                        (text == "missing")
                        if np.isnan(value)
                        else number(text) == pytest.approx(value, rel=1e-4, abs=1e-5)
                    )


def test_labels_are_shown_with_their_probability(show, page):
    shown = show("labels")
    for p in range(len(shown.drawn)):
        go(page, shown, p, 0)
        rows = {row[0]: row[1:] for row in read(page).facts if len(row) == 3}
        for output in shown.outputs:
            mark = "✓" if output.truth[p] == output.values[p] else "✗"
            told = f"{output.values[p]} ({percent(float(f'{output.probability[p]:.6g}'))} for 1)"
            assert rows[output.name] == [told, f"{output.truth[p]} {mark}"]


def test_columns_without_a_range_and_one_number_a_sequence_are_told_as_they_are(made, page, tmp_path):
    shown = made("whole").inspection
    columns = [replace(shown.columns[0], name=f"c{v}", values=np.full(12, v)) for v in (np.nan, 3.0, 123_456.7)]
    outputs = [replace(shown.outputs[0], name="age", kind="number", values=[[41.5]], truth=[[4e-9]], top=None)]
    replace(shown, columns=columns, outputs=outputs).write_html(tmp_path / "odd.html")
    page.goto((tmp_path / "odd.html").as_uri())
    labels = page.locator(".row .label").all_inner_texts()[:3]
    assert labels == ["cnan\nall missing", "c3.0\nalways 3", "c123456.7\nalways 123,460"]
    facts = read(page).facts
    assert facts[:3] == [["cnan", "missing"], ["c3.0", "3"], ["c123456.7", "123,460"]]
    assert ["", "predicted (of the whole sequence)", "true"] in facts
    assert ["age", "41.5", "0"] in facts  # what is left of a zero in float32


def test_classes_that_are_numbers_are_names(made, page, tmp_path):
    shown = made("whole").inspection
    outputs = [replace(shown.outputs[0], values=[20240102], truth=[20240101], top=[[(20240102, 0.7), (20240101, 0.3)]])]
    replace(shown, outputs=outputs).write_html(tmp_path / "numbered.html")
    page.goto((tmp_path / "numbered.html").as_uri())
    facts = dict(read(page).facts)
    assert facts["true"] == "20240101 ✗"
    assert facts["prediction (of the whole sequence)"].split() == ["20240102", "70%", "20240101", "30%"]


@pytest.mark.parametrize("name", ["steps", "thinned"])
def test_the_table_of_units_holds_the_statistics_and_sorts_by_each_of_them(show, page, name):
    shown = show(name)
    for k, layer in enumerate(shown.layers):
        s = layer.statistics
        page.locator(".bar select").first.select_option(str(k))
        table = "() => [...document.querySelectorAll('.units tbody tr')].map((row) => [...row.cells].map((cell) => cell.textContent))"
        rows = page.evaluate(table)
        assert [int(row[0]) for row in rows] == s.order.tolist()
        for row in rows:
            u = int(row[0])
            length = s.memory_length_steps[u]
            assert row[1] == (f"over {s.longest:,}" if np.isinf(length) else f"{length:g}")
            shares = (s.update_near_1, s.update_near_0, s.reset_near_1, s.reset_near_0)
            assert row[2:6] == [percent(float(f"{v[u]:.6g}")) for v in shares]
            assert [number(v) for v in row[6].split(" to ")] == pytest.approx([s.low[u], s.high[u]], abs=0.006)
            assert row[7] == s.kinds()[u]
        by = [s.update_near_1, s.update_near_0, s.reset_near_1, s.reset_near_0, s.high - s.low]
        for column, values in enumerate(by, start=2):
            page.locator(".units th button").nth(column).click()
            order = [int(row[0]) for row in page.evaluate(table)]
            assert (np.diff(np.asarray([float(f"{v:.5g}") for v in values])[order]) <= 1e-6).all()
            assert page.locator(".units th[aria-sort]").all_inner_texts() == [
                page.locator(".units th").nth(column).inner_text()
            ]
        page.locator(".units th button").nth(1).click()
