"""Columns that are hardly features: which are left out, and which a note names."""

from __future__ import annotations

import re
from collections.abc import Sequence

import polars as pl

from tidegate.data.numerals import SPELLINGS
from tidegate.data.settings import DataSettings
from tidegate.data.tables import Table
from tidegate.data.texts import listed

# How pandas calls an index without a name, in a Parquet file and where it reads a CSV file, in which that has no name at all.
_NAMELESS = re.compile(r"__index_level_\d+__|Unnamed: \d+(_level_\d+)?")
_FEW_ROWS = 20  # in so few rows that values differ says nothing
_ALMOST_ALL = 0.9
_WORDS = 4.0  # so many words a cell make sentences


def nameless(table: Table, names: Sequence[str], notes: list[str]) -> list[str]:
    """Those of `names` that are a row number without a name, which are left out where the user hasn't named the features."""
    index = [name for name in names if _NAMELESS.fullmatch(name) or (name == "" and table.lines is not None)]
    if index:
        notes.append(
            f"Left out, as a row number without a name (pandas writes its index so): {listed([repr(n) for n in index])}."
        )
    return index


def empty(table: Table, names: Sequence[str], notes: list[str]) -> list[str]:
    """Those of `names` in which no row has a value."""
    found = [name for name in names if is_empty(table.frame[name])]
    if found:
        notes.append(left_out_as_empty(found))
    return found


def left_out_as_empty(names: Sequence[str]) -> str:
    return f"Left out, as no row has a value: {listed(names)}."


def is_empty(column: pl.Series) -> bool:
    column = column.alias("")
    if column.null_count() == len(column):
        return True
    if column.dtype != pl.String:
        return False
    bare = column.drop_nulls().str.strip_chars()
    return bool((bare.is_in(list(SPELLINGS)) | (bare == "")).all())


def hints(table: Table, names: Sequence[str], settings: DataSettings, before: Sequence[str]) -> list[str]:
    """A sentence for all features that look like identifiers, for those that are almost all different, and for sentences. Of columns
    that a sentence in `before` speaks of, enough is said.
    """
    ids, texts, sentences = [], [], []
    for name in names:
        column = table.frame[name].alias("")
        if name in settings.target or name in settings.text or any(f"column {name!r}: " in note for note in before):
            continue
        present = len(column) - column.null_count()
        if present < _FEW_ROWS:
            continue
        if column.dtype.is_integer() and present == len(column) == column.n_unique():
            ids.append(name)
        if column.dtype != pl.String or name in settings.categories:
            continue
        different = column.drop_nulls().n_unique()
        if different >= _ALMOST_ALL * present / 2 and _words(column) >= _WORDS:
            sentences.append(name)
        elif present == len(column) == different:
            ids.append(name)
        elif different >= _ALMOST_ALL * present:
            texts.append(f"{name} ({different:,} in {present:,} rows, such as {column.drop_nulls()[0][:40]!r})")
    notes = []
    if ids:
        which = ids[0] if len(ids) == 1 else ",".join(ids[:10])
        notes.append(
            f"Each row has another value in {listed(ids)}, as an identifier has. If {_it(ids, 'it is one', 'they are some')}, leave "
            f'{_it(ids)} out with exclude={which!r} (--exclude "{which}").'
        )
    if texts:
        notes.append(
            f"Read as {_it(texts, 'a category', 'categories')}, although almost every value is another one: {listed(texts)}. A model "
            f"can't learn from that; leave {_it(texts)} out (exclude, --exclude)."
        )
    if sentences:
        which = sentences[0]
        notes.append(
            f"The cells of {listed(sentences)} hold sentences, and each is read as one category. To have them cut into words, a step "
            f"each, say text={which!r} (--text {which}); each row is then a sequence."
        )
    return notes


def constant(columns: dict[str, str]) -> list[str]:
    """A sentence for the columns that are the same in every training row. columns: with their one value."""
    if not columns:
        return []
    if len(columns) == 1:
        name, value = next(iter(columns.items()))
        return [f"Column {name!r} is {value} in every training row: it can't help."]
    return [
        f"{len(columns):,} columns are the same in every training row, so they can't help: {listed([f'{n} ({v})' for n, v in columns.items()])}."
    ]


def _words(column: pl.Series) -> float:
    return float(column.drop_nulls().str.count_matches(r"\S+").mean() or 0.0)  # type: ignore[arg-type]


def _it(names: Sequence[str], one: str = "it", more: str = "them") -> str:
    return one if len(names) == 1 else more
