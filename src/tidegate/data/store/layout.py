"""The first pass over a table that is larger than memory: its sequences, and whether its rows already lie in their order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from tidegate.data.arrange import Arranged, comparable_time, no_missing, repeated_time
from tidegate.data.settings import DataSettings
from tidegate.data.store.chunks import Chunks
from tidegate.data.tables import Table
from tidegate.documents import shown
from tidegate.errors import DataError

MOST_DIFFERENT = 2**20  # values of a target that are told apart where only their number says what it is
FEW = 11  # ... of one of decimal numbers


@dataclass(frozen=True)
class Layout:
    """ids: the group columns, a row a sequence, in the order in which the sequences first occur. offsets [S + 1]: where each begins.
    in_order: the rows of the table lie in the order of the sequences and of time. different: of each target its different values.
    """

    ids: dict[str, pl.Series]
    offsets: np.ndarray
    in_order: bool
    different: dict[str, pl.Series]

    @property
    def height(self) -> int:
        return int(self.offsets[-1])

    def of_lengths(self, table: Table) -> Arranged:
        """All rows, with their sequences and without any column."""
        nothing = np.broadcast_to(np.int64(0), self.height)
        return Arranged(table, {}, None, self.offsets, nothing, self.ids, ())


def find_layout(chunks: Chunks, settings: DataSettings, advance: Callable[[int], None]) -> Layout:
    """Raises DataError: a missing group or time, a time that occurs twice (where rows lie in order; else it is found later)."""
    targets = [n for n in settings.target if chunks.schema[n].is_numeric() or chunks.schema[n] == pl.Boolean]
    time = [] if settings.time is None else [settings.time]
    groups = _Groups(chunks, settings)
    different: dict[str, pl.Series] = {}
    for first, chunk in chunks.chunks(list(dict.fromkeys([*settings.group, *time, *targets]))):
        groups.take(chunk, first)
        for name in targets if settings.task == "auto" else []:
            _take_different(different, name, chunk.frame[name].alias(""))
        advance(chunk.height)
    return groups.layout(different)


def _take_different(different: dict[str, pl.Series], name: str, column: pl.Series) -> None:
    most = FEW if column.dtype.is_float() or column.dtype.is_decimal() else MOST_DIFFERENT
    before = different.get(name)
    if before is None or len(before) < most:
        found = column.drop_nulls().unique()
        different[name] = (found if before is None else pl.concat([before, found]).unique()).head(most + 1)


class _Groups:
    """Numbers the groups as they first occur, and looks whether each one's rows follow each other, in the order of time."""

    def __init__(self, chunks: Chunks, settings: DataSettings) -> None:
        self.chunks, self.group, self.time = chunks, settings.group, settings.time
        self.keys = [f"group {k}" for k in range(len(self.group))]
        self.known = pl.DataFrame(
            schema={key: chunks.schema[name] for key, name in zip(self.keys, self.group, strict=True)}
        )
        self.known = self.known.with_columns(pl.Series("number", [], dtype=pl.UInt32))
        self.lengths = np.zeros(0, dtype=np.int64)
        self.in_order = True
        self.last: pl.DataFrame | None = None  # the last row before this chunk, and its group's number
        self.last_number = -1
        self.repeated: int | None = None  # the first row with the time of the row before it
        self.back: int | None = None  # the first row whose time is before that of the row before it

    def take(self, chunk: Table, first: int) -> None:
        rows = np.arange(chunk.height)
        columns = {}
        for key, name in zip(self.keys, self.group, strict=True):
            columns[key] = chunk.frame[name].alias(key)
            no_missing(chunk, columns[key], name, "group", rows)
        if self.time is not None:
            columns["time"] = comparable_time(chunk, chunk.frame[self.time].alias(""), self.time, rows).alias("time")
        if not columns:
            self.lengths = np.array([chunk.height + self.lengths.sum()])
            return
        here = pl.DataFrame(columns)
        before = 0 if self.last is None else 1
        rows_here = here if self.last is None else pl.concat([self.last, here])
        change = np.zeros(rows_here.height, dtype=bool)
        change[0] = not before
        for key in self.keys:
            change |= rows_here[key].ne_missing(rows_here[key].shift(1)).to_numpy() & (np.arange(len(change)) > 0)
        if self.time is not None:
            self._compare_times(rows_here["time"], change, first - before)
        self._number(here, change[before:])
        self.last = here.tail(1)

    def _compare_times(self, times: pl.Series, change: np.ndarray, first: int) -> None:
        """first: the row of the table that `times` begins with."""
        within = ~change
        within[0] = False
        earlier = times.shift(1)
        if self.back is None:
            back = np.flatnonzero(within & (times < earlier).fill_null(False).to_numpy())
            self.back = first + int(back[0]) if back.size else None
        if self.repeated is None:
            same = np.flatnonzero(within & (times == earlier).fill_null(False).to_numpy())
            self.repeated = first + int(same[0]) if same.size else None

    def _number(self, here: pl.DataFrame, change: np.ndarray) -> None:
        if not self.keys:
            self.lengths = np.array([here.height + self.lengths.sum()])
            return
        starts = np.flatnonzero(change)
        heads = here.select(self.keys)[starts]
        new = heads.unique(maintain_order=True).join(self.known, on=self.keys, how="anti", maintain_order="left")
        numbers = pl.Series("number", np.arange(self.known.height, self.known.height + new.height), dtype=pl.UInt32)
        self.known = pl.concat([self.known, new.with_columns(numbers)], rechunk=True)
        of_heads = number_of(heads, self.known, self.keys)
        run_lengths = np.diff(np.append(starts, here.height))
        lengths = np.bincount(of_heads, run_lengths, minlength=self.known.height).astype(np.int64)
        lengths[: len(self.lengths)] += self.lengths
        if not change[0]:
            lengths[self.last_number] += starts[0] if len(starts) else here.height
        self.lengths = lengths
        self.in_order &= bool((np.diff(np.append(self.last_number, of_heads)) > 0).all())
        if len(of_heads):
            self.last_number = int(of_heads[-1])

    def layout(self, different: dict[str, pl.Series]) -> Layout:
        in_order = self.in_order and self.back is None
        if in_order and self.repeated is not None:
            raise self._repeated()
        if not in_order and not self.keys:
            assert self.time is not None
            assert self.back is not None
            raise DataError(
                f"{self.chunks.where(self.back)}, column {self.time!r}: the time is before that of the row before it, and the whole table is one "
                "sequence. One that is larger than memory must be in the order of time. Sort it first, or name the group column, if it "
                "has one."
            )
        ids = {n: self.known[key].alias("") for n, key in zip(self.group, self.keys, strict=True)}
        if not self.keys:
            ids = {"row": pl.Series([f"1 to {self.chunks.height}"])}
        return Layout(ids, np.concatenate([[0], np.cumsum(self.lengths)]), in_order, different)

    def _repeated(self) -> DataError:
        assert self.repeated is not None
        assert self.time is not None
        both = self.chunks.read([*self.group, self.time], self.repeated - 1, self.repeated + 1)
        who = ", ".join(f"{name}={shown(both.frame[name][1])}" for name in self.group)
        where = f"{both.where(0)} and {both.also_where(0, 1)}"
        return repeated_time(where, self.time, both.frame[self.time][1], who)


def number_of(rows: pl.DataFrame, known: pl.DataFrame, keys: Sequence[str]) -> np.ndarray:
    """The number of each row's group [N]."""
    numbers: np.ndarray = rows.join(known, on=list(keys), how="left", maintain_order="left")["number"].to_numpy()
    return numbers.astype(np.int64)
