"""A run: one training, as a folder on disk and as an object in Python."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from tidegate.data.batches import BatchSource
from tidegate.data.fitting import fit
from tidegate.data.preprocessing import Preprocessing
from tidegate.data.sequences import PART_NAMES, Sequences
from tidegate.data.tables import Table, read_table
from tidegate.errors import DataError, DataWarning, RunError, SettingsError
from tidegate.training import loop
from tidegate.training.checkpoint import load_model
from tidegate.training.comparison import Evaluation
from tidegate.training.evaluation import Outcome, judge, predicted_columns, rules_of_thumb, run_model
from tidegate.training.folder import MODEL, NO_MEMORY, PREPROCESSING, RESULTS, read_config
from tidegate.training.metrics import primary
from tidegate.training.resolve import batch_source
from tidegate.training.settings import TrainSettings

if TYPE_CHECKING:
    from tidegate.export import Exported
    from tidegate.inspection import Inspection
    from tidegate.streaming import Stream


class Run:
    """A trained model with all that belongs to it. `tidegate.train` makes one, `tidegate.load` opens one.

    folder; settings (as given); resolved (what the run worked out); preprocessing; model; results (the Evaluation
    written at the end of training); history (a dict an epoch).
    """

    def __init__(self, folder: Path):
        config = read_config(folder)
        self.folder = folder
        self.resolved: dict[str, Any] = config.pop("resolved", {})
        self.source: str | None = config.pop("table", None)
        config.pop("out", None)
        self.settings: TrainSettings = TrainSettings.make(**config)
        path = folder / PREPROCESSING
        if not path.is_file():
            raise RunError(f"{path} is missing: the run is not complete.")
        self.preprocessing = Preprocessing.from_json(path.read_text(encoding="utf-8"), str(path))
        self.model = load_model(folder / MODEL)

    def __repr__(self) -> str:
        target = ", ".join(self.preprocessing.target.names)
        return f"Run({str(self.folder)!r}: {self.model.spec.cell} for {target!r})"

    @property
    def results(self) -> Evaluation | None:
        path = self.folder / RESULTS
        return Evaluation.from_dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None

    @property
    def history(self) -> list[dict[str, float]]:
        return loop.read_history(self.folder / "metrics.csv")

    def evaluate(self, table: Any, *, rows: str = "auto", batch_size: int | None = None) -> Evaluation:
        """Score the run on a table that has the target, beside the baselines.

        rows: "all"; "train", "valid" or "test" of the split column the run was trained with; "auto": "test" where the
            table has that column or is the one the run was trained on, else "all".
        batch_size: sequences at a time; it never changes the figures.

        Raises DataError: the table lacks a column or holds a value that can't be read; nothing can be scored.
        Warns (DataWarning) of a column most of whose words or categories never occurred in training.
        """
        if rows not in {"auto", "all", *PART_NAMES}:
            raise SettingsError(f"rows={rows!r}: expected auto, all, train, valid or test.")
        table = self.read(table)
        data, part, what = self.rows_to_score(table, rows)
        source = self._source_of(data)
        return evaluate_run(self, source, part, f"{what} of {table.name}", batch_size)

    def predict(self, table: Any, *, probabilities: bool = False, batch_size: int | None = None) -> pl.DataFrame:
        """The table's rows with `prediction` added (and `p_CLASS` columns with `probabilities`).

        With several targets the columns are `prediction_TARGET`; with a horizon above 1 they end in `_1`, `_2`, ...
        for the steps ahead. List columns get a list a row. The order of the rows is kept, a target is not needed.
        Raises DataError and warns as `evaluate` does.
        """
        table = self.read(table)
        if probabilities and self.preprocessing.target.task == "number":
            raise SettingsError("probabilities are for classes and labels; this run predicts numbers.")
        data = self._encode(table, with_target=False)
        source = self._source_of(data)
        outcome = run_model(
            self.model, self.preprocessing, source, None, batch_size=batch_size, probabilities=probabilities
        )
        return add_predictions(table.frame, self.preprocessing, data, outcome)

    def inspect(
        self,
        table: Any,
        sequence: str | int | None = None,
        *,
        steps: str | tuple[int, int] | None = None,
        most_counted: int | None = 20_000,
        on_progress: Callable[[float], None] = lambda share: None,
    ) -> Inspection:
        """What the gates do on one sequence of a table: every gate of every layer at every step, what each prediction leans
        on, and how long the units remember. Shows itself in a notebook; `write_html(path)` writes the page that
        `tidegate inspect` writes; `plot()`, `to_frame()` and `to_dict()` give the picture and the numbers.

        sequence: its group (several group columns: "a, b"), or the number of its row for list columns; None: the first one.
        steps: the first and the last step to show, counted from 1, as (100, 300) or "100:300"; None: all. The steps before
            are read all the same.
        most_counted: the units' statistics are counted over whole sequences of the table, evenly chosen, the one shown among
            them, until so many steps are reached; None: over all of the table.
        on_progress: called while counting with the share that is done.

        The target may be missing in the table; then no true values are shown. Raises SettingsError where the cell has no
        gates, DataError for a missing column or an unknown sequence (it names the nearest).
        """
        from tidegate.inspection import inspect_run  # it stands on this module; only this way leads up

        return inspect_run(self, table, sequence, steps, most_counted, on_progress)

    def stream(
        self,
        *,
        probabilities: bool = False,
        max_keys: int | None = None,
        ttl: float | None = None,
        clock: Callable[[], float] = time.time,
        on_forget: Callable[[Any], None] = lambda key: None,
    ) -> Stream:
        """The run row by row: `stream.push(row, key)` takes a row as it comes and gives its prediction. See `Stream`.

        probabilities: answers hold `p_CLASS` too.
        max_keys: so many keys have a state; where there are more, the one not heard of for longest begins anew. None: all.
        ttl: seconds after which a key that wasn't heard of begins anew, by `clock`. None: never.
        on_forget: called with each key that goes for one of these two reasons.

        Raises SettingsError: a run that reads both ways, or a setting out of its range.
        """
        from tidegate.streaming import Stream  # it stands on this module; only this way leads up

        return Stream(self, probabilities=probabilities, max_keys=max_keys, ttl=ttl, clock=clock, on_forget=on_forget)

    def export(self, to: str, path: str | Path | None = None, **options: Any) -> Exported:
        """Write the run for another program that then needs neither Tidegate nor, but for pt2, PyTorch.

        to: "onnx", "keras", "pt2" or "c"; see docs/ship.md for what each carries, its limits and its options.
        path: the file; None: the name of the run's folder with the suffix of the target, in the working directory.
        options: of "onnx" codes=True (no text in the file, for OpenVINO); of "c" int8=True (8-bit weights) and table (whose
            test rows tell what these cost; None: the run's own).
        What was written comes back, and printed says so.

        Raises SettingsError: an unknown target or option, or a model that the target can't express (it says which part and
        what would); PackageMissingError where its package isn't installed; TidegateError where the written file would not give
        the model's numbers. Nothing is written then.
        """
        from tidegate.export import export_run  # it stands on this module; only this way leads up

        return export_run(self, to, path, **options)

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, over sizes, weights and preprocessing: runs that predict alike share it, no others. All weights
        are read at every call.
        """
        digest = hashlib.sha256(self.preprocessing.to_json().encode())
        digest.update(json.dumps(self.model.spec.to_dict()).encode())
        for name, weight in self.model.state_dict().items():
            digest.update(name.encode())
            digest.update(weight.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def read(self, table: Any) -> Table:
        return read_table(table, **self.settings.reading)

    def _encode(self, table: Table, *, with_target: bool, split: str | None = None) -> Sequences:
        data = self.preprocessing.apply(table, with_target=with_target, split=split)
        for note in data.notes:
            warnings.warn(note, DataWarning, stacklevel=3)
        return data

    def _source_of(self, data: Sequences) -> BatchSource:
        return batch_source(data, self.preprocessing, next(self.model.parameters()).device)

    def rows_to_score(self, table: Table, rows: str) -> tuple[Sequences, int | None, str]:
        split = self.settings.split if isinstance(self.settings.split, str) else None
        column = split if split in table.frame.columns else None
        same = table.sha256 is not None and table.sha256 == self.resolved.get("table_sha256")
        if rows == "auto":
            rows = "test" if column or same else "all"
        if rows == "all":
            return self._encode(table, with_target=True), None, "all rows"
        if same:
            # The very table of the training: its split is known, drawn or not.
            data = fit(table, self.settings, self.settings.seed)[1]
        elif column:
            data = self._encode(table, with_target=True, split=column)
        else:
            raise SettingsError(
                f"rows={rows!r}: {table.name} is not the table of the training and has no split column, so all its rows are alike. Use rows='all'."
            )
        if not (data.part == PART_NAMES[rows]).any():
            if rows == "test":
                raise DataError(f"{table.name} has no test rows. Score all of it with rows='all' (--rows all).")
            raise DataError(f"{table.name} has no {rows} rows.")
        return data, PART_NAMES[rows], f"the {rows} rows"


def load(folder: str | Path) -> Run:
    """Open a run folder. Loading never runs code from it: weights are safetensors, the rest is JSON and YAML.

    Raises RunError: no such folder, not a run, or a file of it is missing, cut off or foreign.
    """
    return Run(Path(folder))


def evaluate_run(run: Run, source: BatchSource, part: int | None, what: str, batch_size: int | None) -> Evaluation:
    pre, settings = run.preprocessing, run.settings
    outcome = run_model(run.model, pre, source, part, batch_size=batch_size)
    scores = judge(pre, source, part, outcome.values)
    if not scores.count:
        raise DataError(f"Nothing to score: {what} hold no target value.")
    metric, more = primary(pre.target, pre.horizon)
    baselines = {
        name: judge(pre, source, part, values) for name, values in rules_of_thumb(pre, source, settings.season).items()
    }
    if (run.folder / NO_MEMORY / MODEL).exists():
        bare = load_model(run.folder / NO_MEMORY / MODEL).to(source.device)
        values = run_model(bare, pre, source, part, batch_size=batch_size).values
        baselines["same head, no recurrence"] = judge(pre, source, part, values)
    return Evaluation(settings.cell, what, metric, more, scores, outcome.loss, baselines)


def add_predictions(frame: pl.DataFrame, pre: Preprocessing, data: Sequences, outcome: Outcome) -> pl.DataFrame:
    """Put predictions back beside the rows they belong to. Columns of these names that are there already are replaced."""
    columns: dict[str, pl.Series] = {}
    target = pre.target
    for name, ahead, which, probability in predicted_columns(pre, outcome.probabilities is not None):
        if probability:
            assert outcome.probabilities is not None
            columns[name] = pl.Series(outcome.probabilities[:, ahead, which])
        elif target.task == "class":
            codes = outcome.values[:, ahead]
            known = pl.Series(target.classes)
            columns[name] = known[codes] if (codes >= 0).all() else known.gather(pl.Series(codes).replace(-1, None))
        else:
            values = pl.Series(outcome.values[:, ahead, which], nan_to_null=True)
            columns[name] = values.cast(pl.Int64) if target.task == "labels" else values
    numbered = [series.alias(str(k)) for k, series in enumerate(columns.values())]  # no name of a user's can clash
    predicted = pl.DataFrame(numbered)
    if pre.per == "sequence":
        predicted = predicted[np.repeat(np.arange(len(data)), data.lengths)]
    predicted = predicted.with_columns(pl.Series("row", data.rows))
    if pre.lists:
        steps = pl.all().exclude("row")
        together = predicted.group_by("row", maintain_order=True)
        predicted = together.agg(steps.first() if pre.per == "sequence" else steps)
    every = pl.DataFrame({"row": np.arange(frame.height)})
    beside = every.join(predicted, on="row", how="left", maintain_order="left")
    if pre.lists and pre.per != "sequence":
        # A row of empty lists has no step to predict: an empty list, not a missing one.
        beside = beside.with_columns(pl.all().exclude("row").fill_null([]))
    kept = [column for column in frame.get_columns() if column.name not in columns]
    return pl.DataFrame({c.name: c for c in kept} | {name: beside[str(k)] for k, name in enumerate(columns)})
