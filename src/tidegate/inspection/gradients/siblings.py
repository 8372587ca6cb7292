"""The runs to compare with: other cells on the same table with the same settings, trained on first use."""

from __future__ import annotations

from pathlib import Path

from tidegate.data.fitting import fit_preprocessing
from tidegate.data.tables import Table
from tidegate.errors import DataError, Interrupted, RunError, SettingsError
from tidegate.model.cells import CELLS
from tidegate.trained import Trained, TrainSettings
from tidegate.trained.folder import CONFIG, PREPROCESSING
from tidegate.trained.rows import training_table
from tidegate.trained.trained import open_folder, read_settings
from tidegate.training.progress import Silent
from tidegate.training.trainer import fit, train

OTHERS = "other_cells"  # the folder within a run
UNGATED = ("lstm", "rnn")
GATED = "gru"  # beside a run of one of these


def compared(cell: str) -> list[str]:
    """The three cells that are set side by side, in this order everywhere: the run's own where its gates can be seen, or else a
    GRU; an LSTM; a plain RNN."""
    return [cell if CELLS[cell].gates else GATED, *UNGATED]


def table_of_training(run: Trained, given: Table) -> Table:
    """The table the run was trained on. Raises SettingsError where it can't be had, or would not be enough: of a run that went on."""
    if run.resolved.origin is not None:
        raise SettingsError(
            f"{run.name} went on from {run.resolved.origin['run']}, and the other cells have no such run to go on from, so they can't be "
            "trained alike. Take a run that was trained from its beginning."
        )
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


def sibling(run: Trained, cell: str, table: Table, shown: Silent, number_: str) -> Trained:
    """The run of another cell on the same table with the same settings: the one that is there, or a new one."""
    wanted = run.settings.with_cell(cell, baselines=False)
    title = CELLS[cell].title
    article = "an" if title[0] in "LMN" else "a"  # an LSTM
    what = f"Training {article} {title} of the same size on {table.name}, to compare with ({number_})."
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
            f"Interrupted while training the {title} to compare with; it is saved in {folder}. The same command goes on with it."
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
