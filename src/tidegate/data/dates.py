"""Dates with the day or the month first: 31/12/2026, 12/31/2026. Tidegate never guesses which."""

from __future__ import annotations

import re
import warnings

import polars as pl

from tidegate.data.tables import Table
from tidegate.data.texts import with_columns
from tidegate.documents import shown
from tidegate.errors import DataError, DataWarning

_PATTERN = (
    r"^(?P<first>[0-9]{1,2})(?P<mark>[-/.])(?P<second>[0-9]{1,2})[-/.](?P<year>[0-9]{4}|[0-9]{2})"
    r"(?:,?[ T]+(?P<clock>[0-9]{1,2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]+)?)?)(?: ?(?P<half>[AaPp][Mm]))?)?$"
)
ORDERS = {"dmy": "the day first", "mdy": "the month first"}
_CENTURY = 69  # as in C and Python: 68 is 2068, 69 is 1969


def has_dates(column: pl.Series) -> bool:
    """Whether a text column holds nothing but such dates."""
    cells = column.alias("").drop_nulls()
    return _begins_with_one(cells) and bool(cells.str.strip_chars().str.contains(_PATTERN).all())


def _begins_with_one(cells: pl.Series) -> bool:
    return bool(cells.head(1).str.strip_chars().str.contains(_PATTERN).any())


def read_time(table: Table, name: str | None, order: str, *, otherwise: str = "") -> tuple[Table, str, str]:
    """The table with times in place of text of such dates in its time column; which part comes first in them ("" where it holds
    no such dates), and a sentence that says so where it was found out.

    order: "dmy", "mdy", or "auto". otherwise: what is taken where both are possible, with a warning. Raises what `read_dates` does.
    """
    if name is None or name not in table.frame.columns or table.frame.schema[name] != pl.String:
        return table, "", ""
    if not _begins_with_one(table.frame[name].alias("").drop_nulls()):
        return table, "", ""
    times, found, why = read_dates(table, name, order, otherwise)
    note = f"The times in {name!r} are read with {ORDERS[found]}, {why}." if why else ""
    return with_columns(table, {name: times}), found, note


def read_dates(table: Table, name: str, order: str, otherwise: str = "") -> tuple[pl.Series, str, str]:
    """The times in a text column of such dates, which part comes first ("dmy" or "mdy"), and a sentence that says why.

    order: that of the setting or of an earlier table; "auto": what the column itself allows.

    Raises DataError: both orders are possible, or none is; a cell is written in another way.
    """
    column = table.frame[name].alias("")
    parts = (
        pl.DataFrame({"cell": column})
        .select(pl.col("cell").str.strip_chars().str.extract_groups(_PATTERN))
        .unnest("cell")
    )
    first, second = (parts[p].cast(pl.Int64, strict=False) for p in ("first", "second"))
    other = (first.is_null() & column.is_not_null() & (column.str.strip_chars() != "")).arg_true()
    if len(other):
        row, like = int(other[0]), int(first.is_not_null().arg_true()[0])
        raise DataError(
            f"{table.where(row)}, column {name!r}: {shown(column[row])} is not written as {shown(column[like])} is. Write all times alike, best as "
            "2026-11-23 14:05:00."
        )
    day_first, month_first = (first > 12).arg_true(), (second > 12).arg_true()
    why = ""
    if order == "auto":
        if len(day_first) and len(month_first):
            a, b = int(day_first[0]), int(month_first[0])
            raise DataError(
                f"{table.where(max(a, b))}, column {name!r}: {shown(column[max(a, b)])} has {ORDERS['dmy' if a > b else 'mdy']}, and "
                f"{shown(column[min(a, b)])} before it has {ORDERS['mdy' if a > b else 'dmy']}. Write all times alike, best as 2026-11-23."
            )
        if len(day_first) or len(month_first):
            order = "dmy" if len(day_first) else "mdy"
            row = int((day_first if len(day_first) else month_first)[0])
            why = f"as {shown(column[row])} ({table.where(row)}) can't be read otherwise"
        elif bool((parts["mark"] == ".").all()):
            order, why = "dmy", "as dates with dots have it"
        elif otherwise:
            row = int(first.is_not_null().arg_true()[0])
            order = otherwise
            warnings.warn(
                f"{table.where(row)}, column {name!r}: {shown(column[row])} is read with {ORDERS[order]}, and nothing in the column says so. "
                "Dates as 2026-11-23 leave no doubt.",
                DataWarning,
                stacklevel=2,
            )
        else:
            row = int(first.is_not_null().arg_true()[0])
            raise DataError(
                f"{table.where(row)}, column {name!r}: {shown(column[row])} may have the day or the month first, and so may every other value. Say "
                "date_order='dmy' (--date-order dmy) or 'mdy', or write dates as 2026-11-23."
            )
    wrong = (second if order == "dmy" else first) > 12
    times = _times(parts, order)
    wrong = wrong | (times.is_null() & first.is_not_null())
    if wrong.any():
        row = int(wrong.arg_true()[0])
        raise DataError(
            f"{table.where(row)}, column {name!r}: {shown(column[row])} is no date that has {ORDERS[order]} (date_order={order!r})."
        )
    return times, order, why


def as_iso(text: str, order: str) -> str:
    """One such date with the year first, as 2026-12-31 14:05; any other text as it is. order: "dmy" or "mdy".

    >>> as_iso("31/12/26 2:05 PM", "dmy"), as_iso("2026-12-31", "dmy")
    ('2026-12-31 14:05', '2026-12-31')
    """
    parts = re.fullmatch(_PATTERN[1:-1], text)
    if parts is None:
        return text
    day, month = ("first", "second") if order == "dmy" else ("second", "first")
    year = parts["year"]
    if len(year) == 2:
        year = f"{20 if int(year) < _CENTURY else 19}{year}"
    date = f"{year}-{parts[month]}-{parts[day]}"
    if not parts["clock"]:
        return date
    hour, rest = parts["clock"].split(":", 1)
    if parts["half"]:
        hour = str(int(hour) % 12 + (12 if parts["half"].lower() == "pm" else 0))
    return f"{date} {hour}:{rest}"


def _times(parts: pl.DataFrame, order: str) -> pl.Series:
    day, month = ("first", "second") if order == "dmy" else ("second", "first")
    year = pl.col("year").cast(pl.Int64)
    whole = (
        pl.when(pl.col("year").str.len_chars() == 4)
        .then(year)
        .otherwise(year + pl.when(year < _CENTURY).then(2000).otherwise(1900))
    )
    date = pl.format(
        "{}-{}-{}", whole.cast(pl.String).str.zfill(4), pl.col(month).str.zfill(2), pl.col(day).str.zfill(2)
    )
    if not parts["clock"].is_not_null().any():
        return parts.select(date.str.to_date("%Y-%m-%d", strict=False)).to_series()
    clock = pl.col("clock").fill_null("0:00")
    hour = clock.str.extract("^([0-9]+)", 1).cast(pl.Int64)
    half = pl.col("half").str.to_lowercase().fill_null("")
    hour = pl.when(half == "pm").then(hour % 12 + 12).when(half == "am").then(hour % 12).otherwise(hour)
    seconds = clock.str.extract("^[0-9]+:[0-9]+:([0-9.]+)", 1).fill_null("0").cast(pl.Float64)
    minute = clock.str.extract("^[0-9]+:([0-9]+)", 1).cast(pl.Int64)
    right = (hour < 24) & (minute < 60) & (seconds < 60)
    start = date.str.to_datetime("%Y-%m-%d", time_unit="us", strict=False)
    inside = pl.duration(hours=hour, minutes=minute, microseconds=(seconds * 1_000_000).round().cast(pl.Int64))
    return parts.select(pl.when(right).then(start + inside)).to_series()
