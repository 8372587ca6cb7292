"""The table of tasks: what a target means. Loss, decision, probabilities and columns of each stand side by side.

scores [..., K, W]: what the head gives, K values ahead, W scores each. y: the targets as `data.Sequences` has them, missing ones
MISSING_CLASS or NaN, classes that training never saw below MISSING_CLASS. What a task predicts is in the target's own terms: the number of a class, 0/1 of a label, a number in the
units of the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from tidegate.data.preprocessing import Target
from tidegate.data.sequences import MISSING_CLASS, UNSEEN_CLASS
from tidegate.ops import update
from tidegate.ops.threads import one_thread

Array = np.ndarray[Any, np.dtype[Any]]
TOP = 3  # classes told of every prediction
BLOCK = 2**22  # scores that are turned into probabilities at once


class Chances(NamedTuple):
    """What probabilities are worth. nll: the negative log of the probability that was given to what is true, of the shape of the
    targets; of a missing target and of a class that training never saw it means nothing. ones [..., K, W]: of labels, the
    probability of a 1; else None."""

    nll: Array
    ones: Array | None


class PredictedColumn(NamedTuple):
    """A column that a prediction adds: its name, how many steps ahead (from 0), which target it predicts, or which class or
    label it is a probability of."""

    name: str
    ahead: int
    which: int
    probability: bool


@dataclass(frozen=True)
class Output:
    """One predicted column, as people read it: a value a step, or one of a sequence.

    kind: "class" (values are classes), "label" (0 or 1) or "number" (in the table's units; [P, K] with K steps ahead).
    truth: None in the list where the table has none; None: the table has no such column.
    top: for classes, of each prediction the most probable ones as (class, probability). probability: of a label's 1.
    classes: all that can be predicted. Of classes several steps ahead the first one is told.
    """

    name: str
    kind: str
    values: list[Any]
    truth: list[Any] | None
    top: list[list[tuple[Any, float]]] | None = None
    probability: list[float] | None = None
    classes: tuple[Any, ...] = ()


class Telling(NamedTuple):
    """score [B]: one score for each prediction, which speaks for it. which [B, 1]: which of its outputs that is, counted through
    all columns one step ahead, then two ...; None where it is no single one."""

    score: Tensor
    which: Tensor | None


class Task(Protocol):
    """What the rest of the package asks of a kind of target. kind: what one of its columns holds, in a word. loss: which one of
    `ops.update` is its `loss_sum` with the gradient beside it; None: none is, and training leaves it to autograd.
    """

    name: str
    kind: str
    has_probabilities: bool
    loss: int | None

    def about(self, classes: int) -> str:
        """What is predicted, in words."""

    def loss_sum(self, scores: Tensor, y: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The summed loss over the targets that are there (a class that training never saw has none), and their number. weights:
        of each class, where the task has classes.
        """

    def known(self, y: Tensor) -> Tensor:
        """Which targets have a loss, of the shape of y."""

    def blank(self, shape: tuple[int, int], width: int) -> Array:
        """Predictions [N, K, ...] where nothing is predicted yet: -1 or NaN."""

    def decide(self, scores: Tensor, target: Target) -> Array:
        """The predictions that scores [N, K, W] mean: [N, K] of classes, else [N, K, W]."""

    def decide_one(self, scores: list[float], which: int, target: Target) -> Any:
        """The same of one row, as a Python value; a class by its own name. which: of several targets."""

    def probabilities(self, scores: Tensor) -> Tensor:
        """Of the shape of scores; a row's bits don't depend on the rows beside it."""

    def chances(self, scores: Tensor, y: Tensor) -> Chances:
        """What the probabilities of scores [P, K, W] are worth beside y; a row's bits don't depend on the rows beside it."""

    def chances_of_shares(self, truth: Array, target: Target, rows: int) -> Chances:
        """The same of the rule of thumb, whose probabilities are the shares among the training rows; rows: their number."""

    def truth(self, y: Array, target: Target) -> Array:
        """Targets in the terms of predictions; missing ones stay as they are. Classes that training never saw count on from the
        last one of `target`: see `Target.with_unseen`.
        """

    def columns(self, target: Target, ahead: int, end: str, probabilities: bool) -> list[PredictedColumn]:
        """What `predict` adds for the values so many steps ahead; `end` ends the columns' names."""

    def series(self, values: Array, target: Target) -> pl.Series:
        """A column of predictions [N] as it goes into a table; null where nothing was predicted."""

    def rule_of_thumb(self, target: Target) -> tuple[str, Array]:
        """The best prediction that looks at no row: its name and its value, a number or [W]."""

    def column_width(self, target: Target) -> int:
        """Scores of one predicted column, one step ahead."""

    def outputs(self, scores: Tensor, truth: Array | None, target: Target) -> list[Output]:
        """scores [P, K, W], truth as `truth` has it (None: there is none) -> each predicted column as people read it.

        target: with the classes that training never saw, where the truth has some.
        """

    def telling(self, scores: Tensor) -> Telling:
        """The score of each of some predictions [B, K, W] that is asked what it leans on."""


class _Class:
    """One of several classes: cross-entropy; the class of the largest score."""

    name = kind = "class"
    has_probabilities = True
    loss: int | None = update.CLASSES

    def about(self, classes: int) -> str:
        return f"one of {classes} classes"

    def loss_sum(self, scores: Tensor, y: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
        ignored = y.flatten().clamp(min=MISSING_CLASS)  # the classes that training never saw lie below
        # Divided by the number of targets, not by the sum of their weights: in a batch of one class that would undo them.
        loss = F.cross_entropy(
            scores.flatten(0, -2), ignored, weight=weights, ignore_index=MISSING_CLASS, reduction="sum"
        )
        return loss, self.known(y).sum()

    def known(self, y: Tensor) -> Tensor:
        return y >= 0

    def blank(self, shape: tuple[int, int], width: int) -> Array:
        return np.full(shape, -1, dtype=np.int64)

    def decide(self, scores: Tensor, target: Target) -> Array:
        return scores.argmax(dim=-1).numpy()

    def decide_one(self, scores: list[float], which: int, target: Target) -> Any:
        return target.classes[scores.index(max(scores))]

    def probabilities(self, scores: Tensor) -> Tensor:
        return torch.softmax(scores, -1)

    def chances(self, scores: Tensor, y: Tensor) -> Chances:
        rows = max(
            1, BLOCK // max(1, scores[:1].numel())
        )  # some at a time: of many classes another array of their size is much
        pairs = zip(scores.split(rows), y.clamp(min=0).split(rows), strict=True)
        parts = [-torch.log_softmax(s, -1).gather(-1, t[..., None])[..., 0] for s, t in pairs]
        return Chances(torch.cat(parts).numpy() if parts else y.double().numpy(), None)

    def chances_of_shares(self, truth: Array, target: Target, rows: int) -> Chances:
        # A class that only an earlier run saw is in none of n rows; as for labels, its share is then 1 / (n + 2).
        total = sum(target.counts)
        shares = np.maximum(np.array(target.counts) / total, 1 / (total + 2))
        seen = (truth >= 0) & (truth < len(shares))  # of the other classes the shares say nothing
        return Chances(-np.log(shares)[np.where(seen, truth, 0)], None)

    def truth(self, y: Array, target: Target) -> Array:
        return np.where(y <= UNSEEN_CLASS, len(target.classes) + UNSEEN_CLASS - y, y)

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

    def column_width(self, target: Target) -> int:
        return target.width

    def outputs(self, scores: Tensor, truth: Array | None, target: Target) -> list[Output]:
        classes, count = target.classes, scores.size(-1)
        tops = [
            torch.softmax(some.double(), dim=-1).topk(min(TOP, count), dim=-1)
            for some in scores[:, 0].split(max(1, BLOCK // count))
        ]
        values = [classes[c] for c in scores[:, 0].argmax(dim=-1).tolist()]
        best = [
            [(classes[c], p) for c, p in zip(cs, ps, strict=True)]
            for top in tops
            for cs, ps in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ]
        true = None
        if truth is not None:
            true = [None if c == MISSING_CLASS else classes[c] for c in truth[:, 0].tolist()]
        return [Output(target.names[0], self.kind, values, true, best, classes=target.seen)]

    def telling(self, scores: Tensor) -> Telling:
        """The best class's lead over the second best, one step ahead."""
        top = scores[:, 0].topk(min(2, scores.size(-1)), dim=-1).values
        return Telling(top[:, 0] - top[:, 1] if top.size(-1) == 2 else top[:, 0], None)


class _Columns:
    """What labels and numbers share: a score, a prediction and a column for each target."""

    has_probabilities: bool

    def column_width(self, target: Target) -> int:
        return 1

    def telling(self, scores: Tensor) -> Telling:
        """The output that is largest in size."""
        flat = scores.flatten(1)
        which = flat.abs().argmax(dim=1, keepdim=True)
        return Telling(flat.gather(1, which)[:, 0], which)

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
        each = torch.where(known, each, 0.0)
        with one_thread():
            return each.sum(), known.sum()


class _CrossEntropy(torch.autograd.Function):
    """`F.binary_cross_entropy_with_logits` of each label, whose gradient has the same bits on any number of threads."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(scores, y)
        return F.binary_cross_entropy_with_logits(scores, y, reduction="none")

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor, None]:
        scores, y = ctx.saved_tensors
        with one_thread():
            p = torch.sigmoid(scores)
        return (p - y) * d_loss, None


class _Labels(_Columns):
    """Several 0/1 labels: binary cross-entropy of each; 1 where its probability is above its threshold, 1/2 unless training chose
    one."""

    name, kind = "labels", "label"
    has_probabilities = True
    loss: int | None = update.LABELS

    def about(self, classes: int) -> str:
        return "several 0/1 labels"

    def loss_sum(self, scores: Tensor, y: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
        known = self.known(y)
        y = torch.where(known, y, 0.0)  # NaN must not reach the loss: its gradient would be NaN even where masked
        return self._mean_over_known(_CrossEntropy.apply(scores, y), known)  # type: ignore[no-untyped-call]  # (torch's)

    def decide(self, scores: Tensor, target: Target) -> Array:
        return (scores > torch.tensor(target.cuts)).numpy()

    def decide_one(self, scores: list[float], which: int, target: Target) -> int:
        return int(scores[which] > target.cuts[which])

    def probabilities(self, scores: Tensor) -> Tensor:
        # PyTorch rounds σ otherwise at the end of an array than within; over pairs, σ(s) = softmax(0, s), it doesn't.
        return torch.softmax(torch.stack([torch.zeros_like(scores), scores], dim=-1), -1)[..., 1]

    def chances(self, scores: Tensor, y: Tensor) -> Chances:
        nll, ones = np.empty(scores.shape), np.empty(scores.shape)
        rows = max(
            1, BLOCK // max(1, scores[:1].numel())
        )  # some at a time: on the way there are six times as many numbers
        for k in range(0, len(scores), rows):
            some, true = scores[k : k + rows].double(), y[k : k + rows]  # in float32 all that is sure would tie at 1
            both = torch.log_softmax(torch.stack([torch.zeros_like(some), some], dim=-1), -1)
            nll[k : k + rows] = -both.gather(-1, torch.where(self.known(true), true, 0.0).long()[..., None])[..., 0]
            ones[k : k + rows] = self.probabilities(some)
        return Chances(nll, ones)

    def chances_of_shares(self, truth: Array, target: Target, rows: int) -> Chances:
        # A label that is never 1 in n training rows gets 1 / (n + 2), not 0 (Laplace): a 0 would make one such 1 infinitely bad.
        least = 1 / (rows + 2)
        ones = np.broadcast_to(np.clip(np.array(target.means), least, 1 - least), truth.shape)
        return Chances(-np.log(np.where(truth > 0, ones, 1 - ones)), ones)

    def truth(self, y: Array, target: Target) -> Array:
        return y

    def series(self, values: Array, target: Target) -> pl.Series:
        whole: pl.Series = pl.Series(values, nan_to_null=True).cast(pl.Int64)
        return whole

    def rule_of_thumb(self, target: Target) -> tuple[str, Array]:
        return "majority of each label", (np.array(target.means) > 0.5).astype(float)

    def outputs(self, scores: Tensor, truth: Array | None, target: Target) -> list[Output]:
        out = []
        values = self.decide(scores[:, 0], target).astype(int)
        for w, name in enumerate(target.names):
            p = torch.sigmoid(scores[:, 0, w].double()).tolist()
            true = None if truth is None else [None if np.isnan(v) else int(v) for v in truth[:, 0, w]]
            out.append(Output(name, self.kind, values[:, w].tolist(), true, None, p, (0, 1)))
        return out


class _Number(_Columns):
    """Numbers: squared error in standard deviations of the training rows; the score itself, in the table's units."""

    name = kind = "number"
    has_probabilities = False
    loss: int | None = update.NUMBERS

    def about(self, classes: int) -> str:
        return "numbers"

    def loss_sum(self, scores: Tensor, y: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
        known = self.known(y)
        y = torch.where(known, y, 0.0)  # as for labels
        return self._mean_over_known((scores - y) ** 2, known)

    def decide(self, scores: Tensor, target: Target) -> Array:
        return in_units(scores.double().numpy(), target)

    def decide_one(self, scores: list[float], which: int, target: Target) -> float:
        return scores[which] * target.stds[which] + target.means[which]

    def probabilities(self, scores: Tensor) -> Tensor:
        raise ValueError("Numbers have no probabilities.")

    def chances(self, scores: Tensor, y: Tensor) -> Chances:
        raise ValueError("Numbers have no probabilities.")

    def chances_of_shares(self, truth: Array, target: Target, rows: int) -> Chances:
        raise ValueError("Numbers have no probabilities.")

    def truth(self, y: Array, target: Target) -> Array:
        return in_units(y.astype(np.float64), target)

    def series(self, values: Array, target: Target) -> pl.Series:
        return pl.Series(values, nan_to_null=True)

    def rule_of_thumb(self, target: Target) -> tuple[str, Array]:
        return "training mean", np.array(target.rule or target.means)

    def outputs(self, scores: Tensor, truth: Array | None, target: Target) -> list[Output]:
        numbers = self.decide(scores, target)
        return [
            Output(name, self.kind, numbers[..., w].tolist(), None if truth is None else truth[..., w].tolist())
            for w, name in enumerate(target.names)
        ]


TASKS: dict[str, Task] = {task.name: task for task in (_Class(), _Labels(), _Number())}


def in_units(standardised: Array, target: Target) -> Array:
    """Standard deviations back to the units of the table."""
    units: Array = standardised * np.array(target.stds) + np.array(target.means)
    return units


def predicted_columns(target: Target, horizon: int, probabilities: bool) -> list[PredictedColumn]:
    """What `Run.predict` adds to a table, in order: see there."""
    task = TASKS[target.task]
    columns = []
    for ahead in range(max(horizon, 1)):
        end = f"_{ahead + 1}" if horizon > 1 else ""
        columns += task.columns(target, ahead, end, probabilities)
    return columns
