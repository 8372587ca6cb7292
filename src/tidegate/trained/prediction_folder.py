"""The folder, or the file, that takes predictions some rows at a time.

A folder holds `predictions-00000.parquet`, `predictions-00001.parquet` ... (of part 2 of 3 `predictions-2-of-3-00000.parquet` ...), each
whole or not there, and `_predictions.json` (`_predictions-2-of-3.json`): of which run, which inputs and how many rows they are. So the
same command can go on after a kill, and another one can't mix its rows with these.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

import polars as pl

from tidegate.data.tables import ARROW_SUFFIXES, PARQUET_SUFFIXES, write_rows, write_table
from tidegate.documents import Damaged, check, cut, from_json, shown
from tidegate.errors import RunError, SettingsError
from tidegate.files import remove, write_text
from tidegate.workers import here

FORMAT, VERSION = "tidegate-predictions", 1
FILE_ROWS = 2**20
"""The most rows of a file: some ten seconds of work that a kill can cost."""


@dataclass(frozen=True)
class Share:
    """Part `part` of `parts` of a table, counted from 1."""

    part: int = 1
    parts: int = 1

    @staticmethod
    def of(text: str | None) -> Share:
        """What "2/3" says; None: the whole. Raises SettingsError."""
        if text is None:
            return Share()
        part, slash, parts = str(text).partition("/")
        if not (slash and part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
            raise SettingsError(
                f"part={text!r}: expected which part of how many, counted from 1, such as 2/3; for a job that counts from 0, add 1."
            )
        return Share(int(part), int(parts))

    @property
    def name(self) -> str:
        """What the names of its files have: "", or "-2-of-3", with zeros so that names are in the order of the parts."""
        return "" if self.parts == 1 else f"-{self.part:0{len(str(self.parts))}d}-of-{self.parts}"

    def __str__(self) -> str:
        return f"part {self.part} of {self.parts}"


@dataclass(frozen=True)
class Stamp:
    """A file of the table as it was when it was read."""

    name: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Origin:
    """What all parts of a folder share. run: its fingerprint."""

    tidegate: str
    run: str
    inputs: tuple[Stamp, ...]
    probabilities: bool
    parts: int
    suffix: str


@dataclass(frozen=True)
class Manifest:
    """_predictions.json. rows: of this part. file_rows: of each of its files but the last. finished: all of them are there."""

    origin: Origin
    part: int
    rows: int
    file_rows: int
    finished: bool = False

    @property
    def share(self) -> Share:
        return Share(self.part, self.origin.parts)

    @property
    def files(self) -> list[str]:
        count = -(-self.rows // self.file_rows)
        return [f"predictions{self.share.name}-{k:05d}{self.origin.suffix}" for k in range(count)]

    def rows_of(self, file: int) -> int:
        return min(self.file_rows, self.rows - file * self.file_rows)

    def write(self, folder: Path) -> None:
        values = {"format": FORMAT, "version": VERSION, **asdict(self)}
        write_text(folder / manifest_name(self.share), json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def manifest_name(share: Share) -> str:
    return f"_predictions{share.name}.json"


def _manifests(folder: Path) -> Iterator[Manifest]:
    """Those of all parts that are there. Raises RunError: one is damaged, or of another version."""
    for path in sorted(folder.glob("_predictions*.json")):
        try:
            values = from_json(path.read_bytes())
            if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
                raise Damaged("it has another format")
            version = values.pop("version", None)
            if version != VERSION:
                raise RunError(
                    f"{path} is of version {shown(version)}; this Tidegate reads version {VERSION}. {_ELSEWHERE}"
                )
            check(Manifest, values)
            origin = values.pop("origin")
            inputs = tuple(Stamp(**one) for one in origin.pop("inputs"))
            manifest = Manifest(Origin(**origin, inputs=inputs), **values)
            if manifest.file_rows < 1 or not 1 <= manifest.part <= manifest.origin.parts:
                raise Damaged("its numbers can't be right")
            yield manifest
        except (Damaged, KeyError, TypeError) as error:
            raise RunError(f"{path} is damaged ({cut(str(error))}). {_ELSEWHERE}") from None


_ELSEWHERE = "Name another folder, or remove this one."


class Sink(Protocol):
    """Takes the rows of the predictions in their order, some at a time."""

    def begin(self, rows: int, most: int) -> None:
        """How many rows will come, and how many may be held at once."""

    def needed(self, first: int, end: int) -> bool:
        """Whether any of these rows isn't there yet."""

    def skip(self, rows: int) -> None:
        """So many rows follow that aren't needed."""

    def add(self, frame: pl.DataFrame) -> None: ...

    def close(self) -> None:
        """All rows have come."""


class Nowhere:
    """The sink of a worker that doesn't write, and computes what the one that does needs."""

    def __init__(self) -> None:
        self._there: list[bool] = []
        self._size = 1

    def begin(self, rows: int, most: int) -> None:
        told = here().told(None)[0]
        self._size, self._there = (1, []) if told is None else told

    def needed(self, first: int, end: int) -> bool:
        return not self._there or not all(self._there[first // self._size : -(-end // self._size)])

    def skip(self, rows: int) -> None: ...

    def add(self, frame: pl.DataFrame) -> None: ...

    def close(self) -> None: ...


class PredictionFolder:
    """A folder of predictions. kept: how many of its files were there already; written: how many were added."""

    def __init__(self, folder: Path, origin: Origin, share: Share, *, overwrite: bool) -> None:
        """Raises RunError where the folder holds other files, or predictions of another kind, which overwrite removes."""
        self.folder, self.origin, self.share = folder, origin, share
        self.manifest: Manifest | None = None
        self.kept = self.written = 0
        self._at = 0
        self._buffer: list[pl.DataFrame] = []
        self._there: list[bool] = []
        self._clear(overwrite)
        mine = [m for m in _manifests(folder) if m.share == share]
        self._before = mine[0] if mine else None

    def _clear(self, overwrite: bool) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise RunError(
                f"{self.folder} is a file, and predictions in several files need a folder. Name another one."
            )
        manifests = list(_manifests(self.folder))
        ours = {name for m in manifests for name in m.files}
        others = sorted(p.name for p in self.folder.glob("*") if p.name[0] not in "._" and p.name not in ours)
        if others:
            raise RunError(
                f"{self.folder} holds other files ({others[0]}{', ...' if len(others) > 1 else ''}), which would be taken for predictions. "
                "Nothing in it is touched: name an empty folder, or a new one."
            )
        for manifest in manifests:
            differs = _difference(manifest.origin, self.origin)
            if differs and not overwrite:
                raise RunError(
                    f"{self.folder} holds predictions that {differs}. Name another folder, or begin anew with overwrite=True (--overwrite)."
                )
            if overwrite and (differs or manifest.share == self.share):
                for name in manifest.files:
                    remove(self.folder / name)
                remove(self.folder / manifest_name(manifest.share))

    @property
    def finished(self) -> bool:
        """Whether all was there before."""
        before = self._before
        if (
            before is None
            or not before.finished
            or not all(self._is_whole(before, k) for k in range(len(before.files)))
        ):
            return False
        self.manifest, self.kept = before, len(before.files)
        return True

    @property
    def files(self) -> int:
        return self.kept + self.written

    def begin(self, rows: int, most: int) -> None:
        before = self._before
        self.manifest = before or Manifest(self.origin, self.share.part, rows, min(FILE_ROWS, max(1, most)))
        if self.manifest.rows != rows:
            raise RunError(
                f"{self.folder / manifest_name(self.share)} is damaged: it tells of {self.manifest.rows:,} rows, not {rows:,}. {_ELSEWHERE}"
            )
        self._there = [before is not None and self._is_whole(self.manifest, k) for k in range(len(self.manifest.files))]
        self.kept = sum(self._there)
        if before is None:
            self.manifest.write(self.folder)
        here().told([self.manifest.file_rows, self._there])

    def _is_whole(self, manifest: Manifest, file: int) -> bool:
        """Whether a file is there. It took its place when it was whole; a later damage shows in formats that count their rows."""
        path = self.folder / manifest.files[file]
        if not path.is_file():
            return False
        scan = {**dict.fromkeys(PARQUET_SUFFIXES, pl.scan_parquet), **dict.fromkeys(ARROW_SUFFIXES, pl.scan_ipc)}
        read = scan.get(manifest.origin.suffix)
        try:
            rows = None if read is None else read(path, glob=False).select(pl.len()).collect().item()
        except (Exception, pl.exceptions.PanicException):  # whatever it is, it isn't what was written
            return False
        return rows in (None, manifest.rows_of(file))

    def needed(self, first: int, end: int) -> bool:
        assert self.manifest is not None
        size = self.manifest.file_rows
        return not all(self._there[first // size : -(-end // size)])

    def skip(self, rows: int) -> None:
        self._at += rows

    def add(self, frame: pl.DataFrame) -> None:
        assert self.manifest is not None
        while frame.height:
            file, within = divmod(self._at, self.manifest.file_rows)
            some = frame[: self.manifest.rows_of(file) - within]
            frame = frame[some.height :]
            self._at += some.height
            if not self._there[file]:
                self._buffer.append(some)
                if within + some.height == self.manifest.rows_of(file):
                    write_table(pl.concat(self._buffer), self.folder / self.manifest.files[file])
                    self._buffer = []
                    self.written += 1

    def close(self) -> None:
        assert self.manifest is not None
        assert self._at == self.manifest.rows, f"{self._at} of {self.manifest.rows} rows were written"
        self.manifest = replace(self.manifest, finished=True)
        self.manifest.write(self.folder)


def _difference(there: Origin, now: Origin) -> str:
    """What is another one in predictions that are there, as the end of a sentence; "": nothing."""
    if there.run != now.run:
        return "another run made"
    if there.tidegate != now.tidegate:
        return f"Tidegate {cut(there.tidegate)} made, and this is {now.tidegate}"
    if there.parts != now.parts:
        whole = "as a whole" if there.parts == 1 else f"in {there.parts} parts"
        return f"were made {whole}, and now {'no part is asked for' if now.parts == 1 else f'parts of {now.parts} are'}"
    if there.probabilities != now.probabilities:
        return f"were made {'with' if there.probabilities else 'without'} probabilities"
    if there.suffix != now.suffix:
        return f"are written as {cut(there.suffix)}, and now they would be {now.suffix}"
    before, after = ({one.name: one for one in origin.inputs} for origin in (there, now))
    for name in [*before, *after]:
        if before.get(name) != after.get(name):
            return f"were made of other tables: {cut(name)} {'is new' if name not in before else 'is gone' if name not in after else 'has changed since'}"
    return ""


class PredictionFile:
    """A single file, which the caller puts in its place. work: a folder for its pieces, where they can't be written one behind the other."""

    def __init__(self, path: Path, suffix: str, work: Path) -> None:
        self.path, self.suffix, self.work = path, suffix, work
        self.rows = 0
        self._pieces: list[Path] = []
        self._joined = suffix in PARQUET_SUFFIXES | ARROW_SUFFIXES

    def begin(self, rows: int, most: int) -> None:
        self.path.touch()
        here().told(None)

    def needed(self, first: int, end: int) -> bool:
        return True

    def skip(self, rows: int) -> None:
        raise AssertionError("all rows are needed")

    def add(self, frame: pl.DataFrame) -> None:
        if self._joined:
            self._pieces.append(self.work / f"{len(self._pieces)}{self.suffix}")
            write_rows(frame, self._pieces[-1], self.suffix)
        else:
            with self.path.open("ab") as file:
                write_rows(frame, file, self.suffix, header=not self.rows)
        self.rows += frame.height

    def close(self) -> None:
        if self.suffix in PARQUET_SUFFIXES:
            pl.scan_parquet(self._pieces, glob=False).sink_parquet(self.path)
        elif self._joined:
            pl.scan_ipc(self._pieces, glob=False).sink_ipc(self.path)


def is_folder(out: str | Path, several: bool) -> bool:
    """Whether predictions go into a folder: it is there, its name ends in a slash, or it has no suffix and there are several tables."""
    path = Path(out)
    return path.is_dir() or str(out).endswith(("/", os.sep)) or (several and not path.suffix)
