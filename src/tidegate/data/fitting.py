"""What a table's columns are, decided and fitted on its training rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from tidegate.data.arrange import Arranged, arrange, require
from tidegate.data.dates import has_dates, read_time
from tidegate.data.folds import parts_of
from tidegate.data.gaps import Gaps, find_gaps, rows_before
from tidegate.data.gathering import FeatureRows, TargetRows
from tidegate.data.hints import constant, empty, hints, nameless
from tidegate.data.names import name_columns
from tidegate.data.numerals import NumberFormat
from tidegate.data.preprocessing import (
    NumberColumn,
    Preprocessing,
    Target,
    TokenColumn,
    encode_features,
    encode_target,
    is_text,
    named,
    readable,
)
from tidegate.data.sequences import PART_NAMES, TRAIN, UNSEEN_CLASS, Sequences
from tidegate.data.settings import DataSettings
from tidegate.data.tables import Table
from tidegate.data.texts import find_numbers, listed
from tidegate.data.word_features import FEATURES
from tidegate.errors import DataError, SettingsError

MANY_INTEGER_CLASSES = 100  # beyond it whole numbers are as likely amounts as classes: ask


def fit_preprocessing(table: Table, settings: DataSettings, seed: int) -> tuple[Preprocessing, Sequences]:
    """Decide what each column is, fit what is fitted on the training rows, and encode all rows.

    Raises DataError and SettingsError in the words of a user: see tests/data/test_bad_input.py for all of them.
    """
    settings = settings_for(table, settings)
    split = settings.split if isinstance(settings.split, str) else None
    notes: list[str] = [*table.notes]
    names = choose_features(table, settings, split, notes)
    table, formats = find_numbers(table, maybe_numbers(names, settings), settings, notes)
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
    dtypes = {name: arranged.columns[name].dtype for name in settings.target}
    task = task_of(table, settings, dtypes, lambda name: arranged.column(name).drop_nulls().unique(), notes)
    of_target = TargetRows(settings.target, task, settings.non_finite)
    of_target.take(arranged, part)
    target, unseen = of_target.target(table)
    same: dict[str, str] = {}
    features: list[NumberColumn | TokenColumn] = []
    for name in names:
        rows = FeatureRows(name, settings)
        rows.take(arranged, part)
        features += rows.fitted(table, same)
    of_words = list(dict.fromkeys(c.name for c in features if c.kind in FEATURES))
    if of_words:
        notes.append(
            f"Word features of {listed(of_words)}: beside each word its shape and its suffix are read, as a new text has words "
            "that training never saw (word_features='none', --word-features none: the word alone)."
        )
    notes += [*hints(table, names, settings, notes), *constant(same)]
    pre = preprocessing_of(
        settings, features, target, lists=bool(arranged.lists), formats=formats, date_order=date_order
    )
    numbers, codes = encode_features(arranged, pre.features, settings.non_finite)
    y, unseen = encode_target(arranged, target, settings.per, settings.non_finite, unseen)
    stretch = gaps.stretches() if gaps and gaps.told and settings.horizon and not settings.across_gaps else None
    sequences = Sequences(numbers, codes, y, arranged.offsets, part, arranged.rows, notes, unseen, stretch)
    if gaps:
        notes += _gaps(gaps, arranged, settings, target)
    return counted(pre, sequences), sequences


def settings_for(table: Table, settings: DataSettings) -> DataSettings:
    """The settings with the columns of this table that they mean. Raises DataError and SettingsError where one isn't there."""
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
    if isinstance(settings.split, str):
        require(table, [settings.split], "split")
    return settings


def preprocessing_of(
    settings: DataSettings,
    features: Sequence[NumberColumn | TokenColumn],
    target: Target,
    *,
    lists: bool = False,
    formats: Mapping[str, NumberFormat] | None = None,
    date_order: str = "",
) -> Preprocessing:
    return Preprocessing(
        group=settings.group,
        time=settings.time,
        per=settings.per,
        horizon=settings.horizon,
        text=settings.text,
        non_finite=settings.non_finite,
        lists=lists,
        features=tuple(features),
        target=target,
        formats=formats or {},
        date_order=date_order,
        missing=settings.missing,
    )


def counted(pre: Preprocessing, sequences: Sequences) -> Preprocessing:
    """The same with the numbers of its classes; the sequences get a note on those that training never saw."""
    target = pre.target
    sequences.notes += unseen_classes(sequences, target, pre.per)
    if target.task != "class":
        return pre
    return replace(pre, target=replace(target, counts=count_classes(sequences, target, pre.per)))


def maybe_numbers(names: list[str], settings: DataSettings) -> list[str]:
    """The columns whose text may turn out to be numbers: not those of which the user has said what they are."""
    targets = settings.target if settings.task in ("auto", "number") else ()
    time = [settings.time] if settings.time is not None else []
    said = {*settings.text, *settings.categories, *settings.group} | (set(settings.target) - set(targets))
    return [name for name in dict.fromkeys([*names, *targets, *time]) if name not in said]


def choose_features(
    table: Table, settings: DataSettings, split: str | None, notes: list[str], *, whole: bool = True
) -> list[str]:
    """The columns to read. whole: the table holds all rows, so that a column without a value is empty and is left out."""
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
        rest = [n for n in names if n not in unread]
        unread += nameless(table, rest, notes)
        unread += empty(table, [n for n in rest if n not in unread], notes) if whole else []
        names = [n for n in names if n not in unread]
    names = [n for n in names if n not in settings.exclude]
    if not names:
        raise DataError(
            f"{table.name}: no column is left to read beside the {', '.join(sorted(set(roles.values())))} column(s)."
            + " ".join(["", *notes])
        )
    for role in ("text", "categories"):
        for name in getattr(settings, role):
            if name not in names and name not in settings.target:
                raise SettingsError(
                    f"{role} names the column {name!r}, which isn't read: it is left out, not among the features, or it "
                    "is the group, time or split column."
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


def task_of(
    table: Table,
    settings: DataSettings,
    dtypes: Mapping[str, Any],
    different: Callable[[str], pl.Series],
    notes: list[str],
) -> str:
    """What kind of target it is. dtypes: of the target's columns. different: the different values of one of them, without the missing
    one.

    Raises DataError and SettingsError where these columns can't be predicted, or not as the task says.
    """
    names = settings.target
    for name, dtype in dtypes.items():
        if dtype == pl.String and (kind := _unreadable(table, name)):
            raise DataError(
                f"{table.name}: the target {name!r} holds {kind}. Text, whole numbers, yes/no or floats can be predicted."
            )
        if not (dtype.is_numeric() or dtype == pl.Boolean or is_text(dtype)):
            raise DataError(
                f"{table.name}: the target {name!r} holds {dtype}. Text, whole numbers, yes/no or floats can be predicted."
            )
    task = settings.task if settings.task != "auto" else _infer_task(table, settings, dtypes, different, notes)
    if task == "class" and len(names) > 1:
        raise SettingsError(
            f"task='class' predicts one column; target names {len(names)}. Use task='labels' for several 0/1 columns."
        )
    for name, dtype in dtypes.items():
        if task == "labels" and is_text(dtype):
            raise DataError(
                f"{table.name}: the target {name!r} holds text; task='labels' needs columns of 0 and 1 or of yes/no values."
            )
        if task == "number" and not (dtype.is_numeric() or dtype == pl.Boolean):
            raise DataError(f"{table.name}: the target {name!r} holds {dtype}; task='number' needs numbers.")
    return task


def _infer_task(
    table: Table,
    settings: DataSettings,
    dtypes: Mapping[str, Any],
    different: Callable[[str], pl.Series],
    notes: list[str],
) -> str:
    names = settings.target
    kinds = {name: "number" if d.is_float() or d.is_decimal() else "class" for name, d in dtypes.items()}
    if len(names) == 1:
        name, dtype = names[0], dtypes[names[0]]
        if kinds[name] == "number":
            distinct = different(name)
            if len(distinct) <= 10 and bool((distinct == distinct.round()).all()):
                notes.append(
                    f"The target {name!r} is taken as a number; if its values {sorted(distinct.to_list())} are classes, say task='class'."
                )
            return "number"
        if dtype.is_integer():
            count = len(different(name))
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
        if all(different(n).cast(pl.Int64).is_in([0, 1]).all() for n in names):
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
    counts = {
        name: sum(int((y <= UNSEEN_CLASS).sum()) for y in _classes_of(sequences, part, per))
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
    counts = np.zeros(len(target.classes), dtype=np.int64)
    for y in _classes_of(sequences, TRAIN, per):
        counts += np.bincount(y[y >= 0], minlength=len(counts))
    return tuple(int(n) for n in counts)


def _classes_of(sequences: Sequences, part: int, per: str) -> Iterator[np.ndarray]:
    """The classes of a part, some at a time."""
    assert sequences.y is not None
    if per == "sequence":
        yield sequences.y[sequences.containing(part)]
        return
    for first, end in sequences.blocks():
        yield sequences.y[first:end][sequences.part[first:end] == part]
