"""`tidegate.train`: from a table to a run folder, and on from where it was interrupted."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tidegate.data.fitting import fit
from tidegate.data.sequences import PART_NAMES, TEST, TRAIN, VALID
from tidegate.data.tables import read_table
from tidegate.errors import DataError, RunError, SettingsError
from tidegate.files import write_text
from tidegate.training import loop
from tidegate.training.folder import (
    CONFIG,
    NO_MEMORY,
    PREPROCESSING,
    RESULTS,
    begin,
    choose,
    plain,
    read_config,
    write_config,
)
from tidegate.training.progress import Silent, make
from tidegate.training.report import write_report
from tidegate.training.resolve import batch_source, build, complete, describe, find_device, model_spec, summary
from tidegate.training.run import Run, evaluate_run
from tidegate.training.settings import CompleteSettings, TrainSettings, read_settings_file


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
    table = read_table(source, **settings.reading)
    if expected and table.sha256 != expected:
        raise RunError(
            f"{table.name} has changed since {folder} began, so the run can't go on exactly. Start a new run."
        )
    pre, data = fit(table, settings, settings.seed)
    device = find_device(settings.device)
    spec = model_spec(settings, pre, data)
    full = complete(settings, data)
    batches = batch_source(data, pre, device)
    if not batches.has_targets(TRAIN):
        raise DataError(
            f"{table.name}: no training row has a target to learn from: horizon={settings.horizon} reaches beyond every "
            "stretch of training rows. Use a smaller horizon or longer stretches."
        )
    if not batches.has_targets(VALID):
        data.notes.append("No validation row has a target to score: the weights of the last epoch are kept.")
    resolved = summary(table, pre, data, full, spec, device)
    path = {"table": str(Path(source).resolve())} if isinstance(source, str | Path) else {}
    config = path | settings.model_dump(mode="json")
    with threads_at_most(settings.threads), _enough_memory(full), contextlib.ExitStack() as undo:
        model = build(spec, pre, full, device)
        if overwrite or not (folder / CONFIG).exists():
            begin(folder, overwrite, undo)
        write_config(folder, config, resolved)
        write_text(folder / PREPROCESSING, pre.to_json())
        undo.pop_all()  # from here on there is something to resume
        for line in describe(resolved):
            shown.note(line)
        try:
            state = loop.fit(model, pre, batches, full, folder, shown, f"Training {spec.cell}:")
            if settings.baselines and settings.cell != "none":
                bare = full.model_copy(update={"cell": "none", "log_gates": False})
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
        part = next(p for p in (TEST, VALID, TRAIN) if batches.has_targets(p))
        name = {v: k for k, v in PART_NAMES.items()}[part]
        evaluation = evaluate_run(run, batches, part, f"the {name} rows of {table.name}", None)
        write_text(folder / RESULTS, json.dumps(evaluation.to_dict(), indent=1, default=plain) + "\n")
        write_config(folder, config, resolved)
        run.resolved = resolved
        write_report(run)
        shown.note(
            f"\n{evaluation}\n\nWhole time {time.perf_counter() - began:.0f} s. Report: {folder / 'report.html'}"
        )
    return run


@contextlib.contextmanager
def _enough_memory(settings: CompleteSettings) -> Iterator[None]:
    """What doesn't fit into memory becomes a sentence that says which settings to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # On a CPU torch raises a plain RuntimeError, known by its text alone.
        full = isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
        if not full:
            raise
        sizes = ", ".join(
            f"{name}={getattr(settings, name)}" for name in ("hidden_size", "num_layers", "batch_size", "window")
        )
        raise SettingsError(f"The memory doesn't suffice for {sizes}. Start again with smaller ones.") from error


@contextlib.contextmanager
def threads_at_most(count: int | None) -> Iterator[None]:
    """torch's threads on the CPU, for as long as the block runs; None: as many as there are."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
