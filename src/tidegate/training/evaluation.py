"""A model run over whole sequences, and the rules of thumb to hold it against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tidegate.data.batches import BatchSource
from tidegate.data.preprocessing import Preprocessing
from tidegate.data.sequences import MISSING_CLASS
from tidegate.errors import SettingsError
from tidegate.model import SequenceModel
from tidegate.training.metrics import Scores, loss_sum, score


class Column(NamedTuple):
    """A column that a prediction adds: its name, how many steps ahead (from 0), which target it predicts, or which class or
    label it is a probability of."""

    name: str
    ahead: int
    which: int
    probability: bool


def predicted_columns(pre: Preprocessing, probabilities: bool) -> list[Column]:
    """What `Run.predict` adds to a table, in order: see there."""
    target, columns = pre.target, []
    for ahead in range(max(pre.horizon, 1)):
        end = f"_{ahead + 1}" if pre.horizon > 1 else ""
        if target.task == "class":
            columns.append(Column(f"prediction{end}", ahead, 0, False))
            if probabilities:
                columns += [Column(f"p_{name}{end}", ahead, k, True) for k, name in enumerate(target.classes)]
        else:
            for k, name in enumerate(target.names):
                label = f"prediction_{name}" if len(target.names) > 1 else "prediction"
                columns.append(Column(label + end, ahead, k, False))
                if probabilities:
                    columns.append(Column(f"p_{name}{end}", ahead, k, True))
    return columns


CHUNK = 4_096  # steps at a time of a long sequence, its state carried on: memory stays bounded


@dataclass
class Outcome:
    """Predictions for each step [N, K, ...] or sequence [S, 1, ...], in the order of `Sequences`.

    values: classes as whole numbers [., K], labels as 0/1 or numbers in the table's units [., K, W].
    probabilities [., K, W], where asked for. Where nothing was predicted: -1 or NaN. loss: mean over scored targets.
    """

    values: np.ndarray
    probabilities: np.ndarray | None
    loss: float


@torch.no_grad()
def run_model(
    model: SequenceModel,
    pre: Preprocessing,
    source: BatchSource,
    part: int | None,
    *,
    batch_size: int | None = None,
    probabilities: bool = False,
) -> Outcome:
    """Predict every sequence that has a step in `part`, each from its beginning with its state carried.

    The result doesn't depend on batch_size (beyond the last bits).
    """
    if batch_size is not None and not (isinstance(batch_size, int) and batch_size >= 1):
        raise SettingsError(f"batch_size={batch_size!r}: expected a whole number of at least 1, or None.")
    task, per_sequence = pre.target.task, pre.per == "sequence"
    values, proba = _blank(pre, source, probabilities)
    total, count = 0.0, 0
    chunk = None if per_sequence or model.spec.bidirectional else CHUNK
    with model.evaluating():
        for chunks in source.whole_sequences(part, batch_size, chunk):
            state = None
            for batch in chunks:
                scores, state = model(batch.numbers, batch.codes, batch.lengths, state)
                if batch.y is not None:
                    loss, n = loss_sum(scores, batch.y, task)
                    total, count = total + float(loss), count + int(n)
                if per_sequence:
                    assert batch.sequences is not None
                    at, scores = batch.sequences.numpy(), scores.cpu()
                else:
                    at, scores = batch.steps[batch.inside].cpu().numpy(), scores[batch.inside].cpu()
                values[at] = _decide(scores, pre)
                if proba is not None:
                    proba[at] = probabilities_of(scores, task).numpy()
    return Outcome(values, proba, total / count if count else float("nan"))


def _blank(pre: Preprocessing, source: BatchSource, probabilities: bool) -> tuple[np.ndarray, np.ndarray | None]:
    rows = len(source.data) if pre.per == "sequence" else len(source.data.rows)
    horizon, width = max(pre.horizon, 1), pre.target.width
    if pre.target.task == "class":
        values = np.full((rows, horizon), -1, dtype=np.int64)
    else:
        values = np.full((rows, horizon, width), np.nan)
    wanted = probabilities and pre.target.task != "number"
    return values, np.full((rows, horizon, width), np.nan, dtype=np.float32) if wanted else None


def _decide(scores: Tensor, pre: Preprocessing) -> np.ndarray:
    if pre.target.task == "class":
        return scores.argmax(dim=-1).numpy()
    if pre.target.task == "labels":
        return (scores > 0).numpy()
    return in_units(scores.double().numpy(), pre)


def probabilities_of(scores: Tensor, task: str) -> Tensor:
    """Of classes softmax(scores), of labels σ(score) each; a row's bits don't depend on the rows beside it."""
    if task == "class":
        return torch.softmax(scores, -1)
    # PyTorch rounds σ otherwise at the end of an array than within; over pairs, σ(s) = softmax(0, s), it doesn't.
    return torch.softmax(torch.stack([torch.zeros_like(scores), scores], dim=-1), -1)[..., 1]


def in_units(standardised: np.ndarray, pre: Preprocessing) -> np.ndarray:
    """Standard deviations back to the units of the table."""
    return standardised * np.array(pre.target.stds) + np.array(pre.target.means)


def truth_of(pre: Preprocessing, source: BatchSource, part: int | None) -> np.ndarray:
    """The targets as `Outcome.values` has the predictions; missing ones are MISSING_CLASS or NaN."""
    truth = source.all_targets(part).cpu().numpy()
    if pre.target.task == "number":
        truth = in_units(truth.astype(np.float64), pre)
    return truth


def owners(pre: Preprocessing, source: BatchSource) -> np.ndarray:
    """Which sequence each entry of `Outcome.values` is of."""
    count = len(source.data)
    return np.arange(count) if pre.per == "sequence" else np.repeat(np.arange(count), source.data.lengths)


def judge(pre: Preprocessing, source: BatchSource, part: int | None, values: np.ndarray) -> Scores:
    """The figures of some predictions on the scored steps of a part."""
    return score(pre.target, values, truth_of(pre, source, part), owners(pre, source))


def rules_of_thumb(pre: Preprocessing, source: BatchSource, season: int | None) -> dict[str, np.ndarray]:
    """Predictions that need no model, by name, in the layout of `Outcome.values`.

    The majority class, the majority of each label or the training mean; for a forecast also the last value and,
    with `season`, the value one season before the one to predict.
    """
    values, _ = _blank(pre, source, False)
    target = pre.target
    if target.task == "class":
        name, constant = "majority class", np.full_like(values, int(np.argmax(target.counts)))
    elif target.task == "labels":
        name, constant = (
            "majority of each label",
            np.broadcast_to(np.array(target.means) > 0.5, values.shape).astype(float),
        )
    else:
        name, constant = "training mean", np.broadcast_to(np.array(target.means), values.shape).astype(float)
    out = {name: constant}
    if pre.horizon:
        out["last value"] = _shifted(pre, source, constant, season=None)
        if season:
            out[f"last season ({season} rows)"] = _shifted(pre, source, out["last value"], season=season)
    return out


def _shifted(pre: Preprocessing, source: BatchSource, otherwise: np.ndarray, season: int | None) -> np.ndarray:
    assert source.data.y is not None
    y = source.data.y
    if pre.target.task == "number":
        y = in_units(y.astype(np.float64), pre)
    first = np.repeat(source.data.offsets[:-1], source.data.lengths)
    step = np.arange(len(y))
    out = otherwise.copy()
    for ahead in range(1, pre.horizon + 1):
        at = step if season is None else step + ahead - season * -(-ahead // season)
        there = at >= first
        guess = y[np.where(there, at, step)]
        there = there & (guess != MISSING_CLASS if guess.ndim == 1 else ~np.isnan(guess).any(axis=1))
        out[there, ahead - 1] = guess[there]
    return out
