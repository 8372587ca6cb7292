"""Cross-validation: which rows train and which validate in one of K folds. Test rows stay what they are."""

from __future__ import annotations

import numpy as np
import polars as pl

from tidegate.data.arrange import Arranged
from tidegate.data.sequences import NOWHERE, TEST, TRAIN, VALID
from tidegate.data.settings import DataSettings
from tidegate.data.splits import assign_parts, cuts
from tidegate.errors import DataError, SettingsError


def which(fold: str) -> tuple[int, int]:
    """ "2/5" is the second of five folds. "0/5": none of them validates, all train.

    >>> which("2/5")
    (2, 5)
    """
    number, _, count = fold.partition("/")
    return int(number), int(count)


def parts_of(arranged: Arranged, settings: DataSettings, seed: int) -> tuple[np.ndarray, list[str]]:
    """The part of each step [N] as the settings have it: their split, and the fold where they name one; and how these were found.

    seed: of the run; it draws the split unless the settings name another one for that. Raises what `assign_parts` and `assign_fold`
    do.
    """
    seed = seed if settings.split_seed is None else settings.split_seed
    part, how = assign_parts(arranged, settings.split, settings.split_by, seed, time=settings.time, per=settings.per)
    if settings.fold is None:
        return part, how
    classes = _class_of_each_sequence(arranged, settings)
    part, said = assign_fold(
        arranged, part, settings.fold, split_by=settings.split_by, per=settings.per, classes=classes, seed=seed
    )
    return part, [said, *how[1:]]


def assign_fold(
    arranged: Arranged, part: np.ndarray, fold: str, *, split_by: str, per: str, classes: np.ndarray | None, seed: int
) -> tuple[np.ndarray, str]:
    """The part of each step [N] in one fold, and a sentence that says how the folds were made.

    part: as the split has it without folds. Its test rows stay; the others are shared out anew. Where the split keeps sequences
    whole, so do the folds: each sequence validates in exactly one of them. Where it cuts sequences by time, the folds go
    forward in time: the rows before a fold train, and those after it are in no part.
    classes [S]: the class of each sequence, where it has one: every fold then has its share of each.

    Raises SettingsError: fewer sequences than folds, or a split by date. DataError: too few rows.
    """
    number, count = which(fold)
    if split_by == "date":
        raise SettingsError(
            "Folds are of whole sequences or go forward in time within each, and split_by='date' has one border for all. Use "
            "split_by='group' or 'time' (--split-by)."
        )
    owner = np.repeat(np.arange(len(arranged.lengths)), arranged.lengths)
    free = np.unique(owner[part != TEST])
    cut = bool(((part[1:] != part[:-1]) & (owner[1:] == owner[:-1])).any())
    if cut or cuts(split_by, per, len(free)):
        out = _forward(arranged, part, number, count)
        how = "each validates on the rows that follow those it trains on"
    elif len(free) < count:
        raise SettingsError(
            f"{arranged.table.name}: {count} folds need at least {count} sequences that are not test; there are {len(free)}. Use fewer"
            + ("." if per == "sequence" else ", or split_by='time' (--split-by time) to cut each sequence.")
        )
    else:
        validates = free[deal(len(free), count, None if classes is None else classes[free], seed) == number - 1]
        out = np.where(part == TEST, TEST, np.where(np.isin(owner, validates), VALID, TRAIN)).astype(np.uint8)
        how = f"whole sequences, drawn with seed {seed}" + (", of each class alike" if classes is not None else "")
    if not (out == TRAIN).any() or (number and not (out == VALID).any()):
        raise DataError(
            f"{arranged.table.name}: too few rows ({int((part != TEST).sum()):,} are not test) for {count} folds. Use fewer."
        )
    said = f"fold {number} of {count} validates" if number else f"all {count} folds train"
    return out, f"Split: {said}; {how}. The test rows are those of a split without folds."


def deal(sequences: int, count: int, classes: np.ndarray | None, seed: int) -> np.ndarray:
    """In which of `count` folds each sequence validates [S], from 0 on: at random, and of every class, as of all, as many in each
    fold as in another, or one more.
    """
    order = np.random.default_rng([seed, 5]).permutation(sequences)
    if classes is not None:
        order = order[np.argsort(classes[order], kind="stable")]
    out = np.empty(sequences, dtype=np.int64)
    out[order] = np.arange(sequences) % count  # like cards: class after class
    return out


def _forward(arranged: Arranged, part: np.ndarray, number: int, count: int) -> np.ndarray:
    """The rows of each sequence in count + 1 blocks of one size, what is left over in the first: block `number` validates, those
    before it train. With number 0 all train.
    """
    out = part.copy()
    for start, end in zip(arranged.offsets[:-1], arranged.offsets[1:], strict=True):
        mine = start + np.flatnonzero(part[start:end] != TEST)
        size = len(mine) // (count + 1)
        first = len(mine) - (count + 1 - number) * size if number else len(mine)
        out[mine[:first]] = TRAIN
        out[mine[first : first + size]] = VALID
        out[mine[first + size :]] = NOWHERE
    return out


def _class_of_each_sequence(arranged: Arranged, settings: DataSettings) -> np.ndarray | None:
    """A number for the class of each sequence [S], 0 where it has none; None where the target is no class, or changes within a
    sequence.
    """
    if len(settings.target) > 1 or settings.horizon or settings.task not in ("auto", "class"):
        return None
    column = arranged.column(settings.target[0])
    if settings.task == "auto" and (column.dtype.is_float() or column.dtype.is_decimal()):
        return None
    codes = column.cast(pl.String).rank("dense").fill_null(0).to_numpy().astype(np.int64)
    filled = arranged.lengths > 0
    starts = arranged.offsets[:-1][filled]
    out = np.zeros(len(filled), dtype=np.int64)
    out[filled] = np.maximum.reduceat(codes, starts)
    least = np.minimum.reduceat(np.where(codes > 0, codes, len(codes) + 1), starts)
    return None if (least < out[filled]).any() else out
