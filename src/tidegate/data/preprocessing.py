"""From columns to numbers, as data: what was fitted on the training rows is a JSON file, not code.

`fit` looks at a table once, decides what each column is and returns the `Preprocessing` with the encoded
sequences; `Preprocessing.apply` encodes another table in the same way.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import polars as pl

from tidegate.data.arrange import Arranged, arrange, require
from tidegate.data.sequences import MISSING_CLASS, TEST, TRAIN, Sequences
from tidegate.data.settings import DataSettings
from tidegate.data.splits import assign_parts
from tidegate.data.tables import Table
from tidegate.errors import DataError, RunError, SettingsError

FORMAT, VERSION = "tidegate-preprocessing", 1
MANY_INTEGER_CLASSES = 100  # beyond it whole numbers are as likely amounts as classes: ask


@dataclass(frozen=True)
class NumberColumn:
    """(x - mean) / std of the training rows; a missing value becomes 0 and, with `mask`, a 1 in a column of its own."""

    name: str
    mean: float
    std: float
    mask: bool
    kind: str = "number"


@dataclass(frozen=True)
class TokenColumn:
    """A vocabulary: entry i + 1 stands for vocabulary[i], entry 0 for what training never saw and for missing values."""

    name: str
    kind: str  # "category", or "words" (an item of a list or of a sentence; compared in lower case)
    vocabulary: tuple[str, ...]
    counts: tuple[int, ...]

    @property
    def size(self) -> int:
        return len(self.vocabulary) + 1


@dataclass(frozen=True)
class Target:
    """What is predicted: task "class", "labels" or "number"; classes in the type of their column."""

    names: tuple[str, ...]
    task: str
    classes: tuple[Any, ...] = ()
    counts: tuple[int, ...] = ()  # training steps (or sequences) of each class
    means: tuple[float, ...] = ()  # of the training steps: of a number its mean, of a label its share of ones
    stds: tuple[float, ...] = ()

    @property
    def width(self) -> int:
        """Scores a step and a value of the horizon: one a class, else one a target column."""
        return len(self.classes) if self.task == "class" else len(self.names)


@dataclass(frozen=True)
class Preprocessing:
    """Everything that turns a table into what the model reads, and back."""

    group: tuple[str, ...]
    time: str | None
    per: Literal["step", "sequence"]
    horizon: int
    text: tuple[str, ...]
    non_finite: str
    lists: bool
    features: tuple[NumberColumn | TokenColumn, ...]
    target: Target

    @property
    def numbers(self) -> tuple[NumberColumn, ...]:
        return tuple(c for c in self.features if isinstance(c, NumberColumn))

    @property
    def tokens(self) -> tuple[TokenColumn, ...]:
        return tuple(c for c in self.features if isinstance(c, TokenColumn))

    @property
    def number_width(self) -> int:
        return len(self.numbers) + sum(c.mask for c in self.numbers)

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1, ensure_ascii=False) + "\n"

    @staticmethod
    def from_json(text: str, name: str = "preprocessing.json") -> Preprocessing:
        """Raises RunError where `text` is not what `to_json` wrote."""
        try:
            values = json.loads(text)
            if values.pop("format") != FORMAT:
                raise KeyError("format")
            if values.pop("version") != VERSION:
                raise RunError(f"{name} was written by a newer Tidegate. Update this one.")
            features = tuple(
                NumberColumn(**c) if c["kind"] == "number" else TokenColumn(**_tuples(c))
                for c in values.pop("features")
            )
            target = Target(**_tuples(values.pop("target")))
            return Preprocessing(**_tuples(values), features=features, target=target)
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{name} is damaged or was not written by Tidegate ({error}).") from error

    def apply(self, table: Table, *, with_target: bool, split: str | None = None) -> Sequences:
        """Encode another table. with_target: its target columns must be there and are encoded too.

        split: a column that says train, valid or test; else every row counts as test.
        Raises DataError: the message names the file, the row and the column.
        """
        names = [c.name for c in self.features]
        require(table, names, "feature")
        if with_target:
            require(table, self.target.names, "target")
            names += self.target.names
        if split:
            require(table, [split], "split")
            names.append(split)
        by_items = bool(set(self.text) & set(self.target.names))
        text = [name for name in self.text if name in names and table.frame.schema[name] == pl.String]
        arranged = arrange(table, group=self.group, time=self.time, used=names, text=text, items=by_items)
        if self.lists and not arranged.lists:
            raise DataError(f"{table.name}: training had list columns, a sequence a row; here is a plain table.")
        part = (
            assign_parts(arranged, split, "auto", seed=0)[0]
            if split
            else np.full(arranged.height, TEST, dtype=np.uint8)
        )
        y = encode_target(arranged, self.target, self.per, self.non_finite) if with_target else None
        numbers, codes = encode_features(arranged, self.features, self.non_finite)
        return Sequences(numbers, codes, y, arranged.offsets, part, arranged.rows)


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


def fit(table: Table, settings: DataSettings, seed: int) -> tuple[Preprocessing, Sequences]:
    """Decide what each column is, fit what is fitted on the training rows, and encode all rows.

    Raises DataError and SettingsError in the words of a user: see tests/data/test_bad_input.py for all of them.
    """
    if not settings.target:
        known = ", ".join(table.frame.columns[:12])
        raise SettingsError(
            f"No target: name the column to predict with target=... (--target). {table.name} has: {known}."
        )
    require(table, settings.target, "target")
    require(table, settings.group, "group")
    require(table, [settings.time] if settings.time else [], "time")
    require(table, settings.exclude, "left-out")
    require(table, settings.categories, "category")
    require(table, settings.text, "text")
    split = settings.split if isinstance(settings.split, str) else None
    if split:
        require(table, [split], "split")
    notes: list[str] = []
    names = _choose_features(table, settings, split, notes)
    used = list(dict.fromkeys([*names, *settings.target, *([split] if split else [])]))
    by_items = bool(set(settings.text) & set(settings.target))
    arranged = arrange(table, group=settings.group, time=settings.time, used=used, text=settings.text, items=by_items)
    if arranged.height == 0:
        raise DataError(f"{table.name}: every sequence is empty.")
    _sequences_of_one_row(arranged, settings, notes)
    part, how = assign_parts(arranged, settings.split, settings.split_by, seed)
    notes.append(how)
    target = _fit_target(arranged, settings, part, notes)
    features = tuple(_fit_feature(arranged, name, settings, part, notes) for name in names)
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
    )
    numbers, codes = encode_features(arranged, features, settings.non_finite)
    y = encode_target(arranged, target, settings.per, settings.non_finite)
    sequences = Sequences(numbers, codes, y, arranged.offsets, part, arranged.rows, notes)
    if target.task == "class":
        pre = replace(pre, target=replace(target, counts=_count_classes(sequences, target, settings.per)))
    return pre, sequences


def _choose_features(table: Table, settings: DataSettings, split: str | None, notes: list[str]) -> list[str]:
    roles = {**dict.fromkeys(settings.group, "group"), **({settings.time: "time"} if settings.time else {})}
    if split:
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
            if not _readable(table.frame.schema[name]):
                raise DataError(
                    f"{table.name}: column {name!r} holds {table.frame.schema[name]}, which can't be a feature. "
                    "Turn it into numbers or text, or leave it out."
                )
        names = list(settings.features)
    else:
        names = [n for n in table.frame.columns if n not in roles and n not in settings.exclude]
        unread = [n for n in names if not _readable(table.frame.schema[n])]
        if unread:
            kinds = ", ".join(f"{n} ({table.frame.schema[n]})" for n in unread)
            notes.append(f"Left out, as neither numbers nor text: {kinds}.")
        names = [n for n in names if n not in unread]
    names = [n for n in names if n not in settings.exclude]
    if not names:
        raise DataError(
            f"{table.name}: no column is left to read beside the {', '.join(sorted(set(roles.values())))} column(s)."
        )
    return names


def _inner(dtype: Any) -> Any:
    return dtype.inner if isinstance(dtype, pl.List | pl.Array) else dtype


def _is_text(dtype: Any) -> bool:
    return dtype == pl.String or isinstance(dtype, pl.Categorical | pl.Enum)


def _readable(dtype: Any) -> bool:
    inner = _inner(dtype)
    return inner.is_numeric() or inner == pl.Boolean or _is_text(inner)


def _sequences_of_one_row(arranged: Arranged, settings: DataSettings, notes: list[str]) -> None:
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


# --- the target -------------------------------------------------------------------------------------------------


def _fit_target(arranged: Arranged, settings: DataSettings, part: np.ndarray, notes: list[str]) -> Target:
    table, names = arranged.table, settings.target
    dtypes = {name: arranged.frame.schema[name] for name in names}
    task = settings.task if settings.task != "auto" else _infer_task(arranged, settings, dtypes, notes)
    train = part == TRAIN
    if task == "class":
        if len(names) > 1:
            raise SettingsError(
                f"task='class' predicts one column; target names {len(names)}. Use task='labels' for several 0/1 columns."
            )
        column = arranged.column(names[0])
        if column.dtype.is_float():
            column = _whole_numbers(arranged, names[0])
        seen = column.filter(pl.Series(train)).drop_nulls()
        if not len(seen):
            raise DataError(f"{table.name}: no training row has a value in the target column {names[0]!r}.")
        classes = tuple(
            seen.cast(pl.String).unique().sort().to_list() if _is_text(seen.dtype) else seen.unique().sort().to_list()
        )
        if len(classes) == 1:
            every = column.drop_nulls().n_unique()
            where = "the training rows hold" if every > 1 else "it holds"
            raise DataError(
                f"{table.name}: the target {names[0]!r} has one class: {where} only {classes[0]!r}. There is nothing to tell apart."
            )
        _no_unseen_class(arranged, names[0], column, classes)
        return Target(names, task, classes)
    if task == "labels":
        shares = []
        for name in names:
            _zero_or_one(arranged, name)
            seen = arranged.column(name).cast(pl.Float64).filter(pl.Series(train)).drop_nulls().to_numpy()
            if not len(seen):
                raise DataError(f"{table.name}: no training row has a value in the target column {name!r}.")
            shares.append(float(seen.mean()))
        return Target(names, task, means=tuple(shares))
    means, stds = [], []
    for name in names:
        if not (dtypes[name].is_numeric() or dtypes[name] == pl.Boolean):
            raise DataError(f"{table.name}: the target {name!r} holds {dtypes[name]}; task='number' needs numbers.")
        values = _finite(arranged, name, settings.non_finite).filter(pl.Series(train)).drop_nulls()
        if not len(values):
            raise DataError(f"{table.name}: no training row has a value in the target column {name!r}.")
        mean, std = _mean_std(values)
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
    for name, dtype in dtypes.items():
        if not (dtype.is_numeric() or dtype == pl.Boolean or _is_text(dtype)):
            raise DataError(
                f"{table.name}: the target {name!r} holds {dtype}. Text, whole numbers, yes/no or floats can be predicted."
            )
    if len(names) == 1:
        name, column = names[0], arranged.column(names[0])
        if kinds[name] == "number":
            distinct = column.drop_nulls().unique()
            if len(distinct) <= 10 and bool((distinct == distinct.round()).all()):
                notes.append(
                    f"The target {name!r} is taken as a number; if its values {sorted(distinct.to_list())} are classes, say task='class'."
                )
            return "number"
        if column.dtype.is_integer() and (count := column.drop_nulls().n_unique()) > MANY_INTEGER_CLASSES:
            raise SettingsError(
                f"{table.name}: the target {name!r} holds {count} different whole numbers. Are they amounts (task='number', "
                "--task number) or classes (task='class')?"
            )
        return "class"
    if all(kind == "number" for kind in kinds.values()):
        return "number"
    if all(dtypes[n].is_integer() or dtypes[n] == pl.Boolean for n in names):
        if all(arranged.column(n).cast(pl.Int64).drop_nulls().is_in([0, 1]).all() for n in names):
            return "labels"
        return "number"
    if any(_is_text(d) for d in dtypes.values()):
        text = next(n for n, d in dtypes.items() if _is_text(d))
        raise SettingsError(
            f"{table.name}: target names several columns and {text!r} is text. Several targets are all numbers, or all 0/1 labels."
        )
    return "number"


def _whole_numbers(arranged: Arranged, name: str) -> pl.Series:
    column = _finite(arranged, name, "error")
    broken = (column != column.round()).fill_null(False).arg_true()
    if len(broken):
        raise DataError(
            f"{arranged.where(int(broken[0]))}, column {name!r}: {column[broken[0]]} is no class; whole numbers are expected."
        )
    return column.cast(pl.Int64)


def _zero_or_one(arranged: Arranged, name: str) -> None:
    column = arranged.column(name).cast(pl.Float64, strict=False)
    wrong = (~column.is_in([0.0, 1.0])).fill_null(arranged.column(name).is_not_null()).arg_true()
    if len(wrong):
        step = int(wrong[0])
        raise DataError(
            f"{arranged.where(step)}, column {name!r}: {arranged.column(name)[step]!r} is no label; 0 or 1 is expected."
        )


def _no_unseen_class(arranged: Arranged, name: str, column: pl.Series, classes: Sequence[Any]) -> None:
    values = column.cast(pl.String) if _is_text(column.dtype) else column
    unseen = (~values.is_in(list(classes))).fill_null(False).arg_true()
    if len(unseen):
        step = int(unseen[0])
        raise DataError(
            f"{arranged.where(step)}, column {name!r}: the class {values[step]!r} occurs in no training row, so it can't be "
            "learnt. Split differently, or leave the cell empty: such a row is read but not scored."
        )


def encode_target(arranged: Arranged, target: Target, per: str, non_finite: str) -> np.ndarray:
    """The target of each step, or of each sequence, as `Sequences.y` has it."""
    if per == "sequence":
        for name in target.names:
            _constant(arranged, name)
    if target.task == "class":
        name = target.names[0]
        column = arranged.column(name)
        if column.dtype.is_float():
            column = _whole_numbers(arranged, name)
        text = isinstance(target.classes[0], str)
        if text != _is_text(column.dtype):
            raise DataError(
                f"{arranged.table.name}: the target {name!r} holds {column.dtype}; in training it held {'text' if text else 'whole numbers'}."
            )
        if text:
            column = column.cast(pl.String)
        elif isinstance(target.classes[0], bool) != (column.dtype == pl.Boolean):
            column = column.cast(pl.Boolean if isinstance(target.classes[0], bool) else pl.Int64)
        _no_unseen_class(arranged, name, column, target.classes)
        codes = pl.Series(range(len(target.classes)), dtype=pl.Int64)
        y = (
            column.replace_strict(pl.Series(target.classes), codes, default=None, return_dtype=pl.Int64)
            .fill_null(MISSING_CLASS)
            .to_numpy()
            .copy()
        )
    else:
        y = np.empty((arranged.height, len(target.names)), dtype=np.float32)
        for k, name in enumerate(target.names):
            if target.task == "labels":
                _zero_or_one(arranged, name)
                values = arranged.column(name).cast(pl.Float64).fill_null(np.nan).to_numpy()
            else:
                values = _finite(arranged, name, non_finite).fill_null(np.nan).to_numpy()
                values = (values - target.means[k]) / target.stds[k]
            y[:, k] = values
    if per != "sequence":
        return y
    # The first scored step of a sequence speaks for all of it: _constant has made sure that they agree.
    missing = y == MISSING_CLASS if target.task == "class" else np.isnan(y).any(axis=1)
    out = np.full(
        (len(arranged.offsets) - 1, *y.shape[1:]), MISSING_CLASS if target.task == "class" else np.nan, dtype=y.dtype
    )
    steps = np.flatnonzero(~missing)
    owner = np.searchsorted(arranged.offsets, steps, side="right") - 1
    out[owner[::-1]] = y[steps[::-1]]
    return out


def _constant(arranged: Arranged, name: str) -> None:
    column = arranged.column(name)
    owner = pl.Series("__s", np.repeat(np.arange(len(arranged.offsets) - 1), arranged.lengths))
    frame = pl.DataFrame({"__s": owner, "value": column}).with_row_index("__i").drop_nulls("value")
    first = frame.group_by("__s").agg(pl.col("value").first().alias("first"))
    changed = frame.join(first, on="__s").filter(pl.col("value") != pl.col("first")).sort("__i")
    if changed.height:
        step, row = int(changed["__i"][0]), changed.row(0, named=True)
        raise DataError(
            f"{arranged.where(step)}, column {name!r}: {row['value']!r}, but the group {arranged.sequence_of(step)} began with "
            f"{row['first']!r}. With per='sequence' the target must be constant within a group; use per='step' otherwise."
        )


def _count_classes(sequences: Sequences, target: Target, per: str) -> tuple[int, ...]:
    assert sequences.y is not None
    y = sequences.y[sequences.containing(TRAIN)] if per == "sequence" else sequences.y[sequences.part == TRAIN]
    return tuple(int(n) for n in np.bincount(y[y >= 0], minlength=len(target.classes)))


# --- the features -----------------------------------------------------------------------------------------------


def _fit_feature(
    arranged: Arranged, name: str, settings: DataSettings, part: np.ndarray, notes: list[str]
) -> NumberColumn | TokenColumn:
    column = arranged.column(name)
    train = pl.Series(part == TRAIN)
    if _is_text(column.dtype) or name in settings.categories:
        words = name in settings.text or (name in arranged.lists and _is_text(column.dtype))
        if not words and column.dtype == pl.String:
            _text_among_numbers(arranged, name)
        values = _tokens(column, words).filter(train).drop_nulls()
        counted = values.value_counts().sort(["count", values.name], descending=[True, False])
        return TokenColumn(
            name,
            "words" if words else "category",
            tuple(counted[values.name].to_list()),
            tuple(counted["count"].to_list()),
        )
    values = _finite(arranged, name, settings.non_finite).filter(train)
    present = values.drop_nulls()
    if not len(present):
        raise DataError(
            f"{arranged.table.name}: column {name!r} is empty in every training row. Leave it out with exclude={name!r}."
        )
    mean, std = _mean_std(present)
    if std == 0:
        notes.append(f"Column {name!r} is {mean:g} in every training row: it can't help.")
    return NumberColumn(name, mean, std or 1.0, mask=len(present) < len(values))


def _mean_std(values: pl.Series) -> tuple[float, float]:
    array = values.to_numpy()
    mean = float(array.mean())
    std = float(array.std())
    # A constant column has a tiny std from rounding; dividing by it would make noise of it.
    return mean, std if std > 1e-12 * max(1.0, abs(mean)) else 0.0


def _tokens(column: pl.Series, words: bool) -> pl.Series:
    if column.dtype.is_float():  # whole-number codes with gaps: 3.0 is the code 3
        column = column.cast(pl.Int64, strict=False)
    text = column.cast(pl.String)
    return text.str.to_lowercase() if words else text


def _text_among_numbers(arranged: Arranged, name: str) -> None:
    column = arranged.column(name)
    parsed = column.cast(pl.Float64, strict=False)
    present = int(column.is_not_null().sum())
    broken = (parsed.is_null() & column.is_not_null()).arg_true()
    # Nine in ten are numbers: the others are slips, not categories.
    if 0 < len(broken) <= 0.1 * present:
        step = int(broken[0])
        raise DataError(
            f"{arranged.where(step)}, column {name!r}: {column[step]!r} is not a number, while {present - len(broken)} other "
            f"values are. Mend it, leave the cell empty, or name the column a category (categories={name!r}, --categories {name})."
        )


def _finite(arranged: Arranged, name: str, non_finite: str) -> pl.Series:
    """The column as float64 with null where a value is missing. Raises DataError at text, NaN or infinity."""
    column = arranged.column(name)
    if _is_text(column.dtype):
        numbers = column.cast(pl.String).cast(pl.Float64, strict=False)
        broken = (numbers.is_null() & column.is_not_null()).arg_true()
        if len(broken):
            step = int(broken[0])
            raise DataError(
                f"{arranged.where(step)}, column {name!r}: {column[step]!r} is not a number. Mend it or leave the cell empty."
            )
        column = numbers
    elif not (column.dtype.is_numeric() or column.dtype in (pl.Boolean, pl.Null)):
        raise DataError(f"{arranged.table.name}: column {name!r} holds {column.dtype}; numbers are expected.")
    was_float = column.dtype.is_float()
    column = column.cast(pl.Float64)
    if was_float:
        finite = column.is_finite()
        if not finite.all():
            if non_finite == "error":
                step = int((~finite).arg_true()[0])
                raise DataError(
                    f"{arranged.where(step)}, column {name!r}: {column[step]} is not a finite number. Leave a missing value "
                    "empty, or take all such values as missing with non_finite='missing' (--non-finite missing)."
                )
            column = pl.select(pl.when(finite).then(column).otherwise(None).alias(name)).to_series()
    return column


def encode_features(
    arranged: Arranged, features: Sequence[NumberColumn | TokenColumn], non_finite: str
) -> tuple[np.ndarray, np.ndarray]:
    """`Sequences.numbers` and `Sequences.codes` of the arranged rows."""
    steps = arranged.height
    numeric = [c for c in features if isinstance(c, NumberColumn)]
    tokens = [c for c in features if isinstance(c, TokenColumn)]
    masked = [c for c in numeric if c.mask]
    numbers = np.empty((steps, len(numeric) + len(masked)), dtype=np.float32)
    mask_column = len(numeric)
    for k, c in enumerate(numeric):
        values = _finite(arranged, c.name, non_finite)
        missing = values.null_count() > 0
        numbers[:, k] = ((values - c.mean) / c.std).fill_null(0.0).to_numpy()
        if c.mask:
            numbers[:, mask_column] = values.is_null().to_numpy() if missing else 0.0
            mask_column += 1
    codes = np.empty((steps, len(tokens)), dtype=np.int64)
    for k, t in enumerate(tokens):
        values = _tokens(arranged.column(t.name), t.kind == "words")
        known = pl.Series(t.vocabulary, dtype=pl.String)
        entries = pl.Series(range(1, t.size), dtype=pl.Int64)
        codes[:, k] = values.replace_strict(known, entries, default=0, return_dtype=pl.Int64).fill_null(0).to_numpy()
    return numbers, codes
