"""What stands over the heat maps of a picture: the inputs, the predictions and the true values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import ListedColormap, hsv_to_rgb

from tidegate.gates.pictures import no_formula
from tidegate.inspection.sequence import GOLDEN

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from tidegate.inspection.inspection import Inspection, Output

_MOST_LINES = 6  # that can be told apart
TINTS = ("#80e6ff", "#ffc05d", "#ade9a3", "#fa82b9", "#fff54a", "#ef7555", "#9999e4", "#be8c85")
_ROOM = 90  # letters that fit along the steps


def tracks(found: Inspection) -> list[Callable[[Axes], None]]:
    """A function for each row, which draws it on axes that have the steps to the right."""
    steps = np.arange(found.first, found.last + 1)
    rows: list[Callable[[Axes], None]] = []
    numbers = [c for c in found.columns if c.kind == "number"]
    if numbers:
        rows.append(partial(_inputs, steps=steps, columns=numbers))
    if found.per != "sequence":
        for output in found.outputs[:_MOST_LINES]:
            rows.append(partial(_lines if output.kind == "number" else _strips, steps=steps, output=output))
    return rows


def _inputs(axis: Axes, steps: np.ndarray, columns: list[Any]) -> None:
    """All number columns in one row, each between its own smallest and largest value."""
    for column in columns[:_MOST_LINES]:
        values = column.values
        known = values[np.isfinite(values)]
        low, high = (known.min(), known.max()) if known.size else (0.0, 1.0)
        axis.plot(steps, (values - low) / ((high - low) or 1.0), linewidth=0.9, label=no_formula(column.name))
    axis.set_yticks([])
    axis.set_ylabel("inputs" if len(columns) <= _MOST_LINES else f"inputs\n({_MOST_LINES} of {len(columns)})")
    axis.legend(loc="upper right", fontsize=6, ncols=2, framealpha=0.7, borderpad=0.2, handlelength=1.2)


def _lines(axis: Axes, steps: np.ndarray, output: Output) -> None:
    axis.plot(steps, [v[0] for v in output.values], linewidth=1.2, label="predicted")
    if output.truth is not None:
        axis.plot(steps, [v[0] for v in output.truth], linestyle=":", color="black", linewidth=1.2, label="true")
    axis.set_ylabel(no_formula(output.name))
    axis.legend(loc="upper right", fontsize=6, framealpha=0.7, borderpad=0.2)


def _tints(count: int, grey: list[int]) -> list[Any]:
    """A colour for each of so many classes, light enough for black letters: first those that are told apart with every kind of
    colour vision, as on the page; then hues by the golden angle, in two shades. grey: no class of interest.
    """
    hues = np.arange(count) * GOLDEN % 1.0
    shades = np.where(np.arange(count) % 2, 0.82, 0.95)
    rest = hsv_to_rgb(np.stack([hues, np.full(count, 0.42), shades], axis=1))
    others = iter([*TINTS, *rest[len(TINTS) :]])
    return ["#d5dade" if k in grey else next(others) for k in range(count)]


def _strips(axis: Axes, steps: np.ndarray, output: Output) -> None:
    """The predicted classes over the true ones, a colour each, named where there is room."""
    rows = [output.values] + ([output.truth] if output.truth is not None else [])
    counts = Counter(v for row in rows for v in row if v is not None)
    place = {name: k for k, (name, _) in enumerate(counts.most_common())}  # the same colours in both rows
    grey = [k for name, k in place.items() if str(name) in {"O", "0", "False"}]
    colours = ListedColormap(_tints(len(place), grey))
    codes = np.array([[place.get(v, np.nan) for v in row] for row in rows], dtype=float)
    axis.imshow(
        codes,
        aspect="auto",
        interpolation="nearest",
        cmap=colours,
        vmin=-0.5,
        vmax=colours.N - 0.5,
        extent=(steps[0] - 0.5, steps[-1] + 0.5, len(rows), 0),
    )
    for row, values in enumerate(rows):
        begin = 0
        for end in range(1, len(values) + 1):
            if end < len(values) and values[end] == values[begin]:
                continue
            text = "" if values[begin] is None else str(values[begin]).replace("$", r"\$")
            room = _ROOM * (end - begin) / len(steps)
            wrapped = text.replace("-", "-\n", 1).replace("_", "_\n")
            for shown, size in ((text, 6.5), (wrapped, 5), (no_formula(text), 6.5)):
                lines = shown.split("\n")
                if len(lines) <= 3 and max(map(len, lines)) <= room * 6.5 / size:
                    middle = (steps[begin] + steps[end - 1]) / 2
                    axis.text(middle, row + 0.5, shown, ha="center", va="center", fontsize=size, clip_on=True)
                    break
            begin = end
    if output.truth is not None:
        wrong = [p for p, (guess, true) in enumerate(zip(*rows, strict=True)) if true is not None and guess != true]
        axis.plot(steps[wrong], np.full(len(wrong), 0.93), "x", color="#c92a2a", markersize=3.5, clip_on=False)
    names = ["predicted (× wrong)" if output.truth is not None else "predicted", "true"][: len(rows)]
    axis.set_yticks([k + 0.5 for k in range(len(rows))], names, fontsize=7)
    axis.set_ylabel(no_formula(output.name))
