"""Predictions beside the rows of a table."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from tidegate.data.preprocessing import Preprocessing
from tidegate.data.sequences import Sequences
from tidegate.errors import SettingsError
from tidegate.model.tasks import TASKS, predicted_columns
from tidegate.trained.evaluation import Carry, Outcome, run_model
from tidegate.trained.rows import rows_to_predict
from tidegate.trained.trained import Trained


def predict(
    trained: Trained, table: Any, *, probabilities: bool, batch_size: int | None, carry: Carry | None = None
) -> pl.DataFrame:
    """What `Run.predict` does; see there. carry: as in `scored_pieces`."""
    table = trained.read(table)
    pre = trained.preprocessing
    check_probabilities(pre, probabilities)
    rows = rows_to_predict(trained, table)
    outcome = run_model(
        trained.model, pre, rows.source, None, batch_size=batch_size, probabilities=probabilities, carry=carry
    )
    return add_predictions(table.frame, pre, rows.data, outcome)


def check_probabilities(pre: Preprocessing, wanted: bool) -> None:
    """Raise SettingsError where probabilities are asked of numbers."""
    if wanted and not TASKS[pre.target.task].has_probabilities:
        raise SettingsError("probabilities are for classes and labels; this run predicts numbers.")


def add_predictions(frame: pl.DataFrame, pre: Preprocessing, data: Sequences, outcome: Outcome) -> pl.DataFrame:
    """Put predictions back beside the rows they belong to. Columns of these names that are there already are replaced."""
    columns: dict[str, pl.Series] = {}
    task = TASKS[pre.target.task]
    for name, ahead, which, probability in predicted_columns(
        pre.target, pre.horizon, outcome.probabilities is not None
    ):
        if probability:
            assert outcome.probabilities is not None
            columns[name] = pl.Series(outcome.probabilities[:, ahead, which])
        else:
            values = outcome.values[:, ahead]
            columns[name] = task.series(values if values.ndim == 1 else values[:, which], pre.target)
    numbered = [series.alias(str(k)) for k, series in enumerate(columns.values())]  # no name of a user's can clash
    predicted = pl.DataFrame(numbered)
    if pre.per == "sequence":
        predicted = predicted[np.repeat(np.arange(len(data)), data.lengths)]
    in_order = not pre.lists and np.array_equal(data.rows, np.arange(frame.height))
    predicted = predicted.with_columns(pl.Series("row", data.rows))
    if pre.lists:
        steps = pl.all().exclude("row")
        together = predicted.group_by("row", maintain_order=True)
        predicted = together.agg(steps.first() if pre.per == "sequence" else steps)
    every = pl.DataFrame({"row": np.arange(frame.height)})
    # Where they lie right a join would only copy them: with the probabilities of many classes, most of what is there.
    beside = predicted if in_order else every.join(predicted, on="row", how="left", maintain_order="left")
    if pre.lists and pre.per != "sequence":
        # A row of empty lists has no step to predict: an empty list, not a missing one.
        beside = beside.with_columns(pl.all().exclude("row").fill_null([]))
    kept = [column for column in frame.get_columns() if column.name not in columns]
    return pl.DataFrame({c.name: c for c in kept} | {name: beside[str(k)] for k, name in enumerate(columns)})
