"""A run: one training, as a folder on disk and as an object in Python (design, section 6)."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from tidegate.data.batches import BatchSource
from tidegate.data.preprocessing import Preprocessing, fit
from tidegate.data.sequences import PART_NAMES, TEST, TRAIN, VALID, Sequences
from tidegate.data.tables import Table, read_table
from tidegate.errors import DataError, RunError, SettingsError
from tidegate.files import write_text
from tidegate.training import loop
from tidegate.training.checkpoint import load_model
from tidegate.training.evaluation import Outcome, judge, rules_of_thumb, run_model
from tidegate.training.folder import (
    CONFIG,
    MODEL,
    NO_MEMORY,
    PREPROCESSING,
    RESULTS,
    begin,
    choose,
    plain,
    read_config,
    write_config,
)
from tidegate.training.metrics import Scores, primary
from tidegate.training.progress import Silent, make
from tidegate.training.resolve import batch_source, build, complete, describe, find_device, model_spec, summary
from tidegate.training.settings import TrainSettings, read_settings_file


@dataclass
class Evaluation:
    """A model's figures beside those of the baselines, on the same rows.

    model, baselines: name -> Scores; metric: the figure that counts most; what: which rows were scored.
    """

    name: str
    what: str
    metric: str
    more_is_better: bool
    model: Scores
    loss: float
    baselines: dict[str, Scores] = field(default_factory=dict)

    def table(self) -> list[tuple[str, Scores]]:
        return [(self.name, self.model), *self.baselines.items()]

    def __str__(self) -> str:
        from tidegate.training.report import text_table

        return text_table(self)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Evaluation:
        values = dict(values)
        values["model"] = Scores(**values["model"])
        values["baselines"] = {k: Scores(**v) for k, v in values["baselines"].items()}
        return Evaluation(**values)


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
        """
        if rows not in {"auto", "all", *PART_NAMES}:
            raise SettingsError(f"rows={rows!r}: expected auto, all, train, valid or test.")
        table = self._read(table)
        data, part, what = self._rows_to_score(table, rows)
        source = self._source_of(data)
        return _evaluate(self, source, part, f"{what} of {table.name}", batch_size)

    def predict(self, table: Any, *, probabilities: bool = False, batch_size: int | None = None) -> pl.DataFrame:
        """The table's rows with `prediction` added (and `p_CLASS` columns with `probabilities`).

        With several targets the columns are `prediction_TARGET`; with a horizon above 1 they end in `_1`, `_2`, ...
        for the steps ahead. List columns get a list a row. The order of the rows is kept, a target is not needed.
        """
        table = self._read(table)
        if probabilities and self.preprocessing.target.task == "number":
            raise SettingsError("probabilities are for classes and labels; this run predicts numbers.")
        data = self.preprocessing.apply(table, with_target=False)
        source = self._source_of(data)
        outcome = run_model(
            self.model, self.preprocessing, source, None, batch_size=batch_size, probabilities=probabilities
        )
        return add_predictions(table.frame, self.preprocessing, data, outcome)

    def _read(self, table: Any) -> Table:
        return read_table(table, encoding=self.settings.encoding, row_names=self.settings.row_names)

    def _source_of(self, data: Sequences) -> BatchSource:
        return batch_source(data, self.preprocessing, next(self.model.parameters()).device)

    def _rows_to_score(self, table: Table, rows: str) -> tuple[Sequences, int | None, str]:
        split = self.settings.split if isinstance(self.settings.split, str) else None
        column = split if split in table.frame.columns else None
        same = table.sha256 is not None and table.sha256 == self.resolved.get("table_sha256")
        if rows == "auto":
            rows = "test" if column or same else "all"
        if rows == "all":
            return self.preprocessing.apply(table, with_target=True), None, "all rows"
        if same:
            # The very table of the training: its split is known, drawn or not.
            data = fit(table, self.settings, self.settings.seed)[1]
        elif column:
            data = self.preprocessing.apply(table, with_target=True, split=column)
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


def train(
    table: Any = None,
    target: str | list[str] | None = None,
    *,
    out: str | Path | None = None,
    config: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool | Silent = True,
    **settings: Any,
) -> Run:
    """Train a GRU on a table of sequences and write a run folder.

    table: a path (CSV, Parquet, JSON lines, Arrow) or a polars, pandas or pyarrow table.
    target, **settings: see `tidegate train --help` or `TrainSettings`; config: a YAML file with the same names
        (arguments win over it).
    out: the run folder; None: runs/NAME after the table, numbered where that is taken.
    resume: go on with the run in `out` from its last checkpoint, with the settings it began with.
    overwrite: replace a run that is there.

    Returns the Run with the weights of the best epoch. Raises DataError, SettingsError or RunError before anything
    is written; Interrupted after Ctrl-C (then `resume` goes on exactly where it stopped).
    """
    shown = make(progress)
    if target is not None:
        settings["target"] = target
    if resume:
        return _resume(table, out, config, overwrite, settings, shown)
    values = read_settings_file(config) if config else {}
    source = table if table is not None else values.get("table")
    out = out if out is not None else values.get("out")
    chosen = TrainSettings.make(**({k: v for k, v in values.items() if k not in {"table", "out"}} | settings))
    if source is None:
        raise SettingsError("No table: name a CSV, Parquet, JSON lines or Arrow file.")
    folder = choose(out, source, overwrite)
    return _train(source, chosen, folder, overwrite, shown)


def _resume(table: Any, out: Any, config: Any, overwrite: bool, settings: dict[str, Any], shown: Silent) -> Run:
    if out is None:
        raise SettingsError("resume needs the run folder: name it with out (--out).")
    if overwrite or config:
        raise SettingsError(
            "resume goes on with the settings of the run; it can't be combined with overwrite or config."
        )
    folder = Path(out)
    stored = read_config(folder)
    resolved = stored.pop("resolved", {})
    source = table if table is not None else stored.get("table")
    stored = {k: v for k, v in stored.items() if k not in {"table", "out"}}
    chosen = TrainSettings.make(**stored)
    asked = TrainSettings.make(**(stored | settings))
    changed = [name for name in TrainSettings.model_fields if getattr(asked, name) != getattr(chosen, name)]
    if changed:
        raise SettingsError(
            f"{changed[0]} can't change on resume (the run began with {getattr(chosen, changed[0])!r}). Leave it out, or start a new run."
        )
    if source is None:
        raise SettingsError(f"{folder} was trained on a table in memory: pass the same table again to resume.")
    if resolved.get("finished"):
        raise RunError(
            f"{folder} is finished; there is nothing to resume. For a new run choose another folder or overwrite it."
        )
    return _train(source, chosen, folder, False, shown, expected=resolved.get("table_sha256"))


def _train(
    source: Any, settings: TrainSettings, folder: Path, overwrite: bool, shown: Silent, expected: str | None = None
) -> Run:
    began = time.perf_counter()
    table = read_table(source, encoding=settings.encoding, row_names=settings.row_names)
    if expected and table.sha256 != expected:
        raise RunError(
            f"{table.name} has changed since {folder} began, so the run can't go on exactly. Start a new run."
        )
    pre, data = fit(table, settings, settings.seed)
    device = find_device(settings.device)
    spec = model_spec(settings, pre, data)
    full = complete(settings, data)
    resolved = summary(table, pre, data, full, spec, device)
    path = {"table": str(Path(source).resolve())} if isinstance(source, str | Path) else {}
    config = path | settings.model_dump(mode="json")
    with _threads(settings.threads), contextlib.ExitStack() as undo:
        if overwrite or not (folder / CONFIG).exists():
            begin(folder, overwrite, undo)
        write_config(folder, config, resolved)
        write_text(folder / PREPROCESSING, pre.to_json())
        undo.pop_all()  # from here on there is something to resume
        for line in describe(resolved):
            shown.note(line)
        batches = batch_source(data, pre, device)
        try:
            model = build(spec, pre, full, device)
            state = loop.fit(model, pre, batches, full, folder, shown, f"Training {spec.cell}:")
            if settings.baselines and settings.cell != "none":
                bare = full.model_copy(update={"cell": "none"})
                plain_model = build(model_spec(bare, pre, data), pre, bare, device)
                title = "Training the same head without a recurrence:"
                loop.fit(plain_model, pre, batches, bare, folder / NO_MEMORY, shown, title)
        except loop.Interrupted:
            where = f"{folder / 'checkpoints'}"
            again = f"tidegate train --resume --out {folder}"
            raise loop.Interrupted(f"Interrupted; all is saved in {where}. Go on with: {again}") from None
        resolved |= {"finished": True, "best_epoch": state.best_epoch, "epochs_run": state.epoch}
        resolved["seconds"] = round(sum(r["seconds"] for r in state.history), 1)
        run = Run(folder)
        run.model.to(device)
        part = next(p for p in (TEST, VALID, TRAIN) if (data.part == p).any())
        name = {v: k for k, v in PART_NAMES.items()}[part]
        evaluation = _evaluate(run, batches, part, f"the {name} rows of {table.name}", None)
        write_text(folder / RESULTS, json.dumps(evaluation.to_dict(), indent=1, default=plain) + "\n")
        write_config(folder, config, resolved)
        run.resolved = resolved
        from tidegate.training.report import write_report

        write_report(run)
        shown.note(
            f"\n{evaluation}\n\nWhole time {time.perf_counter() - began:.0f} s. Report: {folder / 'report.html'}"
        )
    return run


def _evaluate(run: Run, source: BatchSource, part: int | None, what: str, batch_size: int | None) -> Evaluation:
    pre, settings = run.preprocessing, run.settings
    outcome = run_model(run.model, pre, source, part, batch_size=batch_size)
    scores = judge(pre, source, part, outcome.values)
    if not scores.count:
        raise DataError(f"Nothing to score: {what} hold no target value.")
    metric, more = primary(pre.target)
    baselines = {
        name: judge(pre, source, part, values) for name, values in rules_of_thumb(pre, source, settings.season).items()
    }
    if (run.folder / NO_MEMORY / MODEL).exists():
        bare = load_model(run.folder / NO_MEMORY / MODEL).to(source.device)
        values = run_model(bare, pre, source, part, batch_size=batch_size).values
        baselines["same head, no recurrence"] = judge(pre, source, part, values)
    return Evaluation(settings.cell, what, metric, more, scores, outcome.loss, baselines)


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def add_predictions(frame: pl.DataFrame, pre: Preprocessing, data: Sequences, outcome: Outcome) -> pl.DataFrame:
    """Put predictions back beside the rows they belong to. Columns of these names that are there already are replaced."""
    columns: dict[str, pl.Series] = {}
    target = pre.target
    ahead = range(max(pre.horizon, 1))
    ends = [f"_{k + 1}" if pre.horizon > 1 else "" for k in ahead]
    for k in ahead:
        if target.task == "class":
            codes = outcome.values[:, k]
            known = pl.Series(target.classes)
            columns[f"prediction{ends[k]}"] = (
                known[codes] if (codes >= 0).all() else known.gather(pl.Series(codes).replace(-1, None))
            )
            if outcome.probabilities is not None:
                for c, name in enumerate(target.classes):
                    columns[f"p_{name}{ends[k]}"] = pl.Series(outcome.probabilities[:, k, c])
        else:
            for w, name in enumerate(target.names):
                label = f"prediction_{name}" if len(target.names) > 1 else "prediction"
                values = pl.Series(outcome.values[:, k, w], nan_to_null=True)
                columns[label + ends[k]] = values.cast(pl.Int64) if target.task == "labels" else values
                if outcome.probabilities is not None:
                    columns[f"p_{name}{ends[k]}"] = pl.Series(outcome.probabilities[:, k, w])
    predicted = pl.DataFrame(columns)
    if pre.per == "sequence":
        predicted = predicted[np.repeat(np.arange(len(data)), data.lengths)]
    predicted = predicted.with_columns(pl.Series("__row", data.rows))
    if pre.lists:
        gather = pl.all().exclude("__row")
        together = predicted.group_by("__row", maintain_order=True)
        predicted = together.agg(gather.first() if pre.per == "sequence" else gather)
    numbered = frame.drop([c for c in columns if c in frame.columns]).with_columns(
        pl.int_range(frame.height, dtype=pl.Int64).alias("__row")
    )
    joined = numbered.join(predicted, on="__row", how="left", maintain_order="left").drop("__row")
    if pre.lists and pre.per != "sequence":
        # A row of empty lists has no step to predict: an empty list, not a missing one.
        joined = joined.with_columns(pl.col(c).fill_null([]) for c in columns)
    return joined
