"""Heat maps of gates as matplotlib figures."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from tidegate.gates.gates import Gates

ROWS = (("update", "update gate z"), ("reset", "reset gate r"), ("candidate", "candidate n"), ("hidden", "state h"))
FALLBACKS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Source Han Sans SC", "Microsoft YaHei",
    "PingFang SC", "Hiragino Sans GB", "Yu Gothic", "Malgun Gothic", "Noto Sans Arabic", "Noto Sans Hebrew", "Noto Sans",
)  # fmt: skip
_MOST_CELLS = 2_000  # along one side: a picture has no more pixels to show them with


def heat_maps(
    layers: Mapping[str, Gates],
    orders: Mapping[str, np.ndarray],
    titles: Mapping[str, str] | None = None,
    labels: Sequence[str] | None = None,
    above: Sequence[Callable[[Axes], None]] = (),
    first: int = 1,
) -> Figure:
    """A column a layer and direction, a row each for z, r (if there is one), n and h: steps to the right, units downwards.

    layers: gates of [T, H] by name; orders: which unit comes first, second ...; titles: by name; labels: what to write
    under the steps instead of their numbers; above: what draws further rows over these, each on axes with the same
    steps; first: the number of the first step.
    """
    with mpl.rc_context({"font.family": fonts()}):
        return _heat_maps(layers, orders, titles, labels, above, first)


def _heat_maps(layers, orders, titles, labels, above, first) -> Figure:
    rows = [row for row in ROWS if all(getattr(gates, row[0]) is not None for gates in layers.values())]
    heights = [0.45] * len(above) + [1.0] * len(rows)
    figure = new_figure(figsize=(1.6 + 4.6 * len(layers), 2.15 * sum(heights)), layout="constrained")
    axes = figure.subplots(len(heights), len(layers), squeeze=False, sharex="col", height_ratios=heights)
    for k, (name, gates) in enumerate(layers.items()):
        for row, (field, title) in enumerate(rows):
            values = getattr(gates, field).numpy()[:, orders[name]].T  # [H, T]
            axis = axes[len(above) + row, k]
            signed = field in ("candidate", "hidden")
            bound = max(1.0, float(np.abs(values).max(initial=0.0))) if signed else 1.0
            T = values.shape[1]
            image = axis.imshow(
                _thinned(values),
                aspect="auto",
                interpolation="nearest",
                cmap="RdBu_r" if signed else "viridis",
                vmin=-bound if signed else 0.0,
                vmax=bound,
                extent=(first - 0.5, first + T - 0.5, values.shape[0], 0),
            )
            axis.set_yticks([])
            if k == 0:
                axis.set_ylabel(f"{title}\n{values.shape[0]} units")
            if k == len(layers) - 1:
                figure.colorbar(image, ax=axis, fraction=0.06, pad=0.02)
        for draw, axis in zip(above, axes[:, k], strict=False):
            draw(axis)
            if k:
                axis.set_ylabel("")
        axes[0, k].set_title(titles[name] if titles else name, fontsize=11)
        bottom = axes[-1, k]
        if labels is not None and len(labels) <= 40:
            bottom.set_xticks(
                range(first, first + len(labels)),
                [no_formula(text) for text in labels],
                rotation=60,
                ha="right",
                fontsize=8,
            )
        else:
            bottom.set_xlabel("step")
            bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.supylabel("units, those that remember longest on top", fontsize=9)
    return figure


@cache
def fonts() -> list[str]:
    """The usual font, and after it those of this machine that have the letters which it lacks."""
    from matplotlib.font_manager import get_font_names

    there = set(get_font_names())
    return ["DejaVu Sans", *(name for name in FALLBACKS if name in there)]


def new_figure(**options) -> Figure:
    """A figure that belongs to nobody: pyplot keeps none of it alive, and it can be saved and shown in a notebook."""
    figure = Figure(**options)
    FigureCanvasAgg(figure)
    return figure


def _thinned(values: np.ndarray) -> np.ndarray:
    """Means of neighbouring cells where there are more than a picture can show."""
    for axis in (0, 1):
        size = values.shape[axis]
        if size > _MOST_CELLS:
            cuts = np.linspace(0, size, _MOST_CELLS + 1).astype(int)[:-1]
            counts = np.diff(np.append(cuts, size))
            values = np.add.reduceat(values, cuts, axis=axis) / np.expand_dims(counts, 1 - axis)
    return values


def no_formula(text: str) -> str:
    """Text that matplotlib won't take for a formula, not too long for an axis: without its middle, as names often begin alike.

    >>> no_formula("B-restriction_on_entry")
    'B-restr…on_on_entry'
    """
    text = text if len(text) <= 20 else f"{text[:7]}…{text[-11:]}"
    return text.replace("$", r"\$")


def png(figure: Figure) -> str:
    """The figure as a data: address."""
    file = io.BytesIO()
    with mpl.rc_context({"savefig.dpi": 90}):
        figure.savefig(file, format="png")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
