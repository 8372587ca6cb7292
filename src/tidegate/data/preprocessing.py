"""From columns to numbers, as data: what was fitted on the training rows is a JSON file, not code.

`fitting.fit` looks at a table once, decides what each column is and returns the `Preprocessing` with the encoded
sequences; `Preprocessing.apply` encodes another table in the same way.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import polars as pl

from tidegate.data.arrange import Arranged, arrange, require
from tidegate.data.dates import read_time
from tidegate.data.gaps import find_gaps, rows_before
from tidegate.data.numerals import NumberFormat
from tidegate.data.sequences import MISSING_CLASS, TEST, UNSEEN_CLASS, Sequences
from tidegate.data.splits import assign_parts
from tidegate.data.tables import Table
from tidegate.data.texts import read_numbers
from tidegate.data.word_features import FEATURES, feature_values
from tidegate.documents import Damaged, check, cut, from_json, shown
from tidegate.errors import DataError, RunError

FORMAT, VERSION = "tidegate-preprocessing", 3  # 3: with word features, or thresholds of labels
_SINCE_2 = ("formats", "date_order", "missing")  # without these a file is one of version 1, which earlier versions read
MOST_NAMED = 5  # classes told by name


@dataclass(frozen=True)
class NumberColumn:
    """(x - mean) / std of the training rows; a missing value becomes 0 and, with `mask`, a 1 in a column of its own."""

    name: str
    mean: float
    std: float
    mask: bool
    kind: str = "number"

    @property
    def label(self) -> str:
        """How messages and pages call it."""
        return self.name


@dataclass(frozen=True)
class TokenColumn:
    """A vocabulary: entry i + 1 stands for vocabulary[i], entry 0 for what training never saw and for missing values."""

    name: str
    # "category"; "words" (an item of a list or of a sentence; compared in lower case); "shape" or "suffix" of the words of a column
    kind: str
    vocabulary: tuple[str, ...]
    counts: tuple[int, ...]

    @property
    def size(self) -> int:
        return len(self.vocabulary) + 1

    @property
    def of_words(self) -> bool:
        """Whether it is not a column of the table but what the words of one look like (see `word_features`)."""
        return self.kind in FEATURES

    @property
    def label(self) -> str:
        """How messages and pages call it: no two columns alike."""
        return f"{self.name} ({self.kind})" if self.of_words else self.name


@dataclass(frozen=True)
class Target:
    """What is predicted: task "class", "labels" or "number"; classes in the type of their column.

    thresholds: of each 0/1 label, the probability above which it is predicted; (): 1/2 for all.
    """

    names: tuple[str, ...]
    task: str
    classes: tuple[Any, ...] = ()
    counts: tuple[int, ...] = ()  # training steps (or sequences) of each class
    means: tuple[float, ...] = ()  # of the training steps: of a number its mean, of a label its share of ones
    stds: tuple[float, ...] = ()
    rule: tuple[
        float, ...
    ] = ()  # of numbers whose means are those of an earlier run: the mean of the training steps themselves
    thresholds: tuple[float, ...] = ()

    @cached_property
    def cuts(self) -> tuple[float, ...]:
        """The thresholds in terms of scores, log odds that a float32 holds: a label is 1 where its score is above."""
        thresholds = self.thresholds or (0.5,) * len(self.names)
        return tuple(float(np.float32(np.log(t / (1 - t)))) for t in thresholds)

    @property
    def width(self) -> int:
        """Scores a step and a value of the horizon: one a class, else one a target column."""
        return len(self.classes) if self.task == "class" else len(self.names)

    @property
    def seen(self) -> tuple[Any, ...]:
        """The classes of the training rows, which are all that can be predicted: those that were counted there."""
        return self.classes[: len(self.counts)] if self.counts else self.classes

    def with_unseen(self, unseen: Sequence[Any]) -> Target:
        """The same with a table's classes that training never saw behind its own, so that they can be scored and named."""
        return replace(self, counts=self.counts or (0,) * len(self.classes), classes=(*self.classes, *unseen))


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
    # Of text columns that are numbers: how they are written.
    formats: Mapping[str, NumberFormat] = field(default_factory=dict)
    date_order: str = ""  # of times such as 01/02/2026: "dmy" or "mdy"
    missing: tuple[str, ...] = ()  # further spellings of a missing value

    @property
    def numbers(self) -> tuple[NumberColumn, ...]:
        return tuple(c for c in self.features if isinstance(c, NumberColumn))

    @property
    def tokens(self) -> tuple[TokenColumn, ...]:
        return tuple(c for c in self.features if isinstance(c, TokenColumn))

    @property
    def number_width(self) -> int:
        return len(self.numbers) + sum(c.mask for c in self.numbers)

    @property
    def columns(self) -> list[str]:
        """The table's columns that are read: a column of words once, whatever is read of it."""
        return list(dict.fromkeys(c.name for c in self.features))

    @property
    def names(self) -> list[str]:
        """All columns that it speaks of."""
        time = [] if self.time is None else [self.time]
        return [*self.group, *time, *self.target.names, *self.columns]

    def to_json(self) -> str:
        values = asdict(self)
        for name in _SINCE_2:
            if not values[name]:
                del values[name]
        for name in ("rule", "thresholds"):
            if not getattr(self.target, name):
                del values["target"][name]
        version = 2 if any(name in values for name in _SINCE_2) else 1
        version = VERSION if self.target.thresholds or any(c.of_words for c in self.tokens) else version
        return json.dumps({"format": FORMAT, "version": version, **values}, indent=1, ensure_ascii=False) + "\n"

    @staticmethod
    def from_json(text: str, name: str = "preprocessing.json") -> Preprocessing:
        """Raises RunError where `text` is not what `to_json` wrote."""
        try:
            values = from_json(text)
            if not isinstance(values, dict) or values.pop("format") != FORMAT:
                raise KeyError("format")
            version = values.pop("version")
            if type(version) is not int or version < 1:
                raise KeyError("version")
            if version > VERSION:
                raise RunError(f"{name} was written by a newer Tidegate. Update this one.")
            check(Preprocessing, values)
            features = tuple(
                NumberColumn(**c) if c["kind"] == "number" else TokenColumn(**_tuples(c))
                for c in values.pop("features")
            )
            target = Target(**_tuples(values.pop("target")))
            formats = {name: NumberFormat(**f) for name, f in values.pop("formats", {}).items()}
            pre = Preprocessing(**_tuples(values), features=features, target=target, formats=formats)
            pre._check()
            return pre
        except (Damaged, KeyError, TypeError) as error:
            raise RunError(f"{name} is damaged or was not written by Tidegate ({cut(str(error))}).") from error

    def _check(self) -> None:
        """Raises Damaged where the parts of a file of sound types contradict each other."""
        target, names = self.target, [c.label for c in self.features]
        widths = {"labels": (target.means,), "number": (target.means, target.stds)}
        kinds = {type(c) for c in target.classes}
        numbers = [*(c.mean for c in self.numbers), *target.means, *target.rule]
        spreads = [*(c.std for c in self.numbers), *target.stds]
        for good, what in (
            (names and len({*names}) == len(names) and target.names, "the names of features or targets"),
            (len(target.rule) in (0, len(target.names)), "the means of the target"),
            (len(target.thresholds) in (0, len(target.names)), "the thresholds of the labels"),
            (all(0 < t < 1 for t in target.thresholds), "the thresholds of the labels"),
            (self.horizon >= 0, "the horizon"),
            (
                self.non_finite in ("error", "missing") and self.date_order in ("", "dmy", "mdy"),
                "non_finite or date_order",
            ),
            (target.task in ("class", *widths), "the task"),
            (
                all(len(part) == len(target.names) for part in widths.get(target.task, ())),
                "the means or spreads of the target",
            ),
            (
                target.task != "class" or (len(target.names) == 1 and len(kinds) == 1 and kinds <= {str, int, bool}),
                "the classes",
            ),
            (len({*target.classes}) == len(target.classes), "the classes"),
            (
                len(target.counts) == len(target.classes) if target.task == "class" else not target.counts,
                "the counts of the classes",
            ),
            (all(count >= 0 for count in target.counts), "the counts of the classes"),
            (all(map(math.isfinite, numbers)) and all(0 < s < math.inf for s in spreads), "a mean or a spread"),
            (all(c.kind == "number" for c in self.numbers), "the kind of a feature"),
            (all(c.kind in ("category", "words", *FEATURES) for c in self.tokens), "the kind of a feature"),
            (all(len(c.counts) == len({*c.vocabulary}) == len(c.vocabulary) for c in self.tokens), "a vocabulary"),
            (all(f.sound for f in self.formats.values()), "a number format"),
        ):
            if not good:
                raise Damaged(f"{what} can't be right")

    def arrange(self, table: Table, *, with_target: bool, split: str | None = None) -> Arranged:
        """Another table's rows in the order of their sequences, lists and sentences cut into their items, not yet encoded.

        Arguments and errors are those of `apply`.
        """
        names = self.columns
        require(table, names, "feature")
        if with_target:
            require(table, self.target.names, "target")
            names += self.target.names
        if split is not None:
            require(table, [split], "split")
            names.append(split)
        table = self._read_numbers(table, with_target)
        table = read_time(table, self.time, self.date_order or "auto", otherwise="dmy")[0]
        by_items = bool(set(self.text) & set(self.target.names))
        text = [name for name in self.text if name in names and table.frame.schema[name] == pl.String]
        arranged = arrange(table, group=self.group, time=self.time, used=names, text=text, items=by_items)
        if self.lists and not arranged.lists:
            raise DataError(f"{table.name}: training had list columns, a sequence a row; here is a plain table.")
        return arranged

    def _read_numbers(self, table: Table, with_target: bool) -> Table:
        """The table with the numbers of its text columns, where training had numbers."""
        numbers = [c.name for c in self.numbers]
        strict = list(numbers)
        if with_target and not (self.target.classes and isinstance(self.target.classes[0], str)):
            numbers += self.target.names
            strict += self.target.names if self.target.task == "number" else []
        if self.time is not None and self.time in self.formats:
            numbers.append(self.time)
        return read_numbers(table, numbers, self.formats, strict=strict)

    def apply(
        self, table: Table, *, with_target: bool, split: str | None = None, across_gaps: bool = False
    ) -> Sequences:
        """Encode another table. with_target: its target columns must be there and are encoded too.

        split: a column that says train, valid or test; else every row counts as test. across_gaps: with a horizon, targets may lie
        across a gap in time.
        Raises DataError: the message names the file, the row and the column.
        """
        arranged = self.arrange(table, with_target=with_target, split=split)
        part = (
            assign_parts(arranged, split, "auto", seed=0, time=self.time, per=self.per)[0]
            if split is not None
            else np.full(arranged.height, TEST, dtype=np.uint8)
        )
        data = self.encode(arranged, part, with_target=with_target, across_gaps=across_gaps)
        data.notes[:0] = _mostly_unknown(arranged, self.tokens, data.codes)
        return data

    def encode(
        self, arranged: Arranged, part: np.ndarray, *, with_target: bool, across_gaps: bool = False
    ) -> Sequences:
        """Rows that were arranged, in the parts [N] that they belong to, as numbers. Its notes tell of gaps in time."""
        y, unseen = None, ()
        if with_target:
            y, unseen = encode_target(arranged, self.target, self.per, self.non_finite)
        numbers, codes = encode_features(arranged, self.features, self.non_finite)
        notes, stretch = [], None
        if with_target and self.horizon and self.time is not None and not across_gaps:
            gaps = find_gaps(arranged, self.time)
            if gaps.told:
                stretch = gaps.stretches()
                rows = rows_before(gaps.before, arranged.offsets, self.horizon)
                notes.append(f"{gaps.told} No target lies across a gap ({rows:,} row{'s' * (rows != 1)}).")
        return Sequences(numbers, codes, y, arranged.offsets, part, arranged.rows, notes, unseen, stretch)


def _mostly_unknown(arranged: Arranged, tokens: Sequence[TokenColumn], codes: np.ndarray) -> list[str]:
    """A sentence for each column of which training knew less than half: another coding or another language, perhaps."""
    notes = []
    for k, column in enumerate(tokens):
        if column.of_words:
            continue
        present = arranged.column(column.name).is_not_null().to_numpy()
        unknown = present & (codes[:, k] == 0)
        if unknown.sum() > 0.5 * present.sum():
            step = int(np.flatnonzero(unknown)[0])
            notes.append(
                f"{arranged.where(step)}, column {column.name!r}: {shown(arranged.column(column.name)[step])} and others, "
                f"{unknown.sum() / present.sum():.0%} of all values, never occurred in training. They are read as unknown."
            )
    return notes


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


def inner_type(dtype: Any) -> Any:
    """The type of a list's items; any other type as it is."""
    return dtype.inner if isinstance(dtype, pl.List | pl.Array) else dtype


def is_text(dtype: Any) -> bool:
    """Whether a column of this type holds text."""
    return dtype == pl.String or isinstance(dtype, pl.Categorical | pl.Enum)


def readable(dtype: Any) -> bool:
    """Whether a column of this type can be a feature: numbers, yes/no or text, alone or in lists."""
    inner = inner_type(dtype)
    return inner.is_numeric() or inner == pl.Boolean or is_text(inner)


def whole_numbers(arranged: Arranged, name: str) -> pl.Series:
    """A float column whose values are whole, as integers. Raises DataError at the first that is not."""
    column = finite_numbers(arranged, name, "error")
    broken = (column != column.round()).fill_null(False).arg_true()
    if len(broken):
        raise DataError(
            f"{arranged.where(int(broken[0]))}, column {name!r}: {column[broken[0]]} is no class; whole numbers are expected."
        )
    large = (column.abs() >= 2.0**63).fill_null(False).arg_true()
    if len(large):
        raise DataError(
            f"{arranged.where(int(large[0]))}, column {name!r}: {column[large[0]]:g} is no class; it is larger than any whole number of 64 bits."
        )
    return column.cast(pl.Int64)


def zero_or_one(arranged: Arranged, name: str) -> None:
    """Raises DataError at the first value of a label column that is neither 0, 1 nor missing."""
    column = arranged.column(name).cast(pl.Float64, strict=False)
    wrong = (~column.is_in([0.0, 1.0])).fill_null(arranged.column(name).is_not_null()).arg_true()
    if len(wrong):
        step = int(wrong[0])
        raise DataError(
            f"{arranged.where(step)}, column {name!r}: {shown(arranged.column(name)[step])} is no label; 0 or 1 is expected."
        )


def encode_target(
    arranged: Arranged, target: Target, per: str, non_finite: str, unseen: tuple[Any, ...] | None = None
) -> tuple[np.ndarray, tuple[Any, ...]]:
    """The target of each step, or of each sequence, as `Sequences.y` has it; and the classes that are not among `target`'s.

    unseen: these, where they are known; None: those that occur, the most frequent first.
    """
    if per == "sequence":
        for name in target.names:
            _constant(arranged, name)
    if target.task == "class":
        y, unseen = _encode_classes(arranged, target, unseen)
    else:
        unseen = ()
        y = np.empty((arranged.height, len(target.names)), dtype=np.float32)
        for k, name in enumerate(target.names):
            if target.task == "labels":
                zero_or_one(arranged, name)
                values = arranged.column(name).cast(pl.Float64).fill_null(np.nan).to_numpy()
            else:
                values = finite_numbers(arranged, name, non_finite).fill_null(np.nan).to_numpy()
                values = (values - target.means[k]) / target.stds[k]
            y[:, k] = values
    if per != "sequence":
        return y, unseen
    # The first scored step of a sequence speaks for all of it: _constant has made sure that they agree.
    missing = y == MISSING_CLASS if target.task == "class" else np.isnan(y).any(axis=1)
    out = np.full(
        (len(arranged.offsets) - 1, *y.shape[1:]), MISSING_CLASS if target.task == "class" else np.nan, dtype=y.dtype
    )
    steps = np.flatnonzero(~missing)
    owner = np.searchsorted(arranged.offsets, steps, side="right") - 1
    out[owner[::-1]] = y[steps[::-1]]
    return out, unseen


def _encode_classes(
    arranged: Arranged, target: Target, known: tuple[Any, ...] | None
) -> tuple[np.ndarray, tuple[Any, ...]]:
    name, classes = target.names[0], target.classes
    column = arranged.column(name)
    if column.dtype.is_float() or column.dtype.is_decimal():
        column = whole_numbers(arranged, name)
    text = isinstance(classes[0], str)
    if column.dtype == pl.Null:  # every cell is empty
        column = column.cast(pl.String if text else pl.Int64)
    if text != is_text(column.dtype):
        raise DataError(
            f"{arranged.table.name}: the target {name!r} holds {column.dtype}; in training it held {'text' if text else 'whole numbers'}."
        )
    if text:
        column = column.cast(pl.String)
    elif isinstance(classes[0], bool) != (column.dtype == pl.Boolean):  # 0 and 1 are no and yes; 2 is neither
        column, classes = column.cast(pl.Int64), tuple(int(c) for c in classes)
    if column.dtype.is_integer():  # a new table's integers may be narrower than the classes
        column = column.cast(pl.Int128)
    codes = pl.Series(range(len(classes)), dtype=pl.Int64)
    y = column.replace_strict(pl.Series(classes, dtype=column.dtype), codes, default=None, return_dtype=pl.Int64)
    if known is None:
        counted = column.filter(y.is_null()).drop_nulls().alias("class").value_counts(name="rows")
        unseen = counted.sort("rows", "class", descending=[True, False])["class"]
    else:
        unseen = pl.Series(known, dtype=column.dtype)
    if len(unseen):
        codes = pl.Series(UNSEEN_CLASS - np.arange(len(unseen)))
        y = y.fill_null(column.replace_strict(unseen, codes, default=None, return_dtype=pl.Int64))
    return y.fill_null(MISSING_CLASS).to_numpy().copy(), tuple(unseen.to_list())


def named(classes: Sequence[Any]) -> str:
    """At most five classes by name, and how many more there are.

    >>> named(["a", "b"]), named([1, 2, 3, 4, 5, 6, 7])
    ("'a' and 'b'", '1, 2, 3, 4, 5 and 2 more')
    """
    shown = [repr(c) for c in classes[:MOST_NAMED]]
    if len(classes) > MOST_NAMED:
        shown.append(f"{len(classes) - MOST_NAMED:,} more")
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def _constant(arranged: Arranged, name: str) -> None:
    column = arranged.column(name)
    owner = np.repeat(np.arange(len(arranged.offsets) - 1), arranged.lengths)
    frame = pl.DataFrame({"sequence": owner, "value": column}).with_row_index("step").drop_nulls("value")
    first = frame.group_by("sequence").agg(pl.col("value").first().alias("first"))
    changed = frame.join(first, on="sequence").filter(pl.col("value") != pl.col("first")).sort("step")
    if changed.height:
        step, row = int(changed["step"][0]), changed.row(0, named=True)
        raise DataError(
            f"{arranged.where(step)}, column {name!r}: {shown(row['value'])}, but the group {arranged.sequence_of(step)} began with "
            f"{shown(row['first'])}. With per='sequence' the target must be constant within a group; use per='step' otherwise."
        )


def token_values(column: pl.Series, kind: str) -> pl.Series:
    """A column of words, categories or whole-number codes as the text that the vocabulary of a `TokenColumn` of this kind holds."""
    text = column.cast(pl.String)
    if column.dtype.is_float():  # whole-number codes with gaps: 3.0 is the code 3, and 3.5 is no code that is known
        whole = column == column.round()
        text = pl.select(
            pl.when(whole).then(column.cast(pl.Int64, strict=False).cast(pl.String)).otherwise(text)
        ).to_series()
    if kind in FEATURES:
        return feature_values(text, kind)
    return text.str.to_lowercase() if kind == "words" else text


def finite_numbers(arranged: Arranged, name: str, non_finite: str) -> pl.Series:
    """The column as float64 with null where a value is missing. Raises DataError at text, NaN or infinity."""
    column = arranged.column(name)
    if is_text(column.dtype):
        numbers = column.cast(pl.String).cast(pl.Float64, strict=False)
        broken = (numbers.is_null() & column.is_not_null()).arg_true()
        if len(broken):
            step = int(broken[0])
            raise DataError(
                f"{arranged.where(step)}, column {name!r}: {shown(column[step])} is not a number. Mend it or leave the cell empty."
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
            column = pl.select(pl.when(finite).then(column).otherwise(None)).to_series()
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
        values = finite_numbers(arranged, c.name, non_finite)
        missing = values.null_count() > 0
        with np.errstate(over="ignore"):
            numbers[:, k] = ((values - c.mean) / c.std).fill_null(0.0).to_numpy()
        if not np.isfinite(numbers[:, k]).all():
            step = int(np.flatnonzero(~np.isfinite(numbers[:, k]))[0])
            raise DataError(
                f"{arranged.where(step)}, column {c.name!r}: {values[step]:g} is too far from the training rows (mean "
                f"{c.mean:g}, standard deviation {c.std:g}) for a 32-bit number. Mend it or leave the cell empty."
            )
        if c.mask:
            numbers[:, mask_column] = values.is_null().to_numpy() if missing else 0.0
            mask_column += 1
    codes = np.empty((steps, len(tokens)), dtype=np.int64)
    for k, t in enumerate(tokens):
        column = arranged.column(t.name)
        if not (readable(column.dtype) or column.dtype == pl.Null):
            raise DataError(
                f"{arranged.table.name}: column {t.name!r} holds {column.dtype}; in training it held categories."
            )
        values = token_values(column, t.kind)
        known = pl.Series(t.vocabulary, dtype=pl.String)
        entries = pl.Series(range(1, t.size), dtype=pl.Int64)
        codes[:, k] = values.replace_strict(known, entries, default=0, return_dtype=pl.Int64).fill_null(0).to_numpy()
    return numbers, codes
