"""What is fitted on a column, gathered from its rows a piece at a time: the same to the bit however the rows are cut into pieces.

A table in memory is one piece; one that is larger comes in many (`data.store`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl

from tidegate.data.arrange import Arranged
from tidegate.data.preprocessing import (
    NumberColumn,
    Target,
    TokenColumn,
    finite_numbers,
    is_text,
    token_values,
    whole_numbers,
    zero_or_one,
)
from tidegate.data.sequences import TRAIN
from tidegate.data.settings import DataSettings
from tidegate.data.tables import Table
from tidegate.data.word_features import FEATURES, UNSEEN, unseen_share
from tidegate.errors import DataError

SUMMED = 2**20  # values that NumPy sums at once; up to so many, mean and spread are NumPy's own
MERGED = 2**16  # different values from which on counts of pieces are added up


class Moments:
    """Mean and standard deviation of many numbers, from pieces of any size.

    The numbers are summed in blocks of SUMMED, in the order in which they come, and the sums of the blocks after that, so the bits
    don't depend on the pieces. (Squares are of the distances from the mean of the block; see Chan, Golub and LeVeque 1983.)
    """

    def __init__(self) -> None:
        self.largest = 0.0  # of the absolute values
        self._blocks: list[tuple[int, float, float]] = []  # count, sum, squared distances from the block's mean
        self._open: list[np.ndarray] = []
        self._held = 0

    def add(self, values: np.ndarray) -> None:
        """values: float64, all of them finite."""
        while len(values):
            some = values[: SUMMED - self._held]
            values = values[len(some) :]
            self._held += len(some)
            if self._held == SUMMED:
                self._open.append(some)
                self._close()
            else:
                self._open.append(some.copy())  # the piece needn't stay for its last rows

    def _close(self) -> None:
        if not self._held:
            return
        block = self._open[0] if len(self._open) == 1 else np.concatenate(self._open)
        self._open, self._held = [], 0
        with np.errstate(over="ignore", invalid="ignore"):
            total = float(block.sum())
            away = block - total / len(block)
            self._blocks.append((len(block), total, float((away * away).sum())))
        self.largest = max(self.largest, float(np.abs(block).max()))

    @property
    def count(self) -> int:
        return sum(n for n, _, _ in self._blocks) + self._held

    def mean_std(self) -> tuple[float, float]:
        """Both; a standard deviation of 0 where all numbers are the same, and infinity or NaN where they are too large."""
        self._close()
        count = self.count
        total = squares = 0.0
        for _, of_block, _ in self._blocks:
            total += of_block
        mean = total / count
        for n, of_block, own in self._blocks:
            apart = of_block / n - mean if len(self._blocks) > 1 else 0.0
            squares += own + n * (apart * apart)
        std = math.sqrt(squares / count) if squares < math.inf else math.inf
        # A constant column has a tiny std from rounding; dividing by it would make noise of it.
        return mean, std if std > 1e-12 * self.largest or math.isnan(std) else 0.0


class Counts:
    """How often each value occurs."""

    def __init__(self) -> None:
        self._pieces: list[pl.DataFrame] = []
        self._merged = 0

    def add(self, values: pl.Series) -> None:
        """Missing ones are not counted."""
        self._pieces.append(values.drop_nulls().alias("value").value_counts())
        if len(self._pieces) > 1 and sum(p.height for p in self._pieces) > 2 * self._merged + MERGED:
            self._merged = self.frame().height

    def frame(self) -> pl.DataFrame:
        """Columns `value` and `count`, in no order."""
        if len(self._pieces) > 1:
            self._pieces = [pl.concat(self._pieces).group_by("value").agg(pl.col("count").sum())]
        return self._pieces[0]


class FeatureRows:
    """The rows of a column that is read."""

    def __init__(self, name: str, settings: DataSettings) -> None:
        self.name, self.settings = name, settings
        self.filled = False  # whether any row of any part has a value
        self.rows = self.missing = 0  # of the training rows
        self._numbers = Moments()
        self._counts = Counts()
        self._is_text = self._is_words = False

    def take(self, arranged: Arranged, part: np.ndarray) -> None:
        """Some rows and their parts."""
        name, settings = self.name, self.settings
        column = arranged.column(name)
        train = pl.Series(part == TRAIN)
        self.filled |= column.null_count() < len(column)
        self._is_text = is_text(column.dtype) or name in settings.categories
        self._is_words = name in settings.text or (name in arranged.lists and is_text(column.dtype))
        if self._is_text:
            seen = column.filter(train)
            self._counts.add(token_values(seen, "category"))
        else:
            seen = finite_numbers(arranged, name, settings.non_finite).filter(train)
            self._numbers.add(seen.drop_nulls().to_numpy())
        self.rows += len(seen)
        self.missing += seen.null_count()

    def fitted(self, table: Table, same: dict[str, str]) -> list[NumberColumn | TokenColumn]:
        """What is read of the column. same: takes the columns that are the same in every training row, with their value."""
        name = self.name
        if self._is_text:
            first = self._vocabulary("words" if self._is_words else "category")
            if first.size == 2 and not self._is_words and not self.missing:
                same[name] = repr(first.vocabulary[0])
            featured = self._is_words and self.settings.word_features == "auto" and unseen_share(first.counts) >= UNSEEN
            return [first, *(self._vocabulary(kind) for kind in FEATURES if featured)]
        if not self._numbers.count:
            raise DataError(
                f"{table.name}: column {name!r} is empty in every training row. Leave it out with exclude={name!r}."
            )
        mean, std = self._numbers.mean_std()
        if not np.isfinite(std):
            raise DataError(f"{table.name}: {too_large(name)}")
        if std == 0:
            same[name] = f"{mean:g}"
        return [NumberColumn(name, mean, std or 1.0, mask=self.missing > 0)]

    def _vocabulary(self, kind: str) -> TokenColumn:
        """The values of the training rows, the most frequent first."""
        counted = self._counts.frame()
        if kind != "category":
            values = token_values(counted["value"].alias(""), kind).alias("value")
            counted = counted.with_columns(values).group_by("value").agg(pl.col("count").sum())
        counted = counted.sort(["count", "value"], descending=[True, False])
        return TokenColumn(self.name, kind, tuple(counted["value"].to_list()), tuple(counted["count"].to_list()))


class TargetRows:
    """The rows of the target's columns. task: "class", "labels" or "number"."""

    def __init__(self, names: tuple[str, ...], task: str, non_finite: str) -> None:
        self.names, self.task, self.non_finite = names, task, non_finite
        self._seen, self._all = Counts(), Counts()
        self._numbers = [Moments() for _ in names]

    def take(self, arranged: Arranged, part: np.ndarray) -> None:
        """Some rows and their parts."""
        train = pl.Series(part == TRAIN)
        if self.task == "class":
            column = arranged.column(self.names[0])
            if column.dtype.is_float() or column.dtype.is_decimal():
                column = whole_numbers(arranged, self.names[0])
            column = column.cast(pl.String) if is_text(column.dtype) else column
            self._seen.add(column.filter(train))
            self._all.add(column)
            return
        for name, numbers in zip(self.names, self._numbers, strict=True):
            if self.task == "labels":
                zero_or_one(arranged, name)
                values = arranged.column(name).cast(pl.Float64)
            else:
                values = finite_numbers(arranged, name, self.non_finite)
            numbers.add(values.filter(train).drop_nulls().to_numpy())

    def target(self, table: Table) -> tuple[Target, tuple[Any, ...]]:
        """The target, and of classes those that no training row has, the most frequent first. Raises DataError where there is nothing
        to learn.
        """
        if self.task == "class":
            return self._classes(table)
        means, stds = [], []
        for name, numbers in zip(self.names, self._numbers, strict=True):
            if not numbers.count:
                raise DataError(f"{table.name}: no training row has a value in the target column {name!r}.")
            mean, std = numbers.mean_std()
            if self.task == "number" and not np.isfinite(std):
                raise DataError(f"{table.name}: {too_large(name)}")
            if self.task == "number" and std == 0:
                raise DataError(
                    f"{table.name}: the target {name!r} is {mean:g} in every training row. There is nothing to predict."
                )
            means.append(mean)
            stds.append(std)
        spreads = () if self.task == "labels" else tuple(stds)
        return Target(self.names, self.task, means=tuple(means), stds=spreads), ()

    def _classes(self, table: Table) -> tuple[Target, tuple[Any, ...]]:
        name = self.names[0]
        classes = tuple(self._seen.frame()["value"].sort().to_list())
        if not classes:
            raise DataError(f"{table.name}: no training row has a value in the target column {name!r}.")
        everywhere = self._all.frame()
        if len(classes) == 1:
            where = "the training rows hold" if everywhere.height > 1 else "it holds"
            raise DataError(
                f"{table.name}: the target {name!r} has one class: {where} only {classes[0]!r}. There is nothing to tell apart."
            )
        unseen = everywhere.join(self._seen.frame(), on="value", how="anti")
        in_order = unseen.sort("count", "value", descending=[True, False])["value"]
        return Target(self.names, self.task, classes), tuple(in_order.to_list())


def too_large(name: str) -> str:
    return f"the values of column {name!r} are too large to take their mean and spread. Divide them, or leave them out."
