"""A later table under an earlier run's preprocessing: new words, categories and classes get entries behind the old ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from tidegate.data.arrange import Arranged
from tidegate.data.fitting import count_classes, sequences_of_one_row, unseen_classes
from tidegate.data.folds import parts_of
from tidegate.data.preprocessing import (
    NumberColumn,
    Preprocessing,
    Target,
    TokenColumn,
    token_values,
)
from tidegate.data.sequences import TRAIN, UNSEEN_CLASS, Sequences
from tidegate.data.settings import DataSettings
from tidegate.data.tables import Table
from tidegate.data.texts import listed
from tidegate.errors import DataError

# Standard deviations of the earlier rows: further away, or spread wider, numbers are hardly the same quantity.
FAR = 3.0


class Extended(NamedTuple):
    """words: by column, the words and categories that got an entry, in the order of their entries; classes: those of the target."""

    preprocessing: Preprocessing
    data: Sequences
    words: Mapping[str, tuple[str, ...]]
    classes: tuple[Any, ...]


def extend(table: Table, pre: Preprocessing, settings: DataSettings, seed: int) -> Extended:
    """Encode a table by a preprocessing that was fitted on another one, and divide it into parts.

    Columns, formats, means and standard deviations stay. The classes, words and categories of the training rows that `pre` doesn't
    know follow behind those that it knows, so that an old entry means what it meant.

    settings: of these the split and its like are read, and across_gaps. Raises DataError as `Preprocessing.apply` does, and where no training row has a
    target.
    """
    split = _split_column(table, settings)
    notes = _unread(table, {*pre.names, *settings.exclude, split})
    arranged = pre.arrange(table, with_target=True, split=split)
    if arranged.height == 0:
        raise DataError(f"{table.name}: every sequence is empty.")
    sequences_of_one_row(arranged, settings, notes)
    part, how = parts_of(arranged, settings, seed)
    notes += how
    words: dict[str, tuple[str, ...]] = {}
    features = tuple(
        _with_words(c, arranged, part, words) if isinstance(c, TokenColumn) else _checked(c, arranged, part)
        for c in pre.features
    )
    pre = replace(pre, features=features)
    data = pre.encode(arranged, part, with_target=True, across_gaps=settings.across_gaps)
    target = _with_classes(pre.target, data, pre.per, table.name)
    classes = target.classes[len(pre.target.classes) :]
    if classes:
        pre = replace(pre, target=target)
        data = pre.encode(arranged, part, with_target=True, across_gaps=settings.across_gaps)
    pre = replace(pre, target=_fitted(target, data, pre.per, table.name))
    data.notes[:0] = notes
    data.notes += [*_far(pre, data), *_newly_missing(pre, arranged, part), *unseen_classes(data, pre.target, pre.per)]
    return Extended(pre, data, words, classes)


def divide(table: Table, pre: Preprocessing, settings: DataSettings, seed: int) -> Sequences:
    """A table as `extend` encoded and divided it, once `pre` is what that returned."""
    arranged = pre.arrange(table, with_target=True, split=_split_column(table, settings))
    part, _ = parts_of(arranged, settings, seed)
    return pre.encode(arranged, part, with_target=True, across_gaps=settings.across_gaps)


def _split_column(table: Table, settings: DataSettings) -> str | None:
    if not isinstance(settings.split, str):
        return None
    if settings.split not in table.frame.columns:
        raise DataError(
            f"{table.name} has no split column {settings.split!r}. Name the column that says train, valid or test, or say fractions: "
            "split='0.7,0.15,0.15' (--split 0.7,0.15,0.15)."
        )
    return settings.split


def _unread(table: Table, known: Collection[str | None]) -> list[str]:
    others = [name for name in table.frame.columns if name not in known]
    return [f"Not read, as the earlier run reads other columns: {listed([repr(n) for n in others])}."] if others else []


def _with_words(
    column: TokenColumn, arranged: Arranged, part: np.ndarray, new: dict[str, tuple[str, ...]]
) -> TokenColumn:
    """With the values that are new, the most frequent first; the counts are those of both tables."""
    values = token_values(arranged.column(column.name), column.kind).filter(pl.Series(part == TRAIN))
    counted = values.drop_nulls().alias("value").value_counts().sort(["count", "value"], descending=[True, False])
    found = dict(zip(counted["value"].to_list(), counted["count"].to_list(), strict=True))
    counts = [n + found.pop(word, 0) for word, n in zip(column.vocabulary, column.counts, strict=True)]
    if found:
        new[column.name] = tuple(found)
    return replace(column, vocabulary=(*column.vocabulary, *found), counts=(*counts, *found.values()))


def _checked(column: NumberColumn, arranged: Arranged, part: np.ndarray) -> NumberColumn:
    """The column itself. Raises DataError where no training row has a value: whatever is learned from it now is nonsense."""
    if arranged.column(column.name).filter(pl.Series(part == TRAIN)).null_count() == int((part == TRAIN).sum()):
        raise DataError(
            f"{arranged.table.name}: column {column.name!r} is empty in every training row, and the earlier run reads it."
        )
    return column


def _with_classes(target: Target, data: Sequences, per: str, name: str) -> Target:
    """With the classes of the training rows that are new, in their order, behind its own."""
    if target.task != "class" or not data.unseen:
        return target
    codes = np.unique(_of_training(data, per))
    new = sorted(data.unseen[UNSEEN_CLASS - int(c)] for c in codes[codes <= UNSEEN_CLASS])
    if new and isinstance(target.classes[0], bool):
        raise DataError(
            f"{name}: the target {target.names[0]!r} holds {new[0]!r}; the earlier run knows it as yes or no, which can't get a third class."
        )
    return replace(target, classes=(*target.classes, *new))


def _fitted(target: Target, data: Sequences, per: str, name: str) -> Target:
    """With what the rules of thumb are to know of the training rows. The scale of numbers stays."""
    if target.task == "class":
        counts = count_classes(data, target, per)
        if not sum(counts):
            raise DataError(f"{name}: no training row has a value in the target column {target.names[0]!r}.")
        return replace(target, counts=counts)
    y = _of_training(data, per).astype(np.float64)
    for k, column in enumerate(target.names):
        if np.isnan(y[:, k]).all():
            raise DataError(f"{name}: no training row has a value in the target column {column!r}.")
    means = np.nanmean(y, axis=0)
    if target.task == "labels":
        return replace(target, means=tuple(means.tolist()))
    return replace(target, rule=tuple((means * np.array(target.stds) + np.array(target.means)).tolist()))


def _of_training(data: Sequences, per: str) -> np.ndarray:
    assert data.y is not None
    return data.y[data.containing(TRAIN) if per == "sequence" else data.part == TRAIN]


def _far(pre: Preprocessing, data: Sequences) -> list[str]:
    """A sentence on the numbers that lie elsewhere than those from which their means were taken."""
    train = data.numbers[data.part == TRAIN].astype(np.float64)
    found = []
    for k, column in enumerate(pre.numbers):
        mean, std = float(train[:, k].mean()), float(train[:, k].std())
        if abs(mean) > FAR or std > FAR:
            found.append(f"{column.name} (mean {mean:.3g}, standard deviation {std:.3g})")
    if not found:
        return []
    return [
        f"Far from the rows of the earlier run, by whose means and standard deviations numbers are still scaled: {listed(found)}. If the "
        "unit has changed, change it back."
    ]


def _newly_missing(pre: Preprocessing, arranged: Arranged, part: np.ndarray) -> list[str]:
    train = pl.Series(part == TRAIN)
    names = [c.name for c in pre.numbers if not c.mask and arranged.column(c.name).filter(train).null_count()]
    return (
        [f"Missing values, which the earlier run had none of, are read as the mean: {listed(names)}."] if names else []
    )
