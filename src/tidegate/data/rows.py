"""One row of a table at a time, as the model reads it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tidegate.data.arrange import ITEM, WORD
from tidegate.data.numerals import NUMBER, SPELLINGS
from tidegate.data.preprocessing import NumberColumn, Preprocessing, TokenColumn
from tidegate.data.word_features import FEATURES
from tidegate.errors import DataError, nearest, of_type

Row = Mapping[str, Any] | Sequence[Any]

_MOST = float(np.finfo(np.float32).max)


class RowReader:
    """Encodes one row at a time as `Preprocessing.apply` encodes a table: the same numbers to the bit."""

    def __init__(self, pre: Preprocessing, embeddings: Sequence[np.ndarray]):
        """embeddings: the vectors of each token column's entries, [entries, dim]."""
        self.columns = pre.columns
        self._missing = pre.non_finite == "missing"
        self._formats = dict(pre.formats)
        # What the user calls missing, as text and as the numbers that some of it is.
        self._none: set[Any] = {*pre.missing, *(float(m) for m in pre.missing if NUMBER.fullmatch(m))}
        # How a table's reader would cut a cell of this column into words, where it does.
        items = bool(set(pre.text) & set(pre.target.names))
        self._cut = {name: re.compile(ITEM if items else WORD) for name in pre.text}
        numbers: list[NumberColumn] = list(pre.numbers)
        mask = len(numbers)
        self._numbers: list[tuple[str, float, float, int]] = []  # name, mean, std, place of its mask or -1
        for c in numbers:
            self._numbers.append((c.name, c.mean, c.std, mask if c.mask else -1))
            mask += c.mask
        self._tokens = []
        at = pre.number_width
        for column, table in zip(pre.tokens, embeddings, strict=True):
            end = at + table.shape[1]
            known = {text: entry + 1 for entry, text in enumerate(column.vocabulary)}
            self._tokens.append((column, known, table, at, end))
            at = end
        self.width = at
        self._number_width = pre.number_width

    def read(self, row: Row, x: np.ndarray, where: str) -> None:
        """Write what the core reads of this row to x [width], float32. Raises DataError: it begins with `where`."""
        if type(row) is not dict and not isinstance(row, Mapping):
            row = self._named(row, where)
        encoded, none = [0.0] * self._number_width, self._none
        for k, (name, mean, std, mask) in enumerate(self._numbers):
            try:
                value = row[name]
            except KeyError:
                raise self._absent(name, row, where) from None
            if type(value) is not float or value - value != 0.0 or (none and value in none):
                value = self._number(name, value, where)
                if value is None:
                    if mask >= 0:
                        encoded[mask] = 1.0
                    continue
            scaled = (value - mean) / std
            if not -_MOST <= scaled <= _MOST:
                raise DataError(
                    f"{where}, column {name!r}: {value:g} is too far from the training rows (mean {mean:g}, standard "
                    f"deviation {std:g}) for a 32-bit number. Mend it, or give none (null)."
                )
            encoded[k] = scaled
        if encoded:
            x[: self._number_width] = encoded
        for column, known, table, at, end in self._tokens:
            try:
                value = row[column.name]
            except KeyError:
                raise self._absent(column.name, row, where) from None
            if none and _plain(value) in none:
                value = None
            entry = known.get(value) if type(value) is str and not column.of_words else None
            x[at:end] = table[self._entry(column, known, value, where) if entry is None else entry]

    def _named(self, row: Any, where: str) -> dict[str, Any]:
        """A row without names: a value for each column, in the order of `columns`."""
        if isinstance(row, str | bytes) or not hasattr(row, "__len__") or not hasattr(row, "__getitem__"):
            raise DataError(
                f"{where}: a value {of_type(row)}; expected a dict of columns or a list of their values in order: {_listing(self.columns)}."
            )
        if len(row) != len(self.columns):
            raise DataError(
                f"{where}: {len(row)} value{'s' * (len(row) != 1)}, expected {len(self.columns)}: {_listing(self.columns)}."
            )
        return dict(zip(self.columns, row, strict=True))

    def _absent(self, name: str, row: Mapping[str, Any], where: str) -> DataError:
        others = [str(k) for k in row if k not in self.columns]
        return DataError(
            f"{where}: there is no column {name!r}.{nearest(name, others)} Where its value is missing, give it as none (null)."
        )

    def _number(self, name: str, value: Any, where: str) -> float | None:
        """A value of a numeric column that is no finite float: None where it is missing."""
        if value is None or (self._none and not isinstance(value, bool) and _plain(value) in self._none):
            return None
        if isinstance(value, str) and name in self._formats:
            written = self._formats[name].number(value)
            if written is not None or value.strip() in SPELLINGS:
                return written
        if isinstance(value, str | bytes) or not hasattr(value, "__float__"):
            raise DataError(
                f"{where}, column {name!r}: {told(value)} is not a number. Mend it, or give none (null) where it is missing."
            )
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(f"{where}, column {name!r}: {told(value)} is not a number ({error}).") from None
        if number - number == 0.0:
            return number
        if self._missing and not isinstance(value, int):
            return None
        raise DataError(
            f"{where}, column {name!r}: {number} is not a finite number. Give a missing value as none (null); a run trained with "
            "non_finite='missing' (--non-finite missing) takes it as that."
        )

    def _entry(self, column: TokenColumn, known: dict[str, int], value: Any, where: str) -> int:
        """The vocabulary's entry of a value that isn't there as it stands; 0, the unknown one, where it isn't at all."""
        if value is None:
            return 0
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, bool):
            text = "true" if value else "false"
        elif isinstance(value, int):
            text = str(value)
        elif isinstance(value, float):
            text = str(int(value)) if value.is_integer() else str(value)
        elif isinstance(value, str):
            text = value
        else:
            raise DataError(f"{where}, column {column.name!r}: {told(value)} is neither text nor a number.")
        if column.kind == "words":
            cut = self._cut.get(column.name)
            if cut is not None and len(cut.findall(text)) > 1:
                raise DataError(
                    f"{where}, column {column.name!r}: {told(value)} holds several words. A stream reads one word a row."
                )
            text = text.lower()
        elif column.of_words:
            text = FEATURES[column.kind](text)
        return known.get(text, 0)


def _plain(value: Any) -> Any:
    """A value as the spellings of missing ones are compared: text without the blanks around it, NumPy's numbers as Python's."""
    if isinstance(value, str):
        return value.strip()
    return value.item() if isinstance(value, np.generic) else value if isinstance(value, int | float) else None


def told(value: Any) -> str:
    """A value for a message, cut where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a whole number of thousands of digits; lists in lists in lists
        text = f"a value {of_type(value)}"
    return text if len(text) <= 60 else text[:57] + "..."


def _listing(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:12])) + (", ..." if len(names) > 12 else "")
