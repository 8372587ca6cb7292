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
from tidegate.errors import SettingsError
from tidegate.model.tasks import Chances
from tidegate.trained.figures import KNOWN

MANY_CLASSES = 2_000  # beyond it a table a class helps nobody
MOST_NAMED = 5  # classes that are never predicted right: more names help nobody


@dataclass
class Scores:
    """Figures over the scored steps (or sequences): `summary` by name, and a row a class, label or target.

    missed: classes or labels that are there and never predicted right (recall 0), the most frequent first and at most
    MOST_NAMED of them; missed_count: how many there are.
    """

    summary: dict[str, float]
    rows: list[dict[str, Any]] = field(default_factory=list)
    count: int = 0
    missed: list[Any] = field(default_factory=list)
    missed_count: int = 0


def is_bio(classes: Sequence[Any]) -> bool:
    """Whether the classes mark spans in the BIO way: O, B-kind for a first word, I-kind for the next ones."""
    return (
        all(isinstance(c, str) and (c == "O" or c[:2] in {"B-", "I-"}) for c in classes)
        and any(c[:2] == "B-" for c in classes if isinstance(c, str))
    )  # fmt: skip


def chooser(target: Target, horizon: int, choose_by: str = "auto") -> str:
    """The figure of the validation rows that chooses the best epoch, as `Scores.summary` has it, or "loss".

    Raises SettingsError where the task has no such figure.
    """
    known = FIGURES[target.task].choices(target, horizon)
    if choose_by == "auto":
        return next(iter(known.values()))
    if choose_by not in known:
        what = {"class": f"one of {len(target.classes)} classes", "labels": "0/1 labels", "number": "numbers"}
        raise SettingsError(
            f"choose_by={choose_by!r}: the target is {what[target.task]}, and that figure isn't there for it. "
            f"Choose by {', '.join(known)}, or leave it out (auto)."
        )
    return known[choose_by]


def primary(target: Target, horizon: int, choose_by: str = "auto") -> tuple[str, bool]:
    """The figure that counts most where models are compared, and whether more of it is better: the one that chooses the
    best epoch; the task's own where that is the loss."""
    name = chooser(target, horizon, choose_by)
    if name == "loss":
        name = chooser(target, horizon)
    name = "nll" if name == "loss" else name
    return name, KNOWN[name].more_is_better


def score(
    target: Target, predicted: np.ndarray, truth: np.ndarray, sequence: np.ndarray, chances: Chances | None = None
) -> Scores:
    """Compare predictions with the truth, both flat over steps in sequence order.

    Classes: [M, K] whole numbers (truth MISSING_CLASS where there is none; classes that training never saw behind the others, see
    `Target.with_unseen`: no model predicts them, so each is missed wherever it is the truth). Labels and numbers: [M, K, W] with NaN
    where there is none; numbers in the units of the table. sequence [M]: which sequence each step is of (for spans).
    chances: of classes and labels, what their probabilities are worth; without them there is no NLL, AUROC and AUPRC.
    """
    return FIGURES[target.task].score(target, predicted, truth, sequence, chances)


class Figures(NamedTuple):
    """What is measured of a task. choices: what `choose_by` may say, and the figure that is meant; the first is auto."""

    choices: Callable[[Target, int], dict[str, str]]
    score: Callable[[Target, np.ndarray, np.ndarray, np.ndarray, Chances | None], Scores]


def _choices_of_classes(target: Target, horizon: int) -> dict[str, str]:
    # Several values ahead are predicted at each step: they overlap, and don't line up to spans.
    names = ["span_f1"] if is_bio(target.classes) and horizon <= 1 else []
    names += ["accuracy", "macro_f1"] if len(target.classes) <= MANY_CLASSES else ["accuracy"]
    return {name: name for name in names} | {"loss": "loss", "nll": "loss"}  # the NLL of a class is the loss


def _score_classes(
    target: Target, predicted: np.ndarray, truth: np.ndarray, sequence: np.ndarray, chances: Chances | None
) -> Scores:
    tally = ClassTally(target)
    tally.take(predicted, truth, chances)
    scores = tally.scores()
    if not scores.count:
        return scores
    if is_bio(target.seen) and truth.shape[1] == 1:
        spans, rows = span_scores(target.classes, predicted[:, 0], truth[:, 0], sequence)
        missed = _missed([r["class"] for r in rows], [r["recall"] for r in rows], [r["count"] for r in rows])
        return Scores({**spans, **scores.summary}, rows, scores.count, *missed)
    return scores


class ClassTally:
    """Figures of classes, from predictions that come in pieces."""

    def __init__(self, target: Target) -> None:
        self.target = target
        # torchmetrics counts all pairs of classes, which may be many more than training saw.
        self.right, self.found, self.there = (np.zeros(len(target.classes), dtype=np.int64) for _ in range(3))
        self.nll, self.likely, self.has_chances = 0.0, 0, False

    def take(self, predicted: np.ndarray, truth: np.ndarray, chances: Chances | None = None) -> None:
        known = truth != MISSING_CLASS
        p, t = predicted[known], truth[known]
        for counts, classes in ((self.right, t[p == t]), (self.found, p), (self.there, t)):
            counts += np.bincount(classes, minlength=len(counts))
        if chances is not None:
            self.has_chances = True
            likely = known & (
                truth < len(self.target.seen)
            )  # as the loss: what can't be predicted would make it infinite
            self.nll += float(chances.nll[likely].sum(dtype=np.float64))
            self.likely += int(likely.sum())

    def scores(self) -> Scores:
        target, right, there = self.target, self.right, self.there
        count = int(there.sum())
        if not count:
            return Scores({"accuracy": float("nan")})
        summary = {"accuracy": int(right.sum()) / count}
        rows: list[dict[str, Any]] = []
        if len(target.seen) <= MANY_CLASSES:
            tp, support = torch.from_numpy(right).double(), torch.from_numpy(there).double()
            fp, fn = torch.from_numpy(self.found).double() - tp, support - tp
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
        if self.has_chances:
            summary["nll"] = self.nll / self.likely if self.likely else float("nan")
        return Scores(summary, rows, count, *_missed(target.classes, right, there))


def _missed(names: Sequence[Any], right: Any, there: Any) -> tuple[list[Any], int]:
    """What is there and never predicted right: the names of the most frequent, and how many there are."""
    there = np.asarray(there)
    which = np.flatnonzero((there > 0) & (np.asarray(right) == 0))
    which = which[np.argsort(-there[which], kind="stable")]
    return [names[k] for k in which[:MOST_NAMED]], len(which)


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


def _choices_of_labels(target: Target, horizon: int) -> dict[str, str]:
    # The loss first: an F1 at the threshold of 1/2 knows nothing of how sure a model is, and calls a model whose rare label
    # never comes above 1/2 as bad as one that has learnt nothing of it.
    own = ("micro_f1", "macro_f1", "exact_match", "auroc", "auprc")
    return {"loss": "loss", "nll": "loss"} | {name: name for name in own}


def _score_labels(
    target: Target, predicted: np.ndarray, truth: np.ndarray, sequence: np.ndarray, chances: Chances | None
) -> Scores:
    there = ~np.isnan(truth)
    known = there.any(axis=-1)  # [M, K]: steps with at least one label; what is missing beside it isn't scored
    if not known.any():
        return Scores({"micro_f1": float("nan")})
    # As torchmetrics' multilabel_stat_scores and multilabel_exact_match count them, which need 64 bits a label for each of a dozen arrays.
    said, true = there & (predicted > 0), there & (truth > 0)
    tp, fp, fn = (
        torch.from_numpy(which.sum(axis=(0, 1))).double() for which in (said & true, said & ~true, ~said & true)
    )
    exact = np.float32((said == true).all(axis=-1)[known].sum()) / np.float32(known.sum())
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
    for row, threshold in zip(rows, target.thresholds, strict=False):
        row["threshold"] = threshold
    summary = {
        "micro_f1": _ratio(2 * tp.sum(), (2 * tp + fp + fn).sum()),
        "macro_f1": float(np.mean([r["f1"] for r in rows])),
        "exact_match": float(exact),
    }
    if chances is not None:
        # Summed over the labels of a step: the figure of polyphonic music, where a label is a note.
        summary = {"nll": float(np.where(there, chances.nll, 0.0).sum(axis=-1)[known].mean())} | summary
        summary |= _areas(chances.ones, truth, there)
    missed = _missed(target.names, [r["recall"] for r in rows], [r["count"] for r in rows])
    return Scores(summary, rows, int(known.sum()), *missed)


def _areas(ones: np.ndarray | None, truth: np.ndarray, there: np.ndarray) -> dict[str, float]:
    """AUROC and AUPRC, the mean over the labels that are 0 in some steps and 1 in others; NaN where none is."""
    from torchmetrics.functional.classification import binary_auroc, binary_average_precision

    assert ones is not None
    auroc, auprc = [], []
    for k in range(truth.shape[-1]):
        known = there[..., k]
        t = torch.from_numpy(truth[..., k][known]).long()
        if len(t) and t.min() != t.max():
            p = torch.from_numpy(ones[..., k][known])
            auroc.append(float(binary_auroc(p, t, validate_args=False)))
            auprc.append(float(binary_average_precision(p, t, validate_args=False)))
    return {"auroc": _mean(auroc), "auprc": _mean(auprc)}


def _mean(values: Sequence[float]) -> float:
    """The mean of what is a number; NaN where nothing is."""
    there = [v for v in values if not np.isnan(v)]
    return float(np.mean(there)) if there else float("nan")


def _choices_of_numbers(target: Target, horizon: int) -> dict[str, str]:
    if len(target.names) == 1:
        own = {"rmse": "rmse", "mae": "mae"}
    else:  # In the units of the table the target with the largest unit would decide alone; squared, a few rows far from all others.
        own = {"mae": "scaled_mae", "rmse": "scaled_rmse"}
    return own | {"r2": "r2", "loss": "loss"}


def _score_numbers(
    target: Target, predicted: np.ndarray, truth: np.ndarray, sequence: np.ndarray, chances: Chances | None
) -> Scores:
    from torchmetrics.functional import mean_absolute_error, mean_squared_error

    rows = []
    for k, name in enumerate(target.names):
        known = ~np.isnan(truth[..., k])
        if not known.any():
            continue
        p = torch.from_numpy(predicted[..., k][known]).double()
        t = torch.from_numpy(truth[..., k][known]).double()
        rows.append(
            OfNumber(
                k, name, float(mean_squared_error(p, t)), float(mean_absolute_error(p, t)), _r2(p, t), int(known.sum())
            )
        )
    return _scores_of_numbers(target, rows, int((~np.isnan(truth)).any(axis=-1).sum()))


class OfNumber(NamedTuple):
    """The figures of one target, the one of number k."""

    k: int
    name: str
    mse: float
    mae: float
    r2: float
    scored: int


def _scores_of_numbers(target: Target, of_each: Sequence[OfNumber], count: int) -> Scores:
    if not of_each:
        return Scores({"rmse": float("nan")})
    rows: list[dict[str, Any]] = [
        {"class": one.name, "rmse": one.mse**0.5, "mae": one.mae, "r2": one.r2, "count": one.scored} for one in of_each
    ]
    errors = [(one.mse, one.mae, one.mse**0.5 / target.stds[one.k], one.mae / target.stds[one.k]) for one in of_each]
    mse, mae, scaled_rmse, scaled_mae = (float(v) for v in np.mean(errors, axis=0))
    summary = {"rmse": mse**0.5, "mse": mse, "mae": mae, "r2": _mean([one.r2 for one in of_each])}
    if len(target.names) > 1:
        summary = {"scaled_rmse": scaled_rmse, "scaled_mae": scaled_mae} | summary
    return Scores(summary, rows, count)


class NumberTally:
    """Figures of numbers, from predictions that come in pieces."""

    def __init__(self, target: Target) -> None:
        self.target, self.count = target, 0
        width = len(target.names)
        # Of each target: how many, the sums of squared and of absolute errors; of the truth its mean, squared distances from that,
        # and least and largest value.
        self.counts = np.zeros(width, dtype=np.int64)
        self.squares, self.absolutes, self.means, self.spreads = (np.zeros(width) for _ in range(4))
        self.least, self.largest = np.full(width, np.inf), np.full(width, -np.inf)

    def take(self, predicted: np.ndarray, truth: np.ndarray, chances: Chances | None = None) -> None:
        there = ~np.isnan(truth)
        self.count += int(there.any(axis=-1).sum())
        for k in range(len(self.target.names)):
            t, p = truth[..., k][there[..., k]], predicted[..., k][there[..., k]]
            if not len(t):
                continue
            away = p - t
            self.squares[k] += float((away * away).sum())
            self.absolutes[k] += float(np.abs(away).sum())
            mean, before, both = float(t.mean()), self.counts[k], self.counts[k] + len(t)
            apart = mean - self.means[k]  # Chan, Golub and LeVeque 1983
            self.spreads[k] += float(((t - mean) ** 2).sum()) + apart * apart * before * len(t) / both
            self.means[k] += apart * len(t) / both
            self.counts[k] = both
            self.least[k], self.largest[k] = min(self.least[k], t.min()), max(self.largest[k], t.max())

    def scores(self) -> Scores:
        of_each = []
        for k, name in enumerate(self.target.names):
            n = int(self.counts[k])
            if n:
                alike = n < 2 or self.least[k] == self.largest[k]
                r2 = float("nan") if alike else 1 - float(self.squares[k]) / float(self.spreads[k])
                of_each.append(OfNumber(k, name, float(self.squares[k]) / n, float(self.absolutes[k]) / n, r2, n))
        return _scores_of_numbers(self.target, of_each, self.count)


TALLIES: dict[str, Callable[[Target], ClassTally | NumberTally]] = {"class": ClassTally, "number": NumberTally}
"""By the task, what gathers its figures piece by piece. Areas under curves and spans need all predictions at once: not there."""


def _r2(p: torch.Tensor, t: torch.Tensor) -> float:
    """1 - the squared errors over the squared distances from the mean; NaN where all values are alike.

    Our own: torchmetrics' r2_score takes a sum below 1e-4 for zero, and gives 1 for any prediction of a target that small.
    """
    if len(t) < 2 or t.min() == t.max():
        return float("nan")
    return 1 - float(((p - t) ** 2).sum() / ((t - t.mean()) ** 2).sum())


# To add a figure: compute it in the task's function, and give it its row in `figures.KNOWN`.
FIGURES = {
    "class": Figures(_choices_of_classes, _score_classes),
    "labels": Figures(_choices_of_labels, _score_labels),
    "number": Figures(_choices_of_numbers, _score_numbers),
}
