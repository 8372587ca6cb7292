"""The one door: `train` makes a `Run`, `load` opens one, and its methods lead to everything that can be done with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import time as clock_time
from typing import TYPE_CHECKING, Any, Literal

from tidegate.trained.trained import Trained, open_folder

if TYPE_CHECKING:
    import polars as pl

    from tidegate.export import Exported
    from tidegate.inspection import Inspection
    from tidegate.streaming import Stream
    from tidegate.trained.comparison import Evaluation
    from tidegate.training.progress import Silent


class Run(Trained):
    """A trained model with all that belongs to it, and what can be done with it. `tidegate.train` makes one, `tidegate.load`
    opens one.

    folder (None: in memory alone); settings (as given); resolved (what the run worked out); preprocessing; model; results (the
    Evaluation at the end of training); history (a dict an epoch).
    """

    @classmethod
    def of(cls, trained: Trained) -> Run:
        run = cls.__new__(cls)
        run.__dict__.update(trained.__dict__)
        return run

    def evaluate(self, table: Any, *, rows: str = "auto", batch_size: int | None = None) -> Evaluation:
        """Score the run on a table that has the target, beside the baselines.

        rows: "all"; "train", "valid" or "test" of the split column the run was trained with; "auto": "test" where the
            table has that column or is the one the run was trained on, else "all".
        batch_size: sequences at a time; it never changes the figures.

        Raises DataError: the table lacks a column or holds a value that can't be read; nothing can be scored.
        Warns (DataWarning) of a column most of whose words or categories never occurred in training, and of targets of a class that
        training never saw: they count as missed in every figure.
        """
        from tidegate.trained.evaluation import evaluate

        return evaluate(self, table, rows=rows, batch_size=batch_size)

    def predict(self, table: Any, *, probabilities: bool = False, batch_size: int | None = None) -> pl.DataFrame:
        """The table's rows with `prediction` added (and `p_CLASS` columns with `probabilities`).

        With several targets the columns are `prediction_TARGET`; with a horizon above 1 they end in `_1`, `_2`, ...
        for the steps ahead. List columns get a list a row. The order of the rows is kept, a target is not needed.
        Raises DataError and warns as `evaluate` does.
        """
        from tidegate.trained.predict import predict

        return predict(self, table, probabilities=probabilities, batch_size=batch_size)

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
        from tidegate.inspection import inspect_run

        return inspect_run(
            self, table, sequence=sequence, steps=steps, most_counted=most_counted, on_progress=on_progress
        )

    def stream(
        self,
        *,
        probabilities: bool = False,
        time: str | None = None,
        date_order: Literal["auto", "dmy", "mdy"] = "auto",
        late: Literal["error", "take"] = "error",
        max_keys: int | None = None,
        ttl: float | None = None,
        clock: Callable[[], float] = clock_time,
        on_forget: Callable[[Any], None] = lambda key: None,
    ) -> Stream:
        """The run row by row: `stream.push(row, key)` takes a row as it comes and gives its prediction. See `Stream`.

        probabilities: answers hold `p_CLASS` too.
        time: the column of a row that says when it happened, a number or a date. A row whose time is not after the last one of its
            key is late or repeated. None: rows are taken in the order in which they come.
        date_order: how times such as 01/02/2026 are read: "dmy" has the day first, "mdy" the month; "auto": as in the training.
        late: "error": such a row raises DataError and leaves the state as it was; "take": it is taken all the same.
        max_keys: so many keys have a state; where there are more, the one not heard of for longest begins anew. None: all.
        ttl: seconds after which a key that wasn't heard of begins anew, by `clock`. None: never.
        on_forget: called with each key that goes for one of these two reasons.

        Raises SettingsError: a run that reads both ways, or a setting out of its range.
        """
        from tidegate.streaming import Stream

        return Stream(
            self,
            probabilities=probabilities,
            time=time,
            date_order=date_order,
            late=late,
            max_keys=max_keys,
            ttl=ttl,
            clock=clock,
            on_forget=on_forget,
        )

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
        from tidegate.export import export_run

        return export_run(self, to, path, **options)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write the run as the folder that training would have written, but for its checkpoints; from then on it is the run of that
        folder. For a run that was trained with out=False.

        overwrite: replace a run that is there. Raises RunError where something is there that may not be replaced; DiskError where
        it can't be written.
        """
        from tidegate.training.journal import save

        save(self, Path(folder), overwrite=overwrite)


def load(folder: str | Path) -> Run:
    """Open a run folder. Loading never runs code from it: weights are safetensors, the rest is JSON and YAML.

    Raises RunError: no such folder, not a run, of a later version, or a file of it is missing, cut off or foreign.
    """
    return Run.of(open_folder(folder))


def train(
    table: Any = None,
    target: str | list[str] | None = None,
    *,
    out: str | Path | Literal[False] | None = None,
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
    out: the run folder; None: runs/NAME after the table, numbered where that is taken; False: none, the run lives in memory
        until `run.save(folder)` writes it.
    resume: go on with the run in `out` from its last checkpoint, with the settings it began with.
    overwrite: replace a run that is there.

    Returns the Run with the weights of the best epoch. Raises DataError, SettingsError or RunError before anything
    is written; Interrupted after Ctrl-C (then `resume` goes on exactly where it stopped).
    """
    from tidegate.training import trainer

    trained = trainer.train(
        table, target, out=out, config=config, resume=resume, overwrite=overwrite, progress=progress, **settings
    )
    return Run.of(trained)
