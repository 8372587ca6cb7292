"""A model run over whole sequences, and the rules of thumb to hold it against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tidegate.data.batches import BatchSource
from tidegate.data.preprocessing import Preprocessing
from tidegate.data.sequences import MISSING_CLASS, PART_NAMES
from tidegate.errors import DataError, SettingsError
from tidegate.model import SequenceModel
from tidegate.model.tasks import TASKS
from tidegate.trained.comparison import Evaluation
from tidegate.trained.metrics import Scores, primary, score
from tidegate.trained.rows import Rows, rows_to_score
from tidegate.trained.trained import Trained

CHUNK = 4_096  # steps at a time of a long sequence, its state carried on: memory stays bounded


def evaluate(trained: Trained, table: Any, *, rows: str, batch_size: int | None) -> Evaluation:
    """What `Run.evaluate` does; see there."""
    if rows not in {"auto", "all", *PART_NAMES}:
        raise SettingsError(f"rows={rows!r}: expected auto, all, train, valid or test.")
    return evaluate_rows(trained, rows_to_score(trained, trained.read(table), rows), batch_size)


def evaluate_rows(trained: Trained, rows: Rows, batch_size: int | None = None) -> Evaluation:
    """The model's figures on some rows, beside those of the baselines. Raises DataError where none has a target."""
    pre, settings, source, part = trained.preprocessing, trained.settings, rows.source, rows.part
    outcome = run_model(trained.model, pre, source, part, batch_size=batch_size)
    scores = judge(pre, source, part, outcome.values)
    if not scores.count:
        raise DataError(f"Nothing to score: {rows.what} hold no target value.")
    metric, more = primary(pre.target, pre.horizon)
    baselines = {
        name: judge(pre, source, part, values) for name, values in rules_of_thumb(pre, source, settings.season).items()
    }
    if trained.no_memory is not None:
        bare = trained.no_memory.model.to(source.device)
        values = run_model(bare, pre, source, part, batch_size=batch_size).values
        baselines["same head, no recurrence"] = judge(pre, source, part, values)
    return Evaluation(settings.cell, rows.what, metric, more, scores, outcome.loss, baselines)


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
    task, per_sequence = TASKS[pre.target.task], pre.per == "sequence"
    values, proba = _blank(pre, source, probabilities)
    total, count = 0.0, 0
    chunk = None if per_sequence or model.spec.bidirectional else CHUNK
    with model.evaluating():
        for chunks in source.whole_sequences(part, batch_size, chunk):
            state = None
            for batch in chunks:
                scores, state = model(batch.numbers, batch.codes, batch.lengths, state)
                if batch.y is not None:
                    loss, n = task.loss_sum(scores, batch.y)
                    total, count = total + float(loss), count + int(n)
                if per_sequence:
                    assert batch.sequences is not None
                    at, scores = batch.sequences.numpy(), scores.cpu()
                else:
                    at, scores = batch.steps[batch.inside].cpu().numpy(), scores[batch.inside].cpu()
                values[at] = task.decide(scores, pre.target)
                if proba is not None:
                    proba[at] = task.probabilities(scores).numpy()
    return Outcome(values, proba, total / count if count else float("nan"))


def _blank(pre: Preprocessing, source: BatchSource, probabilities: bool) -> tuple[np.ndarray, np.ndarray | None]:
    rows = len(source.data) if pre.per == "sequence" else len(source.data.rows)
    task, ahead, width = TASKS[pre.target.task], max(pre.horizon, 1), pre.target.width
    wanted = probabilities and task.has_probabilities
    values = task.blank((rows, ahead), width)
    return values, np.full((rows, ahead, width), np.nan, dtype=np.float32) if wanted else None


def truth_of(pre: Preprocessing, source: BatchSource, part: int | None) -> np.ndarray:
    """The targets as `Outcome.values` has the predictions; missing ones are MISSING_CLASS or NaN."""
    return TASKS[pre.target.task].truth(source.all_targets(part).cpu().numpy(), pre.target)


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
    name, value = TASKS[pre.target.task].rule_of_thumb(pre.target)
    constant = np.broadcast_to(value, values.shape).astype(values.dtype)
    out = {name: constant}
    if pre.horizon:
        out["last value"] = _shifted(pre, source, constant, season=None)
        if season:
            out[f"last season ({season} rows)"] = _shifted(pre, source, out["last value"], season=season)
    return out


def _shifted(pre: Preprocessing, source: BatchSource, otherwise: np.ndarray, season: int | None) -> np.ndarray:
    assert source.data.y is not None
    y = TASKS[pre.target.task].truth(source.data.y, pre.target)
    first = np.repeat(source.data.offsets[:-1], source.data.lengths)
    step = np.arange(len(y))
    out: np.ndarray = otherwise.copy()
    for ahead in range(1, pre.horizon + 1):
        at = step if season is None else step + ahead - season * -(-ahead // season)
        there = at >= first
        guess = y[np.where(there, at, step)]
        there = there & (guess != MISSING_CLASS if guess.ndim == 1 else ~np.isnan(guess).any(axis=1))
        out[there, ahead - 1] = guess[there]
    return out
