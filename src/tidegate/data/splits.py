"""Which rows train, which choose the best epoch (valid) and which judge (test)."""

from __future__ import annotations

import numpy as np
import polars as pl

from tidegate.data.arrange import Arranged
from tidegate.data.gaps import numbers_of
from tidegate.data.sequences import NOWHERE, PART_NAMES, TEST, TRAIN, VALID
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
    arranged: Arranged,
    split: str | tuple[float, float, float],
    split_by: str,
    seed: int,
    *,
    time: str | None = None,
    per: str = "step",
) -> tuple[np.ndarray, list[str]]:
    """The part of each step [N], and sentences that say how they were found.

    A sequence never lies in two parts, except where sequences are cut by time: then its rows go to train, valid
    and test in this order. time: the column that orders the rows. per: of "sequence", a date cuts none: a sequence belongs where
    its last row lies.
    Raises DataError: an unknown word in the split column, a group in two parts that don't follow each other, no training row.
    """
    part, how = _assign(arranged, split, split_by, seed, time, per)
    notes = [how]
    if time is not None and split_by != "date":
        notes += _older_than_training(arranged, part, time)
    return part, notes


def _assign(
    arranged: Arranged,
    split: str | tuple[float, float, float],
    split_by: str,
    seed: int,
    time: str | None,
    per: str,
) -> tuple[np.ndarray, str]:
    lengths = arranged.lengths
    if not isinstance(split, str):
        if split_by == "date":
            assert time is not None
            every = np.ones(arranged.height, dtype=bool)
            part, how = _by_date(arranged, time, per, split, every)
            return part, f"Split: {how}."
        if cuts(split_by, per, len(lengths)):
            part = _by_time(lengths, split)
            how = "the first rows of each sequence train, the next validate, the last test"
        else:
            part = _by_group(lengths, split, seed, per)
            how = f"whole sequences, drawn with seed {seed}"
        if not (part == TRAIN).any():
            raise DataError(f"{arranged.table.name}: too few rows ({arranged.height}) to leave any to train on.")
        return part, f"Split: {how} ({_shares(split)})."
    part, cut = by_column(arranged, split, time, per)
    return completed(arranged, part, cut, split, split_by=split_by, seed=seed, time=time, per=per)


def completed(
    arranged: Arranged, part: np.ndarray, cut: int, split: str, *, split_by: str, seed: int, time: str | None, per: str
) -> tuple[np.ndarray, str]:
    """The parts that the column `split` names, which cuts so many sequences by time, with rows to validate on where it names none."""
    lengths = arranged.lengths
    if not (part == TRAIN).any():
        raise DataError(f"{arranged.table.name}: no row of the split column {split!r} says train.")
    told = f"Split: as column {split!r} says"
    if cut:
        told += f", which cuts {cut:,} of {len(lengths):,} sequences by time"
    if (part == VALID).any():
        return part, f"{told}."
    train = [s for s in range(len(lengths)) if lengths[s] and part[arranged.offsets[s]] == TRAIN]
    keep = (1 - VALID_SHARE, VALID_SHARE, 0.0)
    if split_by == "date":
        assert time is not None
        among, how = _by_date(arranged, time, per, keep, part == TRAIN)
        part[part == TRAIN] = among[part == TRAIN]
        how = f"of the training rows, {how}"
    elif per == "sequence" and len(train) < 2:
        how = "none do, as one training sequence can't be shared out"
    elif cuts(split_by, per, 0 if cut else len(train)):
        for start, end in zip(arranged.offsets[:-1], arranged.offsets[1:], strict=True):
            mine = start + np.flatnonzero(part[start:end] == TRAIN)
            part[mine] = _by_time(np.array([len(mine)]), keep)
        how = f"the last {VALID_SHARE:.0%} of each training sequence validate"
    else:
        chosen = _by_group(np.ones(len(train), dtype=np.int64), keep, seed, per)
        owner = np.repeat(np.arange(len(lengths)), lengths)
        of_sequence = np.full(len(lengths), TRAIN, dtype=np.uint8)
        of_sequence[train] = chosen
        part = np.where(part == TRAIN, of_sequence[owner], part).astype(np.uint8)
        how = f"{VALID_SHARE:.0%} of the training sequences, drawn with seed {seed}, validate"
    return part, f"{told}; it names no rows to validate on, so {how}."


def _shares(split: tuple[float, float, float]) -> str:
    return "train {:.0%}, valid {:.0%}, test {:.0%}".format(*split)


def _by_time(lengths: np.ndarray, split: tuple[float, float, float]) -> np.ndarray:
    out = []
    for n in lengths:
        first, second = round(split[0] * n), round((split[0] + split[1]) * n)
        out.append(np.repeat(np.array([TRAIN, VALID, TEST], dtype=np.uint8), [first, second - first, n - second]))
    return np.concatenate(out)


def cuts(split_by: str, per: str, sequences: int) -> bool:
    """Whether each sequence is cut by time: where that is said, or with few sequences where nothing is.

    Raises SettingsError for sequences that have one target each: cut, they would train and test on the same one.
    """
    if per == "sequence":
        if split_by == "time":
            raise SettingsError(
                "split_by='time' cuts each sequence, and per='sequence' has one target a sequence, which would train and test the model at "
                "once. Use split_by='group' for whole sequences, or 'date' for those of later dates."
            )
        return False
    return split_by == "time" or (split_by == "auto" and sequences < FEW_SEQUENCES)


def _by_group(lengths: np.ndarray, split: tuple[float, float, float], seed: int, per: str) -> np.ndarray:
    count = len(lengths)
    wanted = [max(1, round(f * count)) if f > 0 else 0 for f in split[1:]]
    if sum(wanted) >= count:
        way = "Say how many train (split, --split)"
        way = way if per == "sequence" else "Use split_by='time' (--split-by time) to cut each sequence"
        raise SettingsError(f"split={split} leaves none of the {count} sequences to train on. {way}.")
    of_sequence = np.full(count, TRAIN, dtype=np.uint8)
    order = np.random.default_rng([seed, 1]).permutation(count)
    of_sequence[order[: wanted[0]]] = VALID
    of_sequence[order[wanted[0] : sum(wanted)]] = TEST
    return np.repeat(of_sequence, lengths)


def _by_date(
    arranged: Arranged, time: str, per: str, split: tuple[float, float, float], among: np.ndarray
) -> tuple[np.ndarray, str]:
    """Parts by one date for all sequences, and where it lies: between those two times that come nearest to the shares of the rows
    `among`."""
    times = arranged.column(time)
    t = numbers_of(times)
    if per == "sequence":  # all of a sequence lies where its last row does
        last = np.maximum(arranged.offsets[1:] - 1, 0)[arranged.lengths > 0]
        source = np.repeat(last, arranged.lengths[arranged.lengths > 0])
        t = t[source]
    chosen = np.flatnonzero(among)
    different, first, counts = np.unique(t[chosen], return_index=True, return_counts=True)
    before = np.cumsum(counts)[:-1]  # rows before the second, the third, ... time
    parts = [TRAIN, *(p for p, share in ((VALID, split[1]), (TEST, split[2])) if share > 0)]
    if len(different) < len(parts):
        raise DataError(
            f"{arranged.table.name}, column {time!r}: a split by date into {len(parts)} parts needs as many different times, and there "
            f"{'is 1' if len(different) == 1 else f'are {len(different)}'}. Split by group, or by a column (split, --split)."
        )
    part = np.full(arranged.height, TRAIN, dtype=np.uint8)
    at, share, borders = -1, 0.0, []
    for k, p in enumerate(parts[1:]):
        share += split[parts[k]]
        last_place = len(before) - (len(parts) - 2 - k)  # the parts to come need a time each
        at = at + 1 + int(np.abs(before[at + 1 : last_place] - share * len(chosen)).argmin())
        part[t >= different[at + 1]] = p
        row = int(chosen[first[at + 1]])
        borders.append(times[int(source[row]) if per == "sequence" else row])
    which = "sequences that end" if per == "sequence" else "rows"
    verbs = {TRAIN: "train", VALID: "validate", TEST: "test"}
    told = [
        f"{which if k == 0 else 'those'} before {border} {verbs[p]}"
        for k, (p, border) in enumerate(zip(parts, borders, strict=False))
    ]
    told.append(f"later ones {verbs[parts[-1]]}" if borders else "all rows train")
    shares = ", ".join(f"{name} {(part[chosen] == p).mean():.0%}" for name, p in PART_NAMES.items() if p in parts)
    return part, f"{', '.join(told)} ({shares} of the rows)"


def _older_than_training(arranged: Arranged, part: np.ndarray, time: str) -> list[str]:
    """A sentence on test rows that are older than training rows. Where each sequence counts its rows from 0, times say nothing."""
    times = arranged.column(time)
    train, test = part == TRAIN, part == TEST
    if not (train.any() and test.any()) or len(arranged.lengths) < 2 or times.dtype in (pl.Time, pl.Duration):
        return []
    t = numbers_of(times)
    begins = arranged.offsets[:-1][arranged.lengths > 0]
    if not times.dtype.is_temporal() and np.median(np.abs(t[begins])) <= 1:
        return []
    newest = int(np.flatnonzero(train)[t[train].argmax()])
    older = int((t[test] < t[newest]).sum())
    if not older:
        return []
    share = older / int(test.sum())
    return [
        f"{f'{share:.0%}' if share >= 0.01 else 'Less than 1%'} of the test rows are older than the newest training row ({times[newest]}): "
        "the model is judged on times that it has learned from. To train on the past and test on the future, say split_by='date' "
        "(--split-by date)."
    ]


def by_column(arranged: Arranged, name: str, time: str | None, per: str) -> tuple[np.ndarray, int]:
    """The parts that a column names, and how many groups it cuts by time."""
    column = arranged.column(name)
    try:
        column = column.cast(pl.String)
    except pl.exceptions.PolarsError:
        raise DataError(
            f"{arranged.table.name}: column {name!r} holds {column.dtype}. A split column says train, valid or test."
        ) from None
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
    if len(arranged.lengths) < 2:
        return out, 0
    changes = np.flatnonzero(out[1:] != out[:-1]) + 1
    inside = np.setdiff1d(changes, arranged.offsets)
    if not inside.size:
        return out, 0
    back = inside[out[inside] < out[inside - 1]]
    if time is None or per == "sequence" or back.size:
        step = int((back if time is not None and per != "sequence" else inside)[0])
        way = "A group belongs to one, or its rows would leak."
        if time is None:
            way += " Where the parts follow each other in time, name the column of the times (time, --time)."
        elif per != "sequence":
            way = (
                f"At {arranged.column(time)[step]} it goes back to an earlier part. A group belongs to one part, or its training rows come "
                "first, then those to validate on, then those to test."
            )
        raise DataError(
            f"{arranged.where(step)}, column {name!r}: the group {arranged.sequence_of(step)} is in two splits "
            f"({column[step - 1]} and {column[step]}). {way}"
        )
    return out, len(np.unique(np.searchsorted(arranged.offsets, inside, side="right")))
