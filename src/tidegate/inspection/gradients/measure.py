"""`measure_gradients`: a run and its siblings, followed back from the same predictions."""

from __future__ import annotations

from typing import Any

import numpy as np

from tidegate.errors import DataError, RunError, SettingsError
from tidegate.inspection.gradients.flow import EXPLODED, CellFlow, GradientFlow, Reach
from tidegate.inspection.gradients.plan import FARTHEST, make_plan, offsets
from tidegate.inspection.gradients.siblings import compared, sibling, table_of_training
from tidegate.inspection.gradients.unrolled import relative_gradients
from tidegate.model.cells import CELLS
from tidegate.trained import Trained
from tidegate.trained.rows import scored_rows
from tidegate.training.progress import Silent, make
from tidegate.training.trainer import threads_at_most

FEWEST = 0.1  # of the predictions: medians are shown as far back as so many of them reach


def measure_gradients(run: Trained, table: Any, *, progress: bool | Silent = True) -> GradientFlow:
    """Measure how the gradient of a prediction fares on its way back through a gated cell, an LSTM and a plain RNN.

    run: one of the three, its core's options included; the gated cell is its own, or a GRU beside one of the others. The other
    two are trained on first use, with the run's own settings, seed and table, into `other_cells` of its folder. That is done
    once; when it is interrupted, the next call goes on. Beside a run in memory they are trained in memory, at every call.
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
    own = run.model.spec.cell
    if not CELLS[own].state:
        raise SettingsError(
            f"{run.name} has cell={own!r}: without a recurrence no gradient goes back in time. Take a run of a GRU, LSTM or RNN."
        )
    results = run.results
    if results is None:
        raise RunError(f"{run.name} is not finished. Go on with: tidegate train --resume --out {run.folder}")
    shown = make(progress)
    given = run.read(table)
    rows = scored_rows(run, given)
    source, part = rows.source.to("cpu"), rows.part
    plan = make_plan(run.model.spec, source, part, rows.what)
    training = table_of_training(run, given)
    three = compared(own)
    others = [cell for cell in three if cell != own]
    trained = {cell: sibling(run, cell, training, shown, f"{k} of 2") for k, cell in enumerate(others, 1)}
    runs = {cell: run if cell == own else trained[cell] for cell in three}
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
    used = sum(moved[i : i + len(p.at)].any() for p, i in zip(plan, offsets(plan), strict=True))
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
            words = {"mean": "mean", "max": "maximum"}.get(spec.pooling, "maximum and mean")
            place += (
                f" alone (not from the {words} over the steps that the model reads: these lead to every step directly)"
            )
    elif predictions > sequences:
        place = "each at a scored step of its own, the last one and others before it"
    else:
        place = "each at the last scored step of its sequence"
    layer = "the top layer" if spec.num_layers > 1 else "the layer"
    of = f"{layer}'s forward direction" if spec.bidirectional else layer
    text = f"Measured for {many}, {place}; the states are those of {of}."
    return text + f" {unmoved:,} more were left out: in one of the cells they have no gradient at all." * (unmoved > 0)


def _quartiles(ratios: np.ndarray, shown: int) -> Reach:
    low, median, high = np.nanpercentile(ratios, [25, 50, 75], axis=0)
    return Reach(low, median, high, shown, float((np.nanmax(ratios, axis=1) > EXPLODED).mean()))
