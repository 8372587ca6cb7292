"""How many threads an update takes, on a machine that others use too.

The bits of a training don't depend on the number of threads (docs/decisions/036), so it may change from update to update. Threads
that share an update meet many times in it, and where another program keeps one of them waiting, all wait: two threads then take
several times as long as one. Nothing tells that beforehand, so it is measured (docs/decisions/052).
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from types import TracebackType

import torch

FIRST, MOST = 4, 512  # updates until the other number is tried again: twice as many each time that it was no better
TRIED = 3  # updates of a trial
KEPT = 8  # updates of the present number that a trial is compared with
BETTER = 0.9  # the share of the time with which another number is taken: timings scatter
BAD = 2  # times as long as now: a trial ends at its first update
PYTHON = 64  # rows that take as long as what an update takes without any


class Threads:
    """While the block runs, torch has one thread or `most`, whichever made updates faster of late. It begins with one.

    >>> with Threads(2) as threads:
    ...     for rows in (320, 280, 300):
    ...         threads.begin()
    ...         threads.end(rows)                   # after an update of so many rows
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.now = 1
        self._costs: deque[float] = deque(maxlen=KEPT)  # seconds a row, with the present number
        self._trial: list[float] = []  # ... with the other one
        self._wait = self._left = FIRST

    def __enter__(self) -> Threads:
        self._before = torch.get_num_threads()
        torch.set_num_threads(self.now)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        torch.set_num_threads(self._before)

    @property
    def other(self) -> int:
        return 1 if self.now > 1 else self.most

    def begin(self) -> None:
        """An update begins."""
        self._began = time.perf_counter()

    def end(self, rows: int) -> None:
        """It is over, and had so many rows."""
        if self.most > 1:
            self.took((time.perf_counter() - self._began) / (PYTHON + rows))

    def took(self, cost: float) -> None:
        """An update took so many seconds a row."""
        if self._left:
            self._costs.append(cost)
            self._left -= 1
            if not self._left:
                self._trial.clear()
                torch.set_num_threads(self.other)
            return
        self._trial.append(cost)
        now = statistics.median(self._costs)
        if len(self._trial) < TRIED and cost < BAD * now:
            return
        if statistics.median(self._trial) < BETTER * now:
            self.now = self.other
            self._costs.clear()
            self._wait = FIRST
        else:
            self._wait = min(2 * self._wait, MOST)
        torch.set_num_threads(self.now)
        self._left = self._wait
