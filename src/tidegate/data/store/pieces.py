"""The rows of a table that is larger than memory in the order of its sequences, some at a time."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from tidegate.data.arrange import Arranged, arrange, comparable_time
from tidegate.data.settings import DataSettings
from tidegate.data.store.chunks import LINE, Chunks
from tidegate.data.store.layout import Layout, number_of
from tidegate.data.tables import Table
from tidegate.errors import DataError

ROW = "\0row"  # the column that says which row of the table one is
LARGEST = 2  # times the rows of a chunk: a sequence that has to be arranged as a whole may have as many


@dataclass(frozen=True)
class Piece:
    """Rows in sequence order. first: the step of all that it begins with. rows [N]: the row of the table of each step. begun: whether
    its first step goes on with the sequence in which the piece before it ended.
    """

    arranged: Arranged
    first: int
    rows: np.ndarray
    begun: bool

    @property
    def end(self) -> int:
        return self.first + self.arranged.height


class Pieces:
    """All rows, as often as they are asked for."""

    def __init__(self, chunks: Chunks, layout: Layout, settings: DataSettings) -> None:
        self.chunks, self.layout, self.settings = chunks, layout, settings

    def __call__(
        self, columns: Sequence[str], advance: Callable[[int], None], *, whole: bool = False
    ) -> Iterator[Piece]:
        """Pieces with these columns. whole: no sequence is cut. Raises DataError: a sequence that is too long to be there as a whole."""
        raise NotImplementedError

    def _ranges_of_sequences(self, why: str, only: tuple[int, int] | None = None) -> list[tuple[int, int]]:
        """Sequences that follow each other, as many as a chunk has rows; one that is longer alone. only: of the sequences first:end."""
        return ranges_of_sequences(self.chunks, self.layout, why, self._way_out(), only)

    def _way_out(self) -> str:
        return ""


def ranges_of_sequences(
    chunks: Chunks, layout: Layout, why: str, way_out: str, only: tuple[int, int] | None = None
) -> list[tuple[int, int]]:
    """Sequences first:end, as many at a time as a chunk has rows; one that is longer alone. only: of these; None: of all.

    Raises DataError: one is longer than LARGEST chunks. why, way_out: how the sentence ends.
    """
    offsets, most = layout.offsets, chunks.rows
    s, last = only or (0, len(offsets) - 1)
    lengths = np.diff(offsets[s : last + 1])
    if len(lengths) and lengths.max() > LARGEST * most:
        longest = int(lengths.argmax())
        who = ", ".join(f"{name}={column[s + longest]!r}" for name, column in layout.ids.items())
        raise DataError(
            f"{chunks.name}: the sequence {who} has {lengths[longest]:,} rows, and about {LARGEST * most:,} are the most that the "
            f"memory allows {why}. Allow more memory (memory, --memory){way_out}."
        )
    ranges = []
    while s < last:
        end = min(last, max(s + 1, int(np.searchsorted(offsets, offsets[s] + most, side="right")) - 1))
        ranges.append((s, end))
        s = end
    return ranges


class InOrder(Pieces):
    """Of a table whose rows lie in the order of its sequences: they are read as they lie."""

    def __call__(
        self, columns: Sequence[str], advance: Callable[[int], None], *, whole: bool = False
    ) -> Iterator[Piece]:
        offsets, most, height = self.layout.offsets, self.chunks.rows, self.layout.height
        if whole:
            ranges = [(int(offsets[a]), int(offsets[b])) for a, b in self._ranges_of_sequences("where one isn't cut")]
        else:
            ranges = [(first, min(first + most, height)) for first in range(0, height, most)]
        for first, end in ranges:
            table = self.chunks.read(columns, first, end)
            yield Piece(self._arranged(table, first), first, np.arange(first, end), self._begun(first))
            advance(end - first)

    def _begun(self, first: int) -> bool:
        offsets = self.layout.offsets
        return int(offsets[np.searchsorted(offsets, first)]) != first

    def _arranged(self, table: Table, first: int) -> Arranged:
        offsets, count = self.layout.offsets, table.height
        s = int(np.searchsorted(offsets, first, side="right")) - 1
        t = int(np.searchsorted(offsets, first + count))
        columns = {c.name: c.alias("") for c in table.frame.get_columns()}
        rows = np.arange(count)
        time = self.settings.time
        if time is not None and time in columns:
            columns[time] = comparable_time(table, columns[time], time, rows)
        ids = {name: column[s:t] for name, column in self.layout.ids.items()}
        return Arranged(table, columns, None, np.clip(offsets[s : t + 1], first, first + count) - first, rows, ids, ())


class Bucketed(Pieces):
    """Of a table whose rows lie otherwise. They are written once into files of some sequences each, a bucket, in the order of the table;
    a bucket is then arranged in memory.
    """

    def __init__(
        self,
        chunks: Chunks,
        layout: Layout,
        settings: DataSettings,
        columns: Sequence[str],
        *,
        folder: Path,
        advance: Callable[[int], None],
        only: tuple[int, int] | None = None,
    ) -> None:
        """columns: all that will be asked for. only: the sequences first:end that will be; None: all."""
        super().__init__(chunks, layout, settings)
        self.only = only
        self.ranges = self._ranges_of_sequences(
            "for one whose rows do not follow each other in the order of time", only
        )
        self.folder = folder
        folder.mkdir()
        self.parts: list[list[tuple[int, int]]] = [
            [] for _ in self.ranges
        ]  # of each bucket: (where, bytes) of its Arrow streams
        self._fill(list(columns), advance)

    def _way_out(self) -> str:
        return ", or sort the table by group and time"

    def _fill(self, columns: Sequence[str], advance: Callable[[int], None]) -> None:
        numbers_of = Numbers(self.layout, self.settings.group)
        begins = np.array([first for first, _ in self.ranges])
        for first, chunk in self.chunks.chunks(columns):
            sequence = numbers_of(chunk)
            bucket = np.searchsorted(begins, sequence, side="right") - 1
            if self.only is not None:
                bucket[(sequence < self.only[0]) | (sequence >= self.only[1])] = -1
            every = {c.name: c for c in chunk.frame.get_columns()} | {
                ROW: pl.Series(np.arange(first, first + chunk.height))
            }
            if chunk.lines is not None:
                every[LINE] = pl.Series(chunk.lines)
            frame, order = pl.DataFrame(every), np.argsort(bucket, kind="stable")
            numbers, starts = np.unique(bucket[order], return_index=True)
            for k, a, b in zip(numbers.tolist(), starts, [*starts[1:], len(order)], strict=True):
                if k >= 0:
                    self._append(k, frame[order[a:b]])
            advance(chunk.height)

    def _path(self, bucket: int) -> Path:
        return self.folder / f"{bucket}.rows"

    def _append(self, bucket: int, frame: pl.DataFrame) -> None:
        stream = io.BytesIO()
        frame.write_ipc_stream(stream)
        with self._path(bucket).open("ab") as file:
            self.parts[bucket].append((file.tell(), stream.tell()))
            file.write(stream.getbuffer())

    def __call__(
        self, columns: Sequence[str], advance: Callable[[int], None], *, whole: bool = False
    ) -> Iterator[Piece]:
        group, time = self.settings.group, self.settings.time
        names = list(dict.fromkeys([*group, *([] if time is None else [time]), *columns]))
        for k, (s, t) in enumerate(self.ranges):
            table, rows = self.table(k, names)
            arranged = arrange(table, group=group, time=time, used=columns)
            first, end = int(self.layout.offsets[s]), int(self.layout.offsets[t])
            if not np.array_equal(arranged.offsets, self.layout.offsets[s : t + 1] - first):
                raise self.chunks.changed()
            yield Piece(arranged, first, rows[arranged.rows], begun=False)
            advance(end - first)

    def table(self, bucket: int, names: Sequence[str]) -> tuple[Table, np.ndarray]:
        """These columns of a bucket, its rows in the order of the table, and which rows they are."""
        frame = self._read(bucket)
        rows = frame[ROW].to_numpy()
        lines = frame[LINE].to_numpy() if LINE in frame.columns else None
        return self.chunks.table(pl.DataFrame({name: frame[name] for name in names}), rows, lines), rows

    def drop(self, bucket: int) -> None:
        """A bucket that isn't asked for again."""
        self._path(bucket).unlink()

    def _read(self, bucket: int) -> pl.DataFrame:
        frames = []
        with self._path(bucket).open("rb") as file:
            for where, size in self.parts[bucket]:
                file.seek(where)
                frames.append(pl.read_ipc_stream(io.BytesIO(file.read(size))))
        return pl.concat(frames)


class Numbers:
    """The number of each row's sequence in a layout."""

    def __init__(self, layout: Layout, group: Sequence[str]) -> None:
        self.group, self.keys = group, [f"group {k}" for k in range(len(group))]
        known = pl.DataFrame([c.alias(key) for c, key in zip(layout.ids.values(), self.keys, strict=True)])
        self.known = known.with_columns(pl.Series("number", np.arange(known.height), dtype=pl.UInt32))

    def __call__(self, chunk: Table) -> np.ndarray:
        """[N]"""
        columns = [chunk.frame[name].alias(key) for name, key in zip(self.group, self.keys, strict=True)]
        return number_of(pl.DataFrame(columns), self.known, self.keys)


def used_columns(settings: DataSettings, features: Sequence[str]) -> list[str]:
    """All columns of which anything is read."""
    time = [] if settings.time is None else [settings.time]
    split = [settings.split] if isinstance(settings.split, str) else []
    return list(dict.fromkeys([*settings.group, *time, *features, *settings.target, *split]))
