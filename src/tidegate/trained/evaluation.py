"""A model run over whole sequences, and the rules of thumb to hold it against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tidegate.data.batches import BatchSource
from tidegate.data.preprocessing import Preprocessing
from tidegate.data.sequences import MISSING_CLASS, PART_NAMES, VALID
from tidegate.errors import DataError, SettingsError
from tidegate.model import SequenceModel
from tidegate.model.tasks import TASKS, Chances
from tidegate.trained.comparison import Evaluation
from tidegate.trained.metrics import Scores, chooser, primary, score
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
    outcome = run_model(trained.model, pre, source, part, batch_size=batch_size, chances=True)
    scores = judge(pre, source, part, outcome.values, outcome.chances)
    if not scores.count:
        raise DataError(f"Nothing to score: {rows.what} hold no target value.")
    metric, more = primary(pre.target, pre.horizon, settings.choose_by)
    count = trained.resolved.parts["train"]["sequences" if pre.per == "sequence" else "rows"]
    by_shares = _chances_of_shares(pre, source, part, count)
    baselines = {
        # The first rule, the constant one, comes with probabilities: the shares among the training rows.
        name: judge(pre, source, part, values, by_shares if k == 0 else None)
        for k, (name, values) in enumerate(rules_of_thumb(pre, source, settings.season).items())
    }
    if trained.no_memory is not None:
        bare = trained.no_memory.model.to(source.device)
        other = run_model(bare, pre, source, part, batch_size=batch_size, chances=True)
        baselines["same head, no recurrence"] = judge(pre, source, part, other.values, other.chances)
    return Evaluation(settings.cell, rows.what, metric, more, scores, outcome.loss, baselines)


@dataclass
class Outcome:
    """Predictions for each step [N, K, ...] or sequence [S, 1, ...], in the order of `Sequences`.

    values: classes as whole numbers [., K], labels as 0/1 or numbers in the table's units [., K, W].
    probabilities [., K, W] and chances, where asked for. Where nothing was predicted: -1 or NaN. loss: mean over scored targets.
    """

    values: np.ndarray
    probabilities: np.ndarray | None
    loss: float
    chances: Chances | None = None


@torch.no_grad()
def run_model(
    model: SequenceModel,
    pre: Preprocessing,
    source: BatchSource,
    part: int | None,
    *,
    batch_size: int | None = None,
    probabilities: bool = False,
    chances: bool = False,
) -> Outcome:
    """Predict every sequence that has a step in `part`, each from its beginning with its state carried.

    chances: also what the probabilities of classes and labels are worth; the targets must be there.
    The result doesn't depend on batch_size (beyond the last bits).
    """
    if batch_size is not None and not (isinstance(batch_size, int) and batch_size >= 1):
        raise SettingsError(f"batch_size={batch_size!r}: expected a whole number of at least 1, or None.")
    task, per_sequence = TASKS[pre.target.task], pre.per == "sequence"
    values, proba = _blank(pre, source, probabilities)
    worth = _no_chances(values) if chances and task.has_probabilities else None
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
                if worth is not None:
                    assert batch.y is not None
                    here = task.chances(scores, (batch.y if per_sequence else batch.y[batch.inside]).cpu())
                    worth.nll[at] = here.nll
                    if worth.ones is not None:
                        worth.ones[at] = here.ones
    return Outcome(values, proba, total / count if count else float("nan"), worth)


def _no_chances(values: np.ndarray) -> Chances:
    nll = np.full(values.shape, np.nan)
    return Chances(nll, nll.copy() if values.ndim > 2 else None)


def _chances_of_shares(pre: Preprocessing, source: BatchSource, part: int | None, rows: int) -> Chances | None:
    task = TASKS[pre.target.task]
    return task.chances_of_shares(truth_of(pre, source, part), pre.target, rows) if task.has_probabilities else None


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


def judge(
    pre: Preprocessing, source: BatchSource, part: int | None, values: np.ndarray, chances: Chances | None = None
) -> Scores:
    """The figures of some predictions, and of their probabilities where there are any, on the scored steps of a part."""
    return score(pre.target, values, truth_of(pre, source, part), owners(pre, source), chances)


def check_choice(pre: Preprocessing, source: BatchSource, choose_by: str) -> None:
    """Raise SettingsError where no epoch can be chosen so: the task has no such figure, or these validation rows don't."""
    name = chooser(pre.target, pre.horizon, choose_by)
    needs = {
        "auroc": "a label that is 0 in some validation rows and 1 in others",
        "auprc": "a label that is 0 in some validation rows and 1 in others",
        "r2": "two different values of a target in the validation rows",
    }
    if name not in needs or not source.has_targets(VALID):
        return
    guess = next(iter(rules_of_thumb(pre, source, None).values()))
    scores = judge(pre, source, VALID, guess, _chances_of_shares(pre, source, VALID, 1))
    if np.isnan(scores.summary[name]):
        raise SettingsError(
            f"choose_by={choose_by!r} needs {needs[name]}, and there is none. Choose by another figure (loss), or split otherwise."
        )


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
