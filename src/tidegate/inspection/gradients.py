"""How far back a prediction's gradient reaches, measured: a GRU beside an LSTM and a plain RNN of the same size, trained alike.

Through a plain RNN the gradient of a loss is multiplied by W_hh at every step back, so that it vanishes or explodes within
some steps (Bengio, Simard and Frasconi 1994; Pascanu, Mikolov and Bengio 2013, arXiv:1211.5063); gates are there to carry it
further. Whether they did on a given table is what is found here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from tidegate import __version__
from tidegate.data.batches import BatchSource
from tidegate.data.fitting import fit_preprocessing
from tidegate.data.preprocessing import Preprocessing
from tidegate.data.sequences import MISSING_CLASS
from tidegate.data.tables import Table
from tidegate.errors import DataError, Interrupted, RunError, SettingsError
from tidegate.files import write_text
from tidegate.model import ModelSpec, SequenceModel
from tidegate.model.tasks import TASKS
from tidegate.ops.gru.equations import gru_cell
from tidegate.pages import render
from tidegate.report.charts import line_chart
from tidegate.report.gate_curves import DEFINITIONS, gate_curves
from tidegate.trained import Trained, TrainSettings
from tidegate.trained.comparison import nice, number
from tidegate.trained.folder import CONFIG, PREPROCESSING
from tidegate.trained.rows import scored_rows, training_table
from tidegate.trained.trained import open_folder, read_settings
from tidegate.training.progress import Silent, make
from tidegate.training.trainer import fit, threads_at_most, train

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WORDS = {"gru": "GRU", "lstm": "LSTM", "rnn": "plain RNN"}  # in this order everywhere
OTHERS = "other_cells"  # the folder within a run
FARTHEST = 200  # steps back
PREDICTIONS = 200
MOST_STEPS = (
    20_000  # of a sequence that are read before the last prediction; states hold no trace of what lies further back
)
EXPLODED = 10.0  # times what it was
TELLING = 0.01
FLOOR = 1e-6  # nothing smaller is drawn or told
LEFT = {"half": 0.5, "tenth": 0.1, "thousandth": 0.001}
FEW = 20  # predictions: with fewer a sentence warns of chance
FEWEST = 0.1  # of the predictions: medians are shown as far back as so many of them reach
_ROUND = (1, 2, 5, 10, 20, 50, 100, 200)
_VALUES_AT_ONCE = 2**22  # of float64 in one tensor: 32 MB

State = tuple[Tensor, ...]  # (h,) or, of an LSTM, (h, c); [B, H] each
Settle = Callable[[Tensor, int], Tensor]  # what becomes of a new h (0) or c (1) before it is used


def _gru(x: Tensor, state: State, weights: Sequence[Tensor], settle: Settle) -> State:
    return (settle(gru_cell(x, state[0], *weights), 0),)


def _lstm(x: Tensor, state: State, weights: Sequence[Tensor], settle: Settle) -> State:
    """torch.lstm_cell written out, since h is to be made of the very c that is returned: dL/dc goes through both.

    c' = f ⊙ c + i ⊙ g        h' = o ⊙ tanh(c')
    """
    w_ih, w_hh, b_ih, b_hh = weights
    i, f, g, o = (linear(x, w_ih, b_ih) + linear(state[0], w_hh, b_hh)).chunk(4, dim=-1)
    c = settle(torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g), 1)
    return settle(torch.sigmoid(o) * torch.tanh(c), 0), c


def _rnn(x: Tensor, state: State, weights: Sequence[Tensor], settle: Settle) -> State:
    return (settle(torch.rnn_tanh_cell(x, state[0], *weights), 0),)


STEP: dict[str, Callable[[Tensor, State, Sequence[Tensor], Settle], State]] = {"gru": _gru, "lstm": _lstm, "rnn": _rnn}
_MODULES: dict[str, Any] = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN}

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
        return WORDS[self.cell]

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
        return self.cells["gru"].h.shown

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
        order = [self.cells[name] for name in ("rnn", "gru", "lstm")]

        def told(flow: CellFlow) -> str:
            text = _share(float(flow.h.median[k]))
            return text if flow.c is None else f"{text} (its memory c: {_share(float(flow.c.median[k]))})"

        rnn, gru, lstm = order
        out = [
            (
                f"{_steps(k)} back the plain RNN's gradient is {told(rnn)} of what it was, the GRU's {told(gru)}, the LSTM's {told(lstm)}.",
                f"{GRADIENT} Medians over the {int(self.counts[k]):,} predictions with that many steps before them.",
            )
        ]
        if self.predictions < FEW:
            count = f"{self.predictions:,} prediction{'s' * (self.predictions != 1)}"
            text = f"Only {count} could be measured, so all of this may be chance."
            out.append((text, f"Medians and quartiles of fewer than {FEW} predictions say little of others."))
        if gru.h.median[k] <= rnn.h.median[k]:
            text = "The GRU's gates carry no more of the gradient that far back than the plain RNN does."
            out.append((text, f"The GRU's median is not above the plain RNN's, {_steps(k)} back. {ONCE}"))
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
        out += self._scores(rnn, gru, order)
        return out

    def _scores(self, rnn: CellFlow, gru: CellFlow, order: list[CellFlow]) -> list[tuple[str, str]]:
        metric = nice(self.metric)
        figures = ", ".join(f"{number(flow.score)} ({flow.name})" for flow in order)
        worth = f"{metric}, where {'more' if self.more_is_better else 'less'} is better"
        out = [(f"On {gru.scored_on}: {metric} {figures}.", f"{worth[0].upper()}{worth[1:]}. {ONCE}")]
        sign = 1 if self.more_is_better else -1
        if sign * rnn.score >= sign * gru.score:
            text = "The plain RNN does as well here as the GRU or better: nothing shows that this table needs gates, however far they carry the gradient."
            out.append((text, f"Compared by {worth}, on {gru.scored_on}. {ONCE}"))
        else:
            gap = number(abs(gru.score - rnn.score))
            text = f"The GRU is ahead of the plain RNN by {gap} in {metric}. That its gradient is the reason is not shown by these figures."
            out.append((text, f"Compared on {gru.scored_on}. {ONCE}"))
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


def measure_gradients(run: Trained, table: Any, *, progress: bool | Silent = True) -> GradientFlow:
    """Measure how the gradient of a prediction fares on its way back through a GRU, an LSTM and a plain RNN.

    run: one of the three; the other two are trained on first use, with the run's own settings, seed and table, into
    `other_cells` of its folder. That is done once; when it is interrupted, the next call goes on.
    table: its rows that `run.evaluate` would score give the predictions; it is also the table to train the others on, unless
    the run's own file is still where it was.

    L is the loss of one prediction alone, at step t: the last scored step of a sequence (where there are fewer than 200
    sequences, also earlier ones, evenly spaced); with per="sequence" the sequence's own, read from the last state alone, since
    with a maximum or mean over the steps each of them would also have a direct share in the gradient, and that would hide
    what is carried. The size of dL/dh_{t-k}, h the states of the top layer's forward direction, is taken relative to k = 0,
    and the median over up to 200 predictions. In a bidirectional layer this direction's chain is the same as in a layer of one
    direction, and only what comes before t counts, so that the last scored step shows most of it.

    Raises SettingsError: the run has no recurrence, or the table it was trained on isn't to be had. DataError: nothing to
    score, or no prediction has a step before it. RunError: the run isn't finished. Interrupted: after Ctrl-C while training.
    """
    if run.model.spec.cell not in WORDS:
        raise SettingsError(
            f"{run.name} has cell={run.model.spec.cell!r}: without a recurrence no gradient goes back in time. Take a run of a GRU, LSTM or RNN."
        )
    results = run.results
    if results is None:
        raise RunError(f"{run.name} is not finished. Go on with: tidegate train --resume --out {run.folder}")
    shown = make(progress)
    given = run.read(table)
    rows = scored_rows(run, given)
    source, part = rows.source.to("cpu"), rows.part
    plan = make_plan(run.model.spec, source, part, rows.what)
    training = _training_table(run, given)
    own = run.model.spec.cell
    others = [cell for cell in WORDS if cell != own]
    trained = {cell: _other(run, cell, training, shown, f"{k} of 2") for k, cell in enumerate(others, 1)}
    runs = {cell: run if cell == own else trained[cell] for cell in WORDS}
    with threads_at_most(1):  # products this small are no faster on more, and far slower where the cores are busy
        ratios = {
            cell: relative_gradients(one.model, run.preprocessing, source, part, plan) for cell, one in runs.items()
        }
    moved = np.logical_and.reduce([~np.isnan(states["h"][:, 0]) for states in ratios.values()])
    if not moved.any():
        raise DataError(
            f"No prediction on {rows.what} has a gradient in all three cells: each is as good as it can be."
        )
    reaches = np.array([min(t, FARTHEST) for piece in plan for t in piece.at])[moved]
    counts = (reaches[:, None] >= np.arange(reaches.max() + 1)).sum(axis=0)
    shown_steps = int((counts >= max(1, FEWEST * moved.sum())).sum())
    cells = {}
    for cell, one in runs.items():
        scored = one.results
        assert scored is not None
        states = {name: _quartiles(v[moved, : len(counts)], shown_steps) for name, v in ratios[cell].items()}
        cells[cell] = CellFlow(
            cell,
            one.folder,
            one.resolved.parameters,
            scored.what,
            scored.model.summary[results.metric],
            states["h"],
            states.get("c"),
        )
    spec = run.model.spec
    used = sum(moved[i : i + len(p.at)].any() for p, i in zip(plan, _offsets(plan), strict=True))
    return GradientFlow(
        run=run.folder.name if run.folder else run.name,
        title=f"{run.resolved.table_name}: predicting {', '.join(run.preprocessing.target.names)}",
        described=f"{spec.num_layers} layer{'s' * (spec.num_layers > 1)} of {spec.hidden_size} units{', both directions' * spec.bidirectional}",
        what=rows.what,
        place=_place(run, int(moved.sum()), int(used), rows.what, int((~moved).sum())),
        sequences=int(used),
        predictions=int(moved.sum()),
        unmoved=int((~moved).sum()),
        counts=counts,
        metric=results.metric,
        more_is_better=results.more_is_better,
        cells=cells,
        history=run.history,
        best_epoch=run.resolved.best_epoch,
    )


def _place(run: Trained, predictions: int, sequences: int, what: str, unmoved: int) -> str:
    spec = run.model.spec
    many = f"{predictions:,} prediction{'s' * (predictions != 1)} in {sequences:,} sequence{'s' * (sequences != 1)} of {what}"
    if spec.per == "sequence":
        place = "each from the last state of its sequence"
        if spec.pooling != "last":
            words = "maximum" if spec.pooling == "max" else "mean"
            place += f" alone (not from the {words} over the steps that the model reads: it would lead to every step directly)"
    elif predictions > sequences:
        place = "each at a scored step of its own, the last one and others before it"
    else:
        place = "each at the last scored step of its sequence"
    layer = "the top layer" if spec.num_layers > 1 else "the layer"
    of = f"{layer}'s forward direction" if spec.bidirectional else layer
    text = f"Measured for {many}, {place}; the states are those of {of}."
    return text + f" {unmoved:,} more were left out: in one of the cells they have no gradient at all." * (unmoved > 0)


# --- which predictions -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Piece:
    """Steps start : end (flat) of a sequence, begun with an empty state, and the steps in it (from start) that predict."""

    sequence: int
    start: int
    end: int
    at: tuple[int, ...]

    @property
    def length(self) -> int:
        return self.end - self.start


def _offsets(plan: Sequence[Piece]) -> np.ndarray:
    """Where the predictions of each piece begin."""
    return np.cumsum([0, *(len(p.at) for p in plan)])[:-1]


def make_plan(spec: ModelSpec, source: BatchSource, part: int | None, what: str) -> list[Piece]:
    """Up to 200 predictions, each with a target and with a step before it."""
    data = source.data
    if source.y is None:
        raise DataError(f"Nothing to score: {what} hold no target.")
    y = source.all_targets(part).flatten(1)
    known = (y != MISSING_CLASS if y.dtype == torch.int64 else ~torch.isnan(y)).any(dim=1).numpy()
    if not known.any():
        raise DataError(f"Nothing to score: {what} hold no target value.")
    scored: dict[int, np.ndarray] = {}  # of each sequence: the steps, from its beginning
    for s in data.containing(part):
        if spec.per == "sequence":
            steps = np.array([data.lengths[s] - 1]) if known[s] else np.zeros(0, int)
        else:
            steps = np.flatnonzero(known[data.offsets[s] : data.offsets[s + 1]])
        steps = steps[steps > 0]
        if len(steps):
            scored[int(s)] = steps
    if not scored:
        raise DataError(
            f"No prediction on {what} has a step before it, so no gradient can go back. Longer sequences are needed."
        )
    names = list(scored)
    chosen = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, PREDICTIONS).round().astype(int))]
    each = max(1, PREDICTIONS // len(chosen))
    plan = []
    for s in chosen:
        steps, begin = scored[s], int(data.offsets[s])
        last = int(steps[-1])
        first = max(0, last + 1 - MOST_STEPS)
        end = min(int(data.lengths[s]), last + 1 + MOST_STEPS) if spec.bidirectional else last + 1
        # Those that reach back as far as the last one does, or 200 steps.
        far = steps[steps - first >= min(last - first, FARTHEST)]
        at = far[np.unique(np.linspace(len(far) - 1, 0, each).round().astype(int))] if each > 1 else far[-1:]
        plan.append(Piece(s, begin + first, begin + end, tuple(int(t) - first for t in at)))
    return plan


# --- the three runs --------------------------------------------------------------------------------------------


def _training_table(run: Trained, given: Table) -> Table:
    """The table the run was trained on. Raises SettingsError where it can't be had."""
    if run.resolved.table_sha256 is None:
        if given.frame.height == run.resolved.rows and _refits(run, given):
            return given
        raise SettingsError(
            f"{run.name} was trained on a table in memory, and {given.name} is another one. To train the other cells alike, pass the table of the training."
        )
    if given.sha256 == run.resolved.table_sha256:
        return given
    own, gone = training_table(run)
    if own is not None:
        return own
    raise SettingsError(
        f"To train the other cells alike, the table that {run.name} was trained on is needed: {gone}, and {given.name} is another one. "
        "Bring the file back, or name it as the table."
    )


def _refits(run: Trained, table: Table) -> bool:
    """Whether fitting on this table finds what the run found on its own: every mean, word and count."""
    try:
        pre, _ = fit_preprocessing(table, run.settings, run.settings.seed)
    except (DataError, SettingsError):
        return False
    return pre.to_json() == run.preprocessing.to_json()


def _other(run: Trained, cell: str, table: Table, shown: Silent, number_: str) -> Trained:
    """The run of another cell on the same table with the same settings: the one that is there, or a new one."""
    wanted = run.settings.with_cell(cell, baselines=False)
    article = "an" if cell == "lstm" else "a"
    what = f"Training {article} {WORDS[cell]} of the same size on {table.name}, to compare with ({number_})."
    if run.folder is None:
        shown.note(what)
        return fit(table, wanted, progress=shown)
    folder = run.folder / OTHERS / cell
    source = table if table.path is None else table.path
    begun = (folder / CONFIG).exists()
    fits, finished = _state_of(folder, wanted, run, table) if begun else (False, False)
    if finished:
        return open_folder(folder)
    again = " Going on with it." if fits else ""
    shown.note(f"{what} This is done once and kept in {folder}.{again}")
    try:
        if fits:
            return train(source, out=folder, resume=True, progress=shown)
        return train(source, out=folder, overwrite=begun, progress=shown, **wanted.model_dump())
    except Interrupted:
        raise Interrupted(
            f"Interrupted while training the {WORDS[cell]} to compare with; it is saved in {folder}. The same command goes on with it."
        ) from None


def _state_of(folder: Path, wanted: TrainSettings, run: Trained, table: Table) -> tuple[bool, bool]:
    """Whether the run in the folder was begun as is wanted now, and whether it is also finished."""
    try:
        settings, resolved, _ = read_settings(folder)
    except RunError:
        return False, False  # of another version of Tidegate
    path = folder / PREPROCESSING
    fits = (
        settings == wanted
        and resolved.table_sha256 == table.sha256
        and path.is_file()
        and path.read_text(encoding="utf-8") == run.preprocessing.to_json()
    )
    return fits, fits and resolved.finished


# --- the gradients ---------------------------------------------------------------------------------------------


class Unrolled:
    """A model's core in float64, taken apart: the layers below the top one, the top one, and its forward direction's weights."""

    def __init__(self, model: SequenceModel):
        spec = model.spec
        assert model.core is not None
        weights = {k: v.detach().double().cpu() for k, v in model.core.state_dict().items()}
        top = spec.num_layers - 1
        end = (f"_l{top}", f"_l{top}_reverse")
        above = {k.replace(f"_l{top}", "_l0"): v for k, v in weights.items() if k.endswith(end)}
        below = {k: v for k, v in weights.items() if not k.endswith(end)}
        self.cell, self.hidden_size, self.both = spec.cell, spec.hidden_size, spec.bidirectional
        self.below = _module(spec.cell, below, spec.hidden_size, top, self.both) if top else None
        self.top = _module(spec.cell, above, spec.hidden_size, 1, self.both)
        self.weights = [above[f"{name}_l0"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]

    def read(self, encoded: Tensor, lengths: Tensor) -> tuple[Tensor, State, Tensor | None]:
        """What the top layer reads [T, B, I], the states of its forward direction and the output of its backward one
        (None: there is none), [T, B, H] each.
        """
        x = encoded if self.below is None else _run(self.below, encoded, lengths)
        h, *backward = _run(self.top, x, lengths).split(self.hidden_size, dim=-1)
        states = (h,) if self.cell != "lstm" else (h, self._memories(x, h))
        return x, states, backward[0] if backward else None

    def _memories(self, x: Tensor, h: Tensor) -> Tensor:
        """An LSTM's c of every step, which torch.nn.LSTM keeps to itself: its gates follow from x and h."""
        w_ih, w_hh, b_ih, b_hh = self.weights
        before = torch.cat([torch.zeros_like(h[:1]), h[:-1]])
        i, f, g, _ = (linear(x, w_ih, b_ih) + linear(before, w_hh, b_hh)).chunk(4, dim=-1)
        keep, write = torch.sigmoid(f), torch.sigmoid(i) * torch.tanh(g)
        c = [torch.zeros_like(h[0])]
        for kept, written in zip(keep, write, strict=True):
            c.append(kept * c[-1] + written)
        return torch.stack(c[1:])

    def forward(self, x: Tensor, first: State, there: Tensor | None = None) -> list[State]:
        """The top layer's forward direction over x [T, B, I], a state a step.

        first: the state before the first step. there [T, B]: before a row's first step that is there its state stays `first`.
        """
        states, state = [], first
        for t, x_t in enumerate(x):
            here = None if there is None else there[t, :, None]

            def settle(new: Tensor, n: int, here: Tensor | None = here) -> Tensor:
                return new if here is None else torch.where(here, new, first[n])

            state = STEP[self.cell](x_t, state, self.weights, settle)
            states.append(state)
        return states


def _module(cell: str, weights: dict[str, Tensor], hidden_size: int, layers: int, both: bool) -> nn.Module:
    module = _MODULES[cell](
        weights["weight_ih_l0"].shape[1], hidden_size, layers, bidirectional=both, dtype=torch.float64
    )
    module.load_state_dict(weights)
    return module.eval()


def _run(module: nn.Module, x: Tensor, lengths: Tensor) -> Tensor:
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    return nn.utils.rnn.pad_packed_sequence(module(packed)[0], total_length=x.shape[0])[0]


def relative_gradients(
    model: SequenceModel, pre: Preprocessing, source: BatchSource, part: int | None, plan: Sequence[Piece]
) -> dict[str, np.ndarray]:
    """|dL/dh_{t-k}| / |dL/dh_t| of every prediction of the plan, and the same of an LSTM's c.

    [N, K] each with K = the farthest reach + 1; NaN beyond a prediction's own reach, and throughout where dL/dh_t is 0.
    """
    model = copy.deepcopy(model).cpu().double().eval()
    core = Unrolled(model)
    y = source.all_targets(part).cpu()
    y = y if y.dtype == torch.int64 else y.double()
    width = 1 + min(FARTHEST, max(t for p in plan for t in p.at))
    names = ("h", "c") if core.cell == "lstm" else ("h",)
    out = {name: np.full((sum(len(p.at) for p in plan), width), np.nan) for name in names}
    where = _offsets(plan)
    for pieces in _batches(plan, core.hidden_size):
        some = [plan[i] for i in pieces]
        rows = torch.tensor([where[i] + k for i in pieces for k in range(len(plan[i].at))])
        owner = torch.tensor([b for b, p in enumerate(some) for _ in p.at])
        at = torch.tensor([t for p in some for t in p.at])
        starts, ends = torch.tensor([p.start for p in some]), torch.tensor([p.end for p in some])
        batch = source.cut(starts, ends - starts, ends, sequences=torch.tensor([p.sequence for p in some]))
        numbers = batch.numbers.double()
        with torch.no_grad():
            x, states, backward = core.read(model.encode(numbers, batch.codes), batch.lengths)
        per_sequence = model.spec.per == "sequence"
        y_of = torch.tensor([p.sequence for p in some])[owner] if per_sequence else starts[owner] + at
        chunk = max(1, _VALUES_AT_ONCE // (width * core.hidden_size * 4))
        for i in range(0, len(rows), chunk):
            b, t = owner[i : i + chunk], at[i : i + chunk]
            steps, first = _before(states, b, t)
            there = steps >= (t - FARTHEST).clamp(min=0)
            steps = steps.clamp(min=0)
            first = tuple(v.requires_grad_() for v in first)
            chain = core.forward(x[steps, b], first, there)
            h = chain[-1][0]
            if backward is not None:  # with per="sequence" it has read everything at the first step
                h = torch.cat([h, backward[torch.zeros_like(t) if per_sequence else t, b]], dim=-1)
            scores = model.score(h, numbers[t, b])
            loss, _ = TASKS[pre.target.task].loss_sum(scores, y[y_of[i : i + chunk]])
            nodes = [state[n] for n in range(len(names)) for state in reversed(chain)]
            sizes = torch.stack([g.norm(dim=-1) for g in torch.autograd.grad(loss, nodes)])
            sizes = sizes.view(len(names), len(chain), len(b))
            reach = there.flip(0)
            for n, name in enumerate(names):
                ratio = torch.where(reach & (sizes[n, 0] > 0), sizes[n] / sizes[n, 0], torch.nan)
                out[name][rows[i : i + chunk], : len(chain)] = ratio.T.numpy()
    return out


def _before(states: State, b: Tensor, t: Tensor) -> tuple[Tensor, State]:
    """The steps up to each prediction, [1 + reach, N], aligned at the prediction, and the state before the first of them."""
    reach = t.clamp(max=FARTHEST)
    longest = int(reach.max())
    steps = t - longest + torch.arange(longest + 1)[:, None]
    before = t - reach - 1
    return steps, tuple(torch.where((before >= 0)[:, None], v[before.clamp(min=0), b], 0.0) for v in states)


def _batches(plan: Sequence[Piece], hidden_size: int) -> list[list[int]]:
    """Indices of pieces of similar length, as many at once as memory allows."""
    order = sorted(range(len(plan)), key=lambda i: -plan[i].length)
    batches: list[list[int]] = []
    longest = 0
    for i in order:
        if not batches or (len(batches[-1]) + 1) * longest * hidden_size > _VALUES_AT_ONCE:
            batches.append([])
            longest = plan[i].length
        batches[-1].append(i)
    return batches


def _quartiles(ratios: np.ndarray, shown: int) -> Reach:
    low, median, high = np.nanpercentile(ratios, [25, 50, 75], axis=0)
    return Reach(low, median, high, shown, float((np.nanmax(ratios, axis=1) > EXPLODED).mean()))


# --- in words --------------------------------------------------------------------------------------------------


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
