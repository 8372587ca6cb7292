"""One sequence of a table, as a person would point at it and read it."""

from __future__ import annotations

import difflib
import operator
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from tidegate.data.groups import texts
from tidegate.data.preprocessing import NumberColumn, Preprocessing, TokenColumn
from tidegate.data.tables import Table
from tidegate.errors import DataError, SettingsError

GOLDEN = (5**0.5 - 1) / 2  # a walk by the golden ratio meets everything evenly, and nothing twice
_MOST_COMPARED = 20_000  # names: searching more for the nearest one would take seconds


@dataclass(frozen=True)
class InputColumn:
    """An input of the model at every step of the sequence, in the table's own units.

    kind: "number", "category" or "words"; values: floats (NaN: missing) or text (None: missing); unknown: for text, whether
    training never saw it, so that the model reads the unknown entry; features: which of the core's inputs it is, of words with those
    of their shape and suffix.
    """

    name: str
    kind: str
    values: Any
    unknown: np.ndarray | None
    features: tuple[int, ...]


def find(wanted: str | int | None, names: list[str], table: Table, pre: Preprocessing) -> int:
    """The index of the sequence that is called `wanted`; None: the first one.

    Raises DataError: there is none of that name (it says the nearest and how many there are), or there are several.
    """
    if wanted is None:
        return 0
    text = str(wanted)
    for candidate in (text, f"row {text}"):
        count = names.count(candidate)
        if count > 1:
            raise DataError(
                f"{table.name} has {count} sequences whose group columns read {candidate!r}. Rename one of the groups, or inspect a table that "
                "holds one of them alone."
            )
        if count:
            return names.index(candidate)
    if len(pre.group) == 1:  # as Python writes it: a date without its microseconds, False, 1e-09
        column = table.frame[pre.group[0]]
        rows = [k for k, value in enumerate(column.to_list()) if str(value) == text]
        if rows:
            return names.index(texts(column[rows[0] : rows[0] + 1])[0])
    # "a,b" for the groups "a, b", or a blank too many: if it can mean one sequence alone.
    text = "".join(text.split())
    alike = [k for k, name in enumerate(names) if "".join(name.split()) == text]
    if len(alike) == 1:
        return alike[0]
    text = " ".join(str(wanted).split())
    if not pre.group and not pre.lists:
        raise DataError(f"{table.name} has no group column in this run: it is one sequence. Leave --sequence out.")
    what = (
        f"in the column{'s' * (len(pre.group) != 1)} {', '.join(map(repr, pre.group))}" if pre.group else "(a row each)"
    )
    raise DataError(
        f"{table.name} has no sequence {text!r}.{_nearest(text, names, pre.lists)} It has {len(names):,} {what}, from {names[0]!r} to {names[-1]!r}."
    )


def _nearest(text: str, names: list[str], rows: bool) -> str:
    if rows:
        return ""
    try:
        wanted = float(text)
        numbers = {float(name): name for name in names}
        close = sorted(numbers, key=lambda n: (abs(n - wanted), n))[:3]
        found = [numbers[n] for n in close]
    except ValueError:
        lower = {name.lower(): name for name in names[:_MOST_COMPARED]}
        found = [lower[k] for k in difflib.get_close_matches(text.lower(), lower, n=3, cutoff=0.4)]
    return f" The nearest {'are' if len(found) > 1 else 'is'} {', '.join(map(repr, found))}." if found else ""


def stretch(steps: Any, length: int) -> tuple[int, int]:
    """Which steps to show, as (first, one past the last) from 0. steps: "A:B" or (A, B), the steps A to B, counted from 1; None: all.

    Raises SettingsError: not of that form, or outside of the sequence.
    """
    if steps is None:
        return 0, length
    try:
        parts: list[Any] = (
            steps.replace("-", ":").split(":") if isinstance(steps, str) else [*map(operator.index, steps)]
        )
        first, last = (
            int(part) if str(part).strip() else default for part, default in zip(parts, (1, length), strict=True)
        )
    except (TypeError, ValueError):
        raise SettingsError(f"steps={steps!r}: expected the first and the last step, such as 100:300.") from None
    if not 1 <= first <= last <= length:
        raise SettingsError(f"steps={steps!r}: the sequence has the steps 1 to {length:,}.")
    return first - 1, last


def columns_of(
    table: Table, pre: Preprocessing, dims: tuple[int, ...], codes: np.ndarray
) -> tuple[list[InputColumn], list[str] | None]:
    """The inputs of a table that holds one sequence, and the texts of its time column (None: there is none).

    dims: length of the vector of each token column; codes [T, C]: what the model reads of them.
    """
    arranged = pre.arrange(table, with_target=False)
    number_of = {c.name: k for k, c in enumerate(pre.numbers)}
    masks = [c.name for c in pre.numbers if c.mask]
    starts = np.cumsum([pre.number_width, *dims])
    columns = []
    for c in pre.features:
        if isinstance(c, TokenColumn) and c.of_words:
            continue  # with its words
        raw = arranged.column(c.name)
        if isinstance(c, NumberColumn):
            mask = (len(number_of) + masks.index(c.name),) if c.mask else ()
            values = raw.cast(pl.Float64, strict=False).to_numpy().astype(np.float64)
            values = np.where(np.isfinite(values), values, np.nan)
            columns.append(InputColumn(c.name, "number", values, None, (number_of[c.name], *mask)))
            continue
        mine = [k for k, token in enumerate(pre.tokens) if token.name == c.name]
        k = mine[0]
        text = raw.cast(pl.String, strict=False).to_list()
        unknown = (codes[:, k] == 0) & raw.is_not_null().to_numpy()
        columns.append(InputColumn(c.name, c.kind, text, unknown, tuple(range(starts[k], starts[mine[-1] + 1]))))
    times = None
    if pre.time is not None:
        times = [str(v) for v in arranged.column(pre.time).to_list()]
    return columns, times
