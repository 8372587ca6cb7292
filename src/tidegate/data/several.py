"""A folder or a pattern of files that together are one table: which files, in which order, of which columns."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tidegate.documents import cut
from tidegate.errors import DataError

STORE = "store.json"  # what tells a store (`data.store`) from a folder of tables
_WILD = re.compile(r"[*?\[]")


def is_pattern(path: Path) -> bool:
    """Whether a path that doesn't exist names files by a pattern, such as data/*.parquet."""
    return bool(_WILD.search(str(path))) and not path.exists()


def is_several(source: Any) -> bool:
    """Whether a source is a folder or a pattern."""
    return isinstance(source, str | Path) and (is_pattern(Path(source)) or Path(source).is_dir())


def is_store(source: Any) -> bool:
    """Whether a source is a folder that `tidegate prepare` made."""
    return isinstance(source, str | Path) and (Path(source) / STORE).is_file()


def is_there(source: str | Path) -> bool:
    """Whether the file, the folder or any file of the pattern is there."""
    path = Path(source)
    return path.exists() or (is_pattern(path) and bool(_found(path)))


def files_of(path: Path, kind_of: Callable[[Path], str], kinds: Collection[str]) -> list[Path]:
    """The files of a folder or a pattern, sorted by name. Hidden ones (.x, _x) of a folder are no tables; nor are others whose kind
    isn't among `kinds`.

    Raises DataError: none is there, or they are of several kinds.
    """
    if path.is_dir():
        _no_store(path)
        found = [p for p in path.iterdir() if p.is_file() and kind_of(p) in kinds and p.name[0] not in "._"]
        if not found:
            raise DataError(
                f"{path} is a folder, not a table, and no table lies in it. Name a file ({', '.join(sorted(kinds))}), or for folders in "
                f"folders a pattern: '{path}/**/*.parquet'."
            )
    else:
        found = [p for p in _found(path) if p.is_file() and p.name[0] != "."]
        if not found:
            raise DataError(f"No file fits {path}.")
    found.sort()
    by_kind: dict[str, Path] = {}
    for one in found:
        by_kind.setdefault(kind_of(one), one)
    if len(by_kind) > 1:
        first, second = list(by_kind.values())[:2]
        raise DataError(
            f"{path} holds tables of several kinds ({first.name} and {second.name}). Name those of one kind by a pattern, "
            f"such as '{path if path.is_dir() else path.parent}/*{kind_of(first)}'."
        )
    return found


def _no_store(path: Path) -> None:
    if is_store(path):
        raise DataError(
            f"{path} is a store that tidegate prepare made, and only training reads it: tidegate train {path}. Name the tables that it was "
            "made of."
        )


def _found(path: Path) -> list[Path]:
    base = base_of(path)
    return list(base.glob(str(path.relative_to(base)))) if base.is_dir() else []


def base_of(path: Path) -> Path:
    """The folder from which a pattern searches; a folder itself."""
    if path.is_dir():
        return path
    base = path.parent
    while _WILD.search(str(base)) and not base.exists():
        base = base.parent
    return base


def short_name(path: Path) -> str:
    """How messages call a folder or a pattern."""
    path = Path(os.path.abspath(path)) if not path.name else path
    return f"{path.parent.name}/{path.name}" if is_pattern(path) and path.parent.name else path.name


def name_for_runs(source: Any) -> str | None:
    """After what a run on several files is named: the folder in which they lie. None: they are not several."""
    return base_of(Path(os.path.abspath(source))).name or "run" if is_several(source) else None


@dataclass(frozen=True)
class Files:
    """The files of a table in their order. starts [F + 1]: the first row of each, and the number of all rows."""

    names: tuple[str, ...]
    starts: np.ndarray

    def find(self, row: int) -> tuple[str, int]:
        """The file of a row of the whole table, and which of its rows that is (from 0)."""
        k = int(np.searchsorted(self.starts, row, side="right")) - 1
        return self.names[k], row - int(self.starts[k])


@dataclass(frozen=True)
class SomeRows:
    """Rows of a table that is never in memory as a whole. rows [N]: which rows of `files` they are."""

    files: Files
    rows: np.ndarray

    def find(self, row: int) -> tuple[str, int]:
        return self.files.find(int(self.rows[row]))


def names_of_files(paths: Sequence[Path], base: Path) -> tuple[str, ...]:
    return tuple(os.path.relpath(path, base) for path in paths)


def common_types(
    names: Sequence[str], schemas: Sequence[Mapping[str, Any]], empty: Sequence[Collection[str]], *, guessed: bool
) -> dict[str, Any]:
    """The columns of all files with their types, in the order of the first file.

    empty: of each file the columns without a value, whose type says nothing. guessed: the types are what the cells look like (CSV,
    JSON lines), so that whole numbers in one file may be decimal ones in another.
    Raises DataError: the file, the column, and both types.
    """
    first = schemas[0]
    types = dict(first)
    by: dict[str, int] = dict.fromkeys(first, 0)  # which file said so
    for k, schema in enumerate(schemas[1:], 1):
        for name in first:
            if name not in schema:
                raise DataError(f"{names[k]} has no column {name!r}, which {names[0]} has. {_ALIKE}")
        for name in schema:
            if name not in first:
                raise DataError(f"{names[k]} has a column {cut(repr(name))}, which {names[0]} doesn't have. {_ALIKE}")
        for name, here in schema.items():
            there = types[name]
            if here == there or (name in empty[k] and _says_nothing(here, guessed)):
                continue
            if name in empty[by[name]] and _says_nothing(there, guessed):
                types[name], by[name] = here, k
            elif guessed and {here, there} == {pl.Int64, pl.Float64}:
                types[name] = pl.Float64
            else:
                raise DataError(
                    f"{names[k]}: column {name!r} holds {here}, and in {names[by[name]]} it holds {there}. {_ALIKE}"
                )
    return types


_ALIKE = "All files of a table have the same columns, of the same types."


def _says_nothing(dtype: Any, guessed: bool) -> bool:
    """Whether this is the type of a column of which nothing is known. (In a file that has types, an empty column has one.)"""
    return dtype == pl.Null or guessed


def empty_columns(frame: pl.DataFrame) -> frozenset[str]:
    """The columns of a frame that have no value."""
    return frozenset(c.name for c in frame.get_columns() if c.null_count() == len(c))


def with_types(frame: pl.DataFrame, types: Mapping[str, Any]) -> pl.DataFrame:
    """The columns of a frame in the order and with the types that the whole table has."""
    columns = {c.name: c for c in frame.get_columns()}  # (polars reads names such as "*" as patterns)
    return pl.DataFrame(
        {n: columns[n] if columns[n].dtype == dtype else columns[n].alias("").cast(dtype) for n, dtype in types.items()}
    )
