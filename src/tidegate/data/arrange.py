"""The rows of a table put in the order of their sequences.

Three layouts become one, a long table in which the rows of a sequence follow each other:

    group column(s)     rows with the same value are one sequence
    list columns        each row of the table is one sequence (its lists are unrolled, other cells repeated)
    neither             the whole table is one sequence
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from tidegate.data.tables import Table
from tidegate.errors import DataError, nearest

WORD = r"\w+(?:['’]\w+)?|[^\w\s]"  # a word with its apostrophe, or one punctuation mark
ITEM = r"\S+"


@dataclass(frozen=True)
class Arranged:
    """Rows in sequence order: those of sequence s are `offsets[s]:offsets[s + 1]`.

    frame: the (unrolled) rows as they came; order: which of them comes first, second, ... (None: they lie right). Columns
    are put in order one at a time, as they are asked for: a copy of the whole table would double its memory.
    rows [N]: the table's row of each step; ids: the group columns, a row a sequence (row number for list columns).
    """

    table: Table
    frame: pl.DataFrame
    order: np.ndarray | None
    offsets: np.ndarray
    rows: np.ndarray
    ids: pl.DataFrame
    lists: tuple[str, ...]

    @property
    def height(self) -> int:
        return self.frame.height

    def column(self, name: str) -> pl.Series:
        """A column in sequence order."""
        column = self.frame[name]
        return column if self.order is None else column.gather(self.order)

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def sequence_of(self, step: int) -> str:
        """How to name the sequence that holds a step, for a message."""
        s = int(np.searchsorted(self.offsets, step, side="right")) - 1
        return ", ".join(f"{name}={value!r}" for name, value in self.ids.row(s, named=True).items())

    def where(self, step: int) -> str:
        return self.table.where(int(self.rows[step]))


def require(table: Table, names: Iterable[str], role: str) -> None:
    """Every name must be a column; a DataError names the nearest one."""
    for name in names:
        if name not in table.frame.columns:
            known = table.frame.columns
            listing = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
            raise DataError(
                f"{table.name} has no {role} column {name!r}.{nearest(name, known)} Its columns are: {listing}."
            )


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
    require(table, [time] if time else [], "time")
    require(table, text, "text")
    keep = list(dict.fromkeys([*group, *([time] if time else []), *used]))
    frame = table.frame.select(keep)
    for name in text:
        if frame.schema[name] != pl.String:
            raise DataError(f"{table.name}: the text column {name!r} holds {frame.schema[name]}, not text.")
    if text:
        frame = frame.with_columns(pl.col(name).str.extract_all(ITEM if items else WORD) for name in text)
    lists = tuple(name for name in keep if isinstance(frame.schema[name], pl.List | pl.Array))
    rows = None
    if lists:
        frame, rows = _unroll(table, frame, lists)
    if time:
        frame = _comparable_time(table, frame, time, rows)
    for name in group:
        _no_missing(table, frame, name, "group", rows)
    order = None
    if group:
        row = pl.col("__row")
        by_group = (
            frame.select([*group, *([time] if time else [])])
            .with_row_index("__row")
            .group_by(group, maintain_order=True)
            .agg(row.sort_by(time, maintain_order=True) if time else row)
        )
        ids = by_group.select(group)
        lengths = by_group["__row"].list.len().to_numpy()
        order = by_group["__row"].explode().to_numpy()
    elif lists:
        assert rows is not None
        present, lengths = np.unique(rows, return_counts=True)
        ids = pl.DataFrame({"row": present + 1})
    else:
        ids = pl.DataFrame({"row": ["1 to " + str(frame.height)]})
        lengths = np.array([frame.height])
        if time:
            order = frame[time].arg_sort(nulls_last=True).to_numpy()
            if not frame[time].is_sorted():
                order = frame.with_row_index("__row").sort(time, maintain_order=True)["__row"].to_numpy()
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    if order is not None and bool((order[1:] > order[:-1]).all()):
        order = None
    if rows is None:
        rows = np.arange(frame.height, dtype=np.int64)
    if order is not None:
        rows = rows[order]
    arranged = Arranged(table, frame, order, offsets, rows, ids, lists)
    if time and not lists:
        _no_repeated_time(arranged, time, bool(group))
    return arranged


def _unroll(table: Table, frame: pl.DataFrame, lists: Sequence[str]) -> tuple[pl.DataFrame, np.ndarray]:
    for name in lists:
        inner = frame.schema[name].inner  # type: ignore[attr-defined]
        if isinstance(inner, pl.List | pl.Array | pl.Struct):
            raise DataError(
                f"{table.name}: column {name!r} holds {frame.schema[name]}; a list of plain values is expected."
            )
    frame = frame.with_columns(pl.col(n).arr.to_list() for n in lists if isinstance(frame.schema[n], pl.Array))
    lengths = frame.select(pl.col(n).list.len().fill_null(0) for n in lists)
    for name in lists[1:]:
        differ = (lengths[name] != lengths[lists[0]]).arg_true()
        if len(differ):
            row = int(differ[0])
            raise DataError(
                f"{table.where(row)}: {lists[0]!r} has {lengths[lists[0]][row]} items and {name!r} has {lengths[name][row]}. "
                "The lists of a row must be equally long, an item a step."
            )
    count = lengths[lists[0]].to_numpy()
    rows = np.repeat(np.arange(frame.height, dtype=np.int64), count)
    return frame.filter(pl.Series(count > 0)).explode(list(lists)), rows


def _no_missing(table: Table, frame: pl.DataFrame, name: str, role: str, rows: np.ndarray | None) -> None:
    missing = frame[name].is_null().arg_true()
    if len(missing):
        row = int(missing[0]) if rows is None else int(rows[missing[0]])
        raise DataError(
            f"{table.where(row)}, column {name!r}: the {role} is missing ({len(missing)} such row{'s' * (len(missing) != 1)}). "
            "Fill it in or remove the row."
        )


def _comparable_time(table: Table, frame: pl.DataFrame, time: str, rows: np.ndarray | None) -> pl.DataFrame:
    _no_missing(table, frame, time, "time", rows)
    column = frame[time]
    if column.dtype.is_float() and not column.is_finite().all():
        bad = int((~column.is_finite()).arg_true()[0])
        raise DataError(
            f"{table.where(bad if rows is None else int(rows[bad]))}, column {time!r}: {column[bad]} is not a time."
        )
    if column.dtype != pl.String:
        return frame
    # Sorting text would put "10" before "9": only text that is a date all through can order rows.
    try:
        parsed = column.str.to_datetime(strict=False)
    except pl.exceptions.PolarsError:
        parsed = pl.Series(time, [None] * len(column))
    wrong = parsed.is_null().arg_true()
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"{table.where(row if rows is None else int(rows[row]))}, column {time!r}: {column[row]!r} is not a time. "
            "Write dates as 2026-11-23 14:05:00, or use numbers."
        )
    return frame.with_columns(parsed.alias(time))


def _no_repeated_time(arranged: Arranged, time: str, grouped: bool) -> None:
    column = arranged.column(time)
    same = (column == column.shift(1)).fill_null(False).to_numpy().copy()
    same[arranged.offsets[:-1][arranged.lengths > 0]] = False
    repeated = np.flatnonzero(same)
    if repeated.size:
        step = int(repeated[0])
        first, second = arranged.where(step - 1), arranged.table.where(int(arranged.rows[step])).split(", ")[-1]
        who = f" of {arranged.sequence_of(step)}" if grouped else ""
        more = "the group" if grouped else "a group"
        raise DataError(
            f"{first} and {second}, column {time!r}: the time {column[step]}{who} occurs twice. Name {more} column that tells "
            "these rows apart, remove one, or leave time out to keep the order of the file."
        )
