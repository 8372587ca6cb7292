"""The text of a CSV file: what stands around its rows, how rows are cut into fields, and on which line each row is.

It comes as UTF-8 and is never held as a string: that would be a second copy, and one of two or four bytes a letter where one letter
of the file needs them. Line ends, quotes and separators are bytes of their own in UTF-8; lines are decoded as they are looked at.
"""

from __future__ import annotations

import csv
import io
import itertools
import re
from array import array
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tidegate.data.numerals import NUMBER
from tidegate.errors import DataError

_SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
BLOCK = 2**16  # bytes that are looked at, or written anew, at once
Counts = np.ndarray[Any, np.dtype[np.int64]]
_EXCELS_LINE = re.compile(r"sep=([,;|\t])", re.IGNORECASE)  # before the header: which separator follows
_DATE = re.compile(r"\d{1,4}[-/.:]\d")
_TOTAL = re.compile(
    r"(?:(?:grand |sub[- ]?)?totals?|sums?|(?:overall )?(?:average|avg\.?|mean)|(?:gesamt)?summe|(?:ins)?gesamt|durchschnitt|"
    r"mittelwert|somme|moyenne|total g[ée]n[ée]ral|totale|suma|somma|media|promedio|итого|всего|[总總合小]计|[合総小]計|平均)\s*:?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class CsvText:
    """A CSV file as a reader can take it: a header and rows in UTF-8, nothing else.

    names: of all columns; the last `loose` of them are empty and have none of their own. lines: the line (from 1) on which each row
    starts. spaced: blanks followed its separators. notes: what is to be said of it.
    """

    data: bytes
    names: list[str]
    loose: int
    lines: np.ndarray
    separator: str
    spaced: bool
    notes: list[str]


def look(
    data: bytes,
    name: str,
    *,
    tabs: bool = False,
    header: bool = True,
    row_names: bool = False,
    decimal_comma: bool = False,
    as_named: Collection[str] = (),
) -> CsvText:
    """Find the header and the rows of a CSV file, given as UTF-8. Blank lines, comments (#) before and after the rows, and
    separators at the end of lines behind which nothing comes are no part of them.

    tabs: it is separated by them. header: its first row holds the names; else they are column_1, column_2, ... The others are
    those of `read_table`. Raises DataError: a row has too many or too few fields, a name occurs twice.
    """
    data = _with_plain_line_ends(data)
    at, comments, separator = _header_at(data, header)
    if not separator:
        first = next(_lines(data, at), "").split("\n")[0]
        separator = "\t" if tabs else separator_of(first, "" if header or not decimal_comma else ",")
    if decimal_comma and separator == ",":
        raise DataError(
            f"{name}: its separator is a comma, so a decimal comma can't be told from it. Leave decimal_comma out, or save "
            "the table with semicolons."
        )
    raw, body_at = _first_row(data, at, separator, False, name)
    spaced = blank_follows(raw) and not set(as_named) & set(raw)
    if spaced:
        raw, body_at = _first_row(data, at, separator, True, name)
    if header:
        names = [n if n in as_named else n.strip() for n in raw]
    else:
        names, body_at = [f"column_{k}" for k in range(1, len(raw) + 1 - row_names)], at
    end, more = _without_comments_at_the_end(data, body_at, separator, len(raw))
    whole = end == len(data)
    data = data if whole else data[:end]
    notes = [f"Left out as comments: {comments + more} line{'s' * (comments + more != 1)} with # at the beginning."]
    notes = notes if comments + more else []
    widths, lines, blank = _field_counts(data, body_at, separator, spaced)
    lines = lines + data.count(b"\n", 0, body_at)
    named = len(names) - sum(1 for _ in itertools.takewhile(lambda n: n == "", reversed(names))) or len(names)
    expected, least = len(names) + row_names, named + row_names
    ragged = np.flatnonzero(widths != expected)
    widest = max(expected, int(widths.max(initial=0)))
    loose = 0
    if widest > least and widths.min(initial=least) >= least and _blank_behind(data, body_at, separator, spaced, least):
        loose = widest - least
        names = [*names[:named], *(f"__loose_{k}__" for k in range(loose))]
        which = "The last column has" if loose == 1 else f"The last {loose} columns have"
        notes.append(f"{which} neither a name nor a value (lines end with a {_SEPARATORS[separator]}): left out.")
    elif ragged.size:
        row = int(ragged[0])
        cells = next(itertools.islice(_rows(data, body_at, separator, spaced), row, None))
        always = row == 0 and bool((widths == expected + 1).all())
        raise _of_widths(f"{name}, line {lines[row]}", cells, names, row_names, always, separator)
    else:
        names = all_named(names)
    again = sorted({n for n in names if names.count(n) > 1})
    if again:
        hint = f" {NO_HEADER}" if holds_data(names) else ""
        raise DataError(f"{name}: the header names {again[0]!r} more than once. Rename one of the columns.{hint}")
    names = ["", *names] if row_names else names
    if header and names == raw and at == 0 and whole and not blank and not spaced:
        return CsvText(data, names, loose, lines, separator, spaced, notes)
    out = io.BytesIO()
    out.write(f"{csv_line(names, separator)}\n".encode())
    _write_rows(out, data, body_at, separator, spaced=spaced, blank=blank)
    return CsvText(out.getvalue(), names, loose, lines, separator, spaced, notes)


NO_HEADER = (
    "Its first line looks like a row of data, not like names: to read it as one, say header=False (--no-header)."
)


def holds_data(cells: Sequence[str]) -> bool:
    """Whether a line holds numbers or dates, which names of columns hardly are."""
    return any(NUMBER.fullmatch(cell.strip()) or _DATE.match(cell.strip()) for cell in cells)


def is_header(comment: str, line: str) -> bool:
    """Whether a line with # at the beginning is the header of those that follow, as in "#t,x" or in "# t, x" before 1, 2."""
    separator = separator_of(comment)
    names, cells = (next(csv.reader([some], delimiter=separator), []) for some in (comment, line))
    close = not comment.lstrip("#")[:1].isspace()
    return len(names) == len(cells) and (close or (len(names) > 1 and holds_data(cells)))


def separator_of(header: str, but: str = "") -> str:
    """Comma, semicolon, tab or bar: whichever cuts the header into most fields. but: one that it isn't."""
    return max((s for s in _SEPARATORS if s != but), key=lambda s: len(next(csv.reader([header], delimiter=s), [])))


def blank_follows(header: Sequence[str]) -> bool:
    """Whether a CSV file is written with a blank after each separator, as its header shows: "t, x, y"."""
    return len(header) > 1 and all(name[:1] == " " for name in header[1:])


def all_named(header: list[str]) -> list[str]:
    """Several columns without a name, as pandas writes an index of several levels, get the names that pandas gives them."""
    if header.count("") < 2:
        return header
    return [name or f"Unnamed: {k}" for k, name in enumerate(header)]


def csv_line(cells: Sequence[str], separator: str) -> str:
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=separator, lineterminator="").writerow(cells)
    return out.getvalue()


def names_totals(cells: Sequence[str]) -> str | None:
    """The word that says that a row holds totals, such as Total; "" where its first cell is empty, None where it is no such row."""
    first = next((cell.strip() for cell in cells if cell.strip()), "")
    return first if _TOTAL.fullmatch(first) else "" if cells and not cells[0].strip() else None


def excels_separator(line: str) -> str:
    """The separator that a first line such as sep=; names; "" for any other line."""
    found = _EXCELS_LINE.fullmatch(line.strip(" \r\n"))
    return found[1] if found else ""


def _with_plain_line_ends(data: bytes) -> bytes:
    r"""The text with \n in place of a lone \r, with which lines ended on the Macs of the last century."""
    if b"\r" not in data or (b'"' in data and b"\n" in data):
        return data
    if b"\n" not in data:
        return data.replace(b"\r", b"\n")
    lone = re.compile(rb"\r(?!\n)")
    return lone.sub(b"\n", data) if lone.search(data) else data


def _header_at(data: bytes, header: bool) -> tuple[int, int, str]:
    """Where the header begins, how many comments stand before it, and the separator that a line of Excel's names, or ""."""
    at, separator = 0, ""
    comments: list[tuple[int, str]] = []
    while at < len(data):
        end = data.find(b"\n", at)
        end = len(data) if end < 0 else end
        line = data[at:end].decode().strip("\r")
        if at == 0 and (separator := excels_separator(line)):
            pass
        elif line.lstrip().startswith("#"):
            comments.append((at, line.lstrip()))
        elif line.strip(" "):  # of a file with tabs, a row of missing values is all blank
            if comments and header and is_header(comments[-1][1], line):
                break
            return at, len(comments), separator
        at = end + 1
    if not comments:
        return 0, 0, separator
    return comments[-1][0], len(comments) - 1, separator


def _first_row(data: bytes, at: int, separator: str, spaced: bool, name: str) -> tuple[list[str], int]:
    """The cells of the row that begins there, and where the next one does."""
    rows = csv.reader(_lines(data, at), delimiter=separator, skipinitialspace=spaced)
    try:
        cells = next(rows, [])
    except csv.Error as error:
        before = data.count(b"\n", 0, at)
        raise DataError(f"{name}, line {before + rows.line_num}: not CSV ({error}).") from None
    for _ in range(rows.line_num):
        end = data.find(b"\n", at)
        at = len(data) if end < 0 else end + 1
    return cells, at


def _lines(data: bytes, at: int) -> Iterator[str]:
    while at < len(data):
        end = data.find(b"\n", at) + 1 or len(data)
        yield data[at:end].decode()
        at = end


def _reader(data: bytes, at: int, separator: str, spaced: bool) -> Any:
    """Python's CSV reader of what follows there. (`BytesIO` shares the bytes, and they are decoded as they are read.)"""
    file = io.BytesIO(data)
    file.seek(at)
    return csv.reader(
        io.TextIOWrapper(file, encoding="utf-8", newline=""), delimiter=separator, skipinitialspace=spaced
    )


def _rows(data: bytes, at: int, separator: str, spaced: bool) -> Iterator[list[str]]:
    """The cells of all rows that follow there; of blank lines none."""
    return (row for row in _reader(data, at, separator, spaced) if row)


def _without_comments_at_the_end(data: bytes, at: int, separator: str, fields: int) -> tuple[int, int]:
    """Where the last row ends, and how many comments follow it. at: where the first one begins."""
    end, count = len(data), 0
    while True:
        bare = end_of_line(data, at, end)
        begin = max(data.rfind(b"\n", at, bare) + 1, at)
        line = data[begin:bare].decode()
        if not line.lstrip().startswith("#") or '"' in line or line.count(separator) + 1 == fields:
            return end, count
        end, count = begin, count + 1


def end_of_line(data: bytes, at: int, end: int) -> int:
    """`end` without the line ends before it, back to `at` at most."""
    while end > at and data[end - 1] in b"\r\n":
        end -= 1
    return end


def _field_counts(data: bytes, at: int, separator: str, spaced: bool) -> tuple[Counts, Counts, bool]:
    """How many fields each row has that follows there, the line (from 1 there) on which it starts, and whether there are blank lines."""
    if data.find(b'"', at) >= 0:  # a quoted cell may hold separators and line ends: only a CSV reader can count
        reader = _reader(data, at, separator, spaced)
        counts, starts, last, empty = array("q"), array("q"), 0, False
        for row in reader:
            if row:
                counts.append(len(row))
                starts.append(last + 1)
            else:
                empty = True
            last = reader.line_num
        return np.array(counts, dtype=np.int64), np.array(starts, dtype=np.int64), empty
    rest = np.frombuffer(data, dtype=np.uint8)[at:]
    if not rest.size:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), False
    # A block at a time: all separators of a file at once, as 64-bit places, would take as much as the file.
    ends, seen, before = [], [], 0
    for first in range(0, rest.size, BLOCK):
        block = rest[first : first + BLOCK]
        here, cuts = np.flatnonzero(block == ord("\n")), np.flatnonzero(block == ord(separator))
        ends.append(here + first)
        seen.append(np.searchsorted(cuts, here) + before)
        before += cuts.size
    if rest[-1] != ord("\n"):
        ends.append(np.array([rest.size]))
        seen.append(np.array([before]))
    end, cut = np.concatenate(ends), np.concatenate(seen)
    begin = np.append(0, end[:-1] + 1)
    blank = (end - begin == 0) | ((end - begin == 1) & (rest[np.minimum(begin, rest.size - 1)] == ord("\r")))
    return (np.diff(cut, prepend=0) + 1)[~blank], (np.arange(end.size) + 1)[~blank], bool(blank.any())


def _blank_behind(data: bytes, at: int, separator: str, spaced: bool, width: int) -> bool:
    """Whether no row that follows there has a value behind its first `width` fields."""
    return not any(cell.strip() for row in _rows(data, at, separator, spaced) for cell in row[width:])


def _write_rows(out: io.BytesIO, data: bytes, at: int, separator: str, *, spaced: bool, blank: bool) -> None:
    """Write what follows there, without the blanks that follow its separators where it is `spaced`, and without blank lines, which
    polars would read as rows of missing values.
    """
    if (spaced or blank) and data.find(b'"', at) >= 0:
        text = io.TextIOWrapper(out, encoding="utf-8", newline="")
        csv.writer(text, delimiter=separator, lineterminator="\r\n").writerows(_rows(data, at, separator, spaced))
        text.flush()
        text.detach()
        return
    following = re.compile(re.escape(separator.encode()) + b" +")
    while at < len(data):
        end = data.find(b"\n", at + BLOCK) + 1 or len(data)
        block = data[at:end]
        if blank:
            block = b"".join(line for line in io.BytesIO(block) if line.strip(b"\r\n"))
        out.write(following.sub(separator.encode(), block) if spaced else block)
        at = end


def _of_widths(
    where: str, cells: list[str], names: list[str], row_names: bool, always: bool, separator: str
) -> DataError:
    """The error for a row with more or fewer fields than the header. always: every row has one more."""
    found, expected = len(cells), len(names) + row_names
    start = f"{where}: {found} field{'s' * (found != 1)}, but the header names {len(names)} columns"
    if row_names:
        return DataError(f"{start} (and row_names adds one). Mend the line, or leave row_names out.")
    if always:
        return DataError(
            f"{start}; so it is in every row. It looks like a file written by R: the first field ({cells[0]!r}) is an "
            "unnamed row number. Read it with row_names=True (on the command line: --row-names)."
        )
    hint = "an unquoted separator in a cell" if found > expected else "a missing field or a line cut short"
    if "\n" in cells[-1]:
        hint = "a quote that is never closed"
    return DataError(f"{start}. It looks like {hint}; mend the line (the separator is a {_SEPARATORS[separator]}).")
