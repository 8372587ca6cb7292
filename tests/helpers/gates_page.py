"""Tiny runs of every kind for the page of the gates, and what is read from the page in the browser."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import torch

from tidegate.gates.gates import Gates
from tidegate.gates.statistics import Counter
from tidegate.inspection import Inspection
from tidegate.inspection.inspection import MOST_CELLS, MOST_COLUMNS, Layer
from tidegate.inspection.lean import Lean
from tidegate.inspection.sequence import InputColumn

if TYPE_CHECKING:
    from playwright.sync_api import Page


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
