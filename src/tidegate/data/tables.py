"""Reading a table: CSV, Parquet, JSON lines, Arrow, several such files, or a data frame that is there already.

polars does the reading. What this file adds are the sentences that a person gets when a table is not what
its name promises: which line, what was found, what to do.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import hashlib
import io
import lzma
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import polars as pl

from tidegate.data.csv_text import BLOCK, CsvText, end_of_line, look, names_totals
from tidegate.data.numerals import NUMBER
from tidegate.data.pandas_frames import from_pandas
from tidegate.data.several import (
    Files,
    SomeRows,
    base_of,
    common_types,
    empty_columns,
    files_of,
    is_pattern,
    names_of_files,
    short_name,
    with_types,
)
from tidegate.documents import Damaged, from_json, shown
from tidegate.errors import DataError

CSV_SUFFIXES = {".csv", ".tsv", ".txt"}
JSON_LINES_SUFFIXES = {".jsonl", ".ndjson"}
PARQUET_SUFFIXES = {".parquet", ".pq"}
ARROW_SUFFIXES = {".arrow", ".feather", ".ipc"}
SUFFIXES = sorted(CSV_SUFFIXES | JSON_LINES_SUFFIXES | PARQUET_SUFFIXES | ARROW_SUFFIXES)
PACKED = [".gz", ".bz2", ".xz"]
_MARKS = {
    b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "Zstandard", b"PK\x03\x04": "zip",
}  # fmt: skip
_OTHERS = {"Zstandard": "zstd -d", "zip": "unzip; an Excel file is one, too: save it as CSV"}
_MOST_TOTALS = 4  # rows: a sum, a mean, a least and a largest value
MISSING = ("NA", "null")  # cells of a CSV file that are missing values, beside the empty one
_DAY_OR_MONTH_FIRST = re.compile(r"\d{1,2}[-/.]\d{1,2}[-/.]\d")
_MAYBE_A_TIME = re.compile(r"\d{1,4}[-/.:]\d")


@dataclass(frozen=True)
class Table:
    """A data frame and what is needed to speak about its rows.

    `where(i)` names row `i` (from 0) as a person would find it: the line of a CSV file, else the row from 1.
    separator: of a CSV file. nan: the columns of numbers in which it wrote NaN for a missing value, and how often. grouped: the
    columns whose decimal commas look like thousands separators, with a row and a cell that show it. notes: sentences on what was left
    out of a file. lost: those of them that tell of rows.
    """

    frame: pl.DataFrame
    name: str
    path: Path | None = None
    sha256: str | None = None
    lines: np.ndarray | None = None  # of a CSV file: the line (from 1) on which each row starts
    separator: str | None = None
    nan: Mapping[str, int] = field(default_factory=dict)
    grouped: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    files: Files | SomeRows | None = None

    @property
    def height(self) -> int:
        return self.frame.height

    def where(self, row: int) -> str:
        name, within = (self.name, row) if self.files is None else self.files.find(row)
        if self.lines is not None:
            return f"{name}, line {self.lines[row]}"
        return f"{name}, row {within + 1}"

    def also_where(self, first: int, row: int) -> str:
        """Where a row is, said behind where another one is: the file only if it is another one."""
        here = self.where(row)
        name = here.rsplit(", ", 1)[0]
        return here.removeprefix(f"{name}, ") if self.where(first).startswith(f"{name}, ") else here


def read_table(
    source: Any,
    *,
    encoding: str = "utf-8",
    header: bool = True,
    row_names: bool = False,
    decimal_comma: bool = False,
    missing: Sequence[str] = (),
    dots: bool = False,
    as_text: Iterable[str] = (),
    as_named: Iterable[str] = (),
) -> Table:
    """Read `source` into a `Table`.

    source: a path (CSV/TSV, Parquet, JSON lines, Arrow by its suffix), a folder of such files or a pattern (data/*.parquet), which
        are one table in the order of their names, a polars, pandas or pyarrow table, a mapping of columns, or a `Table`.
    encoding: of a text file; "utf-8" (a byte order mark is skipped), "latin-1", "cp1252", ...
    header: the first line of a CSV file holds the names of the columns; else they are column_1, column_2, ...
    row_names: the first field of each CSV row is an unnamed row number (as R writes it) and is left out.
    decimal_comma: numbers of a CSV file are written 1,5 (the separator is then a semicolon, a tab or a bar).
    missing: cells that are missing values, beside the usual ones; a number is missing wherever it has that value.
    dots: a dot in a number of a CSV file stands between thousands, where the column allows it: such a column stays text.
    as_text: columns of a CSV file that stay text, whatever they hold. as_named: names that keep the blanks around them.

    Blanks around the names, numbers and times of a CSV file are no part of them; nor are blank lines, comments before and after the
    rows, separators behind the last column and rows of totals at the end part of the table. A file that is packed with gzip, bzip2
    or xz is unpacked.

    Raises DataError: the message names the file, the line and the way out.
    """
    if isinstance(source, Table):
        return source
    if not isinstance(source, str | Path):
        return without_missing(_from_memory(source), missing)
    kept = frozenset(n for n in as_named if n != n.strip())
    how = _CsvOptions(encoding, header, row_names, decimal_comma, tuple(missing), dots, frozenset(as_text), kept)
    path = Path(source)
    several = path.is_dir() or is_pattern(path)
    table = _read_several(path, how) if several else _read_path(path, how)
    if table.frame.height == 0:
        raise DataError(f"{table.name} has a header but no rows.")
    return table


def _read_path(path: Path, how: _CsvOptions) -> Table:
    name = path.name
    suffix = check_kind(path)
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{name} is empty. A table needs a header and at least one row.")
        return without_missing(_read_file(path, suffix, how), how.missing)
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror or error}).") from error


def check_kind(path: Path) -> str:
    """The suffix that says of which kind a table is. Raises DataError: there is no such file, or none of these kinds."""
    if not path.exists():
        raise DataError(f"No such file: {path}.{_nearby(path)}")
    suffix = kind_of(path)
    if suffix not in SUFFIXES:
        packing_of_file(path)
        raise DataError(
            f"{path.name}: unknown kind of table {suffix or '(no suffix)'!r}. Tidegate reads {', '.join(SUFFIXES)}, and these with "
            f"{', '.join(PACKED)} behind them."
        )
    return suffix


def _read_several(path: Path, how: _CsvOptions) -> Table:
    """The files of a folder or a pattern as one table."""
    paths = files_of(path, kind_of, SUFFIXES)
    for one in paths:
        check_kind(one)
    names = names_of_files(paths, base_of(path))
    tables = [_read_path(one, how) for one in paths]
    types = common_types(
        names,
        [t.frame.schema for t in tables],
        [empty_columns(t.frame) for t in tables],
        guessed=not is_typed(paths[0]),
    )
    starts = np.cumsum([0, *(t.frame.height for t in tables)])
    frame = pl.concat([with_types(t.frame, types) for t in tables], rechunk=False)
    nan: dict[str, int] = {}
    grouped: dict[str, tuple[int, str]] = {}
    for first, table in zip(starts.tolist(), tables, strict=False):
        for name, count in table.nan.items():
            nan[name] = nan.get(name, 0) + count
        for name, (row, cell) in table.grouped.items():
            grouped.setdefault(name, (first + row, cell))
    lines = None if tables[0].lines is None else np.concatenate([np.asarray(t.lines) for t in tables])
    return Table(
        frame,
        short_name(path),
        path,
        hash_of(names, [str(t.sha256) for t in tables]),
        lines,
        tables[0].separator,
        nan,
        grouped,
        notes=tuple(note for t in tables for note in t.notes),
        lost=tuple(note for t in tables for note in t.lost),
        files=Files(names, starts),
    )


def hash_of(names: Sequence[str], hashes: Sequence[str]) -> str:
    """One SHA-256 for several files, from their names and their own."""
    text = "".join(f"{name}\0{digest}\n" for name, digest in zip(names, hashes, strict=True))
    return hashlib.sha256(text.encode()).hexdigest()


def is_typed(path: Path) -> bool:
    """Whether files of this kind say of which type their columns are."""
    return kind_of(path) in PARQUET_SUFFIXES | ARROW_SUFFIXES


@dataclass(frozen=True)
class _CsvOptions:
    encoding: str
    header: bool
    row_names: bool
    decimal_comma: bool
    missing: tuple[str, ...]
    dots: bool
    as_text: frozenset[str]
    as_named: frozenset[str]

    def parse(self, data: bytes, separator: str, **options: Any) -> pl.DataFrame:
        """What polars makes of a CSV file, which it reads where it lies."""
        return pl.read_csv(
            data,
            separator=separator,
            infer_schema_length=None,
            null_values=[*MISSING, *self.missing],
            decimal_comma=self.decimal_comma,
            **options,
        )


def _read_file(path: Path, suffix: str, how: _CsvOptions) -> Table:
    name, encoding = path.name, how.encoding
    packed = packing_of_file(path)
    if suffix in PARQUET_SUFFIXES | ARROW_SUFFIXES:
        kind, read = ("Parquet", pl.read_parquet) if suffix in PARQUET_SUFFIXES else ("Arrow", pl.read_ipc)
        source = io.BytesIO(_unpacked(path.read_bytes(), packed, name)) if packed else path
        try:
            return Table(read(source), name, path, sha256_of(path))
        except PermissionError:
            raise
        except (Exception, pl.exceptions.PanicException) as error:  # all of them mean the same to a user
            raise not_whole(name, kind, error) from error
    data = path.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    data = _in_utf8(_unpacked(data, packed, name), name, encoding)
    if _is_blank(data):
        raise DataError(f"{name} is empty. A table needs a header and at least one row.")
    if suffix in CSV_SUFFIXES:
        try:
            found = _looked_at(data, name, suffix, how)
            del data  # a second copy where the file had to be written anew: only the one that polars reads stays
            table = _read_csv(found, name, how)
        except csv.Error as error:
            raise _not_csv(_in_utf8(_unpacked(path.read_bytes(), packed, name), name, encoding), name, error) from None
        return replace(table, path=path, sha256=sha256)
    return Table(_read_json_lines(data, name), name, path, sha256)


def not_whole(name: str, kind: str, error: BaseException) -> DataError:
    return DataError(
        f"{name} is not a whole {kind} file ({_first_line(error)}). Was it cut off, or is it another format?"
    )


def kind_of(path: Path) -> str:
    """The suffix that says what kind of table a file is: of sales.csv.gz it is .csv."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in PACKED else suffix


def stem_of(path: Path) -> str:
    """A file's name without the suffixes of its kind."""
    return Path(path.stem).stem if path.suffix.lower() in PACKED else path.stem


def packing_of(begins: bytes) -> str:
    """With what a file that begins so is packed; "" for none that is known."""
    return next((what for mark, what in _MARKS.items() if begins.startswith(mark)), "")


def packing_of_file(path: Path) -> str:
    """With what a file is packed. Raises DataError for what isn't read."""
    return _packing(_begin_of(path), path.name)


def _begin_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(6)


def _packing(begins: bytes, name: str) -> str:
    what = packing_of(begins)
    if what in _OTHERS:
        raise DataError(
            f"{name} is packed with {what}, which Tidegate doesn't read. Unpack it first ({_OTHERS[what]}), or use gzip."
        )
    return what


def _unpacked(raw: bytes, packed: str, name: str) -> bytes:
    if not packed:
        return raw
    try:
        return {"gzip": gzip, "bzip2": bz2, "xz": lzma}[packed].decompress(raw)  # type: ignore[attr-defined, no-any-return]
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{name} is not a whole {packed} file ({_first_line(error)}). Was it cut off?") from error


def _not_csv(data: bytes, name: str, error: csv.Error) -> DataError:
    """What Python's reader can't take: a carriage return alone, or a cell of over 131,072 characters beside quotes."""
    if stray := re.search(rb"\r(?!\n)", data):
        line = data.count(b"\n", 0, stray.start()) + 1
        return DataError(
            f"{name}, line {line}: a carriage return that no line feed follows, as old Macintosh programs end their lines. Save the table "
            "with the line ends of today, or quote the cell."
        )
    return DataError(f"{name} can't be read as CSV: {error}.")


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_table(frame: pl.DataFrame, path: Path) -> None:
    """Write `frame` by the suffix of `path`, to a temporary name first; a list becomes words in a CSV cell."""
    from tidegate.files import replacing  # late: only who writes needs it

    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise unknown_suffix(path)
    with replacing(path) as temporary:
        write_rows(frame, temporary, suffix)


def write_rows(frame: pl.DataFrame, file: Path | BinaryIO, suffix: str, *, header: bool = True) -> None:
    """Write `frame` as `suffix`, one of SUFFIXES, says. header: whether a CSV file begins here."""
    if suffix in CSV_SUFFIXES:
        cells = {column.name: _as_cells(column.alias("")) for column in frame.get_columns()}
        separator = "\t" if suffix == ".tsv" else ","
        pl.DataFrame(cells).write_csv(file, separator=separator, include_header=header)
    elif suffix in JSON_LINES_SUFFIXES:
        frame.write_ndjson(file)
    elif suffix in PARQUET_SUFFIXES:
        frame.write_parquet(file)
    else:
        frame.write_ipc(file)


def _as_cells(column: pl.Series) -> pl.Series:
    return column.cast(pl.List(pl.String)).list.join(" ") if isinstance(column.dtype, pl.List | pl.Array) else column


def unknown_suffix(path: Path) -> DataError:
    return DataError(
        f"{path}: can't write {path.suffix or 'a name with no suffix'!r}. Use one of {', '.join(SUFFIXES)}."
    )


def _from_memory(source: Any) -> Table:
    name = "the table"
    if isinstance(source, pl.LazyFrame):
        frame = source.collect()
    elif isinstance(source, pl.DataFrame):
        frame = source
    elif isinstance(source, Mapping):
        frame = _from_columns(source)
    elif type(source).__module__.split(".")[0] == "pandas":
        frame = from_pandas(source)
    elif type(source).__module__.split(".")[0] == "pyarrow":
        arrow = pl.from_arrow(source)
        frame = arrow if isinstance(arrow, pl.DataFrame) else arrow.to_frame()
    else:
        raise DataError(
            f"A table must be a path or a polars, pandas or pyarrow table or a mapping of columns, not {type(source).__name__}."
        )
    if frame.height == 0:
        raise DataError("The table has no rows.")
    return Table(frame, name)


def _from_columns(source: Mapping[Any, Any]) -> pl.DataFrame:
    """What polars makes of a mapping of columns. Raises DataError: the column that it can't take, or their lengths."""
    several = (pl.exceptions.PolarsError, TypeError, ValueError, OverflowError)
    try:
        return pl.DataFrame(source)
    except several as error:
        lengths = {}
        for name, values in source.items():
            if not isinstance(name, str):
                raise DataError(f"A column's name must be text, not {shown(name)}.") from error
            try:
                lengths[name] = pl.DataFrame({"": values}).height
            except several as of_one:
                raise DataError(
                    f"The table's column {shown(name)} can't be read ({_first_line(of_one)}). All values of a column are of one kind: "
                    "numbers, text, yes/no, times, or lists of these."
                ) from of_one
        if len({*lengths.values()}) < 2:
            raise DataError(f"The columns can't be read as a table ({_first_line(error)}).") from error
        told = ", ".join(f"{shown(name)} has {length:,}" for name, length in list(lengths.items())[:12])
        raise DataError(f"The columns of the table differ in length: {told}.") from error


def _nearby(path: Path) -> str:
    from tidegate.errors import nearest

    folder = path.parent
    if not folder.is_dir():
        return f" There is no folder {folder} either."
    return nearest(path.name, (p.name for p in folder.iterdir() if kind_of(p) in SUFFIXES))


def _first_line(error: BaseException) -> str:
    text = str(error).strip().split("\n")[0]
    return text[:200] or type(error).__name__


def _in_utf8(raw: bytes, name: str, encoding: str) -> bytes:
    """A text file in UTF-8, without its byte order mark. It is decoded a block at a time: whole, and again as UTF-8, it would be
    there two times more.
    """
    check_encoding(encoding)
    utf8 = encoding.lower().replace("_", "-") in {"utf-8", "utf8"}
    if utf8 and raw[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        raise DataError(f"{name} is UTF-16 (it starts with its byte order mark). Read it with encoding='utf-16'.")
    encoding = "utf-8" if utf8 else encoding
    decoder = codecs.getincrementaldecoder(encoding)()
    out = io.BytesIO()
    try:
        for first in range(0, len(raw), BLOCK):
            text = decoder.decode(raw[first : first + BLOCK], final=first + BLOCK >= len(raw))
            if not utf8:
                out.write(text.encode())
    except UnicodeError:
        return _in_utf8_at_once(raw, name, encoding)
    return raw.removeprefix(codecs.BOM_UTF8) if utf8 else out.getvalue()


def _in_utf8_at_once(raw: bytes, name: str, encoding: str) -> bytes:
    """The same of a file that can't be decoded by the block, which then says where: or it is UTF-16 without a byte order mark, which
    Python reads as a whole alone. Raises DataError.
    """
    try:
        return raw.decode(encoding).encode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{name}, line {line}: byte 0x{raw[error.start]:02X} is not {encoding.removesuffix('-sig')}. "
            "If the file comes from an older Windows program, read it with encoding='cp1252' "
            "(on the command line: --encoding cp1252), or save it as UTF-8."
        ) from None
    except UnicodeError as error:  # of rarer encodings, which don't say where
        raise DataError(
            f"{name} is not {encoding} ({_first_line(error)}). Name its encoding, or save it as UTF-8."
        ) from None


def _is_blank(data: bytes) -> bool:
    """Whether a text holds nothing but blanks, of any kind. (It is decoded as a whole only where its beginning is blank.)"""
    return not data[:BLOCK].decode(errors="replace").strip() and not data.decode().strip()


def check_encoding(encoding: str) -> None:
    """Raises DataError for a name that is no encoding of text (base64, which Python knows too, is none)."""
    try:
        b"a".decode(encoding)
    except LookupError:
        raise DataError(f"encoding={encoding!r} is unknown. Common ones: utf-8, latin-1, cp1252, utf-16.") from None
    except ValueError:  # a name with a null character; or one letter is no text in it, as in UTF-16
        if "\x00" in encoding:
            raise DataError(f"encoding={encoding!r} is unknown. Common ones: utf-8, latin-1, cp1252, utf-16.") from None


def _looked_at(data: bytes, name: str, suffix: str, how: _CsvOptions) -> CsvText:
    if b"\x00" in data[:4096]:
        raise DataError(f"{name} holds binary data, not text. Is it a table of another format with the wrong suffix?")
    return look(
        data,
        name,
        tabs=suffix == ".tsv",
        header=how.header,
        row_names=how.row_names,
        decimal_comma=how.decimal_comma,
        as_named=how.as_named,
    )


def _read_csv(found: CsvText, name: str, how: _CsvOptions) -> Table:
    separator, lines = found.separator, found.lines
    try:
        as_text = {n: pl.String for n in found.names if n in how.as_text}
        frame, data, left_out = _without_totals(found, how, as_text)
        as_dotted = _dotted(frame, data, separator, how) if how.dots else {}
        grouped = _grouped(frame, data, separator, how) if how.decimal_comma else {}
        columns = {column.name: column for column in frame.get_columns()}
        del frame  # so that a column that is replaced goes at once
        for n in columns:
            columns[n] = as_dotted[n] if n in as_dotted else columns[n]
            if n not in as_text and n not in as_dotted:
                columns[n] = _cleaned(columns[n], how, found.spaced)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{name} can't be read as CSV: {_first_line(error)}.") from error
    for column in [*(found.names[:1] if how.row_names else ()), *found.names[len(found.names) - found.loose :]]:
        del columns[column]
    totals = [
        f"{name}, line {lines[len(lines) - k]}: left out, as it holds totals ({word!r} at the end of the table)."
        for k, word in enumerate(left_out, 1)
    ]
    lines = lines[: len(lines) - len(totals)]
    nan = {n: int(c.alias("").is_nan().sum()) for n, c in columns.items() if c.dtype.is_float()}
    nan = {n: count for n, count in nan.items() if count}
    for n in nan:
        columns[n] = columns[n].alias("").fill_nan(None)
    return Table(
        pl.DataFrame(columns),
        name,
        lines=lines,
        separator=separator,
        nan=nan,
        grouped=grouped,
        notes=(*found.notes, *totals),
        lost=tuple(totals),
    )


def _without_totals(found: CsvText, how: _CsvOptions, as_text: dict[str, Any]) -> tuple[pl.DataFrame, bytes, list[str]]:
    """What polars makes of the text, the text, and what the rows of totals at its end that were left out are called."""
    data = found.data
    last: list[
        tuple[int, list[str], str]
    ] = []  # rows at the end that may hold totals, the last one first: where, cells, word
    end = len(data)
    while len(last) < _MOST_TOTALS:
        bare = end_of_line(data, 0, end)
        at = data.rfind(b"\n", 0, bare) + 1
        row = data[at:bare].decode()
        if not at or row.count('"') % 2:
            break
        cells = next(csv.reader([row], delimiter=found.separator), [])
        word = names_totals(cells)
        if word is None or (last and not (word and last[-1][2])):
            break
        last.append((at, cells + [""] * min(found.loose, len(found.names) - len(cells)), word))
        end = at
    while last:
        frame = how.parse(data[: last[-1][0]], found.separator, schema_overrides=as_text)
        if frame.height > 2 and all(_holds_totals(cells, word, frame, how) for _, cells, word in last):
            return frame, data[: last[-1][0]], [word or ", ".join(filter(None, cells)) for _, cells, word in last]
        last.pop()
    return how.parse(data, found.separator, schema_overrides=as_text), data, []


def _holds_totals(cells: Sequence[str], word: str, frame: pl.DataFrame, how: _CsvOptions) -> bool:
    """Whether a last row sums up the rows before it. A word such as Total is enough where it stands among numbers or dates, or where
    the row lacks a value that all others have. Without a word its first cell is the only empty one of its column, and each number is
    the sum of its column.
    """
    if len(cells) != frame.width:
        return False
    sums = []
    for cell, column in zip(cells, frame.get_columns(), strict=True):
        bare = cell.strip().replace(",", ".") if how.decimal_comma else cell.strip()
        complete = column.null_count() == 0
        if NUMBER.fullmatch(bare):
            if column.dtype.is_numeric():
                numbers = column.alias("").drop_nulls().cast(pl.Float64)  # (polars takes "^x$" for a pattern)
                within = 0.51 * 10.0 ** -len(bare.partition(".")[2]) + 1e-9 * float(numbers.abs().sum())
                beyond = abs(float(bare)) > float(numbers.abs().max() or 0)  # type: ignore[arg-type]
                sums.append(beyond and abs(float(bare) - float(numbers.sum())) <= within)
        elif word and complete and (not bare or (bare == word and _all_hold_digits(column))):
            return True
    if word:
        return any(sums)
    return bool(sums) and all(sums) and frame.get_columns()[0].null_count() == 0


def _all_hold_digits(column: pl.Series) -> bool:
    return bool(column.cast(pl.String).alias("").str.contains("[0-9]").all())


def _cleaned(column: pl.Series, how: _CsvOptions, spaced: bool) -> pl.Series:
    """A column of text as what it is without the blanks around its cells: numbers, yes/no or times, else the text as it came."""
    if column.dtype != pl.String:
        return column
    whole = column.alias("")  # without a name, which polars may read as a pattern
    bare = whole.str.strip_chars()
    first = whole.drop_nulls().head(1)
    if not len(first) or not (_MAYBE_A_TIME.match(first[0].strip()) or bool((bare != whole).any())):
        return column
    bare = pl.select(pl.when(bare.alias("") != "").then(bare.alias(""))).to_series()
    one = pl.DataFrame({"at": pl.zeros(len(column), dtype=pl.UInt8, eager=True), "cell": bare.alias("cell")})
    try:
        read = how.parse(one.write_csv(separator="\t").encode(), "\t", try_parse_dates=True, columns=["cell"])["cell"]
    except pl.exceptions.PolarsError:  # times in two forms: text, for now
        return column
    # polars takes 01/02/2026 for the first of February, and what it can't read for missing: both are for whoever needs the times.
    guessed = read.dtype.is_temporal() and _DAY_OR_MONTH_FIRST.match(first[0].strip())
    lost = read.null_count() > (bare.is_null() | bare.is_in([*MISSING, *how.missing])).sum()
    if read.dtype == pl.String or len(read) != len(column) or guessed or lost:
        return bare.alias(column.name) if spaced else column
    return read.alias(column.name)


def _dotted(frame: pl.DataFrame, data: bytes, separator: str, how: _CsvOptions) -> dict[str, pl.Series]:
    """The text of columns such as 999, 8.520: every dot has three digits behind it."""
    floats = [name for name, dtype in frame.schema.items() if dtype.is_float()]
    if not floats:
        return {}
    cells = how.parse(data, separator, columns=floats, schema_overrides=dict.fromkeys(floats, pl.String))
    dotted = r"^\s*[+-]?(?:[1-9][0-9]{0,2}(?:\.[0-9]{3})+|[0-9]+)\s*$"
    return {name: cells[name] for name in floats if cells[name].alias("").str.contains(dotted).all()}


def _grouped(frame: pl.DataFrame, data: bytes, separator: str, how: _CsvOptions) -> dict[str, tuple[int, str]]:
    """Columns such as 999, 8,520: every comma has three digits behind it, and numbers below 1000 have none."""
    floats = [name for name, dtype in frame.schema.items() if dtype.is_float()]
    if not floats:
        return {}
    cells = how.parse(data, separator, columns=floats, schema_overrides=dict.fromkeys(floats, pl.String))
    found = {}
    for name in floats:
        column = cells[name].alias("").str.strip_chars()
        commas = column.str.contains(",", literal=True).fill_null(False)
        whole = column.filter(~commas).drop_nulls()
        if commas.sum() < 3 or not len(whole) or whole.str.contains("[0-9]{4}|[eE.]").any():
            continue
        if column.filter(commas).str.contains(r"^[+-]?[1-9][0-9]{0,2},[0-9]{3}$").all():
            row = int(commas.arg_true()[0])
            found[name] = (row, column[row])
    return found


def without_missing(table: Table, missing: Sequence[str]) -> Table:
    """The table with nothing in the cells that hold one of these spellings, or that number."""
    if not missing:
        return table
    numbers = [float(m) for m in missing if NUMBER.fullmatch(m)]
    columns = {}
    for column in table.frame.get_columns():
        bare = column.alias("")
        if column.dtype == pl.String:
            wrong = bare.str.strip_chars().is_in(list(missing))
        elif column.dtype.is_numeric() and numbers:
            wrong = bare.cast(pl.Float64).is_in(numbers)
        else:
            continue
        columns[column.name] = pl.select(pl.when(wrong.fill_null(False)).then(None).otherwise(bare)).to_series()
    every = {c.name: columns.get(c.name, c) for c in table.frame.get_columns()}
    return replace(table, frame=pl.DataFrame(every))


def _read_json_lines(data: bytes, name: str) -> pl.DataFrame:
    try:
        return pl.read_ndjson(data, infer_schema_length=None)
    except pl.exceptions.PolarsError as error:
        for number, line in enumerate(data.decode().splitlines(), 1):
            if not line.strip():
                continue
            try:
                value = from_json(line)
            except Damaged as bad:
                raise DataError(
                    f"{name}, line {number}: not JSON ({bad}). JSON lines hold one object a line."
                ) from None
            if not isinstance(value, dict):
                raise DataError(
                    f'{name}, line {number}: a {type(value).__name__}, not an object such as {{"x": 1}}.'
                ) from None
        raise DataError(f"{name} can't be read as JSON lines: {_first_line(error)}.") from error
