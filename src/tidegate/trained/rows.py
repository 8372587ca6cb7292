"""From a table to the rows that a run predicts or scores: the one way there."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

from tidegate.data.batches import BatchSource
from tidegate.data.extending import divide
from tidegate.data.preprocessing import Preprocessing
from tidegate.data.sequences import PART_NAMES, Sequences
from tidegate.data.several import is_store, is_there
from tidegate.data.store.prepare import larger_than_memory
from tidegate.data.tables import Table
from tidegate.errors import DataError, DataWarning, SettingsError
from tidegate.trained.trained import Trained


@dataclass(frozen=True)
class Rows:
    """Rows of a table as the model reads them. part: which of them are scored, None: all; what: in words, "the test rows of x.csv"."""

    data: Sequences
    source: BatchSource
    part: int | None
    what: str


def encode(trained: Trained, table: Table, *, with_target: bool, split: str | None = None) -> Sequences:
    """A table as sequences of numbers and codes. Warns (DataWarning) of what was hardly meant."""
    across = trained.settings.across_gaps
    data = trained.preprocessing.apply(table, with_target=with_target, split=split, across_gaps=across)
    warn_of([*table.lost, *data.notes])
    return data


def warn_of(notes: list[str]) -> None:
    for note in notes:
        warnings.warn(note, DataWarning, stacklevel=4)


def batch_source(data: Sequences, pre: Preprocessing, device: Any) -> BatchSource:
    """The sequences on the device, ready to be cut into batches."""
    return BatchSource(data, per_sequence=pre.per == "sequence", horizon=pre.horizon, device=device)


def rows_to_predict(trained: Trained, table: Table) -> Rows:
    """All rows of a table, which needs no target."""
    data = encode(trained, table, with_target=False)
    source = batch_source(data, trained.preprocessing, trained.device)
    return Rows(data, source, None, f"all rows of {table.name}")


def rows_to_score(trained: Trained, table: Table, rows: str = "auto") -> Rows:
    """The rows of a table with a target that are meant: "all"; "train", "valid" or "test"; "auto": "test" where the table has
    the split column of the training or is that very table, else "all".

    Raises SettingsError where the table has no such parts, DataError where the part is empty or a value can't be read.
    """
    split = trained.settings.split if isinstance(trained.settings.split, str) else None
    column = split if split in table.frame.columns else None
    same = table.sha256 is not None and table.sha256 == trained.resolved.table_sha256
    if rows == "auto":
        rows = "test" if column or same else "all"

    def found(data: Sequences, part: int | None, what: str) -> Rows:
        source = batch_source(data, trained.preprocessing, trained.device)
        return Rows(data, source, part, f"{what} of {table.name}")

    if rows == "all":
        return found(encode(trained, table, with_target=True), None, "all rows")
    if same:
        # The very table of the training: its split is known, drawn or not. (Not fitted anew: an earlier version may have fitted
        # otherwise.)
        data = divide(table, trained.preprocessing, trained.settings, trained.settings.seed)
    elif column:
        data = encode(trained, table, with_target=True, split=column)
    else:
        raise SettingsError(
            f"rows={rows!r}: {table.name} is not the table of the training and has no split column, so all its rows are alike. Use rows='all'."
        )
    if not (data.part == PART_NAMES[rows]).any():
        if rows == "test":
            raise NoTestRows(f"{table.name} has no test rows. Score all of it with rows='all' (--rows all).")
        raise DataError(f"{table.name} has no {rows} rows.")
    return found(data, PART_NAMES[rows], f"the {rows} rows")


class NoTestRows(DataError):
    """The part of a table that would be scored is empty."""


def scored_rows(trained: Trained, table: Table) -> Rows:
    """What `rows_to_score` finds, or all rows where there are no test rows."""
    try:
        return rows_to_score(trained, table)
    except NoTestRows:
        return rows_to_score(trained, table, "all")


def training_table(trained: Trained) -> tuple[Table | None, str]:
    """The table of the training, or None and why it isn't to be had, as a sentence without its full stop."""
    if trained.source is None:
        return None, "The run was trained on a table in memory"
    if is_store(trained.source):
        return None, f"The run was trained on a store, {trained.source}, which isn't a table"
    if not is_there(trained.source):
        return None, f"{trained.source} is not there any more"
    if why := larger_than_memory(trained.source, trained.settings.reading):
        return None, why
    table = trained.read(trained.source)
    if table.sha256 != trained.resolved.table_sha256:
        return None, f"{trained.source} has changed since the training"
    return table, ""
