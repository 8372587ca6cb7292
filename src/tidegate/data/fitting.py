"""What a table's columns are, decided and fitted on its training rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from tidegate.data.arrange import Arranged, arrange, require
from tidegate.data.dates import has_dates, read_time
from tidegate.data.folds import parts_of
from tidegate.data.gaps import Gaps, find_gaps, rows_before
from tidegate.data.hints import constant, hints, no_features
from tidegate.data.names import name_columns
from tidegate.data.preprocessing import (
    NumberColumn,
    Preprocessing,
    Target,
    TokenColumn,
    encode_features,
    encode_target,
    finite_numbers,
    is_text,
    named,
    readable,
    token_values,
    whole_numbers,
    zero_or_one,
)
from tidegate.data.sequences import PART_NAMES, TRAIN, UNSEEN_CLASS, Sequences
from tidegate.data.settings import DataSettings
from tidegate.data.tables import Table
from tidegate.data.texts import find_numbers, listed
from tidegate.data.word_features import FEATURES, UNSEEN, unseen_share
from tidegate.errors import DataError, SettingsError

MANY_INTEGER_CLASSES = 100  # beyond it whole numbers are as likely amounts as classes: ask


def fit_preprocessing(table: Table, settings: DataSettings, seed: int) -> tuple[Preprocessing, Sequences]:
    """Decide what each column is, fit what is fitted on the training rows, and encode all rows.

    Raises DataError and SettingsError in the words of a user: see tests/data/test_bad_input.py for all of them.
    """
    if not settings.target:
        known = ", ".join(table.frame.columns[:12])
        raise SettingsError(
            f"No target: name the column to predict with target=... (--target). {table.name} has: {known}."
        )
    given, settings = settings.target, name_columns(settings, table)
    if not settings.target:
        raise DataError(
            f"{table.name}: target={', '.join(given)!r} fits only columns that are the group, time or split column. Name the column to predict."
        )
    require(table, settings.target, "target")
    require(table, settings.group, "group")
    require(table, [settings.time] if settings.time is not None else [], "time")
    require(table, settings.exclude, "left-out")
    require(table, settings.categories, "category")
    require(table, settings.text, "text")
    split = settings.split if isinstance(settings.split, str) else None
    if split is not None:
        require(table, [split], "split")
    notes: list[str] = [*table.notes]
    names = _choose_features(table, settings, split, notes)
    for role in ("text", "categories"):
        for name in getattr(settings, role):
            if name not in names and name not in settings.target:
                raise SettingsError(
                    f"{role} names the column {name!r}, which isn't read: it is left out, not among the features, or it "
                    "is the group, time or split column."
                )
    table, formats = find_numbers(table, _maybe_numbers(names, settings), settings, notes)
    table, date_order, told = read_time(table, settings.time, settings.date_order)
    notes += [told] if told else []
    used = list(dict.fromkeys([*names, *settings.target, *([split] if split is not None else [])]))
    by_items = bool(set(settings.text) & set(settings.target))
    arranged = arrange(table, group=settings.group, time=settings.time, used=used, text=settings.text, items=by_items)
    if arranged.lists and not set(arranged.lists) & {*names, *settings.group, settings.time}:
        raise DataError(
            f"{table.name}: the target {arranged.lists[0]!r} holds lists and no feature does, so a new table would not say "
            "how many steps a row has. Name a list column to read, or predict one value a row."
        )
    if arranged.height == 0:
        raise DataError(f"{table.name}: every sequence is empty.")
    sequences_of_one_row(arranged, settings, notes)
    part, how = parts_of(arranged, settings, seed)
    notes += how
    gaps = None if settings.time is None else find_gaps(arranged, settings.time)
    target = _fit_target(arranged, settings, part, notes)
    same: dict[str, str] = {}
    features = tuple(c for name in names for c in _fit_feature(arranged, name, settings, part, same))
    of_words = list(dict.fromkeys(c.name for c in features if c.kind in FEATURES))
    if of_words:
        notes.append(
            f"Word features of {listed(of_words)}: beside each word its shape and its suffix are read, as a new text has words "
            "that training never saw (word_features='none', --word-features none: the word alone)."
        )
    notes += [*hints(table, names, settings, notes), *constant(same)]
    pre = Preprocessing(
        group=settings.group,
        time=settings.time,
        per=settings.per,
        horizon=settings.horizon,
        text=settings.text,
        non_finite=settings.non_finite,
        lists=bool(arranged.lists),
        features=features,
        target=target,
        formats=formats,
        date_order=date_order,
        missing=settings.missing,
    )
    numbers, codes = encode_features(arranged, features, settings.non_finite)
    y, unseen = encode_target(arranged, target, settings.per, settings.non_finite)
    stretch = gaps.stretches() if gaps and gaps.told and settings.horizon and not settings.across_gaps else None
    sequences = Sequences(numbers, codes, y, arranged.offsets, part, arranged.rows, notes, unseen, stretch)
    if gaps:
        notes += _gaps(gaps, arranged, settings, target)
    notes += unseen_classes(sequences, target, settings.per)
    if target.task == "class":
        pre = replace(pre, target=replace(target, counts=count_classes(sequences, target, settings.per)))
    return pre, sequences


def _maybe_numbers(names: list[str], settings: DataSettings) -> list[str]:
    """The columns whose text may turn out to be numbers: not those of which the user has said what they are."""
    targets = settings.target if settings.task in ("auto", "number") else ()
    time = [settings.time] if settings.time is not None else []
    said = {*settings.text, *settings.categories, *settings.group} | (set(settings.target) - set(targets))
    return [name for name in dict.fromkeys([*names, *targets, *time]) if name not in said]


def _choose_features(table: Table, settings: DataSettings, split: str | None, notes: list[str]) -> list[str]:
    roles = {**dict.fromkeys(settings.group, "group"), **({settings.time: "time"} if settings.time is not None else {})}
    if split is not None:
        roles[split] = "split"
    if not settings.horizon:
        roles |= dict.fromkeys(settings.target, "target")
    if settings.features is not None:
        require(table, settings.features, "feature")
        for name in settings.features:
            if roles.get(name) == "target":
                raise SettingsError(
                    f"features holds the target {name!r}: at horizon 0 the model would read the answer."
                )
            if kind := _unreadable(table, name):
                raise DataError(
                    f"{table.name}: column {name!r} holds {kind}, which can't be a feature. "
                    "Turn it into numbers or text, or leave it out."
                )
        names = list(settings.features)
    else:
        names = [n for n in table.frame.columns if n not in roles and n not in settings.exclude]
        kinds = {n: kind for n in names if (kind := _unreadable(table, n))}
        unread = list(kinds)
        if unread:
            listing = listed([f"{n} ({kind})" for n, kind in kinds.items()])
            notes.append(f"Left out, as neither numbers nor text: {listing}.")
            times = [n for n in unread if kinds[n] == "dates" or table.frame.schema[n] in (pl.Date, pl.Datetime)]
            if times and settings.time is None:
                notes.append(
                    f"No time is named, so rows are in the order of the table. If {times[0]} says when they were, name it: time={times[0]!r} "
                    f"(--time {times[0]})."
                )
        unread += no_features(table, [n for n in names if n not in unread], notes)
        names = [n for n in names if n not in unread]
    names = [n for n in names if n not in settings.exclude]
    if not names:
        raise DataError(
            f"{table.name}: no column is left to read beside the {', '.join(sorted(set(roles.values())))} column(s)."
            + " ".join(["", *notes])
        )
    return names


def _unreadable(table: Table, name: str) -> str:
    """What a column holds that can't be a feature; "" where it can be one."""
    dtype = table.frame.schema[name]
    if not readable(dtype):
        return str(dtype)
    # In a typed table, dates as text are text.
    return "dates" if table.lines is not None and dtype == pl.String and has_dates(table.frame[name]) else ""


def sequences_of_one_row(arranged: Arranged, settings: DataSettings, notes: list[str]) -> None:
    lengths, name = arranged.lengths, arranged.table.name
    if settings.group and len(lengths) > 1 and int(lengths.max()) == 1:
        what = ", ".join(repr(g) for g in settings.group)
        raise DataError(
            f"{name}: every group of {what} has one row, so there is no sequence. "
            "Name the column that the rows of one sequence share, or none."
        )
    short = int((lengths <= settings.horizon).sum())
    if settings.horizon and short == len(lengths):
        raise DataError(
            f"{name}: horizon={settings.horizon} needs sequences of at least {settings.horizon + 1} rows; the longest has {lengths.max()}."
        )
    if short:
        one = int(np.flatnonzero(lengths <= settings.horizon)[0])
        step = min(int(arranged.offsets[one]), arranged.height - 1)
        which = f" (the first: {arranged.sequence_of(step)})" if lengths[one] else ""
        notes.append(
            f"{short} of {len(lengths)} sequences have at most {settings.horizon} rows{which}: nothing in them can be scored."
        )


def _fit_target(arranged: Arranged, settings: DataSettings, part: np.ndarray, notes: list[str]) -> Target:
    table, names = arranged.table, settings.target
    dtypes = {name: arranged.columns[name].dtype for name in names}
    for name, dtype in dtypes.items():
        if dtype == pl.String and (kind := _unreadable(table, name)):
            raise DataError(
                f"{table.name}: the target {name!r} holds {kind}. Text, whole numbers, yes/no or floats can be predicted."
            )
        if not (dtype.is_numeric() or dtype == pl.Boolean or is_text(dtype)):
            raise DataError(
                f"{table.name}: the target {name!r} holds {dtype}. Text, whole numbers, yes/no or floats can be predicted."
            )
    task = settings.task if settings.task != "auto" else _infer_task(arranged, settings, dtypes, notes)
    train = part == TRAIN
    if task == "class":
        if len(names) > 1:
            raise SettingsError(
                f"task='class' predicts one column; target names {len(names)}. Use task='labels' for several 0/1 columns."
            )
        column = arranged.column(names[0])
        if column.dtype.is_float() or column.dtype.is_decimal():
            column = whole_numbers(arranged, names[0])
        seen = column.filter(pl.Series(train)).drop_nulls()
        if not len(seen):
            raise DataError(f"{table.name}: no training row has a value in the target column {names[0]!r}.")
        classes = tuple(
            seen.cast(pl.String).unique().sort().to_list() if is_text(seen.dtype) else seen.unique().sort().to_list()
        )
        if len(classes) == 1:
            every = column.drop_nulls().n_unique()
            where = "the training rows hold" if every > 1 else "it holds"
            raise DataError(
                f"{table.name}: the target {names[0]!r} has one class: {where} only {classes[0]!r}. There is nothing to tell apart."
            )
        return Target(names, task, classes)
    if task == "labels":
        shares = []
        for name in names:
            if is_text(dtypes[name]):
                raise DataError(
                    f"{table.name}: the target {name!r} holds text; task='labels' needs columns of 0 and 1 or of yes/no values."
                )
            zero_or_one(arranged, name)
            seen = arranged.column(name).cast(pl.Float64).filter(pl.Series(train)).drop_nulls().to_numpy()
            if not len(seen):
                raise DataError(f"{table.name}: no training row has a value in the target column {name!r}.")
            shares.append(float(seen.mean()))
        return Target(names, task, means=tuple(shares))
    means, stds = [], []
    for name in names:
        if not (dtypes[name].is_numeric() or dtypes[name] == pl.Boolean):
            raise DataError(f"{table.name}: the target {name!r} holds {dtypes[name]}; task='number' needs numbers.")
        values = finite_numbers(arranged, name, settings.non_finite).filter(pl.Series(train)).drop_nulls()
        if not len(values):
            raise DataError(f"{table.name}: no training row has a value in the target column {name!r}.")
        mean, std = _mean_std(values)
        if not np.isfinite(std):
            raise DataError(f"{table.name}: {too_large(name)}")
        if std == 0:
            raise DataError(
                f"{table.name}: the target {name!r} is {mean:g} in every training row. There is nothing to predict."
            )
        means.append(mean)
        stds.append(std)
    return Target(names, "number", means=tuple(means), stds=tuple(stds))


def _infer_task(arranged: Arranged, settings: DataSettings, dtypes: dict[str, Any], notes: list[str]) -> str:
    names, table = settings.target, arranged.table
    kinds = {name: "number" if d.is_float() or d.is_decimal() else "class" for name, d in dtypes.items()}
    if len(names) == 1:
        name, column = names[0], arranged.column(names[0])
        if kinds[name] == "number":
            distinct = column.drop_nulls().unique()
            if len(distinct) <= 10 and bool((distinct == distinct.round()).all()):
                notes.append(
                    f"The target {name!r} is taken as a number; if its values {sorted(distinct.to_list())} are classes, say task='class'."
                )
            return "number"
        if column.dtype.is_integer():
            count = column.drop_nulls().n_unique()
            # Codes that are to be read as such are named as categories; 0 and 1 are rather a state than an amount.
            ahead = settings.horizon if count > 2 and name not in settings.categories else 0
            if ahead > 1:  # several values ahead are a forecast; the next one alone can be the next item of a session
                notes.append(
                    f"The target {name!r} is taken as a number, as {settings.horizon} values ahead are predicted. If its values are "
                    "classes, say task='class' (--task class)."
                )
                return "number"
            if ahead or count > MANY_INTEGER_CLASSES:
                raise SettingsError(
                    f"{table.name}: the target {name!r} holds {count} different whole numbers. Are they amounts (task='number', "
                    "--task number) or classes (task='class', --task class)?"
                )
        return "class"
    if all(kind == "number" for kind in kinds.values()):
        return "number"
    if all(dtypes[n].is_integer() or dtypes[n] == pl.Boolean for n in names):
        if all(arranged.column(n).cast(pl.Int64).drop_nulls().is_in([0, 1]).all() for n in names):
            return "labels"
        return "number"
    if any(is_text(d) for d in dtypes.values()):
        text = next(n for n, d in dtypes.items() if is_text(d))
        raise SettingsError(
            f"{table.name}: target names several columns and {text!r} is text. Several targets are all numbers, or all 0/1 labels."
        )
    return "number"


def _gaps(gaps: Gaps, arranged: Arranged, settings: DataSettings, target: Target) -> list[str]:
    """A sentence on gaps in time and what was made of them."""
    horizon = settings.horizon
    if not gaps.told:
        if not gaps.irregular or not horizon or target.task != "number":
            return []
        return [
            f"The times in {settings.time!r} are not evenly spaced, and each row counts as one step: what is predicted is the next "
            f"{'row' if horizon == 1 else f'{horizon} rows'}, whenever {'it comes' if horizon == 1 else 'they come'}."
        ]
    if not horizon:
        return [f"{gaps.told} The rows around a gap are read as if they followed each other."]
    if settings.across_gaps:
        return [f"{gaps.told} The rows behind a gap are predicted as if they followed at once (across_gaps)."]
    rows = rows_before(gaps.before, arranged.offsets, horizon)
    one = rows == 1
    return [
        f"{gaps.told} No target lies across a gap: {'that' if one else 'those'} of {rows:,} row{'s' * (not one)} "
        f"{'is' if one else 'are'} left out{'' if horizon == 1 else ', in part or whole'}. To predict them all the same, say across_gaps=True "
        "(--across-gaps)."
    ]


def unseen_classes(sequences: Sequences, target: Target, per: str) -> list[str]:
    """A sentence on the rows whose class no training row has."""
    if not sequences.unseen:
        return []
    assert sequences.y is not None
    of_unseen = sequences.y <= UNSEEN_CLASS
    counts = {
        name: int(of_unseen[sequences.containing(part) if per == "sequence" else sequences.part == part].sum())
        for name, part in PART_NAMES.items()
    }
    total = sum(counts.values())
    if not total:
        return []
    one, several = total == 1, len(sequences.unseen) > 1
    rows = f"{total:,} {'sequence' if per == 'sequence' else 'row'}{'s' * (not one)}"
    parts = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
    note = (
        f"Column {target.names[0]!r}: {rows} ({parts}) hold{'s' * one} {'classes' if several else 'a class'} that no training row "
        f"has: {named(sequences.unseen)}. {'They count' if several else 'It counts'} as missed in every figure, and the loss leaves "
        f"{'them' if several else 'it'} out."
    )
    if isinstance(sequences.unseen[0], int):
        note += " If the values are amounts, say task='number' (--task number)."
    return [note]


def count_classes(sequences: Sequences, target: Target, per: str) -> tuple[int, ...]:
    assert sequences.y is not None
    y = sequences.y[sequences.containing(TRAIN)] if per == "sequence" else sequences.y[sequences.part == TRAIN]
    return tuple(int(n) for n in np.bincount(y[y >= 0], minlength=len(target.classes)))


def _fit_feature(
    arranged: Arranged, name: str, settings: DataSettings, part: np.ndarray, same: dict[str, str]
) -> list[NumberColumn | TokenColumn]:
    """What is read of a column. same: takes the columns that are the same in every training row, with their value."""
    column = arranged.column(name)
    train = pl.Series(part == TRAIN)
    if is_text(column.dtype) or name in settings.categories:
        words = name in settings.text or (name in arranged.lists and is_text(column.dtype))
        seen = column.filter(train)
        fitted = _vocabulary(name, "words" if words else "category", seen)
        if fitted.size == 2 and not words and not seen.null_count():
            same[name] = repr(fitted.vocabulary[0])
        featured = words and settings.word_features == "auto" and unseen_share(fitted.counts) >= UNSEEN
        return [fitted, *(_vocabulary(name, kind, seen) for kind in FEATURES if featured)]
    values = finite_numbers(arranged, name, settings.non_finite).filter(train)
    present = values.drop_nulls()
    if not len(present):
        raise DataError(
            f"{arranged.table.name}: column {name!r} is empty in every training row. Leave it out with exclude={name!r}."
        )
    mean, std = _mean_std(present)
    if not np.isfinite(std):
        raise DataError(f"{arranged.table.name}: {too_large(name)}")
    if std == 0:
        same[name] = f"{mean:g}"
    return [NumberColumn(name, mean, std or 1.0, mask=len(present) < len(values))]


def _vocabulary(name: str, kind: str, seen: pl.Series) -> TokenColumn:
    """The values of a column's training rows, the most frequent first."""
    values = token_values(seen, kind).drop_nulls().alias("value")
    counted = values.value_counts().sort(["count", "value"], descending=[True, False])
    return TokenColumn(name, kind, tuple(counted["value"].to_list()), tuple(counted["count"].to_list()))


def _mean_std(values: pl.Series) -> tuple[float, float]:
    array = values.to_numpy()
    mean = float(array.mean())
    with np.errstate(over="ignore"):
        std = float(array.std())
    # A constant column has a tiny std from rounding; dividing by it would make noise of it.
    return mean, std if std > 1e-12 * float(np.abs(array).max()) else 0.0


def too_large(name: str) -> str:
    return f"the values of column {name!r} are too large to take their mean and spread. Divide them, or leave them out."
