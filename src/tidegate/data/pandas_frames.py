"""A pandas table as a polars one: its named index levels are columns, and what can't be read is named."""

from __future__ import annotations

from typing import Any

import polars as pl

from tidegate.errors import DataError, PackageMissingError


def from_pandas(source: Any) -> pl.DataFrame:
    """A pandas DataFrame or Series. Levels of its index that have a name become columns, the first ones; others are left out.

    Raises DataError: columns of several levels, a name twice, a column that can't be read; PackageMissingError without pyarrow,
    where it is needed.
    """
    if source.ndim == 1:
        source = source.to_frame("value" if source.name is None else source.name)
    if source.columns.nlevels > 1:
        raise DataError(
            "The table's columns have several levels. Join their names before, for example with "
            "frame.columns = ['_'.join(map(str, names)) for names in frame.columns]."
        )
    series = [
        (str(name), source.index.get_level_values(k)) for k, name in enumerate(source.index.names) if name is not None
    ]
    series += [(str(name), source.iloc[:, k]) for k, name in enumerate(source.columns)]
    columns: dict[str, pl.Series] = {}
    for name, values in series:
        if name in columns:
            raise DataError(
                f"The table names the column {name!r} more than once (levels of the index are columns too). Rename one."
            )
        columns[name] = _column(name, values)
    return pl.DataFrame(columns)


def _column(name: str, values: Any) -> pl.Series:
    read: Any = pl.from_pandas
    if hasattr(values, "to_series"):  # a level of the index
        values = values.to_series()
    if str(values.dtype).startswith("period["):
        values = values.dt.to_timestamp()
    try:
        return read(values.reset_index(drop=True)).alias(name)
    except Exception as error:  # of pyarrow, pandas and polars, each in its own kind
        if not _has_pyarrow():
            raise PackageMissingError(
                f"Column {name!r} of the table is pandas' {values.dtype}, and reading it needs pyarrow, which is not installed: "
                "pip install pyarrow",
                name="pyarrow",
            ) from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        raise DataError(
            f"Column {name!r} of the table (pandas' {values.dtype}) can't be read ({reason}). Make it numbers, text or times, or drop it."
        ) from error


def _has_pyarrow() -> bool:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        return False
    return True
