"""Sequences in memory: flat arrays and where each sequence starts. No padding is stored."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

TRAIN, VALID, TEST, NOWHERE = 0, 1, 2, 255
PART_NAMES = {"train": TRAIN, "valid": VALID, "test": TEST}
MISSING_CLASS = -100  # what torch's cross_entropy leaves out
# Class k of those that training never saw is UNSEEN_CLASS - k. Every class that can be learned is 0 or more, so one comparison
# leaves both kinds out of a loss; scores leave out the missing ones alone.
UNSEEN_CLASS = MISSING_CLASS - 1


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

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def segments(self, part: int) -> np.ndarray:
        """Where the steps of `part` lie: [(start, end), ...], cut at the borders of sequences. [M, 2]"""
        inside = self.part == part
        filled = self.lengths > 0
        first, last = np.zeros_like(inside), np.zeros_like(inside)
        first[self.offsets[:-1][filled]] = True
        last[self.offsets[1:][filled] - 1] = True
        before = np.append(False, inside[:-1])
        after = np.append(inside[1:], False)
        starts = np.flatnonzero(inside & (~before | first))
        ends = np.flatnonzero(inside & (~after | last)) + 1
        return np.stack([starts, ends], axis=1)

    def containing(self, part: int | None) -> np.ndarray:
        """The sequences with at least one step in `part` (None: all that have a step)."""
        if part is None:
            return np.flatnonzero(self.lengths > 0)
        counts = np.add.reduceat(np.append(self.part == part, False).astype(np.int64), self.offsets[:-1])
        return np.flatnonzero((counts > 0) & (self.lengths > 0))
