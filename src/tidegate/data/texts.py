"""Text columns of a table that hold numbers: found in training, read in the same way ever after."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import polars as pl

from tidegate.data.numerals import MOSTLY, PLAIN, SPELLINGS, Finding, NumberFormat, look
from tidegate.data.settings import DataSettings
from tidegate.data.tables import Table
from tidegate.documents import shown
from tidegate.errors import DataError

MOST_NAMED = 10  # columns that a note names; of more it gives the number


def find_numbers(
    table: Table, names: Sequence[str], settings: DataSettings, notes: list[str]
) -> tuple[Table, dict[str, NumberFormat]]:
    """The table with numbers in place of the text columns that hold some, and how each of these writes them.

    names: the columns that may be numbers, the target among them. notes: what was found is added.

    Raises DataError: most cells of a column are numbers and a few aren't; a mark may be a decimal one or stand between
    thousands; decimal commas of a CSV file that can be read as such.
    """
    formats: dict[str, NumberFormat] = {}
    columns: dict[str, pl.Series] = {}
    read, spelled, commas = [], [], []
    for name in names:
        column = table.frame[name].alias("")
        if name in table.grouped and settings.thousands == "auto":
            row, cell = table.grouped[name]
            raise DataError(
                f"{table.where(row)}, column {name!r}: {cell!r} looks like a number with a thousands separator: every comma of the column "
                "has three digits behind it, and numbers below 1000 have none. Leave decimal_comma (--decimal-comma) out to read it so; "
                "if it is a decimal comma, say thousands='none' (--thousands none)."
            )
        if column.dtype != pl.String:
            continue
        finding = look(
            column,
            decimal_comma=settings.decimal_comma,
            thousands=settings.thousands,
            separator=table.separator,
        )
        if finding is None or not _is_numbers(table, name, finding, settings, notes):
            continue
        format_ = finding.format
        numbers = format_.read(column)
        if not (finding.decimals or format_.before or format_.after) and bool((numbers.abs() < 2**53).all()):
            numbers = numbers.cast(pl.Int64)
        columns[name] = numbers
        if format_ != PLAIN:
            formats[name] = format_
        if finding.odd or table.lines is None:
            cell = column[finding.example]
            read.append(f"{name} ({cell!r} is {numbers[finding.example]:.15g})")
            if not finding.sure:
                commas.append(name)
        spelled += [f"{spelling!r} in {name} ({count:,})" for spelling, count in finding.missing.items()]
    for name, count in table.nan.items():
        if name in names:
            spelled.append(f"NaN in {name} ({count:,})")
    if read:
        notes.append(f"Numbers written as text, read as numbers: {listed(read)}.")
    if commas:
        it = "it is" if len(commas) == 1 else "they are"
        notes.append(
            f"In {listed(commas)} every comma has three digits behind it and is taken to stand between thousands; if {it} "
            "a decimal one, say thousands='none' (--thousands none)."
        )
    if spelled:
        notes.append(f"Taken as missing: {listed(spelled)}.")
    return with_columns(table, columns), formats


def _is_numbers(table: Table, name: str, finding: Finding, settings: DataSettings, notes: list[str]) -> bool:
    """Whether a column of which at least half is numbers is read as one. Adds a note or raises DataError where it isn't."""
    column, target = table.frame[name], name in settings.target
    if target:
        otherwise = "if it is a class, say task='class' (--task class)"
    else:
        otherwise = f"if it is a category, name it one (categories={name!r}, --categories {name})"
    csv = table.lines is not None
    mostly = finding.numbers >= MOSTLY * (finding.numbers + finding.others)
    where, cell = f"{table.where(finding.example)}, column {name!r}", column[finding.example]
    if finding.format.decimal == "," and csv and table.separator != "," and not settings.decimal_comma and mostly:
        comma = "a decimal comma" if "," in cell else "dots between thousands, and so a decimal comma"
        raise DataError(
            f"{where}: {cell!r} looks like a number with {comma}. Read the file with decimal_comma=True "
            f"(--decimal-comma); {otherwise}."
        )
    if finding.doubt and mostly:
        mark, digits = ("comma", ",") if finding.doubt == "comma" else ("dot", ".")
        able = finding.doubt == "comma" and csv
        decimal = "decimal_comma=True (--decimal-comma)" if able else "thousands='none' (--thousands none)"
        raise DataError(
            f"{where}: {cell!r} may have a thousands separator or a decimal {mark}, as every {digits!r} of the column has three digits "
            f"behind it. For thousands say thousands={mark!r} (--thousands {mark}), for decimals {decimal}; {otherwise}."
        )
    if target and settings.task == "auto" and not finding.amounts:
        return False  # a few whole numbers are classes, and what stands beside them is one, too
    if not csv and finding.format == PLAIN and not (finding.decimals or finding.missing or finding.others):
        return False  # whole numbers in a column whose type is text are codes
    if finding.other is None:
        return True
    other = column[finding.other]
    where = f"{table.where(finding.other)}, column {name!r}"
    missing = f"missing={other!r} (--missing {_shell(other)})"
    if finding.mixed and finding.amounts:
        told = f"{where}: {other!r} has another sign or unit than {cell!r} ({table.where(finding.example).rsplit(', ', 1)[-1]})"
        if mostly:
            raise DataError(f"{told} and most other values. Write all of them in one; {otherwise}.")
        notes.append(f"{told}, so the column is read as a category. Write all values in one unit; {otherwise}.")
        return False
    if mostly:
        raise DataError(
            f"{where}: {other!r} is not a number, while {finding.numbers} other values are. Mend it, leave the cell empty, "
            f"take it as missing with {missing}, or "
            + (
                "say that the target is a class (task='class', --task class)."
                if target
                else f"name the column a category (categories={name!r}, --categories {name})."
            )
        )
    share = finding.numbers / (finding.numbers + finding.others)
    notes.append(
        f"{where}: {other!r} is not a number, while {share:.0%} of the values are, so the column is read as "
        f"{'classes' if target else 'a category'}. If such values are missing ones, say {missing}; {otherwise}."
    )
    return False


def read_numbers(
    table: Table, names: Iterable[str], formats: Mapping[str, NumberFormat], *, strict: Iterable[str] = ()
) -> Table:
    """A later table, its text columns among `names` read as `formats` says. strict: those in which nothing else may stand.

    Raises DataError at the first cell of such a column that is neither a number nor missing.
    """
    columns = {}
    strict = set(strict)
    for name in names:
        if name not in table.frame.columns or table.frame.schema[name] != pl.String:
            continue
        column = table.frame[name].alias("")
        numbers = formats.get(name, PLAIN).read(column)
        cells = column.str.strip_chars()
        wrong = (numbers.is_null() & cells.is_not_null() & (cells != "") & ~cells.is_in(list(SPELLINGS))).arg_true()
        if not len(wrong):
            columns[name] = numbers
        elif name in strict:
            row = int(wrong[0])
            raise DataError(
                f"{table.where(row)}, column {name!r}: {shown(column[row])} is not a number. Mend it or leave the cell empty."
            )
    return with_columns(table, columns)


def with_columns(table: Table, columns: Mapping[str, pl.Series]) -> Table:
    """The table with some of its columns replaced."""
    if not columns:
        return table
    # One by one: polars reads names such as "*" and "^x$" as patterns.
    return replace(table, frame=pl.DataFrame({c.name: columns.get(c.name, c) for c in table.frame.get_columns()}))


def listed(words: Sequence[str], most: int = MOST_NAMED) -> str:
    """'a, b and 3 more': at most so many of the words, and how many there are beside them."""
    more = len(words) - most
    return ", ".join(words) if more <= 0 else f"{', '.join(words[:most])} and {more:,} more"


def _shell(text: str) -> str:
    return text if text.isalnum() else f'"{text}"'
