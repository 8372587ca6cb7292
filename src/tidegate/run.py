"""The one door: `train` makes a `Run`, `load` opens one, and its methods lead to everything that can be done with it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from time import time as clock_time
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from tidegate.errors import RunError, SettingsError
from tidegate.trained.trained import Trained, open_folder

if TYPE_CHECKING:
    import polars as pl

    from tidegate.export import Exported
    from tidegate.inspection import Inspection
    from tidegate.streaming import Stream
    from tidegate.trained.comparison import Evaluation
    from tidegate.trained.repeats import Repeats
    from tidegate.trained.rounding import Cost
    from tidegate.training.progress import Silent


class Run(Trained):
    """A trained model with all that belongs to it, and what can be done with it. `tidegate.train` makes one, `tidegate.load`
    opens one.

    folder (None: in memory alone); settings (as given); resolved (what the run worked out); preprocessing; model; results (the
    Evaluation at the end of training); history (a dict an epoch).
    """

    repeats: Repeats | None = None
    """Where it was kept of several runs (seeds, folds): the figures of all of them."""

    @classmethod
    def of(cls, trained: Trained) -> Run:
        run = cls.__new__(cls)
        run.__dict__.update(trained.__dict__)
        return run

    def quantized(self, weights: str) -> Run:
        """The run with its core's weights in 8 bits ("int8") or in bfloat16 ("bf16"); the same as `tidegate.quantize(run, weights)`.
        On a CPU it takes a fraction of the memory and of the time; `print(run.quantized("int8").cost())` says what that costs.

        Raises SettingsError: another cell than gru, or a run that is quantised already; BackendUnavailableError without the C++ kernels.
        """
        return QuantisedRun(self, weights)

    def evaluate(
        self, table: Any, *, rows: str = "auto", batch_size: int | None = None, weights: str | None = None
    ) -> Evaluation:
        """Score the run on a table that has the target, beside the baselines.

        rows: "all"; "train", "valid" or "test" of the split column the run was trained with; "auto": "test" where the
            table has that column or is the one the run was trained on, else "all".
        batch_size: sequences at a time; it never changes the figures.
        weights: "int8" or "bf16": of the run so quantised, with what that changed as a note; None: as the run is.

        Raises DataError: the table lacks a column or holds a value that can't be read; nothing can be scored.
        Warns (DataWarning) of a column most of whose words or categories never occurred in training, and of targets of a class that
        training never saw: they count as missed in every figure.
        """
        from tidegate.trained.evaluation import evaluate

        if weights is not None:
            return self.quantized(weights).evaluate(table, rows=rows, batch_size=batch_size)
        return evaluate(self, table, rows=rows, batch_size=batch_size)

    def predict(
        self, table: Any, *, probabilities: bool = False, batch_size: int | None = None, weights: str | None = None
    ) -> pl.DataFrame:
        """The table's rows with `prediction` added (and `p_CLASS` columns with `probabilities`).

        With several targets the columns are `prediction_TARGET`; with a horizon above 1 they end in `_1`, `_2`, ...
        for the steps ahead. List columns get a list a row. The order of the rows is kept, a target is not needed.
        weights: as in `evaluate`. Raises DataError and warns as `evaluate` does.
        """
        from tidegate.trained.predict import predict

        if weights is not None:
            return self.quantized(weights).predict(table, probabilities=probabilities, batch_size=batch_size)
        return predict(self, table, probabilities=probabilities, batch_size=batch_size)

    def predict_to(
        self,
        table: str | Path,
        out: str | Path,
        *,
        part: str | None = None,
        memory: str | None = None,
        probabilities: bool = False,
        batch_size: int | None = None,
        weights: str | None = None,
        overwrite: bool = False,
        progress: bool | Silent = True,
    ) -> Path:
        """Write what `predict` returns to a file or a folder, of tables larger than memory, too. See docs/scale.md.

        table: a file, a folder of files or a pattern such as data/*.parquet. out: a file, whose suffix says of which kind; or a folder: it
            is there, its name ends in a slash, or it has no suffix and there are several tables or parts. A folder gets files of at most
            1,048,576 rows, of the kind of the inputs, whose rows in the order of their names are those of `predict`.
        part: "2/3" writes the second of three parts of the sequences, all of which may write into one folder.
        memory: the most that the process may take, such as "2GB"; None: four fifths of what the machine, or its container, has.
        overwrite: begin anew. Without it files of the same run and tables that are whole are kept, and other ones are an error.
        probabilities, batch_size, weights: as in `predict`.

        Returns the path of the file or folder. Raises DataError, SettingsError, RunError or DiskError; what was whole then stays.
        """
        from tidegate.training.progress import make

        self._predict_to(
            table,
            out,
            part=part,
            memory=memory,
            probabilities=probabilities,
            batch_size=batch_size,
            weights=weights,
            overwrite=overwrite,
            progress=make(progress),
        )
        return Path(out)

    def _predict_to(
        self,
        table: str | Path,
        out: str | Path,
        *,
        part: str | None,
        memory: str | None,
        probabilities: bool,
        batch_size: int | None,
        weights: str | None,
        overwrite: bool,
        progress: Silent,
    ) -> str:
        """What `predict_to` does; a sentence on what was written."""
        from tidegate.default_memory import memory_of_process
        from tidegate.trained.predict_at_scale import Predictor, predict_table, where_to
        from tidegate.trained.prediction_folder import Share
        from tidegate.workers import workers_here

        if not isinstance(table, str | Path):
            raise SettingsError("predict_to reads a table in files. For one in memory: predict(table).")
        try:
            allowed = memory_of_process(memory, workers_here())
        except ValueError as error:
            raise SettingsError(f"memory={memory!r}: {error}.") from None
        run = self if weights is None else self.quantized(weights)
        members = run.members if isinstance(run, Ensemble) else [run]
        share = Share.of(part)
        folder = where_to(table, out, share)
        predictor = Predictor(members, probabilities=probabilities, batch_size=batch_size)
        written = predict_table(
            predictor,
            table,
            Path(out),
            folder=folder,
            share=share,
            memory=allowed,
            overwrite=overwrite,
            watch=progress,
        )
        return written.told(out, share)

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
        weights: str | None = None,
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
        weights: as in `evaluate`. States of one kind of weights are not taken up with another one.

        Raises SettingsError: a run that reads both ways, or a setting out of its range.
        """
        from tidegate.streaming import Stream

        return Stream(
            self if weights is None else self.quantized(weights),
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


class QuantisedRun(Run):
    """A run whose core has weights in 8 bits or in bfloat16; embeddings and head are float32. `tidegate.quantize(run, "int8")` makes
    one.

    It predicts, evaluates and streams as a run does, on the CPU, and is written nowhere: the folder that it came from stays as it
    is. weights: "int8" or "bf16". whole: the run with its own weights.
    """

    def __init__(self, whole: Run, weights: str) -> None:
        from tidegate.trained.rounding import quantised_model

        if whole.device.type != "cpu":
            whole = Run.of(whole)
            whole.model = copy.deepcopy(whole.model).cpu()
        model = quantised_model(whole, weights)
        self.__dict__.update(whole.__dict__)
        self.model, self.weights, self.whole = model, weights, whole

    @property
    def name(self) -> str:
        return f"{self.whole.name} ({self.weights})"

    def cost(self, table: Any = None) -> Cost:
        """What this saves and costs: the bytes of the core's weights, the largest difference of a score, and the run's figure with its
        own weights and with these. `print` it to read it.

        table: on its test rows, or on all where it has none; None: the table of the training, where it still lies unchanged. The
        latter is counted once: it is kept in the run's folder, in quantised.json.
        Raises DataError for a table that can't be read or scored.
        """
        from tidegate.trained.rounding import cost_of

        return cost_of(self.whole, self.model, self.weights, table)

    def quantized(self, weights: str) -> NoReturn:
        """Raises SettingsError: it is."""
        raise SettingsError(f"{self.name} is quantised already. Quantise the run in float32: tidegate.load(folder).")

    def evaluate(
        self, table: Any, *, rows: str = "auto", batch_size: int | None = None, weights: str | None = None
    ) -> Evaluation:
        """As `Run.evaluate`, with a note on what the run's own weights give on these rows."""
        from tidegate.trained.evaluation import evaluate
        from tidegate.trained.rounding import note_on_rounding

        if weights is not None:
            self.quantized(weights)
        return evaluate(
            self,
            table,
            rows=rows,
            batch_size=batch_size,
            more_notes=note_on_rounding(self.whole, self.model, self.weights),
        )

    def inspect(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises SettingsError: gates are shown by the run in float32."""
        raise SettingsError(
            f"{self.name} keeps no gates to show. Inspect the run in float32: tidegate.load(folder).inspect(table)."
        )

    def export(self, to: str, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises SettingsError: the run in float32 is exported."""
        raise SettingsError(
            f"{self.name}: exports are written from the run in float32. C takes 8-bit weights by itself: "
            "tidegate.load(folder).export('c', int8=True) (--to c --int8)."
        )

    def save(self, folder: str | Path, *, overwrite: bool = False) -> NoReturn:
        """Raises SettingsError: a run's folder holds float32 weights."""
        raise SettingsError(
            f"{self.name}: a run's folder holds float32 weights, of which quantised ones are made in no time. Save the run itself."
        )


class Ensemble(Run):
    """Several runs that predict together: the mean of their probabilities, or of their numbers. `tidegate.train` makes one with
    keep="ensemble", and `tidegate.load` opens one.

    It predicts and evaluates as a run does. Whatever takes one model (`inspect`, `stream`, `export`, `.model`, `.preprocessing`) raises
    RunError, which names the members: each is a run, `ensemble.members[0].stream()`.

    members: the runs. repeats: the figures of all of them. results: its own figures; None where every row trained a member.
    """

    def __init__(self, members: list[Run], repeats: Repeats, folder: Path | None) -> None:
        self.members, self.repeats, self.folder = members, repeats, folder
        self.settings, self.resolved, self.source = members[0].settings, members[0].resolved, members[0].source

    def __repr__(self) -> str:
        where = repr(str(self.folder)) if self.folder else "in memory"
        return f"Ensemble({where}: {len(self.members)} runs)"

    @property
    def results(self) -> Evaluation | None:
        assert self.repeats is not None
        return self.repeats.own

    def quantized(self, weights: str) -> Ensemble:
        """The ensemble of its members, each quantised; see `Run.quantized`."""
        assert self.repeats is not None
        return Ensemble([member.quantized(weights) for member in self.members], self.repeats, self.folder)

    def evaluate(
        self, table: Any, *, rows: str = "auto", batch_size: int | None = None, weights: str | None = None
    ) -> Evaluation:
        """As `Run.evaluate`; the baseline without a recurrence is an ensemble, too. Of folds only the test rows, or rows of another
        table, are new to all members: SettingsError for "train" and "valid".
        """
        from tidegate.trained.ensemble import evaluate

        if weights is not None:
            return self.quantized(weights).evaluate(table, rows=rows, batch_size=batch_size)
        return evaluate(self.members, table, rows=rows, batch_size=batch_size)

    def predict(
        self, table: Any, *, probabilities: bool = False, batch_size: int | None = None, weights: str | None = None
    ) -> pl.DataFrame:
        """As `Run.predict`: of classes the most probable one in the mean, of labels those whose mean is above 1/2, or above the mean of
        the members' thresholds.
        """
        from tidegate.trained.ensemble import predict

        if weights is not None:
            return self.quantized(weights).predict(table, probabilities=probabilities, batch_size=batch_size)
        return predict(self.members, table, probabilities=probabilities, batch_size=batch_size)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write the folder of the ensemble, with a folder for each member; see `Run.save`."""
        from tidegate.training.repeats import save

        assert self.repeats is not None
        save(self.repeats, self.members, Path(folder), overwrite=overwrite)
        self.folder = Path(folder)

    def _one_model(self) -> NoReturn:
        names = [str(m.folder) if m.folder else f".members[{k}]" for k, m in enumerate(self.members)]
        where = str(self.folder) if self.folder else "This"
        raise RunError(
            f"{where} is an ensemble of {len(names)} runs, and this needs a single model. Name one of them: {', '.join(names)}."
        )

    def inspect(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises RunError: name a member."""
        self._one_model()

    def stream(self, **kwargs: Any) -> NoReturn:
        """Raises RunError: name a member."""
        self._one_model()

    def export(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises RunError: name a member."""
        self._one_model()

    @property
    def model(self) -> NoReturn:  # type: ignore[override]
        self._one_model()

    @property
    def preprocessing(self) -> NoReturn:  # type: ignore[override]
        self._one_model()

    @property
    def history(self) -> NoReturn:
        self._one_model()

    @property
    def no_memory(self) -> NoReturn:
        self._one_model()


def load(folder: str | Path) -> Run:
    """Open a run folder; of several runs (seeds, folds) the one that is kept, or the `Ensemble`. Loading never runs code from it: weights are safetensors, the rest is JSON and YAML.

    Raises RunError: no such folder, not a run, of a later version, or a file of it is missing, cut off or foreign.
    """
    from tidegate.trained.repeats import holds_repeats, open_repeats

    if holds_repeats(folder):
        return _of_several(*open_repeats(Path(folder)), Path(folder))
    return Run.of(open_folder(folder))


def _of_several(repeats: Repeats, kept: list[Trained], folder: Path | None) -> Run:
    """The run that is kept of several, or the ensemble of them."""
    runs = [Run.of(one) for one in kept]
    if repeats.keep == "ensemble":
        return Ensemble(runs, repeats, folder)
    runs[0].repeats = repeats
    return runs[0]


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
    resume: go on with the run in `out` (or `table`) from its last checkpoint, with the settings it began with. epochs and patience
        may be larger, of a run that is finished too: it goes on as if they had been asked for from the start.
    from_run: the folder of a run (of several the one that is kept), or a Run, whose weights, columns, means and vocabularies a new
        run on another table begins with; see docs/runs.md. Settings that aren't given are those of that run.
    overwrite: replace a run that is there.
    seeds, folds, keep: several runs, which the folder then holds: see docs/runs.md and `RepeatSettings`. What is kept comes back
        (the best run, an `Ensemble`, or one that was trained anew), with the figures of all of them in `.repeats`.

    Returns the Run with the weights of the best epoch. Raises DataError, SettingsError or RunError before anything
    is written; Interrupted after Ctrl-C (then `resume` goes on exactly where it stopped).
    """
    from tidegate.trained.settings import RepeatSettings
    from tidegate.training import repeats, trainer
    from tidegate.workers import joined

    with joined():  # where torchrun started this program
        if repeats.wanted(table, out, config, resume, settings):
            several = repeats.train(
                table, target, out=out, config=config, resume=resume, overwrite=overwrite, progress=progress, **settings
            )
            return _of_several(several.repeats, several.kept, several.folder)
        settings = {name: value for name, value in settings.items() if name not in RepeatSettings.model_fields}
        trained = trainer.train(
            table, target, out=out, config=config, resume=resume, overwrite=overwrite, progress=progress, **settings
        )
        return Run.of(trained)


def prepare(
    table: str | Path,
    store: str | Path,
    target: str | list[str] | None = None,
    *,
    overwrite: bool = False,
    progress: bool | Silent = True,
    **settings: Any,
) -> Path:
    """Arrange a table that is larger than memory on disk, so that `tidegate.train(store)` reads it from there. See docs/scale.md.

    table: a file, a folder of files or a pattern such as data/*.parquet. store: the folder to make; where it is there already, made of
        these files under these settings, nothing is done.
    target, **settings: see `tidegate prepare --help` or `PrepareSettings`.
    overwrite: replace a store that is there.

    Returns the store's path. Raises DataError, SettingsError, RunError or DiskError; then nothing half-made is left.
    """
    from tidegate.training.prepared import prepare as arrange_on_disk

    return arrange_on_disk(table, store, target, overwrite=overwrite, progress=progress, **settings)
