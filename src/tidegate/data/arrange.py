"""The rows of a table put in the order of their sequences.

Three layouts become one, a long table in which the rows of a sequence follow each other:

    group column(s)     rows with the same value are one sequence
    list columns        each row of the table is one sequence (its lists are unrolled, other cells repeated)
    neither             the whole table is one sequence
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from tidegate.data.csv_text import NO_HEADER, holds_data
from tidegate.data.tables import Table
from tidegate.documents import cut, shown
from tidegate.errors import DataError, nearest

WORD = r"\w+(?:['’]\w+)?|[^\w\s]"  # a word with its apostrophe, or one punctuation mark
ITEM = r"\S+"


@dataclass(frozen=True)
class Arranged:
    """Rows in sequence order: those of sequence s are `offsets[s]:offsets[s + 1]`.

    columns: the (unrolled) rows as they came; order: which of them comes first, second, ... (None: they lie right).
    Columns are put in order one at a time, as they are asked for: a copy of the whole table would double its memory.
    rows [N]: the table's row of each step; ids: the group columns, a row a sequence (row number for list columns).

    The series themselves have no name: polars reads one such as "*" or "^x$" as a pattern, even inside Series.is_null.
    """

    table: Table
    columns: dict[str, pl.Series]
    order: np.ndarray | None
    offsets: np.ndarray
    rows: np.ndarray
    ids: dict[str, pl.Series]
    lists: tuple[str, ...]

    @property
    def height(self) -> int:
        return len(self.rows)

    def column(self, name: str) -> pl.Series:
        """A column in sequence order."""
        column = self.columns[name]
        return column if self.order is None else column.gather(self.order)

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def sequence_of(self, step: int) -> str:
        """How to name the sequence that holds a step, for a message."""
        s = int(np.searchsorted(self.offsets, step, side="right")) - 1
        return ", ".join(f"{name}={shown(value)}" for name, value in ((n, c[s]) for n, c in self.ids.items()))

    def where(self, step: int) -> str:
        return self.table.where(int(self.rows[step]))


def require(table: Table, names: Iterable[str], role: str) -> None:
    """Every name must be a column; a DataError names the nearest one."""
    for name in names:
        if name not in table.frame.columns:
            known = table.frame.columns
            listing = ", ".join(map(cut, known[:12])) + (", ..." if len(known) > 12 else "")
            headless = table.lines is not None and (holds_data(known) or _like_rows(table.frame))
            raise DataError(
                f"{table.name} has no {role} column {name!r}.{nearest(name, known)} Its columns are: {listing}."
                + (f" {NO_HEADER}" if headless else "")
            )


def _like_rows(frame: pl.DataFrame) -> bool:
    """Whether a column's name is one of its values, too."""
    return any(c.dtype == pl.String and bool((c.alias("") == c.name).any()) for c in frame.get_columns())


def arrange(
    table: Table,
    *,
    group: Sequence[str],
    time: str | None,
    used: Sequence[str],
    text: Sequence[str] = (),
    items: bool = False,
) -> Arranged:
    """Order the rows of `table` by sequence and time.

    used: the columns to keep; text: those whose cells are cut into words (into blank-separated items when
    `items` is true, so that a column of labels lines up).

    Raises DataError: an unknown column, a missing group or time, a time stamp that occurs twice in a group,
    lists of different lengths in a row.
    """
    require(table, group, "group")
    require(table, [time] if time is not None else [], "time")
    require(table, text, "text")
    keep = list(dict.fromkeys([*group, *([time] if time is not None else []), *used]))
    columns = {name: table.frame[name].alias("") for name in keep}
    for name in text:
        if columns[name].dtype != pl.String:
            raise DataError(f"{table.name}: the text column {name!r} holds {columns[name].dtype}, not text.")
        columns[name] = columns[name].str.extract_all(ITEM if items else WORD)
    lists = tuple(name for name, column in columns.items() if isinstance(column.dtype, pl.List | pl.Array))
    rows = np.arange(table.frame.height, dtype=np.int64)
    if lists:
        columns, rows = _unroll(table, columns, lists)
    if time is not None:
        columns[time] = comparable_time(table, columns[time], time, rows)
    for name in group:
        no_missing(table, columns[name], name, "group", rows)
    order = None
    if group:
        keys = [f"group {k}" for k in range(len(group))]
        row = pl.col("row")
        by_group = (
            pl.DataFrame([columns[name].alias(key) for name, key in zip(group, keys, strict=True)])
            .with_columns(
                pl.int_range(pl.len()).alias("row"), *([columns[time].alias("time")] if time is not None else [])
            )
            .group_by(keys, maintain_order=True)
            .agg(row.sort_by("time", maintain_order=True) if time is not None else row)
        )
        ids = {name: by_group[key] for name, key in zip(group, keys, strict=True)}
        lengths = by_group["row"].list.len().to_numpy()
        order = by_group["row"].explode().to_numpy()
    elif lists:
        present, lengths = np.unique(rows, return_counts=True)
        ids = {"row": pl.Series(present + 1)}
    else:
        ids = {"row": pl.Series([f"1 to {len(rows)}"])}
        lengths = np.array([len(rows)])
        if time is not None:
            by_time = pl.DataFrame({"time": columns[time]}).with_row_index("row")
            order = by_time.sort("time", maintain_order=True)["row"].to_numpy()
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    if order is not None:
        if bool((order[1:] > order[:-1]).all()):
            order = None
        else:
            rows = rows[order]
    arranged = Arranged(table, columns, order, offsets, rows, ids, lists)
    if time is not None and not lists:
        _no_repeated_time(arranged, time, bool(group))
    return arranged


def _unroll(
    table: Table, columns: dict[str, pl.Series], lists: Sequence[str]
) -> tuple[dict[str, pl.Series], np.ndarray]:
    """A row an item of the lists, and the table's row of each."""
    items = {name: columns[name] for name in lists}
    for name, column in items.items():
        if isinstance(column.dtype.inner, pl.List | pl.Array | pl.Struct):  # type: ignore[attr-defined]
            raise DataError(f"{table.name}: column {name!r} holds {column.dtype}; a list of plain values is expected.")
        if isinstance(column.dtype, pl.Array):
            items[name] = column.arr.to_list()
    lengths = {name: column.list.len().fill_null(0) for name, column in items.items()}
    for name in lists[1:]:
        differ = (lengths[name] != lengths[lists[0]]).arg_true()
        if len(differ):
            row = int(differ[0])
            raise DataError(
                f"{table.where(row)}: {lists[0]!r} has {lengths[lists[0]][row]} items and {name!r} has {lengths[name][row]}. "
                "The lists of a row must be equally long, an item a step."
            )
    count = lengths[lists[0]].to_numpy()
    rows = np.repeat(np.arange(len(count), dtype=np.int64), count)
    filled = pl.Series(count > 0)  # an empty list would explode into a missing value
    unrolled = {
        name: items[name].filter(filled).explode() if name in items else column.gather(rows)
        for name, column in columns.items()
    }
    return unrolled, rows


def no_missing(table: Table, column: pl.Series, name: str, role: str, rows: np.ndarray) -> None:
    missing = column.is_null().arg_true()
    if len(missing):
        raise DataError(
            f"{table.where(int(rows[missing[0]]))}, column {name!r}: the {role} is missing ({len(missing)} such "
            f"row{'s' * (len(missing) != 1)}). Fill it in or remove the row."
        )


def comparable_time(table: Table, column: pl.Series, name: str, rows: np.ndarray) -> pl.Series:
    if column.dtype.is_nested() or column.dtype == pl.Binary:
        raise DataError(
            f"{table.name}: column {name!r} holds {column.dtype}; as time numbers, dates or times are expected."
        )
    no_missing(table, column, name, "time", rows)
    if column.dtype.is_float() and not column.is_finite().all():
        bad = int((~column.is_finite()).arg_true()[0])
        raise DataError(f"{table.where(int(rows[bad]))}, column {name!r}: {column[bad]} is not a time.")
    if isinstance(column.dtype, pl.Categorical):
        column = column.cast(pl.String)
    if column.dtype != pl.String:
        return column
    column = column.str.strip_chars()
    # Sorting text would put "10" before "9": only text that is a date all through can order rows.
    try:
        parsed = column.str.to_datetime(strict=False)
    except pl.exceptions.PolarsError:
        parsed = pl.Series([None] * len(column))
    wrong = parsed.is_null().arg_true()
    if len(wrong):
        bad = int(wrong[0])
        raise DataError(
            f"{table.where(int(rows[bad]))}, column {name!r}: {shown(column[bad])} is not a time. "
            "Write dates as 2026-11-23 14:05:00, or use numbers."
        )
    return parsed


def _no_repeated_time(arranged: Arranged, time: str, grouped: bool) -> None:
    column = arranged.column(time)
    same = (column == column.shift(1)).fill_null(False).to_numpy().copy()
    same[arranged.offsets[:-1][arranged.lengths > 0]] = False
    repeated = np.flatnonzero(same)
    if repeated.size:
        step = int(repeated[0])
        first = arranged.where(step - 1)
        second = arranged.table.also_where(int(arranged.rows[step - 1]), int(arranged.rows[step]))
        who = arranged.sequence_of(step) if grouped else ""
        raise repeated_time(f"{first} and {second}", time, column[step], who)


def repeated_time(where: str, time: str, value: Any, who: str) -> DataError:
    """The error for a time that two rows share. who: of which group; "" where none is named."""
    of, more = (f" of {who}", "the group") if who else ("", "a group")
    return DataError(
        f"{where}, column {time!r}: the time {value}{of} occurs twice. Name {more} column that tells "
        "these rows apart, remove one, or leave time out to keep the order of the file."
    )
