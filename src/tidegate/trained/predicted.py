"""The predictions of a training's last scoring, cut down to what its report draws of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from tidegate.data.groups import sequence_names
from tidegate.data.preprocessing import Preprocessing, Target
from tidegate.data.sequences import MISSING_CLASS
from tidegate.data.tables import Table
from tidegate.trained.evaluation import Guesses
from tidegate.trained.rows import Rows

Array = np.ndarray[Any, np.dtype[Any]]
STRETCH = 200  # steps of a curve: more can't be followed by eye
MOST_TARGETS = 3  # drawn of several
MOST_POINTS = 500  # of true and predicted values
MOST_CELLS = 20  # classes of a confusion matrix: beyond it, the pairs that are confused most
MOST_PAIRS = 15
BINS = 10  # of probabilities


@dataclass(frozen=True)
class Stretch:
    """Some steps of a sequence, numbered from 1 within it. which: "median", "worst" or "only", by its error among all stretches.

    times: the time column, and what the table has in it at the first and the last step. rmse: over all its targets and steps ahead, in standard
    deviations of the training rows. steps [T]; truth, and predicted by how many steps ahead [T, W], at the step that is meant: NaN
    where there is none.
    """

    which: str
    sequence: str
    times: tuple[str, str, str] | None
    rmse: float
    steps: Array
    truth: Array
    predicted: dict[int, Array]


@dataclass(frozen=True)
class Confusion:
    """How often each true class was predicted as which, one step ahead.

    truths, guesses: the classes that occur; counts [truths, guesses], None where there are too many of them. pairs: the wrong
    ones that are most frequent, as (true class, predicted class, count, steps of the true class); wrong: how many pairs there are.
    """

    truths: list[Any]
    guesses: list[Any]
    counts: Array | None
    pairs: list[tuple[Any, Any, int, int]]
    wrong: int


@dataclass(frozen=True)
class Predicted:
    """What a report draws of predictions. what: which rows they are of.

    stretches: of numbers over time, `of_stretches` in all. points: of each number target its (true, predicted) values one step
    ahead, a sample of `of_points`. by_step_ahead: of the model and of each baseline the figure `figure`, one, two ... steps ahead;
    empty where only one step is predicted. calibration: of labels, by bins of the predicted probability of a 1, (its mean, the
    share of ones, how many).
    """

    what: str
    stretches: list[Stretch] = field(default_factory=list)
    of_stretches: int = 0
    points: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    of_points: int = 0
    figure: str = ""
    by_step_ahead: dict[str, list[float]] = field(default_factory=dict)
    confusion: Confusion | None = None
    calibration: list[tuple[float, float, int]] = field(default_factory=list)


def predicted(pre: Preprocessing, table: Table, rows: Rows, guesses: Guesses) -> Predicted:
    """The predictions that `score_rows` counted, cut down."""
    target = pre.target.with_unseen(rows.data.unseen)
    ours, truth = next(iter(guesses.values.values())), guesses.truth
    figure, by_step_ahead = _by_step_ahead(target, guesses)
    more: dict[str, Any] = {"figure": figure, "by_step_ahead": by_step_ahead}
    if target.task == "class":
        more["confusion"] = _confusion(target, ours[:, 0], truth[:, 0])
    elif target.task == "labels":
        assert guesses.chances is not None
        assert guesses.chances.ones is not None
        more["calibration"] = _calibration(guesses.chances.ones, truth)
    else:
        more["points"], more["of_points"] = _points(target, ours[:, 0], truth[:, 0])
        if pre.per == "step":
            more["stretches"], more["of_stretches"] = _stretches(pre, table, rows, ours, truth)
    return Predicted(rows.what, **more)


def _by_step_ahead(target: Target, guesses: Guesses) -> tuple[str, dict[str, list[float]]]:
    ahead = guesses.truth.shape[1]
    figures = {"class": "accuracy", "labels": "micro_f1", "number": "rmse" if len(target.names) == 1 else "scaled_rmse"}
    if ahead < 2:
        return "", {}
    by_step = {
        name: [_figure(target, values[:, k], guesses.truth[:, k]) for k in range(ahead)]
        for name, values in guesses.values.items()
    }
    return figures[target.task], by_step


def _figure(target: Target, values: Array, truth: Array) -> float:
    """As `metrics.score` counts it."""
    if target.task == "class":
        known = truth != MISSING_CLASS
        return float((values[known] == truth[known]).mean()) if known.any() else float("nan")
    known = ~np.isnan(truth)
    if target.task == "labels":
        tp = float((known & (values == 1) & (truth == 1)).sum())
        wrong = float((known & (values != truth)).sum())
        return 2 * tp / (2 * tp + wrong) if tp + wrong else float("nan")
    means = [
        np.mean((values[known[:, w], w] - truth[known[:, w], w]) ** 2)
        for w in range(truth.shape[1])
        if known[:, w].any()
    ]
    stds = [target.stds[w] for w in range(truth.shape[1]) if known[:, w].any()]
    if not means:
        return float("nan")
    return float(means[0] ** 0.5) if len(target.names) == 1 else float(np.mean(np.sqrt(means) / np.array(stds)))


def _confusion(target: Target, values: Array, truth: Array) -> Confusion:
    known = truth != MISSING_CLASS
    t, p, n = truth[known].astype(np.int64), values[known].astype(np.int64), len(target.classes)
    codes, counts = np.unique(t * n + p, return_counts=True)
    there = np.bincount(t, minlength=n)
    both = [int(k) for k in np.union1d(codes // n, codes % n)]
    guesses = [k for k in both if k < len(target.seen)]  # a class that training never saw is never predicted
    wrong = np.flatnonzero(codes // n != codes % n)
    most = wrong[np.argsort(-counts[wrong], kind="stable")][:MOST_PAIRS]
    pairs = [
        (target.classes[codes[i] // n], target.classes[codes[i] % n], int(counts[i]), int(there[codes[i] // n]))
        for i in most
    ]
    matrix = None
    if len(both) <= MOST_CELLS:
        matrix = np.zeros((len(both), len(guesses)), dtype=np.int64)
        matrix[np.searchsorted(both, codes // n), np.searchsorted(guesses, codes % n)] = counts
    truths, taken = ([target.classes[k] for k in some] for some in (both, guesses))
    return Confusion(truths, taken, matrix, pairs, len(wrong))


def _calibration(ones: Array, truth: Array) -> list[tuple[float, float, int]]:
    known = ~np.isnan(truth)
    p, t = ones[known].astype(np.float64), truth[known]
    which = np.minimum((p * BINS).astype(int), BINS - 1)
    return [(float(p[at].mean()), float(t[at].mean()), int(at.sum())) for k in range(BINS) if (at := which == k).any()]


def _points(target: Target, values: Array, truth: Array) -> tuple[dict[str, list[tuple[float, float]]], int]:
    out, most = {}, 0
    for w, name in enumerate(target.names[:MOST_TARGETS]):
        known = np.flatnonzero(~np.isnan(truth[:, w]))
        most = max(most, len(known))
        some = (
            known[np.unique(np.linspace(0, len(known) - 1, min(MOST_POINTS, len(known))).astype(int))]
            if len(known)
            else known
        )
        if len(some):
            out[name] = [(float(truth[k, w]), float(values[k, w])) for k in some]
    return out, most


def _stretches(pre: Preprocessing, table: Table, rows: Rows, values: Array, truth: Array) -> tuple[list[Stretch], int]:
    """The stretch of the median error and the one of the largest, of all scored steps cut into stretches of about one length."""
    data, part = rows.data, rows.part
    assert part is not None
    pieces = np.array([piece for start, end in data.segments(part).tolist() for piece in _even(start, end)]).reshape(
        -1, 2
    )
    squares = ((values - truth) / np.array(pre.target.stds)) ** 2  # [N, K, W]
    known = ~np.isnan(squares)
    count, steps = known.sum(axis=(1, 2)), known.any(axis=(1, 2))
    total = np.where(known, squares, 0.0).sum(axis=(1, 2))
    sums: Any = (
        [np.add.reduceat(np.append(v, 0), pieces.ravel())[::2] for v in (total, count, steps)]
        if len(pieces)
        else [np.zeros(0)] * 3
    )
    scored = [
        (a, b, float(t / n)) for (a, b), t, n, there in zip(pieces.tolist(), *sums, strict=True) if there > 1
    ]  # fmt: skip
    scored.sort(key=lambda piece: piece[2])
    if not scored:
        return [], 0
    chosen = (
        {"only": scored[0]} if len(scored) == 1 else {"median": scored[(len(scored) - 1) // 2], "worst": scored[-1]}
    )
    names = sequence_names(table, pre, data)
    found = [
        _stretch(piece, pre, rows, values, truth, which=which, table=table, names=names)
        for which, piece in chosen.items()
    ]
    return found, len(scored)


def _even(start: int, end: int) -> Sequence[tuple[int, int]]:
    """start:end in the fewest pieces of at most STRETCH steps, all of about one length.

    >>> _even(0, 450)
    [(0, 150), (150, 300), (300, 450)]
    """
    if end - start <= STRETCH:
        return [(start, end)]
    cuts = np.linspace(start, end, -(-(end - start) // STRETCH) + 1).astype(int).tolist()
    return list(pairwise(cuts))


def _stretch(
    piece: tuple[int, int, float],
    pre: Preprocessing,
    rows: Rows,
    values: Array,
    truth: Array,
    *,
    which: str,
    table: Table,
    names: list[str],
) -> Stretch:
    first, end, error = piece
    data, last = rows.data, pre.horizon
    sequence = int(np.searchsorted(data.offsets, first, side="right")) - 1
    T, W = end - first, len(pre.target.names)
    true = np.full((T + last, W), np.nan)
    guesses: dict[int, Array] = {}
    for k in range(max(last, 1)):
        shift = k + 1 if last else 0
        here = truth[first:end, k]
        true[shift : shift + T] = np.where(np.isnan(here), true[shift : shift + T], here)
        if k in {0, last - 1}:
            guesses[shift] = np.full((T + last, W), np.nan)
            guesses[shift][shift : shift + T] = np.where(np.isnan(here), np.nan, values[first:end, k])
    seen = np.flatnonzero(~np.isnan(true).all(axis=1))
    inside = slice(seen[0], seen[-1] + 1)
    steps = np.arange(T + last)[inside] + first - data.offsets[sequence] + 1
    times = None
    if pre.time is not None and not pre.lists and pre.time in table.frame.columns:  # (a store has no times)
        column = table.frame[pre.time]
        ends = (data.offsets[sequence] + steps[[0, -1]] - 1).tolist()
        begins, stops = (str(column[int(data.rows[k])]) for k in ends)
        times = pre.time, begins, stops
    return Stretch(
        which, names[sequence], times, error**0.5, steps, true[inside], {k: v[inside] for k, v in guesses.items()}
    )
