"""`GradientFlow`: what was measured, to be read, drawn or worked with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from tidegate import __version__
from tidegate.files import write_text
from tidegate.model.cells import CELLS
from tidegate.pages import render
from tidegate.report.charts import line_chart
from tidegate.report.gate_curves import DEFINITIONS, gate_curves
from tidegate.trained.comparison import nice, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXPLODED = 10.0  # times what it was
TELLING = 0.01
FLOOR = 1e-6  # nothing smaller is drawn or told
LEFT = {"half": 0.5, "tenth": 0.1, "thousandth": 0.001}
FEW = 20  # predictions: with fewer a sentence warns of chance
_ROUND = (1, 2, 5, 10, 20, 50, 100, 200)

GRADIENT = (
    "The gradient dL/dh of the loss L of one prediction by the state h of a step: how much L would change if that state "
    "changed a little. Its size is its length, divided here by that at the predicted step itself. Learning that a step matters "
    "for a prediction later on takes a gradient that reaches back to it."
)
ONCE = "Each cell was trained once, with one seed: a small difference between two figures may be chance."


@dataclass(frozen=True)
class Reach:
    """The size of the gradient k = 0, 1, 2 ... steps back, relative to k = 0, over the predictions that reach back that far.

    low, median, high [K]: quartiles.   shown: how many of the K are trusted (see `FEWEST`), and all figures below but ever_above are of.
    ever_above: the share of predictions whose gradient ever was above 10 times what it was at k = 0.
    """

    low: np.ndarray
    median: np.ndarray
    high: np.ndarray
    shown: int
    ever_above: float

    def left_after(self, share: float) -> int | None:
        """The first k at which no more than `share` is left, as a median; None: never within what is shown."""
        below = self.median[: self.shown] <= share
        return int(below.argmax()) if below.any() else None

    @property
    def largest(self) -> float:
        return float(self.median[: self.shown].max())

    @property
    def exploded(self) -> bool:
        """Whether the median ever grew above 10 times what it was."""
        return self.largest > EXPLODED


@dataclass(frozen=True)
class CellFlow:
    """One of the three: its run, what it scores on the test rows, and how its gradient fares.

    h: of the state. c: of an LSTM's memory, dL/dc.
    """

    cell: str
    folder: Path | None
    parameters: int
    scored_on: str
    score: float
    h: Reach
    c: Reach | None

    @property
    def name(self) -> str:
        return CELLS[self.cell].title

    def curves(self) -> list[tuple[str, str, Reach]]:
        """(name, "h" or "c", Reach)"""
        out = [(self.name if self.c is None else f"{self.name}, state h", "h", self.h)]
        return out if self.c is None else [*out, (f"{self.name}, memory c", "c", self.c)]


@dataclass(frozen=True)
class GradientFlow:
    """What `measure_gradients` found, to be read (`sentences`, `str`), drawn (`plot`, `write_html`) or worked with.

    what: the rows whose predictions were taken; place: which predictions; counts [K]: how many of them reach back k steps.
    """

    run: str
    title: str
    described: str
    what: str
    place: str
    sequences: int
    predictions: int
    unmoved: int
    counts: np.ndarray
    metric: str
    more_is_better: bool
    cells: dict[str, CellFlow]
    history: list[dict[str, float]]
    best_epoch: int | None

    @property
    def shown(self) -> int:
        return self.gated.h.shown

    @property
    def gated(self) -> CellFlow:
        """The first of the three, whose gates are to carry the gradient: the run's own cell, or the GRU beside it."""
        return next(iter(self.cells.values()))

    @property
    def drawn(self) -> int:
        """How many of these are drawn: until every median has fallen below a millionth."""
        seen = [
            np.flatnonzero(r.median[: self.shown] >= FLOOR)[-1] for f in self.cells.values() for *_, r in f.curves()
        ]
        return min(self.shown, int(max(seen)) + 2)

    @property
    def steps_back(self) -> int:
        """The round number of steps at which the three are compared: the largest that half of the predictions reach and at
        which one of the three still has a hundredth of its gradient.
        """
        there = [k for k in _ROUND if k < self.shown and self.counts[k] * 2 >= self.predictions]  # 1 at least
        telling = [k for k in there if any(flow.h.median[k] >= TELLING for flow in self.cells.values())]
        return (telling or there[:1])[-1]

    @property
    def sentences(self) -> list[tuple[str, str]]:
        """(sentence, definition) pairs."""
        k = self.steps_back
        gated, lstm, rnn = self.cells.values()
        order = [rnn, gated, lstm]

        def told(flow: CellFlow) -> str:
            text = _share(float(flow.h.median[k]))
            return text if flow.c is None else f"{text} (its memory c: {_share(float(flow.c.median[k]))})"

        out = [
            (
                f"{_steps(k)} back the plain RNN's gradient is {told(rnn)} of what it was, the {gated.name}'s {told(gated)}, the LSTM's {told(lstm)}.",
                f"{GRADIENT} Medians over the {int(self.counts[k]):,} predictions with that many steps before them.",
            )
        ]
        if self.predictions < FEW:
            count = f"{self.predictions:,} prediction{'s' * (self.predictions != 1)}"
            text = f"Only {count} could be measured, so all of this may be chance."
            out.append((text, f"Medians and quartiles of fewer than {FEW} predictions say little of others."))
        if gated.h.median[k] <= rnn.h.median[k]:
            text = f"The {gated.name}'s gates carry no more of the gradient that far back than the plain RNN does."
            out.append((text, f"The {gated.name}'s median is not above the plain RNN's, {_steps(k)} back. {ONCE}"))
        half = ", ".join(f"{_until(flow.h, 0.5)} in the {flow.name}" for flow in order)
        thousandth = ", ".join(f"{_until(flow.h, 0.001)} in the {flow.name}" for flow in order)
        definition = f"The first step back at which the median is at most that. Medians are shown for up to {_steps(self.shown - 1)}, as far as a tenth of the predictions reach."
        out.append((f"Half of it is gone {half}.", definition))
        out.append((f"All but a thousandth is gone {thousandth}.", definition))
        exploding = [flow for flow in order if flow.h.exploded or (flow.c is not None and flow.c.exploded)]
        definition = f"Exploding: the median grows above {EXPLODED:g} times what it was at the predicted step."
        for flow in exploding:
            reach = flow.h if flow.h.exploded or flow.c is None else flow.c
            far = _steps(int(reach.median[: reach.shown].argmax()))
            text = f"The {flow.name}'s gradient explodes: {far} back it is {reach.largest:.3g} times what it was."
            out.append((text, definition))
        if not exploding:
            ever = [f"{flow.h.ever_above:.1%} of them ({flow.name})" for flow in order if flow.h.ever_above]
            text = "None of the three explodes."
            if ever:
                text = f"None of the three explodes as a median; in single predictions it does: {', '.join(ever)}."
            out.append((text, definition))
        out += self._scores(rnn, gated, order)
        return out

    def _scores(self, rnn: CellFlow, gated: CellFlow, order: list[CellFlow]) -> list[tuple[str, str]]:
        metric = nice(self.metric)
        figures = ", ".join(f"{number(flow.score)} ({flow.name})" for flow in order)
        worth = f"{metric}, where {'more' if self.more_is_better else 'less'} is better"
        out = [(f"On {gated.scored_on}: {metric} {figures}.", f"{worth[0].upper()}{worth[1:]}. {ONCE}")]
        sign = 1 if self.more_is_better else -1
        if sign * rnn.score >= sign * gated.score:
            text = f"The plain RNN does as well here as the {gated.name} or better: nothing shows that this table needs gates, however far they carry the gradient."
            out.append((text, f"Compared by {worth}, on {gated.scored_on}. {ONCE}"))
        else:
            gap = number(abs(gated.score - rnn.score))
            text = f"The {gated.name} is ahead of the plain RNN by {gap} in {metric}. That its gradient is the reason is not shown by these figures."
            out.append((text, f"Compared on {gated.scored_on}. {ONCE}"))
        return out

    def figures(self) -> tuple[list[str], list[list[str]]]:
        """Head and rows of the table of the three."""
        k = self.steps_back
        head = ["", "parameters", nice(self.metric), f"left {_steps(k)} back", *(f"to a {name}" if name != "half" else "to half" for name in LEFT), "at most", "exploded"]  # fmt: skip
        rows = []
        for flow in self.cells.values():
            for name, which, reach in flow.curves():
                own = [f"{flow.parameters:,}", number(flow.score)] if which == "h" else ["", ""]
                left = [_or_more(reach.left_after(share), reach.shown) for share in LEFT.values()]
                most = f"{reach.largest:.3g} x"
                rows.append([name, *own, _short(reach.median[k]), *left, most, "yes" if reach.exploded else "no"])
        return head, rows

    def steps_table(self) -> tuple[list[str], list[list[str]]]:
        """Head and rows of the medians and quartiles at round numbers of steps back."""
        ks = [k for k in _ROUND if k < self.shown]
        curves = [curve for flow in self.cells.values() for curve in flow.curves()]
        rows = []
        for k in ks:
            cells = [_with_quartiles(r.low[k], r.median[k], r.high[k]) for *_, r in curves]
            rows.append([str(k), f"{int(self.counts[k]):,}", *cells])
        return ["steps back", "predictions", *(name for name, *_ in curves)], rows

    def __str__(self) -> str:
        head, rows = self.figures()
        widths = [max(len(r[i]) for r in [head, *rows]) for i in range(len(head))]
        lines = [f"{self.title}. {self.place}"]
        for row in [head, *rows]:
            cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
            lines.append("  ".join(cells).rstrip())
        return "\n".join([*lines, *(text for text, _ in self.sentences)])

    def to_frame(self) -> pl.DataFrame:
        """A row for each cell, state ("h" or "c") and number of steps back; sizes are relative to 0 steps back."""
        frames = []
        for flow in self.cells.values():
            for _, which, reach in flow.curves():
                frames.append(
                    pl.DataFrame(
                        {
                            "cell": flow.cell,
                            "state": which,
                            "steps_back": np.arange(len(reach.median)),
                            "predictions": self.counts,
                            "lower_quartile": reach.low,
                            "median": reach.median,
                            "upper_quartile": reach.high,
                        }
                    )
                )
        return pl.concat(frames)

    def to_dict(self) -> dict[str, Any]:
        """All figures as what JSON knows."""

        def told(reach: Reach | None) -> Any:
            if reach is None:
                return None
            return {
                **{name: getattr(reach, name).tolist() for name in ("low", "median", "high")},
                "steps_to": {name: reach.left_after(share) for name, share in LEFT.items()},
                "largest": reach.largest,
                "exploded": reach.exploded,
                "share_of_predictions_ever_above_10_times": reach.ever_above,
            }

        return {
            "run": self.run,
            "rows": self.what,
            "place": self.place,
            "sequences": self.sequences,
            "predictions": self.predictions,
            "left_out_without_gradient": self.unmoved,
            "predictions_that_reach": self.counts.tolist(),
            "shown_steps": self.shown - 1,
            "metric": self.metric,
            "cells": {
                name: {
                    "folder": str(flow.folder) if flow.folder else None,
                    "parameters": flow.parameters,
                    "score": flow.score,
                    "scored_on": flow.scored_on,
                    "h": told(flow.h),
                    "c": told(flow.c),
                }
                for name, flow in self.cells.items()
            },
            "sentences": [text for text, _ in self.sentences],
        }

    def plot(self) -> Figure:
        """The curves as a matplotlib figure, with a log scale."""
        from matplotlib.ticker import MaxNLocator

        from tidegate.gates.pictures import new_figure
        from tidegate.report.charts import LIGHT

        figure = new_figure(figsize=(8.5, 4.6), layout="constrained")
        axis = figure.subplots()
        k = np.arange(self.drawn)
        curves = [curve for flow in self.cells.values() for curve in flow.curves()]
        for i, (name, _, reach) in enumerate(curves):
            median, low, high = (v[: self.drawn].clip(FLOOR / 100) for v in (reach.median, reach.low, reach.high))
            style = ("-", (0, (6, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))[i % 4]
            axis.plot(k, median, color=LIGHT[i % len(LIGHT)], linestyle=style, label=name)
            axis.fill_between(k, low, high, color=LIGHT[i % len(LIGHT)], alpha=0.15, linewidth=0)
        axis.set_yscale("log")
        axis.set_ylim(bottom=FLOOR)
        axis.set_xlabel("steps back from the prediction")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_ylabel("size of the gradient, relative to\nthat at the prediction")
        axis.set_title(self.title.replace("$", r"\$"), fontsize=11)
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
        return figure

    def chart(self) -> str:
        """The curves with the bands of their quartiles, as SVG."""
        lines, bands = {}, {}
        for flow in self.cells.values():
            for name, _, reach in flow.curves():
                k = range(self.drawn)
                lines[name] = [(float(i), float(reach.median[i])) for i in k]
                bands[name] = [(float(i), float(reach.low[i]), float(reach.high[i])) for i in k]
        title = "What is left of the gradient, so many steps back from the prediction"
        return line_chart(title, lines, x_name="steps back", log=True, floor=FLOOR, bands=bands, size=(880, 400))

    def html(self) -> str:
        head, rows = self.figures()
        steps_head, steps_rows = self.steps_table()
        values = {
            "flow": self,
            "version": __version__,
            "chart": self.chart(),
            "head": head,
            "rows": rows,
            "steps_head": steps_head,
            "steps_rows": steps_rows,
            "gates": gate_curves(self.history, self.best_epoch),
            "definitions": DEFINITIONS,
            "once": ONCE,
        }
        return render("tidegate.inspection", "gradients.html", values)

    def write_html(self, path: str | Path) -> None:
        """One file that asks nothing of the network and runs no script; whole or not there."""
        write_text(Path(path), self.html())


def _share(value: float) -> str:
    """Two digits that mean something, without exponents.

    >>> [_share(v) for v in (1.0, 0.1234, 0.00042, 3e-9, 0.0, 12.3, 4567.0)]
    ['1', '0.12', '0.00042', 'below a millionth', 'nothing', '12', '4,567']
    """
    if value == 0:
        return "nothing"
    if value < FLOOR:
        return "below a millionth"
    if value >= 10:
        return f"{value:,.0f}"
    return np.format_float_positional(float(f"{value:.2g}"), trim="-")


def _short(value: float) -> str:
    """The same for a table."""
    return "< 10⁻⁶" if value < FLOOR else _share(float(value))


def _with_quartiles(low: float, median: float, high: float) -> str:
    return _short(high) if high < FLOOR else f"{_short(median)} ({_short(low)} – {_short(high)})"


def _steps(k: int) -> str:
    return f"{k:,} step{'s' * (k != 1)}"


def _until(reach: Reach, share: float) -> str:
    k = reach.left_after(share)
    return f"not within {_steps(reach.shown - 1)}" if k is None else f"after {_steps(k)}"


def _or_more(k: int | None, shown: int) -> str:
    return f"> {shown - 1}" if k is None else str(k)
