"""What the sequences of a table are called."""

from __future__ import annotations

import polars as pl

from tidegate.data.preprocessing import Preprocessing
from tidegate.data.sequences import Sequences
from tidegate.data.tables import Table


def sequence_names(table: Table, pre: Preprocessing, data: Sequences) -> list[str]:
    """What each sequence is called: its group, or the number of its row; several group columns with a comma between."""
    first = data.rows[data.offsets[:-1]]
    if pre.group:
        columns = [texts(table.frame[name].gather(first)) for name in pre.group]
        return [", ".join(str(part) for part in parts) for parts in zip(*columns, strict=True)]
    if pre.lists:
        return [f"row {row + 1}" for row in first]
    return ["the whole table"]


def texts(column: pl.Series) -> list[str]:
    """A column's values as polars writes them, or, where it writes none (durations), as Python does."""
    try:
        return column.cast(pl.String).to_list()
    except pl.exceptions.PolarsError:
        return [str(value) for value in column.to_list()]
