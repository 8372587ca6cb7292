"""Some rows at a time of a table in one or several files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import polars.selectors as cs

from tidegate.data.several import (
    Files,
    SomeRows,
    base_of,
    common_types,
    empty_columns,
    files_of,
    is_several,
    names_of_files,
    short_name,
    with_types,
)
from tidegate.data.tables import (
    ARROW_SUFFIXES,
    PARQUET_SUFFIXES,
    SUFFIXES,
    Table,
    check_kind,
    is_typed,
    kind_of,
    not_whole,
    packing_of_file,
    read_table,
    without_missing,
)
from tidegate.default_memory import told
from tidegate.errors import DataError

CHUNKS = 12  # of a table's rows that fit the memory at once: they are there several times on the way, as read, in order and as arrays
SAMPLED = 10_000  # rows by which the size of a row is estimated
OF_TEXT = 3  # times the size of a CSV file that reading it takes (docs/decisions/046)
LINE = "\0line"  # the column of a CSV file's line numbers


class Chunks:
    """The rows of a table, of which never more than some are in memory.

    schema: the columns and their types; text with a fixed set of values (categorical) counts as text. types: as they lie in the files.
    height: all rows. rows: how many may be read at a time. notes, lost: as of a `Table`. grouped: whether numbers of a CSV file have decimal commas that look like thousands separators.
    """

    def __init__(self, source: str | Path, reading: Mapping[str, Any], memory: int, spool: Path) -> None:
        """reading: as `read_table` takes it. spool: a folder for CSV files and others without types, written there as Arrow."""
        self.path = Path(source)
        self.name = short_name(self.path)
        self.paths = files_to_read(self.path)
        self.names = names_of_files(self.paths, base_of(self.path)) if is_several(source) else (self.path.name,)
        self._missing: Sequence[str] = reading.get("missing", ())
        self.notes: list[str] = []
        self.lost: list[str] = []
        self.grouped = False
        self._nan: dict[str, int] = {}
        self._lined = False
        typed = all(is_typed(path) and not packing_of_file(path) for path in self.paths)
        self._files = self.paths if typed else self._spooled(reading, memory, spool)
        schemas = [_schema(path, name) for path, name in zip(self._files, self.names, strict=True)]
        if typed:
            nothing: list[frozenset[str]] = [frozenset(n for n, d in s.items() if d == pl.Null) for s in schemas]
            self.types = common_types(self.names, schemas, nothing, guessed=False)
        else:
            self._lined = LINE in schemas[0]
        counts = [_height(path, name) for path, name in zip(self._files, self.names, strict=True)]
        self.files = Files(self.names, np.cumsum([0, *counts]))
        self.height = int(self.files.starts[-1])
        if not self.height:
            raise DataError(f"{self.name} has a header but no rows.")
        self.schema = {n: pl.String() if _is_closed_text(d) else d for n, d in self.types.items()}
        self.row_bytes = self._row_bytes()
        self.rows = max(1, memory // (CHUNKS * self.row_bytes))

    def _spooled(self, reading: Mapping[str, Any], memory: int, spool: Path) -> list[Path]:
        """Files without types, read one at a time and written as Arrow."""
        spool.mkdir()
        paths, schemas, empty = [], [], []
        for k, (path, name) in enumerate(zip(self.paths, self.names, strict=True)):
            check_text_fits(path, name, memory)
            table = replace(read_table(path, **reading), name=name)
            frame = table.frame
            schemas.append(dict(frame.schema))
            empty.append(empty_columns(frame))
            self.notes += table.notes
            self.lost += table.lost
            self.grouped |= bool(table.grouped)
            for column, count in table.nan.items():
                self._nan[column] = self._nan.get(column, 0) + count
            if table.lines is not None:
                frame = frame.with_columns(pl.Series(LINE, table.lines))
            paths.append(spool / f"{k}.arrow")
            frame.write_ipc(paths[-1])
        self.types = common_types(self.names, schemas, empty, guessed=True)
        return paths

    def _row_bytes(self) -> int:
        some = self.read([*self.schema], 0, min(self.height, SAMPLED))
        return max(1, int(some.frame.estimated_size() / some.frame.height))

    @property
    def size(self) -> int:
        """The bytes that the whole table would take in memory, estimated."""
        return self.row_bytes * self.height

    def read(self, columns: Sequence[str], first: int, end: int) -> Table:
        """The rows first:end. Raises DataError: a file isn't whole."""
        wanted = {name: self.types[name] for name in columns}
        frames, lines = [], []
        starts = self.files.starts
        for k in range(len(self._files)):
            a, b = max(first, int(starts[k])), min(end, int(starts[k + 1]))
            if a < b:
                frame = self._slice(k, list(columns), a - int(starts[k]), b - a)
                if self._lined:
                    lines.append(frame[LINE].to_numpy())
                frames.append(with_types(frame, wanted))
        frame = pl.concat(frames)
        closed = [c.name for c in frame.get_columns() if _is_closed_text(c.dtype)]
        if closed:
            frame = with_types(frame, {name: self.schema[name] for name in columns})
        table = self.table(frame, np.arange(first, end), np.concatenate(lines) if lines else None)
        return without_missing(table, self._missing) if self._files is self.paths else table

    def where(self, row: int) -> str:
        """How a person finds a row."""
        return self.read([next(iter(self.schema))], row, row + 1).where(0)

    def table(self, frame: pl.DataFrame, rows: np.ndarray, lines: np.ndarray | None) -> Table:
        """Some rows of this table as a table whose messages name the file and the row there. rows: which; lines: of CSV files."""
        return Table(frame, self.name, self.path, lines=lines, nan=self._nan, files=SomeRows(self.files, rows))

    def chunks(self, columns: Sequence[str]) -> Iterator[tuple[int, Table]]:
        """All rows in the order of the files: the first row of each chunk, and the chunk."""
        for first in range(0, self.height, self.rows):
            yield first, self.read(columns, first, min(first + self.rows, self.height))

    def _slice(self, k: int, columns: list[str], first: int, count: int) -> pl.DataFrame:
        path = self._files[k]
        names = cs.by_name(*columns, *([LINE] if self._lined else []))  # (pl.col would read "*" as a pattern)
        try:
            frame: pl.DataFrame = _scan(path).select(names).slice(first, count).collect()
        except (Exception, pl.exceptions.PanicException) as error:
            raise _unreadable(path, self.names[k], error) from error
        if frame.height != count:
            raise self.changed(self.names[k])
        return frame

    def changed(self, name: str | None = None) -> DataError:
        """What to raise where a file, or some file, isn't what it was."""
        return DataError(f"{name or self.name} has changed while it was read. Begin again when it no longer does.")


def files_to_read(path: Path) -> list[Path]:
    """The files of a table, each of a kind that is known. Raises DataError."""
    paths = files_of(path, kind_of, SUFFIXES) if is_several(path) else [path]
    for one in paths:
        check_kind(one)
    return paths


def check_text_fits(path: Path, name: str, memory: int) -> None:
    """Raises DataError for a file without types that is too large to be read as a whole, which its types are found from."""
    size = path.stat().st_size
    if OF_TEXT * size > memory and size > memory // CHUNKS:
        raise DataError(
            f"{name} has {told(size)} of text, and to read it takes about {told(OF_TEXT * size)}, more than the {told(memory)} allowed. "
            f"Divide it into several files, or write it as Parquet: polars.scan_csv('{name}').sink_parquet('{path.stem}.parquet')."
        )


def _is_closed_text(dtype: Any) -> bool:
    return isinstance(dtype, pl.Categorical | pl.Enum)


def _scan(path: Path) -> pl.LazyFrame:
    return pl.scan_parquet(path, glob=False) if kind_of(path) in PARQUET_SUFFIXES else pl.scan_ipc(path, glob=False)


def _schema(path: Path, name: str) -> dict[str, Any]:
    try:
        schema = pl.read_parquet_schema(path) if kind_of(path) in PARQUET_SUFFIXES else pl.read_ipc_schema(path)
        return dict(schema)
    except (Exception, pl.exceptions.PanicException) as error:
        raise _unreadable(path, name, error) from error


def _height(path: Path, name: str) -> int:
    try:
        return int(_scan(path).select(pl.len()).collect().item())
    except (Exception, pl.exceptions.PanicException) as error:
        raise _unreadable(path, name, error) from error


def _unreadable(path: Path, name: str, error: BaseException) -> BaseException:
    if isinstance(error, PermissionError | KeyboardInterrupt):
        return error
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        return DataError(f"{path}: can't be read ({error.strerror}).")
    return not_whole(name, "Arrow" if kind_of(path) in ARROW_SUFFIXES else "Parquet", error)
