"""A run: one training, as a folder on disk and as an object in Python (design, section 6)."""

from __future__ import annotations

import contextlib
import json
import platform
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import yaml

from tidegate import __version__
from tidegate.data.batches import BatchSource
from tidegate.data.preprocessing import Preprocessing, fit
from tidegate.data.sequences import PART_NAMES, TEST, TRAIN, VALID, Sequences
from tidegate.data.tables import Table, read_table
from tidegate.errors import DataError, RunError, SettingsError
from tidegate.files import write_text
from tidegate.model import ModelSpec, SequenceModel, default_embedding_dim
from tidegate.training import loop
from tidegate.training.checkpoint import load_model
from tidegate.training.evaluation import Outcome, judge, rules_of_thumb, run_model
from tidegate.training.metrics import Scores, primary
from tidegate.training.progress import Silent, make
from tidegate.training.settings import TrainSettings, read_settings_file

CONFIG, MODEL, PREPROCESSING, RESULTS = "config.yaml", "model.safetensors", "preprocessing.json", "results.json"
NO_MEMORY = "no_memory"  # the baseline's folder within the run
LONG, WINDOW = 512, 256  # window=None: sequences above LONG rows are cut into WINDOW
MOST_IN_BATCH, LEAST_IN_BATCH, UPDATES = (
    32,
    4,
    30,
)  # batch_size=None: so many updates an epoch, where there is enough for it


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
        config = _read_config(folder)
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
        return _batch_source(data, self.preprocessing, next(self.model.parameters()).device)

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
    folder = _new_folder(out, source, overwrite)
    return _train(source, chosen, folder, overwrite, shown)


def _resume(table: Any, out: Any, config: Any, overwrite: bool, settings: dict[str, Any], shown: Silent) -> Run:
    if out is None:
        raise SettingsError("resume needs the run folder: name it with out (--out).")
    if overwrite or config:
        raise SettingsError(
            "resume goes on with the settings of the run; it can't be combined with overwrite or config."
        )
    folder = Path(out)
    stored = _read_config(folder)
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
    device = _device(settings.device)
    window = _window(settings, data)
    size = settings.batch_size or _batch_size(data, window)
    spec = _spec(settings, pre)
    resolved = _resolved(table, pre, data, settings, spec, window, size, device)
    with _threads(settings.threads), contextlib.ExitStack() as undo:
        fresh = not (folder / CONFIG).exists() or overwrite
        if fresh:
            _start_folder(folder, overwrite, undo)
        given = {"table": str(Path(source).resolve()) if isinstance(source, str | Path) else None}
        config = {k: v for k, v in given.items() if v} | settings.model_dump(mode="json", exclude_defaults=False)
        _write_config(folder, config, resolved)
        write_text(folder / PREPROCESSING, pre.to_json())
        undo.pop_all()  # from here on there is something to resume
        for line in describe(resolved):
            shown.note(line)
        batches = _batch_source(data, pre, device)
        try:
            model = _build(spec, pre, settings, device)
            state = loop.fit(model, pre, batches, settings, window, size, folder, shown, f"Training {spec.cell}:")
            if settings.baselines and settings.cell != "none":
                bare = _spec(settings.model_copy(update={"cell": "none", "bidirectional": False}), pre)
                plain = _build(bare, pre, settings, device)
                loop.fit(
                    plain,
                    pre,
                    batches,
                    settings,
                    window,
                    size,
                    folder / NO_MEMORY,
                    shown,
                    "Training the same head without a recurrence:",
                )
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
        write_text(folder / RESULTS, json.dumps(evaluation.to_dict(), indent=1, default=_plain) + "\n")
        _write_config(folder, config, resolved)
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


# --- what a run works out for itself -----------------------------------------------------------------------------


def _spec(settings: TrainSettings, pre: Preprocessing) -> ModelSpec:
    names = [c.name for c in pre.numbers]
    forecast = pre.horizon > 0 and pre.target.task == "number"
    can = forecast and all(name in names for name in pre.target.names)
    if settings.residual and not can:
        raise SettingsError(
            "residual=True needs a forecast of numbers (horizon above 0) whose targets are among the features."
        )
    both = settings.bidirectional
    if both is None:
        both = pre.horizon == 0 and (pre.per == "sequence" or pre.lists)
    return ModelSpec(
        number_width=pre.number_width,
        vocabularies=tuple(c.size for c in pre.tokens),
        embedding_dims=tuple(settings.embedding_dim or default_embedding_dim(c.size) for c in pre.tokens),
        cell=settings.cell,
        hidden_size=settings.hidden_size,
        num_layers=settings.num_layers,
        bidirectional=both and settings.cell != "none",
        dropout=settings.dropout,
        per=pre.per,
        pooling=settings.pooling,
        horizon=pre.horizon,
        outputs=pre.target.width,
        residual=tuple(names.index(n) for n in pre.target.names) if can and settings.residual is not False else None,
    )


def _build(spec: ModelSpec, pre: Preprocessing, settings: TrainSettings, device: torch.device) -> SequenceModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = SequenceModel(spec)
    model.to(device)
    model.set_noise(word_dropout=settings.word_dropout, counts=[c.counts for c in pre.tokens], numbers=settings.noise)
    return model


def _batch_source(data: Sequences, pre: Preprocessing, device: torch.device) -> BatchSource:
    return BatchSource(data, per_sequence=pre.per == "sequence", horizon=pre.horizon, device=device)


def _window(settings: TrainSettings, data: Sequences) -> int | None:
    segments = data.segments(TRAIN)
    longest = int((segments[:, 1] - segments[:, 0]).max())
    if settings.per == "sequence":
        if settings.window is not None:
            raise SettingsError(
                "window cuts sequences for a target a step; with per='sequence' each one is read whole. Leave it out."
            )
        return None
    if settings.window is None:
        return WINDOW if longest > LONG else None
    if settings.window > longest:
        raise SettingsError(
            f"window={settings.window} is longer than every training sequence (the longest has {longest} rows). "
            f"Use at most {longest}, or leave window out to train on whole sequences."
        )
    return settings.window


def _batch_size(data: Sequences, window: int | None) -> int:
    segments = data.segments(TRAIN)
    lengths = segments[:, 1] - segments[:, 0]
    pieces = len(lengths) if window is None else int((-(-lengths // window)).sum())
    return max(LEAST_IN_BATCH, min(MOST_IN_BATCH, pieces // UPDATES))


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SettingsError(f"device={name!r} can't be used here ({str(error).splitlines()[0][:120]}).") from None
    return device


def _resolved(table, pre, data, settings, spec, window, size, device) -> dict[str, Any]:
    parts = {}
    for name, part in PART_NAMES.items():
        parts[name] = {"sequences": len(data.containing(part)), "rows": int((data.part == part).sum())}
    with torch.device("meta"):
        count = sum(p.numel() for p in SequenceModel(spec).parameters())
    return {
        "tidegate": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "device": str(device),
        "threads": settings.threads or torch.get_num_threads(),
        "table_name": table.name,
        "table_sha256": table.sha256,
        "rows": table.frame.height,
        "parts": parts,
        "longest": int(data.lengths.max()),
        "task": pre.target.task,
        "classes": len(pre.target.classes),
        "numbers": [c.name for c in pre.numbers],
        "categories": {c.name: c.size - 1 for c in pre.tokens},
        "bidirectional": spec.bidirectional,
        "embedding_dims": list(spec.embedding_dims),
        "residual": spec.residual is not None,
        "window": window,
        "batch_size": size,
        "parameters": count,
        "notes": data.notes,
        "finished": False,
    }


def describe(resolved: dict[str, Any]) -> list[str]:
    """What was made of the table and the settings, in a few lines."""
    parts = ", ".join(
        f"{p['sequences']} {n} ({p['rows']:,} rows)" for n, p in resolved["parts"].items() if p["sequences"]
    )
    task = {"class": f"one of {resolved['classes']} classes", "labels": "several 0/1 labels", "number": "numbers"}
    reads = [f"{len(resolved['numbers'])} numbers"] if resolved["numbers"] else []
    reads += [f"{name} ({size:,} known values)" for name, size in resolved["categories"].items()]
    lines = [
        f"{resolved['table_name']}: sequences: {parts}; the longest has {resolved['longest']:,} steps.",
        f"Reads {', '.join(reads)}; predicts {task[resolved['task']]}. {resolved['parameters']:,} parameters, on {resolved['device']}.",
    ]
    return lines + list(resolved["notes"])


# --- the folder --------------------------------------------------------------------------------------------------


def _new_folder(out: str | Path | None, source: Any, overwrite: bool) -> Path:
    if out is None:
        stem = Path(source).stem if isinstance(source, str | Path) else "run"
        folder, number = Path("runs") / stem, 2
        while folder.exists():
            folder, number = Path("runs") / f"{stem}-{number}", number + 1
        return folder
    folder = Path(out)
    if folder.is_file():
        raise RunError(f"{folder} is a file; a run needs a folder.")
    if folder.exists() and any(folder.iterdir()):
        if not (folder / CONFIG).exists():
            raise RunError(f"{folder} exists and is not a run; nothing in it is touched. Choose another folder.")
        if not overwrite:
            raise RunError(
                f"{folder} already holds a run. Choose another folder, go on with it (resume), or replace it (overwrite)."
            )
    return folder


def _start_folder(folder: Path, overwrite: bool, undo: contextlib.ExitStack) -> None:
    if overwrite and (folder / CONFIG).exists():
        shutil.rmtree(folder)
    made = [p for p in [folder, *folder.parents] if not p.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder} can't be made ({error.strerror}).") from error

    def remove() -> None:  # nothing half-written stays when the first files can't be written
        for name in (CONFIG, PREPROCESSING):
            (folder / name).unlink(missing_ok=True)
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()

    undo.callback(remove)


def _write_config(folder: Path, config: dict[str, Any], resolved: dict[str, Any]) -> None:
    head = "# This run's settings: `tidegate train --config THIS_FILE --out NEW` repeats it.\n"
    told = "# What the run worked out for itself (not read again).\n"
    text = head + yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True)
    text += told + yaml.safe_dump({"resolved": _plain(resolved)}, sort_keys=False, allow_unicode=True)
    write_text(folder / CONFIG, text)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not folder.exists():
        raise RunError(f"There is no run folder {folder}.")
    if not path.is_file():
        raise RunError(f"{folder} is not a run: it has no {CONFIG}.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RunError(f"{path} is damaged ({str(error).splitlines()[0]}).") from error
    if not isinstance(values, dict) or "resolved" not in values:
        raise RunError(f"{path} was not written by Tidegate.")
    return values


def _plain(value: Any) -> Any:
    """Tuples and numpy numbers as what YAML and JSON know."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value


@contextlib.contextmanager
def _threads(count: int | None):
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
