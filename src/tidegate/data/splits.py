"""Which rows train, which choose the best epoch (valid) and which judge (test)."""

from __future__ import annotations

import numpy as np
import polars as pl

from tidegate.data.arrange import Arranged
from tidegate.data.sequences import NOWHERE, TEST, TRAIN, VALID
from tidegate.data.settings import VALID_SHARE
from tidegate.documents import shown
from tidegate.errors import DataError, SettingsError

_WORDS = {
    "train": TRAIN, "training": TRAIN,
    "valid": VALID, "val": VALID, "validation": VALID, "dev": VALID,
    "test": TEST, "testing": TEST,
}  # fmt: skip
FEW_SEQUENCES = 5  # with fewer, whole groups can't be shared out among three parts


def assign_parts(
    arranged: Arranged, split: str | tuple[float, float, float], split_by: str, seed: int
) -> tuple[np.ndarray, str]:
    """The part of each step [N] and a sentence that says how they were drawn.

    A sequence never lies in two parts, except where sequences are cut by time: then its rows go to train, valid
    and test in this order. Raises DataError: an unknown word in the split column, a group in two parts, no training row.
    """
    lengths = arranged.lengths
    if not isinstance(split, str):
        by_time = split_by == "time" or (split_by == "auto" and len(lengths) < FEW_SEQUENCES)
        if by_time:
            part = _by_time(lengths, split)
            how = "the first rows of each sequence train, the next validate, the last test"
        else:
            part = _by_group(lengths, split, seed)
            how = f"whole sequences, drawn with seed {seed}"
        if not (part == TRAIN).any():
            raise DataError(f"{arranged.table.name}: too few rows ({arranged.height}) to leave any to train on.")
        return part, f"Split: {how} ({_shares(split)})."
    part = _by_column(arranged, split)
    if not (part == TRAIN).any():
        raise DataError(f"{arranged.table.name}: no row of the split column {split!r} says train.")
    if (part == VALID).any():
        return part, f"Split: as column {split!r} says."
    train = [s for s in range(len(lengths)) if lengths[s] and part[arranged.offsets[s]] == TRAIN]
    keep = (1 - VALID_SHARE, VALID_SHARE, 0.0)
    if split_by == "time" or (split_by == "auto" and len(train) < FEW_SEQUENCES):
        for start, end in zip(arranged.offsets[:-1], arranged.offsets[1:], strict=True):
            mine = start + np.flatnonzero(part[start:end] == TRAIN)
            part[mine] = _by_time(np.array([len(mine)]), keep)
        how = f"the last {VALID_SHARE:.0%} of each training sequence validate"
    else:
        chosen = _by_group(np.ones(len(train), dtype=np.int64), keep, seed)
        for s, p in zip(train, chosen, strict=True):
            part[arranged.offsets[s] : arranged.offsets[s + 1]] = p
        how = f"{VALID_SHARE:.0%} of the training sequences, drawn with seed {seed}, validate"
    return part, f"Split: as column {split!r} says; it names no rows to validate on, so {how}."


def _shares(split: tuple[float, float, float]) -> str:
    return "train {:.0%}, valid {:.0%}, test {:.0%}".format(*split)


def _by_time(lengths: np.ndarray, split: tuple[float, float, float]) -> np.ndarray:
    out = []
    for n in lengths:
        first, second = round(split[0] * n), round((split[0] + split[1]) * n)
        out.append(np.repeat(np.array([TRAIN, VALID, TEST], dtype=np.uint8), [first, second - first, n - second]))
    return np.concatenate(out)


def _by_group(lengths: np.ndarray, split: tuple[float, float, float], seed: int) -> np.ndarray:
    count = len(lengths)
    wanted = [max(1, round(f * count)) if f > 0 else 0 for f in split[1:]]
    if sum(wanted) >= count:
        raise SettingsError(
            f"split={split} leaves none of the {count} sequences to train on. Use split_by='time' (--split-by time) to cut each sequence."
        )
    of_sequence = np.full(count, TRAIN, dtype=np.uint8)
    order = np.random.default_rng([seed, 1]).permutation(count)
    of_sequence[order[: wanted[0]]] = VALID
    of_sequence[order[wanted[0] : sum(wanted)]] = TEST
    return np.repeat(of_sequence, lengths)


def _by_column(arranged: Arranged, name: str) -> np.ndarray:
    column = arranged.column(name).cast(pl.String)
    words = column.str.to_lowercase().str.strip_chars()
    part = words.replace_strict(list(_WORDS), list(_WORDS.values()), default=NOWHERE, return_dtype=pl.UInt8).fill_null(
        NOWHERE
    )
    wrong = (part == NOWHERE).arg_true()
    if len(wrong):
        step = int(wrong[0])
        raise DataError(
            f"{arranged.where(step)}, column {name!r}: {shown(column[step])} is not a part. Write train, valid or test."
        )
    out = part.to_numpy().copy()
    if len(arranged.lengths) > 1:
        changes = np.flatnonzero(out[1:] != out[:-1]) + 1
        inside = np.setdiff1d(changes, arranged.offsets)
        if inside.size:
            step = int(inside[0])
            raise DataError(
                f"{arranged.where(step)}, column {name!r}: the group {arranged.sequence_of(step)} is in two splits "
                f"({column[step - 1]} and {column[step]}). A group belongs to one, or its rows would leak."
            )
    return out
