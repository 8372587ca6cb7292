"""The folder of a store: arrays as .npy files, preprocessing.json, and store.json, which says what they are and of what they were made."""

from __future__ import annotations

import json
import mmap
import os
import shutil
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import polars as pl

from tidegate.data.preprocessing import Preprocessing
from tidegate.data.sequences import Mapped, Sequences
from tidegate.data.settings import DataSettings
from tidegate.data.several import STORE, base_of, is_several, is_there, names_of_files
from tidegate.data.store.chunks import files_to_read
from tidegate.data.tables import Table, hash_of, sha256_of
from tidegate.default_memory import told
from tidegate.documents import Damaged, check, cut, from_json, shown
from tidegate.errors import DataError, RunError, SettingsError
from tidegate.files import DiskError, write_text

FORMAT, VERSION = "tidegate-store", 1
PREPROCESSING, IDS = "preprocessing.json", "ids.arrow"
READ = 2**22  # bytes at a time of a file whose checksum is counted
NAMES = ("numbers", "codes", "y", "part", "rows", "offsets")


@dataclass(frozen=True)
class Input:
    """A file that a store was made of."""

    name: str
    size: int
    mtime_ns: int
    sha256: str


@dataclass(frozen=True)
class ArrayFile:
    """dtype and shape as NumPy writes them; crc32: of the whole file."""

    dtype: str
    shape: tuple[int, ...]
    crc32: int


@dataclass(frozen=True)
class Manifest:
    """store.json. table: the path that was given, absolute. settings: the data settings as they were given. seed: what drew the split.
    rows: of the table. unseen: classes that no training row has. arrays: by name.
    """

    tidegate: str
    table: str
    inputs: tuple[Input, ...]
    settings: dict[str, Any]
    seed: int
    rows: int
    notes: tuple[str, ...]
    unseen: tuple[Any, ...]
    arrays: dict[str, ArrayFile] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """Of the table, as `read_table` gives it."""
        if len(self.inputs) == 1 and not is_several(self.table):
            return self.inputs[0].sha256
        return hash_of([one.name for one in self.inputs], [one.sha256 for one in self.inputs])

    def write(self, folder: Path) -> None:
        values = {"format": FORMAT, "version": VERSION, **asdict(self)}
        write_text(folder / STORE, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


@dataclass(frozen=True)
class StoredTable(Table):
    """The table of a store, of which no row is in memory."""

    stored: int = 0

    @property
    def height(self) -> int:
        return self.stored


@dataclass(frozen=True)
class Store:
    """A store that was opened: its arrays are those on disk."""

    folder: Path
    manifest: Manifest
    preprocessing: Preprocessing
    data: Sequences

    @property
    def settings(self) -> DataSettings:
        return settings_of(self.manifest)

    @property
    def table(self) -> StoredTable:
        name = Path(self.manifest.table).name
        path = Path(self.manifest.table)
        return StoredTable(pl.DataFrame(), name, path, self.manifest.sha256, stored=self.manifest.rows)

    def names(self, first: int, end: int) -> pl.DataFrame:
        """The group columns of the sequences first:end, a row each."""
        return pl.read_ipc(self.folder / IDS)[first:end]


def settings_of(manifest: Manifest) -> DataSettings:
    settings: DataSettings = DataSettings.make(**manifest.settings)
    return settings


def read_manifest(folder: Path) -> Manifest:
    """Raises RunError: damaged, or of another version."""
    path = folder / STORE
    try:
        values = from_json(path.read_bytes())
        if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
            raise Damaged("it has another format")
        version = values.pop("version", None)
        if version != VERSION:
            raise RunError(
                f"{folder} is a store of version {shown(version)}, written by Tidegate {cut(str(values.get('tidegate', '?')))}; this one reads "
                f"version {VERSION}. Make it anew: tidegate prepare."
            )
        check(Manifest, values)
        inputs = tuple(Input(**one) for one in values.pop("inputs"))
        arrays = {
            name: ArrayFile(one["dtype"], tuple(one["shape"]), one["crc32"])
            for name, one in values.pop("arrays").items()
        }
        values |= {name: tuple(values[name]) for name in ("notes", "unseen")}
        if {*arrays} != {*NAMES}:
            raise Damaged("an array is missing, or one too many")
        manifest = Manifest(**values, inputs=inputs, arrays=arrays)
        settings_of(manifest)
    except (Damaged, KeyError, TypeError, OSError, SettingsError) as error:
        raise RunError(f"{path} is damaged ({cut(str(error))}). {AGAIN}") from None
    return manifest


AGAIN = "Remove the folder and make the store anew: tidegate prepare."


def open_store(folder: Path, *, verify: bool = True) -> Store:
    """The store of a folder. verify: its arrays are read once before and compared with their checksums. Raises RunError: of another
    version, or damaged.
    """
    manifest = read_manifest(folder)
    path = folder / PREPROCESSING
    text = path.read_bytes().decode(errors="replace") if path.is_file() else ""
    pre = Preprocessing.from_json(text, str(folder / PREPROCESSING))
    for name, array in manifest.arrays.items():
        path = _path(folder, name)
        if not path.is_file() or (verify and _crc32(path) != array.crc32):
            raise RunError(f"{path} is damaged or cut off: it isn't what was written. {AGAIN}")
    data = sequences_of(folder, manifest)
    if not _belong(pre, data):
        raise RunError(f"{folder}: {STORE}, {PREPROCESSING} and the arrays don't belong together. {AGAIN}")
    return Store(folder, manifest, pre, data)


def _belong(pre: Preprocessing, data: Sequences) -> bool:
    """Whether the arrays are such as the preprocessing makes. (Kernels read them without looking.)"""
    steps, sequences = len(data.part), len(data.offsets) - 1
    assert data.y is not None
    of_class = pre.target.task == "class"
    targets = (sequences if pre.per == "sequence" else steps, *(() if of_class else (len(pre.target.names),)))
    wanted: tuple[tuple[np.ndarray, tuple[int, ...], Any], ...] = (
        (data.numbers, (steps, pre.number_width), np.float32),
        (data.codes, (steps, len(pre.tokens)), np.int64),
        (data.y, targets, np.int64 if of_class else np.float32),
        (data.part, (steps,), np.uint8),
        (data.rows, (steps,), np.int64),
        (data.offsets, (sequences + 1,), np.int64),
    )
    return (
        all(array.shape == shape and array.dtype == dtype for array, shape, dtype in wanted)
        and steps > 0
        and data.offsets[0] == 0
        and data.offsets[-1] == steps
        and bool((np.diff(data.offsets) >= 0).all())
    )


def sequences_of(folder: Path, manifest: Manifest) -> Sequences:
    """The arrays as they lie on disk."""
    arrays: dict[str, np.ndarray] = {}
    maps: list[mmap.mmap] = []
    mapped = Mapped(maps)
    for name, array in manifest.arrays.items():
        arrays[name], where = _mapped(_path(folder, name), array, maps)
        mapped.open(name, _path(folder, name), where)
    offsets = arrays["offsets"].copy()  # a few bytes a sequence, and read all the time
    return Sequences(
        arrays["numbers"], arrays["codes"], arrays["y"], offsets, arrays["part"], arrays["rows"], list(manifest.notes), manifest.unseen,
        mapped=mapped,
    )  # fmt: skip


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}.npy"


def _mapped(path: Path, array: ArrayFile, maps: list[mmap.mmap]) -> tuple[np.ndarray, int]:
    """The array, and at which byte of the file its first row is."""
    with path.open("rb") as file:
        try:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_2_0(file)
        except ValueError as error:
            raise RunError(f"{path} is damaged ({cut(str(error))}). {AGAIN}") from None
        count = int(np.prod(shape))
        if shape != array.shape or dtype.str != array.dtype:
            raise RunError(f"{path} is not the array that {STORE} tells of. {AGAIN}")
        if not count:  # nothing to map
            return np.empty(shape, dtype=dtype), file.tell()
        whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        maps.append(whole)
        return np.frombuffer(whole, dtype=dtype, count=count, offset=file.tell()).reshape(shape), file.tell()


def _crc32(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(READ):
            crc = zlib.crc32(block, crc)
    return crc


class ArrayWriter:
    """Writes an array of a shape that is known, a piece at a time."""

    def __init__(self, folder: Path, name: str, shape: Sequence[int], dtype: Any) -> None:
        self.name, self.shape, self.dtype = name, tuple(int(n) for n in shape), np.dtype(dtype)
        self.file: BinaryIO = _path(folder, name).open("wb+")
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_2_0(self.file, header)
        self.file.seek(0)
        self.crc = zlib.crc32(self.file.read())
        self.written = 0

    def add(self, piece: np.ndarray) -> None:
        bytes_ = np.ascontiguousarray(piece, dtype=self.dtype).reshape(-1).view(np.uint8).data
        self.crc = zlib.crc32(bytes_, self.crc)
        self.file.write(bytes_)
        self.written += len(piece)

    def close(self) -> ArrayFile:
        assert self.written == self.shape[0], f"{self.name}: {self.written} of {self.shape[0]} were written"
        self.file.close()
        return ArrayFile(self.dtype.str, self.shape, self.crc)


def check_space(folder: Path, wanted: int) -> None:
    """Raises DiskError where so many bytes won't fit."""
    there = folder
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if wanted > free:
        raise DiskError(
            f"{folder} takes about {told(wanted)} of disk, and {told(free)} are free there. Free some space, or name a place on another disk."
        )


# --- what a store was made of --------------------------------------------------------------------------------


def stamps_of(source: str | Path) -> list[tuple[Path, str, os.stat_result]]:
    """The files of a table now, with what they are called and their size and time."""
    path = Path(source)
    paths = files_to_read(path)
    names = names_of_files(paths, base_of(path)) if is_several(path) else (path.name,)
    return [(one, name, one.stat()) for one, name in zip(paths, names, strict=True)]


def inputs_of(source: str | Path) -> tuple[Input, ...]:
    return tuple(Input(name, stat.st_size, stat.st_mtime_ns, sha256_of(path)) for path, name, stat in stamps_of(source))


def check_inputs(folder: Path, manifest: Manifest, *, source: str | Path | None = None) -> None:
    """Raises DataError where the files that a store was made of have changed since, as far as they are still there.

    source: the table that was named, which then must be there and be that one.
    """
    if source is None and not is_there(manifest.table):
        return
    here = stamps_of(manifest.table if source is None else source)
    before = {one.name: one for one in manifest.inputs}
    for path, name, stat in here:
        one = before.pop(name, None)
        if one is None:
            raise DataError(f"{path} was not there when {folder} was made. {_ANEW}")
        if (stat.st_size, stat.st_mtime_ns) != (one.size, one.mtime_ns) and (
            stat.st_size != one.size or sha256_of(path) != one.sha256
        ):
            raise DataError(f"{path} has changed since {folder} was made of it. {_ANEW}")
    for name in before:
        raise DataError(f"{folder} was made of {name}, too, which isn't there any more. {_ANEW}")


_ANEW = "Make the store anew (tidegate prepare --overwrite), or name another folder for it."


# Settings that say nothing of the rows in a store. (Of the split's seed and the run's, the one that draws is compared.)
_FREE = ("window", "season", "split_seed")


def check_settings(folder: Path, manifest: Manifest, settings: DataSettings, seed: int) -> None:
    """Raises SettingsError where a store was made under other settings."""
    before, now = settings_of(manifest), settings
    for name in DataSettings.model_fields:
        if name in _FREE:
            continue
        then, asked = getattr(before, name), getattr(now, name)
        if then != asked:
            raise SettingsError(
                f"{folder} was made with {name}={shown(then)}, and now it is {name}={shown(asked)}. Leave {name} out, or {_ANEW[0].lower()}{_ANEW[1:]}"
            )
    drawn = seed if now.split_seed is None else now.split_seed
    if drawn != manifest.seed:
        raise SettingsError(
            f"{folder} was divided into train, valid and test with seed {manifest.seed}, and now it is {drawn}. For other weights on the same "
            f"rows say split_seed={manifest.seed} (--split-seed {manifest.seed}), or {_ANEW[0].lower()}{_ANEW[1:]}"
        )


def is_made_of(folder: Path, source: str | Path, settings: DataSettings, seed: int) -> bool:
    """Whether the store can be used for this table under these settings. Raises RunError where it is damaged."""
    manifest = read_manifest(folder)
    try:
        check_settings(folder, manifest, settings, seed)
        check_inputs(folder, manifest, source=source)
    except (DataError, SettingsError):
        return False
    return True


def data_settings(settings: Mapping[str, Any] | DataSettings) -> dict[str, Any]:
    """Of all settings those of the data, as JSON has them."""
    values = settings.model_dump(mode="json") if isinstance(settings, DataSettings) else dict(settings)
    return {name: values[name] for name in DataSettings.model_fields}
