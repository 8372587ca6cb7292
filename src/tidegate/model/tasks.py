"""The table of tasks: what a target means. Loss, decision, probabilities and columns of each stand side by side.

scores [..., K, W]: what the head gives, K values ahead, W scores each. y: the targets as `data.Sequences` has them, missing ones
MISSING_CLASS or NaN. What a task predicts is in the target's own terms: the number of a class, 0/1 of a label, a number in the
units of the table.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from tidegate.data.preprocessing import Target
from tidegate.data.sequences import MISSING_CLASS

Array = np.ndarray[Any, np.dtype[Any]]


class PredictedColumn(NamedTuple):
    """A column that a prediction adds: its name, how many steps ahead (from 0), which target it predicts, or which class or
    label it is a probability of."""

    name: str
    ahead: int
    which: int
    probability: bool


class Task(Protocol):
    """What the rest of the package asks of a kind of target."""

    name: str
    has_probabilities: bool

    def about(self, classes: int) -> str:
        """What is predicted, in words."""

    def loss_sum(self, scores: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The summed loss over the targets that are there, and their number."""

    def known(self, y: Tensor) -> Tensor:
        """Which targets are there, of the shape of y."""

    def blank(self, shape: tuple[int, int], width: int) -> Array:
        """Predictions [N, K, ...] where nothing is predicted yet: -1 or NaN."""

    def decide(self, scores: Tensor, target: Target) -> Array:
        """The predictions that scores [N, K, W] mean: [N, K] of classes, else [N, K, W]."""

    def decide_one(self, scores: list[float], which: int, target: Target) -> Any:
        """The same of one row, as a Python value; a class by its own name. which: of several targets."""

    def probabilities(self, scores: Tensor) -> Tensor:
        """Of the shape of scores; a row's bits don't depend on the rows beside it."""

    def truth(self, y: Array, target: Target) -> Array:
        """Targets in the terms of predictions; missing ones stay as they are."""

    def columns(self, target: Target, ahead: int, end: str, probabilities: bool) -> list[PredictedColumn]:
        """What `predict` adds for the values so many steps ahead; `end` ends the columns' names."""

    def series(self, values: Array, target: Target) -> pl.Series:
        """A column of predictions [N] as it goes into a table; null where nothing was predicted."""

    def rule_of_thumb(self, target: Target) -> tuple[str, Array]:
        """The best prediction that looks at no row: its name and its value, a number or [W]."""


class _Class:
    """One of several classes: cross-entropy; the class of the largest score."""

    name = "class"
    has_probabilities = True

    def about(self, classes: int) -> str:
        return f"one of {classes} classes"

    def loss_sum(self, scores: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        loss = F.cross_entropy(scores.flatten(0, -2), y.flatten(), ignore_index=MISSING_CLASS, reduction="sum")
        return loss, (y != MISSING_CLASS).sum()

    def known(self, y: Tensor) -> Tensor:
        return y != MISSING_CLASS

    def blank(self, shape: tuple[int, int], width: int) -> Array:
        return np.full(shape, -1, dtype=np.int64)

    def decide(self, scores: Tensor, target: Target) -> Array:
        return scores.argmax(dim=-1).numpy()

    def decide_one(self, scores: list[float], which: int, target: Target) -> Any:
        return target.classes[scores.index(max(scores))]

    def probabilities(self, scores: Tensor) -> Tensor:
        return torch.softmax(scores, -1)

    def truth(self, y: Array, target: Target) -> Array:
        return y

    def columns(self, target: Target, ahead: int, end: str, probabilities: bool) -> list[PredictedColumn]:
        columns = [PredictedColumn(f"prediction{end}", ahead, 0, False)]
        if probabilities:
            columns += [PredictedColumn(f"p_{c}{end}", ahead, k, True) for k, c in enumerate(target.classes)]
        return columns

    def series(self, values: Array, target: Target) -> pl.Series:
        classes = pl.Series(target.classes)
        return classes[values] if (values >= 0).all() else classes.gather(pl.Series(values).replace(-1, None))

    def rule_of_thumb(self, target: Target) -> tuple[str, Array]:
        return "majority class", np.array(np.argmax(target.counts))


class _Columns:
    """What labels and numbers share: a score, a prediction and a column for each target."""

    has_probabilities: bool

    def known(self, y: Tensor) -> Tensor:
        return ~torch.isnan(y)

    def blank(self, shape: tuple[int, int], width: int) -> Array:
        return np.full((*shape, width), np.nan)

    def columns(self, target: Target, ahead: int, end: str, probabilities: bool) -> list[PredictedColumn]:
        columns = []
        for k, name in enumerate(target.names):
            label = f"prediction_{name}" if len(target.names) > 1 else "prediction"
            columns.append(PredictedColumn(label + end, ahead, k, False))
            if probabilities and self.has_probabilities:
                columns.append(PredictedColumn(f"p_{name}{end}", ahead, k, True))
        return columns

    def _mean_over_known(self, each: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        return torch.where(known, each, 0.0).sum(), known.sum()


class _Labels(_Columns):
    """Several 0/1 labels: binary cross-entropy of each; 1 where its score is above 0."""

    name = "labels"
    has_probabilities = True

    def about(self, classes: int) -> str:
        return "several 0/1 labels"

    def loss_sum(self, scores: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        known = self.known(y)
        y = torch.where(known, y, 0.0)  # NaN must not reach the loss: its gradient would be NaN even where masked
        return self._mean_over_known(F.binary_cross_entropy_with_logits(scores, y, reduction="none"), known)

    def decide(self, scores: Tensor, target: Target) -> Array:
        return (scores > 0).numpy()

    def decide_one(self, scores: list[float], which: int, target: Target) -> int:
        return int(scores[which] > 0)

    def probabilities(self, scores: Tensor) -> Tensor:
        # PyTorch rounds σ otherwise at the end of an array than within; over pairs, σ(s) = softmax(0, s), it doesn't.
        return torch.softmax(torch.stack([torch.zeros_like(scores), scores], dim=-1), -1)[..., 1]

    def truth(self, y: Array, target: Target) -> Array:
        return y

    def series(self, values: Array, target: Target) -> pl.Series:
        return pl.Series(values, nan_to_null=True).cast(pl.Int64)

    def rule_of_thumb(self, target: Target) -> tuple[str, Array]:
        return "majority of each label", (np.array(target.means) > 0.5).astype(float)


class _Number(_Columns):
    """Numbers: squared error in standard deviations of the training rows; the score itself, in the table's units."""

    name = "number"
    has_probabilities = False

    def about(self, classes: int) -> str:
        return "numbers"

    def loss_sum(self, scores: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        known = self.known(y)
        y = torch.where(known, y, 0.0)  # as for labels
        return self._mean_over_known((scores - y) ** 2, known)

    def decide(self, scores: Tensor, target: Target) -> Array:
        return in_units(scores.double().numpy(), target)

    def decide_one(self, scores: list[float], which: int, target: Target) -> float:
        return scores[which] * target.stds[which] + target.means[which]

    def probabilities(self, scores: Tensor) -> Tensor:
        raise ValueError("Numbers have no probabilities.")

    def truth(self, y: Array, target: Target) -> Array:
        return in_units(y.astype(np.float64), target)

    def series(self, values: Array, target: Target) -> pl.Series:
        return pl.Series(values, nan_to_null=True)

    def rule_of_thumb(self, target: Target) -> tuple[str, Array]:
        return "training mean", np.array(target.means)


TASKS: dict[str, Task] = {task.name: task for task in (_Class(), _Labels(), _Number())}


def in_units(standardised: Array, target: Target) -> Array:
    """Standard deviations back to the units of the table."""
    return standardised * np.array(target.stds) + np.array(target.means)


def predicted_columns(target: Target, horizon: int, probabilities: bool) -> list[PredictedColumn]:
    """What `Run.predict` adds to a table, in order: see there."""
    task = TASKS[target.task]
    columns = []
    for ahead in range(max(horizon, 1)):
        end = f"_{ahead + 1}" if horizon > 1 else ""
        columns += task.columns(target, ahead, end, probabilities)
    return columns
