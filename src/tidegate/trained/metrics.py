"""What a prediction is worth, by torchmetrics; and span F1 for labels such as B-artist, I-artist, O.

torchmetrics is imported where it counts: it takes as long as torch, and predictions and streams need none of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from tidegate.data.preprocessing import Target
from tidegate.data.sequences import MISSING_CLASS

MANY_CLASSES = 2_000  # beyond it a table a class helps nobody


@dataclass
class Scores:
    """Figures over the scored steps (or sequences): `summary` by name, and a row a class, label or target."""

    summary: dict[str, float]
    rows: list[dict[str, Any]] = field(default_factory=list)
    count: int = 0


def is_bio(classes: Sequence[Any]) -> bool:
    """Whether the classes mark spans in the BIO way: O, B-kind for a first word, I-kind for the next ones."""
    return (
        all(isinstance(c, str) and (c == "O" or c[:2] in {"B-", "I-"}) for c in classes)
        and any(c[:2] == "B-" for c in classes if isinstance(c, str))
    )  # fmt: skip


def primary(target: Target, horizon: int) -> tuple[str, bool]:
    """The figure that chooses the best epoch, and whether more of it is better."""
    return FIGURES[target.task].primary(target, horizon)


def score(target: Target, predicted: np.ndarray, truth: np.ndarray, sequence: np.ndarray) -> Scores:
    """Compare predictions with the truth, both flat over steps in sequence order.

    Classes: [M, K] whole numbers (truth MISSING_CLASS where there is none; classes that training never saw behind the others, see
    `Target.with_unseen`: no model predicts them, so each is missed wherever it is the truth). Labels and numbers: [M, K, W] with NaN
    where there is none; numbers in the units of the table. sequence [M]: which sequence each step is of (for spans).
    """
    return FIGURES[target.task].score(target, predicted, truth, sequence)


class Figures(NamedTuple):
    """What is measured of a task: the figure that counts most, and all of them."""

    primary: Callable[[Target, int], tuple[str, bool]]
    score: Callable[[Target, np.ndarray, np.ndarray, np.ndarray], Scores]


def _primary_of_classes(target: Target, horizon: int) -> tuple[str, bool]:
    # Several values ahead are predicted at each step: they overlap, and don't line up to spans.
    return ("span_f1" if is_bio(target.classes) and horizon <= 1 else "accuracy"), True


def _score_classes(target: Target, predicted: np.ndarray, truth: np.ndarray, sequence: np.ndarray) -> Scores:
    known = truth != MISSING_CLASS
    count = int(known.sum())
    if not count:
        return Scores({"accuracy": float("nan")})
    p, t = predicted[known], truth[known]
    summary = {"accuracy": float((p == t).mean())}
    rows: list[dict[str, Any]] = []
    if len(target.seen) <= MANY_CLASSES:
        # torchmetrics counts all pairs of classes, which may be many more than training saw.
        tp, found, support = (
            torch.from_numpy(np.bincount(c, minlength=len(target.classes))).double() for c in (t[p == t], p, t)
        )
        fp, fn = found - tp, support - tp
        f1 = 2 * tp / (2 * tp + fp + fn)
        summary["macro_f1"] = float(f1[(tp + fp + fn) > 0].mean())
        for k, name in enumerate(target.classes[:MANY_CLASSES]):
            rows.append(
                {
                    "class": name,
                    "precision": _ratio(tp[k], tp[k] + fp[k]),
                    "recall": _ratio(tp[k], support[k]),
                    "f1": _ratio(2 * tp[k], 2 * tp[k] + fp[k] + fn[k]),
                    "count": int(support[k]),
                }
            )
    if is_bio(target.seen) and truth.shape[1] == 1:
        spans, by_kind = span_scores(target.classes, predicted[:, 0], truth[:, 0], sequence)
        summary = {**spans, **summary}
        rows = by_kind
    return Scores(summary, rows, count)


def _ratio(a: Any, b: Any) -> float:
    return float(a) / float(b) if float(b) else 0.0


def span_scores(
    classes: Sequence[str], predicted: np.ndarray, truth: np.ndarray, sequence: np.ndarray
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Precision, recall and F1 of whole spans: a span counts when its kind, first and last step all agree.

    The counting of the CoNLL-2000 shared task (Tjong Kim Sang and Buchholz 2000): an I-kind that follows no span of
    its kind begins one. Steps without a truth count as O on both sides; a class of another form is no span.
    """
    known = truth != MISSING_CLASS
    outside = len(classes)  # a class of our own, so that O need not be among the classes
    found = _spans(classes, np.where(known, predicted, outside), sequence)
    real = _spans(classes, np.where(known, truth, outside), sequence)
    right = found & real
    kinds = sorted({kind for *_, kind in found | real})
    rows = []
    for kind in kinds:
        tp, f, r = (sum(1 for *_, k in spans if k == kind) for spans in (right, found, real))
        rows.append(
            {
                "class": kind,
                "precision": _ratio(tp, f),
                "recall": _ratio(tp, r),
                "f1": _ratio(2 * tp, f + r),
                "count": r,
            }
        )
    tp, f, r = len(right), len(found), len(real)
    return {"span_f1": _ratio(2 * tp, f + r), "span_precision": _ratio(tp, f), "span_recall": _ratio(tp, r)}, rows


def _spans(classes: Sequence[str], tags: np.ndarray, sequence: np.ndarray) -> set[tuple[int, int, str]]:
    """(first step, step after the last, kind) of every span."""
    kinds = sorted({c[2:] for c in classes if c[:2] in {"B-", "I-"}})
    kind_of = np.array([kinds.index(c[2:]) if c[:2] in {"B-", "I-"} else -1 for c in classes] + [-1])
    begins = np.array([c[:2] == "B-" for c in classes] + [False])
    kind, begin = kind_of[tags], begins[tags]
    same = np.zeros(len(tags), dtype=bool)
    same[1:] = (sequence[1:] == sequence[:-1]) & (kind[1:] == kind[:-1])
    start = (kind >= 0) & (begin | ~same)
    firsts = np.flatnonzero(start)
    # A span ends where the next one starts or where the kind changes.
    breaks = np.flatnonzero(start | ~same)
    following = np.searchsorted(breaks, firsts, side="right")
    ends = np.append(breaks, len(tags))[following]
    return {(int(a), int(b), kinds[kind[a]]) for a, b in zip(firsts, ends, strict=True)}


def _score_labels(target: Target, predicted: np.ndarray, truth: np.ndarray, sequence: np.ndarray) -> Scores:
    from torchmetrics.functional.classification import multilabel_exact_match, multilabel_stat_scores

    known = ~np.isnan(truth).any(axis=-1)
    if not known.any():
        return Scores({"micro_f1": float("nan")})
    p, t = torch.from_numpy(predicted[known]).long(), torch.from_numpy(truth[known]).long()
    stats = multilabel_stat_scores(p, t, num_labels=len(target.names), average=None, validate_args=False).double()
    stats = stats.reshape(len(target.names), -1)  # of a single label torchmetrics returns no row but its figures
    tp, fp, fn = stats[:, 0], stats[:, 1], stats[:, 3]
    rows = [
        {
            "class": name,
            "precision": _ratio(tp[k], tp[k] + fp[k]),
            "recall": _ratio(tp[k], tp[k] + fn[k]),
            "f1": _ratio(2 * tp[k], 2 * tp[k] + fp[k] + fn[k]),
            "count": int(tp[k] + fn[k]),
        }
        for k, name in enumerate(target.names)
    ]
    summary = {
        "micro_f1": _ratio(2 * tp.sum(), (2 * tp + fp + fn).sum()),
        "macro_f1": float(np.mean([r["f1"] for r in rows])),
        "exact_match": float(multilabel_exact_match(p, t, num_labels=len(target.names), validate_args=False)),
    }
    return Scores(summary, rows, int(known.sum()))


def _score_numbers(target: Target, predicted: np.ndarray, truth: np.ndarray, sequence: np.ndarray) -> Scores:
    from torchmetrics.functional import mean_absolute_error, mean_squared_error, r2_score

    rows, errors = [], []
    for k, name in enumerate(target.names):
        known = ~np.isnan(truth[..., k])
        if not known.any():
            continue
        p = torch.from_numpy(predicted[..., k][known]).double()
        t = torch.from_numpy(truth[..., k][known]).double()
        mse = float(mean_squared_error(p, t))
        r2 = float(r2_score(p, t)) if len(t) > 1 else float("nan")
        rows.append(
            {
                "class": name,
                "rmse": mse**0.5,
                "mae": float(mean_absolute_error(p, t)),
                "r2": r2,
                "count": int(known.sum()),
            }
        )
        errors.append((mse, rows[-1]["mae"], r2))
    if not errors:
        return Scores({"rmse": float("nan")})
    mse, mae, r2 = (float(v) for v in np.mean(errors, axis=0))
    return Scores(
        {"rmse": mse**0.5, "mse": mse, "mae": mae, "r2": r2}, rows, int((~np.isnan(truth)).any(axis=-1).sum())
    )


# To add a figure: compute it in the task's function, and give it a name to be shown in `comparison.NICE`.
FIGURES = {
    "class": Figures(_primary_of_classes, _score_classes),
    "labels": Figures(lambda target, horizon: ("micro_f1", True), _score_labels),
    "number": Figures(lambda target, horizon: ("rmse", False), _score_numbers),
}
