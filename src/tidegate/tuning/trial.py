"""One trial: a training in memory that is told to the study part by part, and stopped where it isn't worth going on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tidegate.data.tables import Table
from tidegate.errors import SettingsError, TrainingFailed
from tidegate.trained import Trained
from tidegate.trained.metrics import chooser
from tidegate.trained.settings import TrainSettings
from tidegate.training.journal import History, Journal
from tidegate.training.loop import rank_of
from tidegate.training.progress import Silent
from tidegate.training.trainer import fit

PARTS = 10
"""Of a training: after each of them its best figure so far is reported. Shares, not epochs: trials may have different numbers of epochs,
and the learning rate follows the share that is done."""
IN_A_TRIAL: dict[str, Any] = {"baselines": False, "log_gates": False}


class Pruned(Exception):
    """The trial isn't worth going on with."""


class OutOfTime(Exception):
    """The time of the search is over."""


Report = Callable[[int, float], bool]
"""Takes a part of the training, from 1 on, and the best figure so far; says whether to stop."""


class Watched(Journal):
    """Writes nothing, and reports the figure by which epochs are chosen. may_stop: whether the trial may be pruned."""

    def __init__(self, report: Report, *, may_stop: bool) -> None:
        self.report, self.may_stop = report, may_stop
        self.best_row: Mapping[str, float] | None = None
        self.epoch = 0

    def begin(self, trained: Trained) -> None:
        pre = trained.preprocessing
        self.by = chooser(pre.target, pre.horizon, trained.settings.choose_by)
        self.epochs = trained.resolved.epochs

    def keep_history(self, history: History) -> None:
        row = history[-1]
        self.epoch = int(row["epoch"])
        if self.best_row is None or rank_of(self.by, row) > rank_of(self.by, self.best_row):
            self.best_row = row
        stop = self.report(PARTS * self.epoch // self.epochs, self.best_row[f"valid_{self.by}"])
        if stop and self.may_stop and self.epoch < self.epochs:
            raise Pruned


class UntilTime(Silent):
    """Passes the batches on to what a person sees, and stops at the end of the time."""

    def __init__(self, step: Callable[[float, float], None], until: float | None) -> None:
        self._step, self.until = step, until
        self._batches = self._done = 0

    def begin(self, title: str, batches: int, done: int) -> None:
        self._batches, self._done = batches, done

    def step(self, loss: float) -> None:
        self._done += 1
        self._step(self._done / max(1, self._batches), loss)
        if self.until is not None and time.monotonic() > self.until:
            raise OutOfTime


def run(
    table: Table,
    settings: TrainSettings,
    *,
    report: Report,
    may_stop: bool,
    step: Callable[[float, float], None],
    until: float | None,
) -> tuple[str, float | None, dict[str, Any]]:
    """Train; the state in which the trial ends, its figure where it is finished, and more about it.

    step: called after each batch with the share that is done and the loss. until: the time on `time.monotonic` at which it is stopped.
    Raises Interrupted after Ctrl-C, OutOfTime.
    """
    began, watched = time.perf_counter(), Watched(report, may_stop=may_stop)
    try:
        trained = fit(
            table, settings.model_copy(update=IN_A_TRIAL), journal=watched, progress=UntilTime(step, until), score=False
        )
    except Pruned:
        assert watched.best_row is not None
        return "pruned", None, _about(watched.best_row, watched, began)
    except (TrainingFailed, SettingsError) as error:
        # Too large a learning rate, or too large a model for the memory: worse than all others, and the drawing may learn from it.
        return "pruned", None, {"why": str(error), "epochs": watched.epoch, "seconds": time.perf_counter() - began}
    kept = trained.resolved.best_epoch
    row = next(row for row in trained.history if row["epoch"] == kept)
    figure = row[f"valid_{watched.by}"]
    about = _about(row, watched, began)
    if not math.isfinite(figure):
        return "pruned", None, about | {"why": f"its validation {watched.by} is {figure} in every epoch"}
    return "finished", figure, about


def _about(row: Mapping[str, float], watched: Watched, began: float) -> dict[str, Any]:
    loss = row["valid_loss"] if math.isfinite(row["valid_loss"]) else None  # JSON and databases know no other numbers
    return {"loss": loss, "epochs": watched.epoch, "seconds": round(time.perf_counter() - began, 3)}


def seed_of(seed: int, number: int) -> int:
    """The seed of a trial's training. The trial with the defaults has that of the search itself.

    >>> seed_of(0, 1) == seed_of(0, 1), seed_of(0, 1) == seed_of(0, 2)
    (True, False)
    """
    return int(np.random.SeedSequence([seed, 7, number]).generate_state(1)[0] >> 1)
