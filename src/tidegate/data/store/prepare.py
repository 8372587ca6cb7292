"""The passes over a table that is larger than memory, which leave a store."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl

from tidegate import __version__
from tidegate.data.arrange import Arranged
from tidegate.data.fitting import (
    choose_features,
    counted,
    maybe_numbers,
    preprocessing_of,
    sequences_of_one_row,
    settings_for,
    task_of,
)
from tidegate.data.gaps import LONGER, numbers_of
from tidegate.data.gathering import FeatureRows, TargetRows
from tidegate.data.hints import constant, is_empty, left_out_as_empty
from tidegate.data.numerals import PLAIN, look
from tidegate.data.preprocessing import Target, encode_features, encode_target
from tidegate.data.sequences import NOWHERE
from tidegate.data.settings import DataSettings
from tidegate.data.several import is_store, is_there
from tidegate.data.splits import assign_parts, by_column, completed
from tidegate.data.store.chunks import OF_TEXT, SAMPLED, Chunks, files_to_read
from tidegate.data.store.folder import (
    IDS,
    PREPROCESSING,
    ArrayWriter,
    Input,
    Manifest,
    Store,
    check_space,
    data_settings,
    inputs_of,
    open_store,
    sequences_of,
    stamps_of,
)
from tidegate.data.store.layout import find_layout
from tidegate.data.store.pieces import Bucketed, InOrder, Pieces, used_columns
from tidegate.data.tables import Table, is_typed, packing_of_file
from tidegate.default_memory import memory_of_machine, told
from tidegate.errors import DataError, SettingsError
from tidegate.files import replacing_folder, write_text

IN_MEMORY = 2.6  # times a table's size that its training takes at the peak (docs/decisions/046, benchmarks/table_to_sequences.py)
MOST_PACKED = 50  # times the size of its files that a table may have in memory: a smaller one needs no look
CODE, ROW, PART = 8, 8, 1  # bytes of a row in the arrays


class Watch(Protocol):
    """Who is told how far it is."""

    def note(self, text: str) -> None: ...

    def work(self, title: str, rows: int) -> AbstractContextManager[Callable[[int], None]]:
        """A pass over so many rows; what is given is called with how many more are done."""


def prepare(
    source: str | Path, folder: Path, settings: DataSettings, *, seed: int, memory: int, watch: Watch, why: str = ""
) -> Store:
    """Arrange a table as a store in `folder`, which is replaced where it is there already.

    memory: bytes. seed: of the run; it draws the split unless the settings have another one for that. why: what is told before it begins,
    with {folder} and {size}.

    Raises DataError and SettingsError in the words of a user, and where a setting needs the whole table in memory; DiskError. Nothing
    half-made is left.
    """
    _check_settings(settings)
    before = [(name, stat.st_size, stat.st_mtime_ns) for _, name, stat in stamps_of(source)]
    with replacing_folder(folder) as temporary, ExitStack() as stack:
        work = temporary / "work"
        work.mkdir()
        stack.callback(shutil.rmtree, work, ignore_errors=True)
        chunks = Chunks(source, settings.reading, memory, work / "files")
        passes = _Passes(chunks, settings, seed, work, watch)
        watch.note(why.format(folder=folder, size=told(passes.estimated)) if why else passes.told(folder))
        check_space(folder, passes.estimated)
        passes.run(temporary)
        with watch.work("Checksums of the files", 0):
            inputs = inputs_of(source)
        if before != [(one.name, one.size, one.mtime_ns) for one in inputs]:
            raise chunks.changed()
        passes.finish(temporary, inputs)
    return open_store(folder, verify=False)


def _check_settings(settings: DataSettings) -> None:
    """Raises SettingsError for what needs the whole table in memory."""
    for name, asked, way in (
        ("text", bool(settings.text), "cut the sentences into words first, a row each"),
        ("fold", settings.fold is not None, "validate on one part of the rows (split)"),
        ("split_by", settings.split_by == "date", "put the parts into a column (split)"),
        ("thousands", settings.decimal_comma, "write numbers with a decimal point"),
    ):
        if asked:
            raise SettingsError(
                f"{name}={getattr(settings, name)!r} needs the whole table in memory, and this one is arranged on disk. Allow more memory "
                f"(memory, --memory), or {way}."
            )


class _Passes:
    """What is known of a table after each pass."""

    def __init__(self, chunks: Chunks, settings: DataSettings, seed: int, work: Path, watch: Watch) -> None:
        self.chunks, self.given, self.work, self.watch = chunks, settings, work, watch
        self.seed = seed if settings.split_seed is None else settings.split_seed
        self.notes: list[str] = list(chunks.notes)
        self.head = chunks.read([*chunks.schema], 0, min(chunks.rows, chunks.height, SAMPLED))
        self.settings = settings_for(self.head, settings)
        split = self.settings.split
        self.split = split if isinstance(split, str) else None
        self.names = choose_features(self.head, self.settings, self.split, self.notes, whole=False)
        self._check_columns()

    def _check_columns(self) -> None:
        settings, chunks = self.settings, self.chunks
        for name in used_columns(settings, self.names):
            dtype = chunks.schema[name]
            if isinstance(dtype, pl.List | pl.Array):
                raise DataError(
                    f"{chunks.name}: column {name!r} holds lists, which need the whole table in memory. Allow more memory (memory, --memory), "
                    "or write each item as a row of its own."
                )
        if settings.time is not None and chunks.schema[settings.time] == pl.String:
            raise DataError(
                f"{chunks.name}: the time column {settings.time!r} holds text. To be arranged on disk, times must be written as such "
                "(datetime) or as numbers."
            )
        if chunks.grouped and settings.thousands == "auto":
            raise DataError(
                f"{chunks.name}: numbers have commas that may be decimal ones or stand between thousands. Say which (thousands, --thousands)."
            )

    @property
    def estimated(self) -> int:
        """Bytes on disk."""
        head = self.head.frame
        text = [n for n in self.names if head.schema[n] == pl.String or n in self.settings.categories]
        masked = sum(head[n].null_count() > 0 for n in self.names if n not in text)
        row = 4 * (len(self.names) - len(text) + masked) + CODE * len(text) + 8 * len(self.settings.target) + ROW + PART
        return row * self.chunks.height

    def told(self, folder: Path) -> str:
        return (
            f"{self.chunks.name}: {self.chunks.height:,} rows, about {told(self.chunks.size)}, are arranged in {folder}, about "
            f"{told(self.estimated)} on disk."
        )

    def run(self, folder: Path) -> None:
        chunks, settings, watch = self.chunks, self.settings, self.watch
        with watch.work("Finding the sequences", chunks.height) as advance:
            self.layout = find_layout(chunks, settings, advance)
        table = chunks.table(self.head.frame, np.arange(self.head.height), self.head.lines)
        sequences_of_one_row(self.layout.of_lengths(table), settings, self.notes)
        pieces: Pieces
        if self.layout.in_order:
            pieces = InOrder(chunks, self.layout, settings)
        else:
            columns = used_columns(settings, self.names)
            with watch.work("Sorting rows into sequences", chunks.height) as advance:
                pieces = Bucketed(chunks, self.layout, settings, columns, folder=self.work / "buckets", advance=advance)
        self.part = self._parts(pieces, table)
        target, unseen = self._fit(pieces, table)
        self._write(pieces, folder, target, unseen)

    def _parts(self, pieces: Pieces, table: Table) -> np.ndarray:
        settings, lengths = self.settings, self.layout.of_lengths(table)
        if self.split is None:
            part, how = assign_parts(lengths, settings.split, settings.split_by, self.seed, per=settings.per)
            self.notes += how
            return part
        part = np.full(self.layout.height, NOWHERE, dtype=np.uint8)
        cut = 0
        time = [] if settings.time is None else [settings.time]
        with self.watch.work("Reading the parts", self.layout.height) as advance:
            for piece in pieces([self.split, *time], advance, whole=True):
                part[piece.first : piece.end], here = by_column(piece.arranged, self.split, settings.time, settings.per)
                cut += here
        part, told_ = completed(
            lengths,
            part,
            cut,
            self.split,
            split_by=settings.split_by,
            seed=self.seed,
            time=settings.time,
            per=settings.per,
        )
        self.notes.append(told_)
        return part

    def _fit(self, pieces: Pieces, table: Table) -> tuple[Target, tuple[Any, ...]]:
        settings, schema = self.settings, self.chunks.schema
        dtypes = {name: schema[name] for name in settings.target}
        task = task_of(table, settings, dtypes, lambda name: self.layout.different[name], self.notes)
        of_target = TargetRows(settings.target, task, settings.non_finite)
        features = [FeatureRows(name, settings) for name in self.names]
        texts = [_Text(name, settings) for name in maybe_numbers(self.names, settings) if schema[name] == pl.String]
        gaps = _Gaps(settings)
        columns = list(dict.fromkeys([*self.names, *settings.target, *([settings.time] if gaps.wanted else [])]))
        with self.watch.work("Fitting", self.layout.height) as advance:
            for piece in pieces([c for c in columns if c is not None], advance, whole=settings.per == "sequence"):
                part = self.part[piece.first : piece.end]
                for text in texts:
                    text.take(piece.arranged)
                gaps.take(piece.arranged, piece.begun)
                of_target.take(piece.arranged, part)
                for rows in features:
                    rows.take(piece.arranged, part)
        if settings.features is None:
            empty = [rows.name for rows in features if not rows.filled]
            empty += [text.name for text in texts if text.name in self.names and text.empty and text.name not in empty]
            features = [rows for rows in features if rows.name not in empty]
            self.notes += [left_out_as_empty(empty)] if empty else []
            if not features:
                raise DataError(f"{self.chunks.name}: no column is left to read. {' '.join(self.notes)}")
        for text in texts:
            text.check(self.chunks.name)
        gaps.check(self.chunks.name)
        target, unseen = of_target.target(table)
        same: dict[str, str] = {}
        self.pre = preprocessing_of(settings, [c for rows in features for c in rows.fitted(table, same)], target)
        self.notes += constant(same)
        return target, unseen

    def _write(self, pieces: Pieces, folder: Path, target: Target, unseen: tuple[Any, ...]) -> None:
        settings, pre, height = self.settings, self.pre, self.layout.height
        sequences = len(self.layout.offsets) - 1
        per_sequence = settings.per == "sequence"
        of_y = (sequences if per_sequence else height,) + (() if target.task == "class" else (len(target.names),))
        y_type = np.int64 if target.task == "class" else np.float32
        tokens = len(pre.tokens)
        bytes_ = height * (4 * pre.number_width + CODE * tokens + ROW + PART) + 8 * int(np.prod(of_y))
        check_space(folder, bytes_)
        writers = {
            "numbers": ArrayWriter(folder, "numbers", (height, pre.number_width), np.float32),
            "codes": ArrayWriter(folder, "codes", (height, tokens), np.int64),
            "y": ArrayWriter(folder, "y", of_y, y_type),
            "part": ArrayWriter(folder, "part", (height,), np.uint8),
            "rows": ArrayWriter(folder, "rows", (height,), np.int64),
            "offsets": ArrayWriter(folder, "offsets", (sequences + 1,), np.int64),
        }
        with ExitStack() as stack:
            for writer in writers.values():
                stack.callback(writer.file.close)
            with self.watch.work("Writing the store", height) as advance:
                columns = list(dict.fromkeys([*pre.columns, *settings.target]))
                for piece in pieces(columns, advance, whole=per_sequence):
                    numbers, codes = encode_features(piece.arranged, pre.features, settings.non_finite)
                    y, _ = encode_target(piece.arranged, target, settings.per, settings.non_finite, unseen)
                    for name, array in (("numbers", numbers), ("codes", codes), ("y", y), ("rows", piece.rows)):
                        writers[name].add(array)
            writers["part"].add(self.part)
            writers["offsets"].add(self.layout.offsets)
            self.arrays = {name: writer.close() for name, writer in writers.items()}
        self.unseen = unseen
        pl.DataFrame({n: c.alias("") for n, c in self.layout.ids.items()}).write_ipc(folder / IDS)

    def finish(self, folder: Path, inputs: tuple[Input, ...]) -> None:
        """What stands beside the arrays: counts of classes need these, and the manifest comes last."""
        settings = data_settings(self.given)
        path = str(Path(self.chunks.path).resolve())
        manifest = Manifest(
            __version__,
            path,
            inputs,
            settings,
            self.seed,
            self.chunks.height,
            tuple(self.notes),
            self.unseen,
            self.arrays,
        )
        data = sequences_of(folder, manifest)
        pre = counted(self.pre, data)
        write_text(folder / PREPROCESSING, pre.to_json())
        replace(manifest, notes=tuple(data.notes)).write(folder)


class _Text:
    """Whether a text column may hold numbers, which only the whole column says."""

    def __init__(self, name: str, settings: DataSettings) -> None:
        self.name, self.settings = name, settings
        self.empty = True
        self.kinds: set[str] = set()
        self.example = ""

    def take(self, arranged: Arranged) -> None:
        column = arranged.column(self.name)
        if is_empty(column):
            return
        self.empty = False
        finding = look(
            column, decimal_comma=self.settings.decimal_comma, thousands=self.settings.thousands, separator=None
        )
        if finding is None:
            self.kinds.add("text")
            return
        codes = finding.format == PLAIN and not (finding.decimals or finding.missing or finding.others)
        self.kinds.add("codes" if codes and arranged.table.lines is None else "numbers")
        self.example = self.example or f"{arranged.where(finding.example)}: {column[finding.example]!r}"

    def check(self, name: str) -> None:
        if self.kinds - {"text"} and self.kinds != {"codes"}:
            raise DataError(
                f"{name}: the text column {self.name!r} holds numbers ({self.example}). To be arranged on disk, they must be written as numbers; if "
                f"they are names of something, say so: categories={self.name!r} (--categories {self.name}), or task='class' for the target."
            )


class _Gaps:
    """Whether rows are missing between others that are evenly spaced: the least and the longest step in time say that there are none."""

    def __init__(self, settings: DataSettings) -> None:
        self.time = settings.time
        self.wanted = settings.time is not None and settings.horizon > 0 and not settings.across_gaps
        self.least, self.most, self.count = np.inf, -np.inf, 0
        self._last: np.ndarray | None = None

    def take(self, arranged: Arranged, begun: bool) -> None:
        if not self.wanted:
            return
        assert self.time is not None
        t = numbers_of(arranged.column(self.time))
        first = np.zeros(len(t), dtype=bool)
        first[arranged.offsets[:-1][arranged.lengths > 0]] = True
        at = np.flatnonzero(~first)
        steps = t[at] - t[at - 1]
        if begun and self._last is not None:
            steps = np.append(steps, t[0] - self._last[0])
        self._last = t[-1:].copy()
        if len(steps):
            self.count += len(steps)
            self.least, self.most = min(self.least, steps.min()), max(self.most, steps.max())

    def check(self, name: str) -> None:
        if self.wanted and self.count >= 3 and self.least > 0 and self.most > LONGER * self.least:
            raise DataError(
                f"{name}, column {self.time!r}: the times are not evenly spaced, and to find gaps in them needs the whole table in memory. Say "
                "across_gaps=True (--across-gaps) to predict the next rows whenever they come, or allow more memory (memory, --memory)."
            )


def estimated_size(source: str | Path, reading: Mapping[str, Any]) -> int:
    """The bytes that a table in files would take in memory, estimated."""
    paths = files_to_read(Path(source))
    if not all(is_typed(path) and not packing_of_file(path) for path in paths):
        # Cells of text take as much as numbers do, more or less; a packed file is several times as large.
        return sum(path.stat().st_size * (OF_TEXT if packing_of_file(path) else 1) for path in paths)
    chunks = Chunks(source, reading, 2**62, Path("unused"))
    return chunks.size


def larger_than_memory(source: Any, reading: Mapping[str, Any]) -> str:
    """A sentence without its full stop on a table in files that no memory of this machine can hold; "" for any other one."""
    memory = memory_of_machine()
    if memory is None or not isinstance(source, str | Path) or not is_there(source) or is_store(source):
        return ""
    packed = sum(path.stat().st_size for path in files_to_read(Path(source)))
    if packed * MOST_PACKED < memory or (size := estimated_size(source, reading)) <= memory:
        return ""
    return f"{source} takes about {told(size)}, more than the memory of this machine"
