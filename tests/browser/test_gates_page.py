"""The page of `tidegate inspect` in a real browser: what it shows is what the run did, and everybody can work it."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest
import torch

from tidegate.gates.gates import Gates
from tidegate.gates.statistics import Counter
from tidegate.inspection import Inspection, write_page
from tidegate.inspection.inspection import Layer
from tidegate.inspection.lean import Lean
from tidegate.inspection.look import MOST_CELLS, MOST_COLUMNS
from tidegate.inspection.page import DEFINITIONS
from tidegate.inspection.sequence import InputColumn
from tidegate.training import train

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.helpers.browser import Watch

SHOWN = 0.0005 + 0.001  # half of the last digit printed, and what 16 bits a number and float32 may lose
EVIL, WORSE = "<script>alert(1)</script>", "</script><img src=x onerror=alert(1)>"
MAPS = ["update", "reset", "candidate", "hidden"]
VIRIDIS = ["#440154", "#414487", "#2a788e", "#22a884", "#7ad151", "#fde725"]
DIVERGING = ["#2166ac", "#67a9cf", "#f7f7f7", "#ef8a62", "#b2182b"]


# --- runs and their pages ----------------------------------------------------------------------------------------


def steps_table(groups: int = 8) -> pl.DataFrame:
    """Two numbers, one of them with gaps, and a colour; a class, three labels and a speaker to be told from them."""
    rng, frames = np.random.default_rng(0), []
    for g in range(groups):
        n = int(rng.integers(4, 12)) if g else 12
        x, y = rng.standard_normal((2, n))
        y[2::5] = np.nan
        frames.append(
            pl.DataFrame(
                {
                    "device": [f"d{g}"] * n,
                    "x": x,
                    "y": y,
                    "colour": rng.choice(["red", "green", "blue"], n),
                    "class": np.where(np.cumsum(x) > 0, "up", "down"),
                    "wet": (x > 0).astype(int),
                    "cold": (np.cumsum(x) > 0).astype(int),
                    "dark": (x < 0.5).astype(int),
                    "who": ["ann" if g % 2 else "bob"] * n,
                }
            ).with_columns(pl.col("y").fill_nan(None))
        )
    return pl.concat(frames)


def hours_table(n: int = 120) -> pl.DataFrame:
    t = np.arange(n)
    hours = [f"2024-01-{1 + k // 24:02d} {k % 24:02d}:00" for k in t]
    return pl.DataFrame({"hour": hours, "load": 5000 + 900 * np.sin(t / 9), "wind": np.cos(t / 7) + 0.1 * np.sin(t)})


def words_table(rows: int = 8) -> pl.DataFrame:
    rng = np.random.default_rng(1)
    words = [list(rng.choice(["play", "the", "song", "Aragon", "by", "🎉🎉", "Dampfschiff"], 9)) for _ in range(rows)]
    return pl.DataFrame({"words": words, "slots": [["B-name" if len(w) > 4 else "O" for w in row] for row in words]})


def evil_table() -> pl.DataFrame:
    rng = np.random.default_rng(2)
    frames = [
        pl.DataFrame(
            {
                "id": [f"{EVIL}{WORSE}{g}"] * 6,
                EVIL: rng.standard_normal(6),
                WORSE: [EVIL, WORSE, *rng.choice([EVIL, WORSE], 4)],
                "class": [EVIL, WORSE, *rng.choice([EVIL, WORSE], 4)],
            }
        )
        for g in range(10)
    ]
    return pl.concat(frames)


def fake(of: Inspection, steps: int, units: int, directions: tuple[str, ...] = ("",)) -> Inspection:
    """An inspection of random numbers that obey the GRU's equations, of any size."""
    rng = np.random.default_rng(3)
    layers = []
    for name in directions:
        given, state = (2 * rng.standard_normal((steps, 3 * units)) for _ in range(2))
        given[:, units : 2 * units] += np.linspace(-4, 6, units)  # from units that follow the input to ones that keep
        reset, update, _ = np.split(1 / (1 + np.exp(-given - state)), 3, axis=1)
        new = np.tanh(given[:, 2 * units :] + reset * state[:, 2 * units :])
        hidden, before, h = np.empty_like(new), np.empty_like(new), np.zeros(units)
        for t in range(steps)[:: -1 if name else 1]:
            before[t] = h
            hidden[t] = h = (1 - update[t]) * new[t] + update[t] * h
        arrays = [torch.from_numpy(v).float() for v in (reset, update, new, state[:, 2 * units :], hidden)]
        counter = Counter(reverse=bool(name))
        counter.add(Gates(*(v[:2000, None] for v in arrays)))
        parts = [torch.from_numpy(v).float() for v in (given, state, before)]
        layers.append(Layer(f"l0{name}", Gates(*arrays), *parts, counter.result()))
    drawn = np.unique(
        np.linspace(0, steps - 1, min(steps, MOST_COLUMNS, MOST_CELLS // (units * len(layers)))).round().astype(int)
    )
    columns = [InputColumn(n, "number", rng.standard_normal(steps).cumsum(), None, ()) for n in ("a", "b", "c")]
    guess, truth = rng.choice(["up", "down"], (2, steps)).tolist()
    output = replace(of.outputs[0], values=guess, truth=truth, top=[[(v, 0.75), ("other", 0.25)] for v in guess])
    lean = Lean(rng.random((len(drawn), len(drawn))), rng.random((len(drawn), 3)), None)
    return replace(of, length=steps, first=1, last=steps, rows=np.arange(steps), times=None, columns=columns, outputs=[output], layers=layers,
                   drawn=drawn, lean=lean)  # fmt: skip


def extreme(of: Inspection) -> Inspection:
    """Gates at both ends of their scales: unit 0 shut and negative in the first step, open and positive in the second."""
    out = fake(of, 4, 3)
    (layer,) = out.layers
    for t, sign in enumerate((-1.0, 1.0)):
        layer.input_part[t, [0, 3, 6]] = 30.0 * sign  # r, z and n of unit 0
        layer.state_part[t, [0, 3]] = 0.0
        layer.gates.recurrent[t, 0] = 0.0
        layer.gates.update[t, 0] = layer.gates.reset[t, 0] = (1 + sign) / 2
        layer.gates.candidate[t, 0] = layer.gates.hidden[t, 0] = sign
    return out


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
    """The same window for all tests of this file, since a new one for each would take longer than most of them."""
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


# --- reading a page ----------------------------------------------------------------------------------------------

READ = """() => {
  const texts = (query) => [...document.querySelectorAll(query)].map((e) => e.textContent);
  const [before, input, z, r, n, h] = texts(".cell .value");
  return {
    title: texts(".panel > :first-child")[0], unit: +texts(".halves > :last-child > :first-child")[0].match(/\\d+/)[0], before, input, z, r, n, h,
    edges: texts(".cell .edge"), equations: texts(".equation")[0], told: texts(".halves p")[0],
    facts: [...document.querySelectorAll(".panel tr")].map((row) => [...row.cells].map((cell) => cell.innerText)),
    layer: document.querySelector(".bar select").value, chosen: +document.querySelectorAll(".bar select")[1].value,
    row: document.querySelector(".units [aria-current] td")?.textContent, slider: +document.querySelector("[type=range]").value,
    said: document.querySelector("[type=range]").getAttribute("aria-valuetext"),
  };
}"""

PIXELS = """([row, steps, P, y]) => {
  const canvas = [...document.querySelectorAll(".row")].find((e) => e.querySelector(".label").innerText.startsWith(row)).querySelector("canvas");
  const c = canvas.getContext("2d"), at = y < 0 ? canvas.height + y : y;
  return steps.map((p) => [...c.getImageData(Math.floor((p + 0.5) * canvas.width / P), at, 1, 1).data]);
}"""
ROWS = {"update": "update gate z", "reset": "reset gate r", "candidate": "candidate n", "hidden": "state h"}


def read(page: Page) -> SimpleNamespace:
    return SimpleNamespace(**page.evaluate(READ))


def step(page: Page) -> int:
    return int(read(page).title.split()[1].replace(",", ""))


def number(text: str) -> float:
    return float(text.replace("−", "-").replace(",", ""))


def percent(share: float) -> str:
    return "<1%" if 0 < share < 0.005 else ">99%" if 0.995 <= share < 1 else f"{math.floor(100 * share + 0.5)}%"


def go(page: Page, shown: Inspection, p: int, unit: int, layer: int = 0) -> None:
    """To the p-th step that is drawn, by the address."""
    page.evaluate(
        "hash => new Promise((done) => { addEventListener('hashchange', () => setTimeout(done), { once: true }); location.hash = hash; })",
        f"step={shown.drawn[p] + shown.first}&unit={unit}&layer={shown.layers[layer].name}&{time.monotonic()}",
    )


def places(shown: Inspection) -> list[tuple[int, int, int]]:
    """Some (layer, unit, step) with both ends of each among them."""
    P, rng = len(shown.drawn), np.random.default_rng(4)
    out = []
    for k, layer in enumerate(shown.layers):
        H = layer.statistics.units
        out += [(k, 0, 0), (k, H - 1, P - 1), *((k, int(rng.integers(H)), int(rng.integers(P))) for _ in range(3))]
    return out


def pixels(page: Page, row: str, steps: Sequence[int], P: int, y: int) -> list[list[int]]:
    """The colours of a row's picture in the middle of some steps, y pixels from the top (or, below 0, from the bottom)."""
    return page.evaluate(PIXELS, [row, list(steps), P, y])


def middle(page: Page, row: str, p: int, P: int, part: float = 0.5) -> tuple[float, float]:
    """Where a step of a row is on the screen; part: how far down."""
    canvas = page.locator(".row", has=page.locator(".label", has_text=re.compile(f"^{re.escape(row)}"))).first.locator(
        "canvas"
    )
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box
    return box["x"] + (p + 0.5) * box["width"] / P, box["y"] + part * box["height"]


def rgb(colour: str) -> list[int]:
    return [int(colour[k : k + 2], 16) for k in (1, 3, 5)]


# --- the numbers -------------------------------------------------------------------------------------------------


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


# --- the pictures ------------------------------------------------------------------------------------------------


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


# --- mouse and keys ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ["update gate z", "state h", "x", "colour", "prediction leans on", "true", "unit"])
def test_dragging_over_any_row_moves_the_cursor(show, page, row):
    P = len(show("steps").drawn)
    unit = read(page).unit
    if row in ("update gate z", "state h"):
        unit = None  # pressing on a map also picks the unit under the pointer
    for p in (2, 7, P - 1, 0):
        page.mouse.move(*middle(page, row, p, P))
        if p == 2:
            page.mouse.down()
        assert step(page) == p + 1
    x, y = middle(page, row, 0, P)
    page.mouse.move(x - 400, y)
    assert step(page) == 1
    page.mouse.move(x + 4000, y)
    assert step(page) == P
    page.mouse.up()
    page.mouse.move(*middle(page, row, 3, P))
    assert step(page) == P  # let go
    page.mouse.move(*middle(page, row, 5, P))
    page.mouse.down()
    page.mouse.up()
    page.locator("h1").hover()
    page.mouse.down()
    page.mouse.move(*middle(page, row, 3, P))
    page.mouse.up()
    assert step(page) == 6  # pressed elsewhere
    assert unit in (None, read(page).unit)


def test_the_cursor_stands_over_the_step(show, page):
    P = len(show("steps").drawn)
    for p in (0, 5, P - 1):
        go(page, show("steps"), p, 0)
        box = page.locator(".cursor").bounding_box()
        x, _ = middle(page, "state h", p, P)
        assert box["x"] + box["width"] / 2 == pytest.approx(x, abs=1.5)


def test_arrows_home_and_end_step_and_stop_at_the_ends(show, page):
    P = len(show("steps").drawn)
    for key, expected in [("Home", 1), ("ArrowLeft", 1), ("ArrowRight", 2), ("ArrowRight", 3), ("ArrowLeft", 2), ("End", P), ("ArrowRight", P)]:  # fmt: skip
        page.keyboard.press(key)
        assert step(page) == expected


def test_a_unit_is_picked_by_the_list_the_arrows_the_table_and_in_a_map(show, page):
    shown = show("steps")
    order = shown.layers[0].statistics.order.tolist()

    def all_agree(unit: int) -> None:
        now = read(page)
        assert (now.unit, now.chosen, int(now.row)) == (unit, unit, unit)
        assert page.locator(".row .name", has_text=f"unit {unit}").is_visible()
        marks = page.evaluate("() => [...document.querySelectorAll('.map')].map((row) => [row.querySelector('.mark').getBoundingClientRect(), row.querySelector('canvas').getBoundingClientRect()].map((box) => [box.y + box.height / 2, box.y, box.height]))")  # fmt: skip
        for (at, *_), (_, top, height) in marks:
            assert int((at - top) / height * len(order)) == order.index(unit)

    page.locator(".bar select").nth(1).select_option(str(order[3]))
    all_agree(order[3])
    page.locator("h1").click()  # away from the list, which has arrows of its own
    for key, row in [("ArrowDown", 4), ("ArrowDown", 5), ("ArrowDown", 5), ("ArrowUp", 4)]:
        page.keyboard.press(key)
        all_agree(order[row])
    page.keyboard.press("Home")
    page.locator(".units tbody tr").nth(1).click()
    all_agree(order[1])
    page.mouse.click(*middle(page, "candidate n", 6, 12, part=2.5 / 6))
    all_agree(order[2])
    assert step(page) == 7


def test_the_layer_and_direction_change_by_the_list_and_by_l(show, page):
    shown = show("words")
    names = [layer.title for layer in shown.layers]
    options = page.locator(".bar select").first.locator("option").all_inner_texts()
    assert [text.split(" (")[0] for text in options] == names
    sentences = list(shown.sentences.values())
    for k in (1, 2, 3, 0):
        page.keyboard.press("l")
        assert read(page).layer == str(k)
        assert page.locator(".said p").all_inner_texts() == [text for text, _ in sentences[k]]
    page.locator(".bar select").first.select_option("2")
    assert read(page).layer == "2"
    assert page.locator(".said p").first.inner_text() == sentences[2][0][0]


def test_in_a_comparison_one_cursor_moves_both_and_each_keeps_its_unit(made, page, tmp_path, shot):
    views = [made("wide").inspection, made("whole").inspection]
    write_page(tmp_path / "both.html", views)
    page.goto((tmp_path / "both.html").as_uri())
    titles = lambda: [text.split(",")[0] for text in page.locator(".panel > :first-child").all_inner_texts()]  # noqa: E731
    units = lambda: [int(box.input_value()) for box in page.locator(".bar label:nth-child(2) select").all()]  # noqa: E731
    page.keyboard.press("End")
    assert titles() == ["step 12 of 12"] * 2
    second = page.locator("section.view").nth(1)
    box = second.locator(".map canvas").first.bounding_box()
    was = units()
    page.mouse.click(box["x"] + 4.5 * box["width"] / 12, box["y"] + box["height"] - 2)
    assert titles() == ["step 5 of 12"] * 2
    assert units() == [was[0], int(views[1].layers[0].statistics.order[-1])]
    page.keyboard.press("ArrowUp")  # the view touched last
    assert units() == [was[0], int(views[1].layers[0].statistics.order[-2])]
    shot(page, "gates/compare")


def test_more_columns_are_drawn_when_asked_for_and_the_focus_stays(made, page, tmp_path):
    shown = made("steps").inspection
    many = [replace(shown.columns[0], name=f"column {k}") for k in range(11)]
    replace(shown, columns=many, lean=replace(shown.lean, columns=np.ones((12, 11)))).write_html(tmp_path / "many.html")
    page.goto((tmp_path / "many.html").as_uri())
    drawn = lambda: sum(text.startswith("column") for text in page.locator(".row .name").all_inner_texts())  # noqa: E731
    assert drawn() == 8
    page.get_by_role("button", name="3 more columns").press("Enter")
    assert drawn() == 11
    assert page.evaluate("() => document.activeElement.textContent") == "fewer columns"
    page.keyboard.press("Enter")
    assert drawn() == 8


# --- for everybody -----------------------------------------------------------------------------------------------


def test_the_keyboard_alone_reaches_everything_in_order_and_shows_where_it_is(show, page):
    show("steps")
    everything = "() => [...document.querySelectorAll('a, button, select, input, [tabindex=\"0\"]')].filter((e) => e.checkVisibility())"
    count = page.evaluate(f"() => ({everything})().length")
    visited = []
    for _ in range(count):
        page.keyboard.press("Tab")
        at = page.evaluate(f"() => ({everything})().indexOf(document.activeElement)")
        ring = page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
        assert ring != "none", at
        visited.append(at)
    assert visited == list(range(count))
    assert count > 20


def test_the_slider_is_worked_by_keys(show, page):
    shown = show("steps")
    order = shown.layers[0].statistics.order.tolist()
    page.locator("[type=range]").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert step(page) == 2
    unit = read(page).unit
    page.keyboard.press("ArrowDown")
    assert (step(page), read(page).unit) == (2, order[order.index(unit) + 1])
    page.keyboard.press("End")
    assert read(page).said == f"step {len(shown.drawn)} of {shown.length}"


def test_every_term_tells_its_definition_on_focus_and_on_hover_until_escape(show, page):
    shown = show("steps")
    note = page.locator(".note")
    told = set()
    for term in page.locator("dfn").all():
        term.focus()
        assert note.is_visible()
        assert note.inner_text() == term.get_attribute("aria-description")
        told.add(note.inner_text())
        box = note.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 1200
        page.keyboard.press("Escape")
        assert not note.is_visible()
    assert {*DEFINITIONS.values()} <= told
    assert {definition for _, definition in shown.sentences["l0"]} <= told
    page.mouse.move(0, 0)
    term = page.locator(".said dfn").first
    term.hover()
    assert note.is_visible()
    box = note.bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + 5, steps=4)  # onto the note itself, which must not flee
    page.wait_for_timeout(300)
    assert note.is_visible()
    page.mouse.move(1100, 5)
    note.wait_for(state="hidden")


@pytest.mark.parametrize("name", ["steps", "words", "whole", "forecast", "one"])
def test_every_control_and_picture_has_a_name(show, page, name):
    show(name)
    session = page.context.new_cdp_session(page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    found: dict[str, list[str]] = {}
    for node in nodes:
        if not node.get("ignored"):
            found.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", "").strip())
    assert {"button", "combobox", "slider", "region", "table"} <= found.keys()
    named = "button|combobox|slider|option|table|columnheader|rowheader|image|group|region|complementary"
    assert [role for role, names in found.items() if re.fullmatch(named, role) and not all(names)] == []
    described = [n for n in nodes if n["role"]["value"] == "term"]
    assert described
    assert all(n.get("description", {}).get("value") for n in described)
    levels = [int(h.evaluate("h => h.tagName[1]")) for h in page.locator("h1, h2, h3").all()]
    assert levels == [1] + [2] * (len(levels) - 1)


CONTRASTS = """() => {
  const parse = (text) => {
    const v = text.match(/-?[\\d.]+(e-?\\d+)?/g).map(Number), unit = text.startsWith("color(") ? 255 : 1;
    return [v[0] * unit, v[1] * unit, v[2] * unit, v[3] ?? 1];
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3]));
  const behind = (e) => {
    if (!e) return [255, 255, 255];
    const colour = parse(getComputedStyle(e).backgroundColor);
    return colour[3] === 1 ? colour.slice(0, 3) : over(colour, behind(e.parentElement));
  };
  const light = (c) => {
    const [r, g, b] = c.map((v) => ((v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const out = {}, walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement, text = walk.currentNode.textContent.trim();
    if (!text || !e.checkVisibility() || e.closest("script, noscript, option")) continue;
    const box = e.closest(".cell g"), below = box ? parse(getComputedStyle(box.querySelector("rect")).fill).slice(0, 3) : behind(e);
    const own = getComputedStyle(e), a = light(over(parse(e.closest("svg") ? own.fill : own.color), below)), b = light(below);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) out[text] = ratio;
  }
  return out;
}"""


@pytest.mark.parametrize("name", ["steps", "words", "forecast"])
def test_all_text_has_the_contrast_that_wcag_asks_for(show, page, name):
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        show(name)
        assert page.evaluate(CONTRASTS) == {}, scheme


@pytest.mark.parametrize("name", ["steps", "words", "labels", "whole", "forecast", "one", "evil", "thinned"])
def test_nothing_sticks_out_of_a_narrow_window(show, page, shot, name):
    page.set_viewport_size({"width": 360, "height": 740})
    show(name)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 360
    for term in page.locator("dfn").all()[:6]:
        term.focus()
        box = page.locator(".note").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360
        assert box["y"] >= 0
    page.keyboard.press("Escape")
    if name in ("words", "forecast", "evil"):
        shot(page, f"gates/{name}-360")


def test_the_pictures_fit_the_window_after_it_was_resized(show, page):
    show("words")
    fitting = "() => [...document.querySelectorAll('.row:not(.map) canvas')].every((c) => c.width === c.clientWidth && c.height === c.clientHeight)"
    assert page.evaluate(fitting)
    wide = page.locator("canvas").first.bounding_box()
    page.set_viewport_size({"width": 400, "height": 800})
    page.wait_for_function(fitting)
    narrow = page.locator("canvas").first.bounding_box()
    assert narrow["width"] < wide["width"] - 100
    assert narrow["height"] > wide["height"]  # the words now stand upright


def test_names_that_are_html_stay_text(show, page, made):
    shown = show("evil")
    whole = page.locator("body").inner_text()
    assert page.locator("h1").inner_text().endswith(shown.sequence)
    assert f"{EVIL}{WORSE}" in shown.sequence
    assert shown.run in whole
    assert page.title().startswith(shown.run)
    facts = read(page).facts
    assert {EVIL, WORSE} <= {row[0] for row in facts}
    output = shown.outputs[0]
    for p in range(len(shown.drawn)):
        page.keyboard.press("Home" if not p else "ArrowRight")
        facts = dict(read(page).facts)
        assert facts[WORSE] == shown.columns[1].values[p]
        assert facts["true"].rsplit(" ", 1)[0] == output.truth[p]
        assert facts["prediction"].strip().startswith(output.values[p])
    assert {*shown.columns[1].values} == {*output.truth} == {EVIL, WORSE}
    assert page.locator("body img, .view script, h1 *:not(.soft)").count() == 0
    assert made("evil").path.read_text().count("<script") == 2  # the page's own: its numbers and its program


def test_without_a_script_the_page_says_what_was_found(browser, made):
    context = browser.new_context(java_script_enabled=False, offline=True)
    page = context.new_page()
    page.goto(made("words").url)
    text = page.locator("main").inner_text()
    for sentences in made("words").inspection.sentences.values():
        for sentence, _ in sentences:
            assert sentence in text
    assert "this browser doesn't run" in text
    context.close()


@pytest.mark.parametrize(
    ("name", "scheme"),
    [*((name, "light") for name in ("steps", "words", "labels", "whole", "forecast", "one", "no target")),
     *((name, "dark") for name in ("words", "forecast"))],
)  # fmt: skip
def test_pictures_of_every_kind_of_run_are_kept_for_people_to_look_at(show, page, shot, name, scheme):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 1400, "height": 900})
    show(name)
    shot(page, f"gates/{name.replace(' ', '-')}-{scheme}")
    for canvas in page.locator("canvas").all():  # no row is empty, and none is bitmap noise of size 0
        assert canvas.evaluate("c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some((v) => v > 0)")


# --- size and speed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("directions", "most"), [(("",), 1.0), (("", "_reverse"), 2.0)])
def test_a_page_of_200_steps_and_128_units_is_small(made, directions, most):
    size = len(fake(made("steps").inspection, 200, 128, directions).html().encode())
    print(f"200 steps x 128 units, {len(directions)} direction(s): {size / 1e6:.2f} MB")
    assert size < most * 1e6


def test_a_page_of_10_000_steps_and_512_units_stays_fluid(show, page, made):
    made("big")  # not part of the time
    begun = time.perf_counter()
    show("big")
    loaded = time.perf_counter() - begun
    longest = page.evaluate(
        "() => new Promise((done) => { new PerformanceObserver((list) => done(Math.max(...list.getEntries().map((e) => e.duration)))).observe({ type: 'longtask', buffered: true }); setTimeout(() => done(0), 500); })"
    )
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")

    def spent() -> dict[str, float]:
        return {m["name"]: m["value"] for m in session.send("Performance.getMetrics")["metrics"]}

    page.keyboard.press("Home")
    before, begun = spent(), time.perf_counter()
    for _ in range(100):
        page.keyboard.press("ArrowRight")
    moved, after = time.perf_counter() - begun, spent()
    assert read(page).slider == 100
    script, layout = (10 * (after[name] - before[name]) for name in ("ScriptDuration", "LayoutDuration"))  # ms a move
    print(
        f"10,000 steps x 512 units: {made('big').path.stat().st_size / 1e6:.2f} MB, loaded in {loaded:.2f} s (longest task {longest:.0f} ms); "
        f"100 moves in {moved:.2f} s, each {script:.1f} ms of script and {layout:.1f} ms of layout"
    )
    assert made("big").path.stat().st_size < 4e6  # times are printed, not asserted: machines are noisy
