"""Sequences as flat arrays, in memory or on disk, and where each one starts. No padding is stored."""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tidegate.errors import DataError

TRAIN, VALID, TEST, NOWHERE = 0, 1, 2, 255
PART_NAMES = {"train": TRAIN, "valid": VALID, "test": TEST}
MISSING_CLASS = -100  # what torch's cross_entropy leaves out
# Class k of those that training never saw is UNSEEN_CLASS - k. Every class that can be learned is 0 or more, so one comparison
# leaves both kinds out of a loss; scores leave out the missing ones alone.
UNSEEN_CLASS = MISSING_CLASS - 1
BLOCK = (
    2**20
)  # steps that are looked at together where all are: what is worked out on the way follows it, not the table


class Mapped:
    """Arrays that lie on disk: mapped, to go through all of them, and as files, for pieces from anywhere."""

    def __init__(self, maps: Sequence[mmap.mmap]) -> None:
        self._maps = maps
        self._files: dict[str, tuple[int, int]] = {}  # of each array its file, and where in it the first row is

    def open(self, name: str, path: Path, where: int) -> None:
        """The file of an array, which stays open as long as this is there. where: the byte at which its first row is."""
        file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, file)
        self._files[name] = file, where

    def read(self, name: str, array: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """The rows starts[k]:ends[k] of an array, one piece behind the other.

        They are read, not touched where they are mapped: each address that is touched brings up to 2 MB of the file into the process's
        memory, and a batch has dozens of pieces.
        """
        out = np.empty((int((ends - starts).sum()), *array.shape[1:]), dtype=array.dtype)
        row = array.dtype.itemsize * int(np.prod(array.shape[1:]))
        at = 0
        if not row:
            return out
        to = out.reshape(-1).view(np.uint8).data
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            size = (end - start) * row
            if not hasattr(os, "preadv"):  # Windows
                to[at : at + size] = array[start:end].reshape(-1).view(np.uint8).data
            elif (
                size
                and os.preadv(self._files[name][0], [to[at : at + size]], self._files[name][1] + start * row) < size
            ):
                raise DataError(f"The store of this training was cut off while it was in use: {name} ends too early.")
            at += size
        return out

    def release(self) -> None:
        """Give the pages that were touched back to the system, which reads them again where they are needed. Without this they would
        count as memory of the process, up to the size of the table.
        """
        if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows, which takes them back by itself
            for one in self._maps:
                one.madvise(mmap.MADV_DONTNEED)


@dataclass
class Sequences:
    """N steps of S sequences. Those of sequence s are `offsets[s]:offsets[s + 1]`, in order.

    numbers  [N, F] float32   standardised numbers, then the masks of the columns that can be missing (1: missing)
    codes    [N, C] int64     rows of the vocabularies; 0 is the unknown entry
    y        [N] or [S] int64 (classes; MISSING_CLASS where there is none, UNSEEN_CLASS - k for unseen[k]), or
             [N, K] or [S, K] float32 (standardised numbers, or 0/1 labels; NaN where there is none);
             None where the table has no target. [S] when one value a sequence is predicted.
    part     [N] uint8        TRAIN, VALID or TEST
    rows     [N] int64        the table's row of each step
    unseen   the classes of the target that occur in no training row, the most frequent first
    stretch  [N] int64        changes from step to step of a sequence where no target may lie across; None: nowhere
    mapped   the files in which the arrays lie; None: they are in memory
    """

    numbers: np.ndarray
    codes: np.ndarray
    y: np.ndarray | None
    offsets: np.ndarray
    part: np.ndarray
    rows: np.ndarray
    notes: list[str] = field(default_factory=list)
    unseen: tuple[Any, ...] = ()
    stretch: np.ndarray | None = None
    mapped: Mapped | None = None

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def release(self) -> None:
        """Whatever of the arrays was read from disk need not stay in memory."""
        if self.mapped is not None:
            self.mapped.release()

    def blocks(self) -> Iterator[tuple[int, int]]:
        """All steps, BLOCK at a time: (first, end), ..."""
        count = len(self.part)
        for first in range(0, count, BLOCK):
            yield first, min(first + BLOCK, count)
            self.release()

    def bounds(self, first: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """Of the steps first:end, where the sequence of each begins and where it ends. [n], [n]"""
        s, t = int(np.searchsorted(self.offsets, first, side="right")) - 1, int(np.searchsorted(self.offsets, end))
        counts = np.diff(np.clip(self.offsets[s : t + 1], first, end))
        return np.repeat(self.offsets[s:t], counts), np.repeat(self.offsets[s + 1 : t + 1], counts)

    def between(self, first: int, end: int) -> Sequences:
        """The steps first:end alone, of a target a step; sequences at the ends may be cut."""
        s, t = int(np.searchsorted(self.offsets, first, side="right")) - 1, int(np.searchsorted(self.offsets, end))
        numbers, codes, part, rows = (a[first:end] for a in (self.numbers, self.codes, self.part, self.rows))
        y, stretch = (None if a is None else a[first:end] for a in (self.y, self.stretch))
        offsets = np.clip(self.offsets[s : t + 1], first, end) - first
        return replace(self, numbers=numbers, codes=codes, y=y, offsets=offsets, part=part, rows=rows, stretch=stretch)

    def count(self, part: int) -> int:
        """How many steps are in a part."""
        return sum(int(np.count_nonzero(self.part[first:end] == part)) for first, end in self.blocks())

    def segments(self, part: int) -> np.ndarray:
        """Where the steps of `part` lie: [(start, end), ...], cut at the borders of sequences. [M, 2]"""
        filled = self.lengths > 0
        firsts, lasts = self.offsets[:-1][filled], self.offsets[1:][filled] - 1
        starts: list[np.ndarray] = []
        ends: list[np.ndarray] = []
        previous = False  # whether the step before the block is inside
        for first, end in self.blocks():
            inside = self.part[first:end] == part
            begins, stops = inside.copy(), inside.copy()
            begins[1:] &= ~inside[:-1]
            stops[:-1] &= ~inside[1:]
            begins[0] &= not previous
            previous = bool(inside[-1])
            stops[-1] &= not (end < len(self.part) and self.part[end] == part)
            borders, limits = (at[slice(*np.searchsorted(at, (first, end)))] - first for at in (firsts, lasts))
            begins[borders] = inside[borders]
            stops[limits] = inside[limits]
            starts.append(first + np.flatnonzero(begins))
            ends.append(first + np.flatnonzero(stops) + 1)
        return np.stack([np.concatenate([np.zeros(0, np.int64), *some]) for some in (starts, ends)], axis=1)

    def containing(self, part: int | None) -> np.ndarray:
        """The sequences with at least one step in `part` (None: all that have a step)."""
        if part is None:
            return np.flatnonzero(self.lengths > 0)
        return np.unique(np.searchsorted(self.offsets, self.segments(part)[:, 0], side="right") - 1)
