"""Predictions of a table in files, some sequences at a time: what is in memory follows the memory allowed, not the table.

A piece of the table is whole sequences, which `predict` takes as it takes a table; so the values are those of the table at once. A
sequence that is longer than a piece is cut where the model can hand on its state. Rows that don't follow each other by sequence and time
are first sorted into buckets on disk, and their predictions are put back where the rows were.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tidegate import __version__
from tidegate.data.arrange import require
from tidegate.data.preprocessing import Preprocessing
from tidegate.data.settings import DataSettings
from tidegate.data.several import Files, SomeRows, is_several
from tidegate.data.store.chunks import SAMPLED, Chunks, files_to_read
from tidegate.data.store.folder import check_space, stamps_of
from tidegate.data.store.layout import Layout, find_layout
from tidegate.data.store.pieces import ROW, Bucketed, ranges_of_sequences
from tidegate.data.store.prepare import IN_MEMORY, Watch, estimated_size
from tidegate.data.tables import SUFFIXES, Table, kind_of, unknown_suffix, write_table
from tidegate.data.texts import listed
from tidegate.default_memory import told
from tidegate.errors import DataError, DataWarning, SettingsError
from tidegate.files import replacing, work_folder
from tidegate.model.tasks import predicted_columns
from tidegate.trained import ensemble
from tidegate.trained.evaluation import Carry
from tidegate.trained.predict import check_probabilities, predict
from tidegate.trained.prediction_folder import (
    FILE_ROWS,
    Nowhere,
    Origin,
    PredictionFile,
    PredictionFolder,
    Share,
    Sink,
    Stamp,
    is_folder,
)
from tidegate.trained.trained import Trained
from tidegate.workers import here

PROGRAM = 400_000_000  # bytes that Python, PyTorch and polars take themselves


class Predictor:
    """One run, or several as an ensemble, for a table or a piece of one. names: of the columns that it adds."""

    def __init__(self, members: Sequence[Trained], *, probabilities: bool, batch_size: int | None) -> None:
        self.members, self.probabilities, self.batch_size = members, probabilities, batch_size
        self.pre: Preprocessing = members[0].preprocessing
        self.settings: DataSettings = members[0].settings
        check_probabilities(self.pre, probabilities)
        every = self.pre if len(members) == 1 else ensemble.joined(members)
        self.names = [c.name for c in predicted_columns(every.target, self.pre.horizon, probabilities)]
        self._warned: set[str] = set()

    @property
    def fingerprint(self) -> str:
        """Of all members together."""
        prints = [member.fingerprint for member in self.members]
        return prints[0] if len(prints) == 1 else hashlib.sha256("".join(prints).encode()).hexdigest()

    @property
    def can_be_cut(self) -> bool:
        """Whether a sequence can be predicted a piece after the other: a value a step, and no model reads backwards."""
        return self.pre.per == "step" and not any(m.model.spec.bidirectional for m in self.members)

    @property
    def reading(self) -> dict[str, Any]:
        """How the training read its table; see `Trained.read`."""
        return self.settings.reading | {"as_text": self.pre.formats, "as_named": self.pre.names}

    def carries(self) -> list[Carry]:
        """Of each member: no state yet."""
        return [Carry() for _ in self.members]

    def __call__(self, table: Any, carries: Sequence[Carry] | None = None) -> pl.DataFrame:
        """The table's rows with predictions. carries: it is a piece of one sequence."""
        how: dict[str, Any] = {"probabilities": self.probabilities, "batch_size": self.batch_size}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if len(self.members) > 1:
                frame = ensemble.predict(self.members, table, carries=carries, **how)
            else:
                frame = predict(self.members[0], table, carry=carries[0] if carries else None, **how)
        for one in caught:
            # A column of words that training never saw is told of once, not with every piece.
            column = re.search(r", column ('.*?'|\".*?\"): ", str(one.message))
            what = column[1] if column and issubclass(one.category, DataWarning) else str(one.message)
            if what not in self._warned:
                self._warned.add(what)
                warnings.warn(one.message, one.category, stacklevel=2)
        return frame


@dataclass(frozen=True)
class Written:
    """What was written. rows: of the part that was asked for. columns: that were added. files: all of a folder's, for this part, of which
    `kept` were there already.
    """

    rows: int
    columns: Sequence[str]
    files: int = 1
    kept: int = 0

    def told(self, out: str | Path, share: Share) -> str:
        where = f"{out}, {share}" if share.parts > 1 else str(out)
        if not self.rows:
            return f"{where}: no sequence falls to it, so there is nothing to write."
        added = [c for c in self.columns if c.startswith("prediction")]
        there = ""
        if self.kept:
            there = (
                " All of them were there already."
                if self.kept == self.files
                else f" {self.kept:,} of them were there already."
            )
        files = "" if self.files == 1 and not there else f" in {self.files:,} file{'s' * (self.files > 1)}.{there}"
        return f"{where}: {self.rows:,} rows with {listed(added)}{files or '.'}"


def predict_table(
    predictor: Predictor,
    source: str | Path,
    out: Path,
    *,
    folder: bool,
    share: Share,
    memory: int | None,
    overwrite: bool,
    watch: Watch,
) -> Written:
    """Write a table's rows with predictions, to the file `out` or into that folder.

    memory: bytes that this process may take; None: the table is taken to fit. share: the part of the sequences that is written.
    overwrite: predictions of another run or of other tables in the folder are removed first, and this part is made anew.

    Raises DataError, SettingsError, RunError or DiskError. In a folder whole files stay, and the same call goes on behind them.
    """
    check_apart(source, out, folder)
    before = stamps_of(source)
    size = estimated_size(source, predictor.reading)
    fits = memory is None or IN_MEMORY * size + PROGRAM <= memory
    if not folder and fits:
        frame = predictor(predictor.members[0].read(source))
        if here().leads:
            write_table(frame, out)
        return Written(frame.height, predictor.names)
    if not fits:
        assert memory is not None
        watch.note(
            f"The table takes about {told(size)}, and its prediction in memory about {told(IN_MEMORY * size + PROGRAM)}, more than the "
            f"{told(memory)} allowed. It is read and predicted by the piece."
        )
    with ExitStack() as stack:
        if folder:
            stamps = tuple(Stamp(name, stat.st_size, stat.st_mtime_ns) for _, name, stat in before)
            suffix = kind_of(before[0][0])
            origin = Origin(__version__, predictor.fingerprint, stamps, predictor.probabilities, share.parts, suffix)
            kept = PredictionFolder(out, origin, share, overwrite=overwrite) if here().leads else None
            if here().told(kept is not None and kept.finished)[0]:
                return _written(kept, predictor)
            work = stack.enter_context(work_folder(out / f"work{share.name}"))
            sink: Sink = kept or Nowhere()
        else:
            work = stack.enter_context(work_folder(out))
            temporary = stack.enter_context(replacing(out)) if here().leads else work / "unused"
            sink = PredictionFile(temporary, out.suffix.lower(), work) if here().leads else Nowhere()
        if fits:
            rows = _whole(predictor, source, share, sink, watch)
        else:
            assert memory is not None
            rows = _Pieces(predictor, source, share, sink, watch, memory=memory, work=work).run()
        if [(n, s.st_size, s.st_mtime_ns) for _, n, s in before] != [
            (n, s.st_size, s.st_mtime_ns) for _, n, s in stamps_of(source)
        ]:
            raise DataError(f"{source} has changed while it was read. Begin again when it no longer does.")
        sink.close()
    return _written(sink, predictor) if folder else Written(rows, predictor.names)


def where_to(source: str | Path, out: str | Path, share: Share) -> bool:
    """Whether predictions go into a folder. Raises DataError: into neither that nor a file of a kind that can be written;
    SettingsError: a part of them into a file.
    """
    folder = is_folder(out, is_several(source) or share.parts > 1)
    if folder:
        return True
    if Path(out).suffix.lower() not in SUFFIXES:
        raise DataError(f"{unknown_suffix(Path(out))} For several files name a folder: {out}/")
    if share.parts > 1:
        raise SettingsError(
            f"{out} is a file, and parts are written into one folder. Name it: {Path(out).with_suffix('')}/"
        )
    return False


def _written(sink: Any, predictor: Predictor) -> Written:
    if not isinstance(sink, PredictionFolder) or sink.manifest is None:
        return Written(0, predictor.names)  # another worker writes, and tells
    return Written(sink.manifest.rows, predictor.names, sink.files, sink.kept)


def check_apart(source: str | Path, out: Path, folder: bool) -> None:
    """Raises DataError where the output would be, or lie among, what is read."""
    for path in files_to_read(Path(source)):
        if not folder and out.exists() and out.samefile(path):
            what = "the table itself" if not is_several(source) else "one of the tables"
            raise DataError(f"{out} is {what}. Write the predictions to another file.")
        if folder and path.parent.resolve() == out.resolve():
            raise DataError(f"{path} is one of the tables and lies in {out}. Write the predictions to another folder.")


def _whole(predictor: Predictor, source: str | Path, share: Share, sink: Sink, watch: Watch) -> int:
    """A table that fits the memory, predicted at once."""
    table = predictor.members[0].read(source)
    rows = _rows_of(share, table, predictor.pre)
    if rows is not None:
        table = _some(table, rows)
    sink.begin(table.height, FILE_ROWS)
    if table.height:
        with watch.work("Predicting", 0):
            frame = predictor(table)
        with watch.work("Writing", frame.height) as advance:
            for first in range(0, frame.height, FILE_ROWS):
                sink.add(frame[first : first + FILE_ROWS])
                advance(min(FILE_ROWS, frame.height - first))
    return table.height


def sequences_of(share: Share, offsets: np.ndarray) -> tuple[int, int]:
    """Which sequences, first:end, a part has: they follow each other, and a part has as many rows as another one, but for the
    last sequence. offsets [S + 1]: the row with which each begins. It depends on these and on the number of parts alone.
    """
    rows = int(offsets[-1])
    borders = [int(np.searchsorted(offsets, rows * k // share.parts)) for k in (share.part - 1, share.part)]
    return borders[0], borders[1] if share.part < share.parts else len(offsets) - 1


def _rows_of(share: Share, table: Table, pre: Preprocessing) -> np.ndarray | None:
    """The rows of a table that a part has; None: all of them."""
    if share.parts == 1:
        return None
    require(table, pre.group, "group")
    rows = np.arange(table.height)
    if pre.group:
        keys = [f"group {k}" for k in range(len(pre.group))]
        columns = [table.frame[name].alias(key) for name, key in zip(pre.group, keys, strict=True)]
        numbered = pl.DataFrame(columns).with_row_index("row")
        each = numbered.group_by(keys, maintain_order=True).agg("row")["row"]
        lengths, rows = each.list.len().to_numpy(), each.explode().to_numpy()
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    else:
        offsets = np.arange(table.height + 1) if pre.lists else np.array([0, table.height])
    s, t = sequences_of(share, offsets)
    return np.sort(rows[offsets[s] : offsets[t]]).astype(np.int64)


def _some(table: Table, rows: np.ndarray) -> Table:
    """Some rows of a table, which are called as they are there."""
    files = table.files or Files((table.name,), np.array([0, table.height]))
    assert not isinstance(files, SomeRows)
    lines = None if table.lines is None else table.lines[rows]
    return replace(table, frame=table.frame[rows], lines=lines, files=SomeRows(files, rows), sha256=None)


class _Pieces:
    """A table that is larger than memory."""

    def __init__(
        self,
        predictor: Predictor,
        source: str | Path,
        share: Share,
        sink: Sink,
        watch: Watch,
        *,
        memory: int,
        work: Path,
    ) -> None:
        self.predictor, self.pre, self.work = predictor, predictor.pre, work
        self.share, self.sink, self.watch = share, sink, watch
        self.chunks = chunks = Chunks(source, predictor.reading, memory, work / "files")
        for note in chunks.lost:
            warnings.warn(note, DataWarning, stacklevel=2)
        self.columns = [*chunks.schema]
        roles = {"group": self.pre.group, "time": self.pre.time, "target": ()}
        self.settings: DataSettings = predictor.settings.model_copy(update=roles)
        self._check_columns()

    def _check_columns(self) -> None:
        """Raises DataError before anything long begins."""
        pre, chunks = self.pre, self.chunks
        head = chunks.read(self.columns, 0, min(chunks.rows, chunks.height, SAMPLED))
        require(head, pre.group, "group")
        require(head, [] if pre.time is None else [pre.time], "time")
        require(head, pre.columns, "feature")
        if pre.time is not None and chunks.schema[pre.time] == pl.String:
            raise DataError(
                f"{chunks.name}: the time column {pre.time!r} holds text. To be predicted by the piece, times must be written as such (datetime) "
                "or as numbers. Allow more memory (memory, --memory), or write them so."
            )

    def run(self) -> int:
        chunks = self.chunks
        layout = self._layout()
        s, t = sequences_of(self.share, layout.offsets)
        first, end = int(layout.offsets[s]), int(layout.offsets[t])
        if first == end:
            self.sink.begin(0, chunks.rows)
        elif layout.in_order:
            self._in_order(layout, s, t)
        else:
            self._sorted(layout, s, t)
        return end - first

    def _layout(self) -> Layout:
        chunks = self.chunks
        if self.pre.lists and not self.pre.group:  # each row is a sequence
            return Layout(
                {"row": pl.int_range(1, chunks.height + 1, eager=True)}, np.arange(chunks.height + 1), True, {}
            )
        with self.watch.work("Finding the sequences", chunks.height) as advance:
            return find_layout(chunks, self.settings, advance)

    def _in_order(self, layout: Layout, s: int, t: int) -> None:
        offset, rows = int(layout.offsets[s]), int(layout.offsets[t] - layout.offsets[s])
        spans = list(self._spans(layout, s, t))
        self.sink.begin(rows, self.chunks.rows)
        with self.watch.work("Predicting", rows) as advance:
            for first, end, last, begins in spans:
                if begins:
                    carries = self.predictor.carries()
                if not self.sink.needed(first - offset, last - offset):
                    self.sink.skip(end - first)
                else:
                    table = self.chunks.read(self.columns, first, end)
                    frame = self.predictor(table, None if begins and end == last else carries)
                    self.sink.add(self._as_it_was(frame))
                advance(end - first)

    def _spans(self, layout: Layout, s: int, t: int) -> Iterator[tuple[int, int, int, bool]]:
        """Rows first:end in their order; where the sequence in which they end has its end; and whether a sequence begins with them.
        Those of whole sequences, or of a piece of one that is too long.
        """
        offsets, most = layout.offsets, self.chunks.rows
        if not self.predictor.can_be_cut:
            why = "for one that this run has to read as a whole" if not self.pre.lists else "of list columns"
            for a, b in ranges_of_sequences(self.chunks, layout, why, "", (s, t)):
                yield int(offsets[a]), int(offsets[b]), int(offsets[b]), True
            return
        while s < t:
            end = min(t, int(np.searchsorted(offsets, offsets[s] + most, side="right")) - 1)
            if end > s:
                yield int(offsets[s]), int(offsets[end]), int(offsets[end]), True
                s = end
                continue
            last = int(offsets[s + 1])
            for first in range(int(offsets[s]), last, most):
                yield first, min(first + most, last), last, first == offsets[s]
            s += 1

    def _sorted(self, layout: Layout, s: int, t: int) -> None:
        chunks, pre, predictor = self.chunks, self.pre, self.predictor
        names = list(dict.fromkeys([*pre.group, *([] if pre.time is None else [pre.time]), *pre.columns]))
        check_space(self.work, chunks.size)
        with self.watch.work("Sorting rows into sequences", chunks.height) as advance:
            buckets = Bucketed(
                chunks, layout, self.settings, names, folder=self.work / "buckets", advance=advance, only=(s, t)
            )
        scattered = Scattered(self.work / "predictions", chunks.rows)
        count = int(layout.offsets[t] - layout.offsets[s])
        self.sink.begin(count, chunks.rows)
        with self.watch.work("Predicting", count) as advance:
            for k, (a, b) in enumerate(buckets.ranges):
                table, rows = buckets.table(k, names)
                if table.height != layout.offsets[b] - layout.offsets[a]:
                    raise chunks.changed()
                buckets.drop(k)
                frame = predictor(table)
                scattered.add(rows, [frame[name] for name in predictor.names])
                advance(table.height)
        with self.watch.work("Writing", chunks.height) as advance:
            at = 0
            for k, first in enumerate(range(0, chunks.height, chunks.rows)):
                end = min(first + chunks.rows, chunks.height)
                rows, columns = scattered.take(k)
                if not len(rows):
                    pass
                elif self.sink.needed(at, at + len(rows)):
                    self.sink.add(self._beside(chunks.read(self.columns, first, end), rows - first, columns))
                else:
                    self.sink.skip(len(rows))
                at += len(rows)
                advance(end - first)

    def _beside(self, table: Table, rows: np.ndarray, columns: list[pl.Series]) -> pl.DataFrame:
        """Some rows of a chunk with their predictions."""
        predicted = dict(zip(self.predictor.names, columns, strict=True))
        frame = self._as_it_was(table.frame)
        if len(rows) < frame.height:
            frame = frame[rows]
        return pl.DataFrame({c.name: c for c in frame.get_columns() if c.name not in predicted} | predicted)

    def _as_it_was(self, frame: pl.DataFrame) -> pl.DataFrame:
        """With the types that the columns have in the files: chunks have text for categories."""
        types, schema = self.chunks.types, self.chunks.schema
        other = {n for n, dtype in schema.items() if dtype != types[n] and n not in self.predictor.names}
        if not other:
            return frame
        return pl.DataFrame({c.name: c.cast(types[c.name]) if c.name in other else c for c in frame.get_columns()})


class Scattered:
    """Columns of rows that come in any order, kept on disk until they are asked for by the place of the row in the table: chunk k has
    the rows k * size ... (k + 1) * size - 1.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = folder, size
        self.streams: dict[int, list[int]] = {}  # of each chunk the bytes of its Arrow streams
        folder.mkdir()

    def add(self, rows: np.ndarray, columns: Sequence[pl.Series]) -> None:
        """rows [N]: ascending, of the table."""
        frame = pl.DataFrame([c.alias(str(k)) for k, c in enumerate(columns)] + [pl.Series(ROW, rows)])
        borders = np.searchsorted(rows, np.arange(rows[0] // self.size, rows[-1] // self.size + 2) * self.size)
        for k, (a, b) in enumerate(itertools.pairwise(borders), int(rows[0] // self.size)):
            if a < b:
                stream = io.BytesIO()
                frame[int(a) : int(b)].write_ipc_stream(stream)
                with (self.folder / str(k)).open("ab") as file:
                    file.write(stream.getbuffer())
                self.streams.setdefault(k, []).append(stream.tell())

    def take(self, chunk: int) -> tuple[np.ndarray, list[pl.Series]]:
        """The rows of a chunk that were added, ascending, and their columns; they are gone then."""
        if chunk not in self.streams:
            return np.zeros(0, dtype=np.int64), []
        path = self.folder / str(chunk)
        with path.open("rb") as file:
            frames = [pl.read_ipc_stream(io.BytesIO(file.read(size))) for size in self.streams.pop(chunk)]
        path.unlink()
        frame = pl.concat(frames).sort(ROW)
        return frame[ROW].to_numpy(), [frame[str(k)] for k in range(frame.width - 1)]
