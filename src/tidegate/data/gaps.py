"""Gaps in time: where rows are missing between others that are evenly spaced."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from tidegate.data.arrange import Arranged

LONGER = 1.5  # a step of more than so many usual ones is a gap: months of 28 to 31 days have none
EVEN, NEAR = 0.7, 0.25  # spacing is regular where so many of the steps are at most so far from the usual one
FAR = 5  # and is longer than all but so many quartile ranges: clocks that jitter have none
_OWN, _OWN_SPACING = 3, 10  # with so many steps a sequence has a usual step of its own, and with so many a spacing
_SECOND = 1_000_000  # times are whole microseconds
_DAY, _WEEK = 86_400 * _SECOND, 7 * 86_400 * _SECOND
_WEEKEND = [2, 3]  # of the days since 1970-01-01, a Thursday
_MOST_SLOTS, _CYCLES = 1_000_000, 3  # so many times a cycle must come before what never occurs in it says something
_UNITS = ((_DAY, "day"), (3_600 * _SECOND, "h"), (60 * _SECOND, "min"), (_SECOND, "s"), (1_000, "ms"), (1, "µs"))


@dataclass(frozen=True)
class Gaps:
    """before [N]: whether rows are missing before a step of the arranged rows. irregular: the times are not evenly spaced, so no gap can be found.
    told: sentences on how many gaps there are, and where the longest is; "" where there is none.
    """

    before: np.ndarray
    irregular: bool = False
    told: str = ""

    def stretches(self) -> np.ndarray:
        """[N] a number that changes with each gap: steps of a sequence that share it have none between them."""
        return np.cumsum(self.before)


def numbers_of(times: pl.Series) -> np.ndarray:
    """Times as numbers that can be subtracted: microseconds where they are dates or durations, else as they are."""
    if times.dtype == pl.Time:
        times = times.cast(pl.Int64) // 1000
    elif times.dtype == pl.Duration:
        times = times.cast(pl.Duration("us")).to_physical()
    elif times.dtype.is_temporal():
        times = times.cast(pl.Datetime("us")).to_physical()
    elif not times.dtype.is_integer() or times.dtype in (pl.UInt64, pl.Int128):
        times = times.cast(pl.Float64)
    return times.to_numpy()


def find_gaps(arranged: Arranged, time: str) -> Gaps:
    """Where rows are missing, by the column of the times.

    The usual step of a sequence is the median of its steps. Where EVEN of the steps are within NEAR of it, the spacing is regular,
    and a step of more than LONGER usual ones is a gap; where usual steps vary much, a gap must be longer still. Days and hours in
    which no sequence ever has a row, such as weekends and nights, are no gaps.
    """
    times = arranged.column(time)
    t = numbers_of(times)
    before = np.zeros(len(t), dtype=bool)
    first = np.zeros(len(t), dtype=bool)
    first[arranged.offsets[:-1][arranged.lengths > 0]] = True
    at = np.flatnonzero(~first)
    steps = t[at] - t[at - 1]
    if len(steps) < _OWN or steps.min() <= 0:  # the lists of a row need not be in the order of time
        return Gaps(before)
    if steps.max() <= LONGER * steps.min():
        return Gaps(before)
    owner = np.repeat(np.arange(len(arranged.lengths)), np.maximum(arranged.lengths - 1, 0))
    usual, regular = _usual_steps(steps, owner, len(arranged.lengths))
    relative = steps / usual[owner]
    even = regular[owner]
    if not even.any():
        return Gaps(before, irregular=True)
    around = relative[even & (relative > 0.5) & (relative < LONGER)]
    low, high = np.quantile(around, [0.25, 0.75])
    gap = even & (relative > max(LONGER, high + FAR * (high - low)))
    if gap.any() and times.dtype.is_temporal():
        gap &= _within_hours(t, at, usual[regular])
    before[at] = gap
    if not gap.any():
        return Gaps(before)
    apart = "evenly spaced"
    if (usual[regular] == usual[regular][0]).all():
        exact = bool((relative[even] == 1).mean() > EVEN)
        apart = f"{'' if exact else 'about '}{length(usual[regular][0], times.dtype.is_temporal())} apart"
    return Gaps(before, told=_told(arranged, time, at[gap], steps[gap], apart))


def _usual_steps(steps: np.ndarray, owner: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The median step of each sequence (the lower one of two) and whether its steps are regular. Short ones go by all."""
    counts = np.bincount(owner, minlength=count)
    ends = np.cumsum(counts)
    in_order = steps[np.lexsort((steps, owner))]
    middle = np.minimum(ends - counts + np.maximum(counts - 1, 0) // 2, len(steps) - 1)
    usual = np.where(
        counts >= _OWN, in_order[middle], np.partition(steps, (len(steps) - 1) // 2)[(len(steps) - 1) // 2]
    )
    near = np.abs(steps / usual[owner] - 1) <= NEAR
    share = np.bincount(owner, near, minlength=count) / np.maximum(counts, 1)
    return usual, np.where(counts >= _OWN_SPACING, share, near.mean()) >= EVEN


def _within_hours(t: np.ndarray, at: np.ndarray, usual: np.ndarray) -> np.ndarray:
    """Whether between a step and the one before it there are times at which, on other days or in other weeks, there are rows."""
    missing = np.ones(len(at), dtype=bool)
    step = int(usual[0])
    if not (usual == step).all():
        return missing
    for cycle in (_DAY, _WEEK):
        slots = cycle // step
        if cycle % step or not 2 <= slots <= _MOST_SLOTS:
            continue
        slot = t % cycle // step
        open_ = np.zeros(slots, dtype=bool)
        open_[slot] = True
        if step == _DAY and not open_[_WEEKEND].any():
            open_[:] = True
            open_[_WEEKEND] = False
        elif t.max() - t.min() < _CYCLES * cycle or len(t) < _CYCLES * open_.sum() or open_.all():
            continue
        passed = t // cycle * int(open_.sum()) + np.cumsum(open_)[slot]  # open slots up to and with this one
        missing &= passed[at] - passed[at - 1] > 1
    return missing


def _told(arranged: Arranged, time: str, at: np.ndarray, steps: np.ndarray, apart: str) -> str:
    times, longest = arranged.column(time), int(steps.argmax())
    step, count, sequences = int(at[longest]), len(at), len(arranged.lengths)
    where = who = ""
    if sequences > 1:
        those = len(np.unique(np.searchsorted(arranged.offsets, at, side="right")))
        where, who = f" in {those:,} of {sequences:,} sequences", f" is in {arranged.sequence_of(step)} and"
    return (
        f"Column {time!r}: rows are {apart}, but there {'is 1 gap' if count == 1 else f'are {count:,} gaps'}{where}; "
        f"{'it' if count == 1 else 'the longest'}{who} lasts {length(steps[longest], times.dtype.is_temporal())}, from {times[step - 1]} "
        f"to {times[step]} ({arranged.where(step)})."
    )


def length(step: float, dates: bool) -> str:
    """How long a step is, for a message.

    >>> length(5_400_000_000, True), length(86_400_000_000, True), length(2.5, False)
    ('90 min', '1 day', '2.5')
    """
    if not dates:
        return f"{step:g}"
    place = next((k for k, (unit, _) in enumerate(_UNITS) if step >= unit), len(_UNITS) - 1)
    if step < 2 * _UNITS[place][0] and step % _UNITS[place][0] and place + 1 < len(_UNITS):
        place += 1  # 90 min, not 1.5 h
    unit, name = _UNITS[place]
    text = f"{step / unit:.1f}".removesuffix(".0")
    return f"{text} {name}{'s' if name == 'day' and text != '1' else ''}"


def rows_before(before: np.ndarray, offsets: np.ndarray, horizon: int) -> int:
    """How many steps have one of their next `horizon` steps behind a gap."""
    at = np.flatnonzero(before)
    start = offsets[np.searchsorted(offsets, at, side="right") - 1]
    change = np.zeros(len(before) + 1, dtype=np.int64)
    np.add.at(change, np.maximum(start, at - horizon), 1)
    np.add.at(change, at, -1)
    return int((np.cumsum(change) > 0).sum())
