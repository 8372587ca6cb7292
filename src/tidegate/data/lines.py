"""A table that comes line by line: CSV with a header, or JSON lines, one row a line, read as `read_table` reads a file."""

from __future__ import annotations

import codecs
import csv
import itertools
import json
import math
import re
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tidegate.data.csv_text import all_named, blank_follows, excels_separator, is_header, separator_of
from tidegate.data.names import split_names
from tidegate.data.numerals import NUMBER, SPELLINGS
from tidegate.data.preprocessing import Preprocessing
from tidegate.data.tables import MISSING, check_encoding, packing_of
from tidegate.documents import cut
from tidegate.errors import DataError, nearest

WHOLE = re.compile(r"-?\d+", re.ASCII)


@dataclass(frozen=True)
class Line:
    """A row that came: its line (from 1), its bytes, and what it holds, or why it holds nothing."""

    number: int
    raw: bytes
    row: dict[str, Any] | None
    error: str | None = None


class RowLines:
    """Iterates over the rows of `source`, a line each, as they come. Blank lines and comments (#) are left out.

    The first line says what it is: a JSON object, or else the header of a CSV file (header=False: its first row). A line that can't be read is a `Line`
    with an error; only a header that lacks a column raises DataError.
    key: the columns that say whose row it is ("a,b" is two), and after the first row `key` says which they are; None: those of `group`
    where the first row has them, else none. time: the column that says when a row happened.
    """

    def __init__(
        self,
        source: Iterable[bytes],
        pre: Preprocessing,
        *,
        key: Sequence[str] | None = None,
        group: Sequence[str] = (),
        time: str | None = None,
        encoding: str = "utf-8",
        header: bool = True,
        row_names: bool = False,
        decimal_comma: bool = False,
        missing: Sequence[str] = (),
        dots: bool = False,  # of files: here the run knows which columns are so
        name: str = "standard input",
    ):
        check_encoding(encoding)
        codec = codecs.lookup(encoding).name
        if codec.startswith(("utf-16", "utf-32")):
            encoding = "utf-8"  # those can't be cut into lines; a stream of such a run is UTF-8
        self._source, self._encoding, self._name = source, encoding, name
        self._with_header, self._row_names, self._comma = header, row_names, decimal_comma
        self._fields = 0  # of the header, with those at its end that have no name
        self._missing, self._spaced = {*MISSING, *missing}, False
        self._formats = set(pre.formats)
        self._numbers = {c.name for c in pre.numbers}
        self._words = {c.name for c in pre.tokens if c.kind == "words"}
        # Categories that a file's reader took for whole numbers or yes/no, and so reads 03 as 3 and True as true.
        self._codes = {
            c.name
            for c in pre.tokens
            if c.kind == "category"
            and (all(map(WHOLE.fullmatch, c.vocabulary)) or set(c.vocabulary) <= {"true", "false"})
        }
        self._features = pre.columns
        self._group = tuple(group)
        self._time = () if time is None else (time,)
        self.key = None if key is None else tuple(key)
        self.header: list[str] | None = None  # of a CSV file, once its first line was read
        self.head = b""  # and that line as it came

    def __iter__(self) -> Iterator[Line]:
        json_lines: bool | None = None
        separator, comment = "", None
        for number, raw in enumerate(self._source, 1):
            raw = raw.rstrip(b"\r\n")
            if number == 1:
                raw = raw.removeprefix(codecs.BOM_UTF8)
                if packed := packing_of(raw):
                    raise DataError(
                        f"{self._name} is packed with {packed}. Unpack it on the way: zcat FILE | tidegate stream RUN (for gzip)."
                    )
            if not (
                raw if json_lines is False else raw.strip()
            ):  # of a CSV with tabs, a row of missing values is all blank
                continue
            try:
                text = raw.decode(self._encoding)
            except UnicodeError as error:  # of rarer encodings it doesn't say where
                start = getattr(error, "start", 0)
                told = f"byte 0x{raw[start]:02X} is not {self._encoding}"
                if json_lines is None:
                    raise DataError(f"{self._name}, line {number}: {told}.") from None
                yield Line(number, raw, None, f"{told}. Send {self._encoding}, or train with another encoding.")
                continue
            if json_lines is None:
                if number == 1 and (separator := excels_separator(text)):
                    continue
                if text.lstrip().startswith("#"):
                    comment = (number, raw, text.lstrip())
                    continue
                json_lines = text.lstrip().startswith("{")
                if not json_lines:
                    try:
                        if not self._with_header:
                            separator = separator or separator_of(text, "," if self._comma else "")
                            self._number_columns(text, separator, number)
                        elif comment and is_header(comment[2], text):
                            separator = separator or separator_of(comment[2])
                            self.head = comment[1]
                            self._read_header(comment[2], separator, comment[0])
                        else:
                            separator = separator or separator_of(text)
                            self.head = raw
                            self._read_header(text, separator, number)
                            continue
                    except csv.Error as error:
                        raise DataError(f"{self._name}, line {number}: not a header of CSV ({error}).") from None
            elif not json_lines and text.lstrip().startswith("#") and text.count(separator) + 1 != self._fields:
                continue
            row: dict[str, Any] | str
            row = self._from_json(text) if json_lines else self._from_csv(text, separator)
            if isinstance(row, str):
                yield Line(number, raw, None, row)
            else:
                if json_lines and (self.key is not None or all(name in row for name in self._features)):
                    self._choose_key(row)
                yield Line(number, raw, row)

    def _read_header(self, text: str, separator: str, number: int) -> None:
        header = next(csv.reader([text], delimiter=separator))
        wanted = {
            n for n in (*self._features, *self._group, *(self.key or ())) if n != n.strip()
        }  # as earlier versions had them
        self._spaced = blank_follows(header) and not wanted & set(header)
        if self._spaced:
            header = next(csv.reader([text], delimiter=separator, skipinitialspace=True))
        header = [name if name in wanted else name.strip() for name in header]
        self._take_header(header, separator, f"{self._name}, line {number}")

    def _number_columns(self, text: str, separator: str, number: int) -> None:
        cells = next(csv.reader([text], delimiter=separator))
        self._spaced = blank_follows(cells)
        names = [f"column_{k}" for k in range(1, len(cells) + 1 - self._row_names)]
        self._take_header(names, separator, f"{self._name}, line {number}")

    def _take_header(self, header: list[str], separator: str, where: str) -> None:
        self._fields = len(header)
        while len(header) > 1 and not header[-1] and "" not in self._features:
            header = header[:-1]
        header = all_named(header)
        if self._comma and separator == ",":
            raise DataError(f"{where}: the separator is a comma, so a decimal comma can't be told from it.")
        again = [name for name in header if header.count(name) > 1]
        if again:
            raise DataError(f"{where}: the header names {again[0]!r} more than once. Rename one of the columns.")
        self._choose_key(header)
        for name in [*self._features, *(self.key or ()), *self._time]:
            if name not in header:
                listing = ", ".join(map(cut, header[:12])) + (", ..." if len(header) > 12 else "")
                raise DataError(
                    f"{where}: the header has no column {name!r}.{nearest(name, map(cut, header))} Its columns are: {listing}. "
                    "(Rows come as CSV with a header, or as one JSON object a line.)"
                )
        self.header = header

    def _choose_key(self, columns: Container[str]) -> None:
        if self.key is not None:
            # "a,b" is two columns, unless one has that name: as in --features.
            several = [[name] if name in columns else split_names(name) for name in self.key]
            self.key = tuple(dict.fromkeys(itertools.chain.from_iterable(several)))
            return
        have = [name for name in self._group if name in columns]
        if have and len(have) < len(self._group):
            lacks = ", ".join(repr(name) for name in self._group if name not in have)
            raise DataError(
                f"{self._name}: the first row has the group column {have[0]!r} and no {lacks}. Add what is missing, or say by which "
                "column(s) rows belong together (key, --key)."
            )
        self.key = self._group if have else ()

    def _from_json(self, text: str) -> dict[str, Any] | str:
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            return f"not JSON ({error.msg}, column {error.colno}); one object a line is expected"
        except RecursionError:
            return "not a row: JSON that is nested too deeply"
        except ValueError as error:  # a whole number of thousands of digits
            return f"not a row ({error})"
        return row if isinstance(row, dict) else f'a {type(row).__name__}, not an object such as {{"x": 1}}'

    def _from_csv(self, text: str, separator: str) -> dict[str, Any] | str:
        assert self.header is not None
        try:
            cells = next(csv.reader([text], delimiter=separator, strict=True, skipinitialspace=self._spaced))
        except csv.Error as error:
            return f"not a row of CSV ({error}); a row is one line"
        if self._row_names:
            cells = cells[1:]
        names = len(self.header)
        if len(cells) > names and (len(cells) == self._fields or not any(cell.strip() for cell in cells[names:])):
            cells = cells[:names]  # the separator at the end of a line
        if len(cells) != names:
            few = len(cells) < len(self.header)
            hint = "a field is missing, or the line is cut short" if few else "an unquoted separator in a cell, perhaps"
            return (
                f"{len(cells)} field{'s' * (len(cells) != 1)}, but the header names {len(self.header)} columns: {hint}"
            )
        return {name: self._value(name, cell) for name, cell in zip(self.header, cells, strict=True)}

    def _value(self, name: str, cell: str) -> Any:
        """A cell as a file's reader would take it; what is no number where one is expected stays text, for the message."""
        bare = cell.strip()
        if not cell or (cell in self._missing and name not in self._words):
            return None
        if name in self._numbers:
            if not bare or bare in SPELLINGS or bare in self._missing:
                return None
            if name in self._formats:
                return bare  # which RowReader reads
            return self._number(bare, cell)
        if name in self._codes:  # too: 03 is the code 3, as in a file whose column holds nothing but numbers
            return self._number(bare, cell) if bare and bare not in self._missing else None
        padded = name in (self.key or ()) and NUMBER.fullmatch(bare)  # "  7" and "  12" are keys 7 and 12
        return bare if self._spaced or padded else cell

    def _number(self, bare: str, cell: str) -> Any:
        text = bare.replace(",", ".") if self._comma and bare.count(",") == 1 else bare
        if NUMBER.fullmatch(text):
            number = float(text)
            return None if math.isnan(number) else number
        return {"true": True, "false": False}.get(bare.lower(), cell)
