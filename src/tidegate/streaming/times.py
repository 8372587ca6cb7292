"""When a row happened: its time as something that can be compared, kept in a file and shown."""

from __future__ import annotations

import math
import re
from datetime import date, datetime, timedelta, timezone
from typing import Any, NamedTuple

import numpy as np

from tidegate.data.dates import as_iso
from tidegate.data.rows import told
from tidegate.errors import DataError

NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
WHOLE = re.compile(r"[+-]?\d+", re.ASCII)
# The year first: 01/02/2026 may be two days, and is not guessed at (see `moment_of`).
DATE = re.compile(
    r"(?P<year>\d{4})[-/.](?P<month>\d\d?)(?:[-/.](?P<day>\d\d?))?"
    r"(?:[T ]\s*(?P<hour>\d\d?):(?P<minute>\d\d)(?::(?P<second>\d\d)(?:[.,](?P<fraction>\d{1,9}))?)?)?"
    r"\s*(?P<zone>Z|[+-]\d\d(?::?\d\d)?)?",
    re.ASCII,
)
_EPOCH = datetime(1970, 1, 1)
_MICROSECOND = timedelta(microseconds=1)
NUMBERS, DATES, ZONED = "number", "date", "date with a time zone"


class Moment(NamedTuple):
    """A time. kind: a number, or a date without or with a time zone; value: the number, or nanoseconds since 1970.

    Moments of one kind can be compared, those of two can't.
    """

    kind: str
    value: int | float

    def __str__(self) -> str:
        if self.kind == NUMBERS:
            return repr(self.value)
        seconds, rest = divmod(int(self.value), 10**9)
        fraction = f".{rest:09}".rstrip("0") if rest else ""
        return f"{_EPOCH + timedelta(seconds=seconds)}{fraction}{'Z' if self.kind == ZONED else ''}"


class LateError(DataError):
    """A row's time is not after the last one of its key."""


def moment_of(value: Any, where: str, *, decimal_comma: bool = False, date_order: str = "") -> Moment:
    """A row's time: a number, a date of Python or NumPy, or the text of one of these. Raises DataError; it begins with `where`.

    date_order: "dmy" or "mdy" where dates as 31/12/2026 are to be read, as in the table of the training.
    """
    if isinstance(value, str):
        text = value.strip()
        moment = _from_text(as_iso(text, date_order) if date_order else text, decimal_comma)
    else:
        moment = _from_object(value)
    if moment is not None:
        return moment
    if _is_missing(value):
        raise DataError(f"{where}: the time is missing. Send it, or stream without the times of the rows.")
    if isinstance(value, str) and not date_order and as_iso(value.strip(), "dmy") != value.strip():
        raise DataError(
            f"{where}: {told(value)} may have the day or the month first. Say date_order='dmy' (--date-order dmy) or 'mdy', or write "
            "dates as 2026-11-23."
        )
    raise DataError(f"{where}: {told(value)} is not a time. Write times as 2026-11-23 14:05:00, or as numbers.")


def check_after(moment: Moment, last: Moment, where: str, key: Any, *, take: bool) -> None:
    """Raises DataError for a time that can't be compared with the last one; LateError for one that isn't after it, unless `take`."""
    whose = "" if key is None else f" of {told(key)}"
    if moment.kind != last.kind:
        raise DataError(
            f"{where}: {moment} is a {moment.kind}, and the last time{whose}, {last}, a {last.kind}: they can't be compared. Write all "
            "times alike."
        )
    if moment.value <= last.value and not take:
        raise LateError(
            f"{where}: {moment} is not after {last}, the last time{whose}: this row is late or repeated, and is left out. To take such "
            "rows all the same, say late='take' (--late take)."
        )


def moment_from(kept: Any) -> Moment | None:
    """What a file holds of a moment. Raises ValueError where it isn't one."""
    if kept is None:
        return None
    kind, value = kept
    whole = isinstance(value, int) and not isinstance(value, bool)
    number = kind == NUMBERS and isinstance(value, float) and math.isfinite(value)
    if kind not in (NUMBERS, DATES, ZONED) or not (whole or number):
        raise ValueError(f"the time {kept!r}")
    return Moment(kind, value)


def _is_missing(value: Any) -> bool:
    if isinstance(value, np.datetime64):
        return bool(np.isnat(value))
    if isinstance(value, float | np.floating | datetime):  # NaN, and pandas' NaT
        return bool(value != value)
    return value is None or (isinstance(value, str) and not value.strip())


def _from_object(value: Any) -> Moment | None:
    if _is_missing(value):
        return None
    if isinstance(value, np.datetime64):
        return Moment(DATES, int(value.astype("datetime64[ns]").astype(np.int64)))
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return Moment(NUMBERS, value)
    if isinstance(value, float):
        return Moment(NUMBERS, value) if math.isfinite(value) else None
    if isinstance(value, datetime):
        below = int(getattr(value, "nanosecond", 0))  # of pandas' time stamps
        if value.tzinfo is None:
            return Moment(DATES, (datetime.combine(value.date(), value.time()) - _EPOCH) // _MICROSECOND * 1000 + below)
        since = value - _EPOCH.replace(tzinfo=timezone.utc)
        return Moment(ZONED, since // _MICROSECOND * 1000 + below)
    if isinstance(value, date):
        return Moment(DATES, (value - _EPOCH.date()).days * 86_400 * 10**9)
    return None


def _from_text(text: str, decimal_comma: bool) -> Moment | None:
    if WHOLE.fullmatch(text) and len(text) < 400:
        return Moment(NUMBERS, int(text))
    number = text.replace(",", ".") if decimal_comma and text.count(",") == 1 else text
    if NUMBER.fullmatch(number):
        return _from_object(float(number))
    parts = DATE.fullmatch(text)
    if parts is None:
        return None
    numbers = [int(parts[name] or least) for name, least in _PARTS]
    try:
        day = datetime(*numbers)  # type: ignore[arg-type]
    except ValueError:  # the 30th of February
        return None
    value = (day - _EPOCH) // timedelta(seconds=1) * 10**9 + int((parts["fraction"] or "0").ljust(9, "0"))
    zone = parts["zone"]
    if zone is None:
        return Moment(DATES, value)
    if zone != "Z":
        digits = zone[1:].replace(":", "").ljust(4, "0")
        minutes = int(digits[:2]) * 60 + int(digits[2:])
        value -= (minutes if zone[0] == "+" else -minutes) * 60 * 10**9
    return Moment(ZONED, value)


_PARTS = (("year", 1), ("month", 1), ("day", 1), ("hour", 0), ("minute", 0), ("second", 0))
