"""The thresholds of 0/1 labels, chosen on the validation rows: `label_thresholds="f1"`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tidegate.data.batches import BatchSource
from tidegate.data.preprocessing import Preprocessing
from tidegate.data.sequences import VALID
from tidegate.errors import SettingsError
from tidegate.model import SequenceModel
from tidegate.trained.evaluation import run_model, truth_of

HALF = 0.5


def check_thresholds(pre: Preprocessing, source: BatchSource, asked: str) -> None:
    """Raise SettingsError where no threshold can be chosen so."""
    if asked == "half":
        return
    if pre.target.task != "labels":
        raise SettingsError(
            "label_thresholds are for several 0/1 labels, and the target is none of these. Leave them out, or name two 0/1 columns or more."
        )
    if not source.has_targets(VALID):
        raise SettingsError(
            f"label_thresholds={asked!r} needs validation rows to choose by, and there are none with a target. Leave it out, or split otherwise."
        )


def without_thresholds(pre: Preprocessing) -> Preprocessing:
    """The same with 1/2 for each label: an epoch is chosen before its thresholds."""
    return replace(pre, target=replace(pre.target, thresholds=())) if pre.target.thresholds else pre


def with_thresholds(model: SequenceModel, pre: Preprocessing, source: BatchSource) -> Preprocessing:
    """The same with the thresholds that have the best F1 of each label on the validation rows."""
    chances = run_model(model, pre, source, VALID, chances=True).chances
    assert chances is not None
    assert chances.ones is not None
    truth = truth_of(pre, source, VALID)
    found = tuple(best_threshold(chances.ones[..., k], truth[..., k]) for k in range(len(pre.target.names)))
    return replace(pre, target=replace(pre.target, thresholds=found))


def best_threshold(probability: np.ndarray, truth: np.ndarray) -> float:
    """The threshold t at which predicting a 1 where the probability is above t has the best F1.

    Candidates are 1/2 and what lies halfway between two neighbouring probabilities, so that rounding elsewhere decides nothing;
    of equal ones the nearest to 1/2. 1/2 where no truth is 1. truth: 0, 1, or NaN where there is none.
    """
    known = ~np.isnan(truth)
    p, ones = probability[known].astype(np.float64), truth[known] > 0
    if not ones.any():
        return HALF
    order = np.argsort(p)
    p, ones = p[order], ones[order]
    first = np.flatnonzero(np.append(True, p[1:] > p[:-1]))  # where each different probability begins
    below = np.append(0.0, p[first[:-1]])
    candidates = np.append((below + p[first]) / 2, HALF)
    predicted = len(p) - np.searchsorted(p, candidates, side="right")
    right = ones.sum() - np.append(0, ones.cumsum())[len(p) - predicted]
    f1 = 2 * right / (predicted + ones.sum())
    inside = (candidates > 0) & (candidates < 1)  # (beyond float64's digits neighbours are one)
    best = candidates[inside & (f1 == f1[inside].max())]
    return float(best[np.argmin(np.abs(best - HALF))])
