"""Every figure by its name: what people call it, and which way is better. No torch here: `tidegate train --help` reads this."""

from __future__ import annotations

from typing import NamedTuple


class Figure(NamedTuple):
    """title: as it stands in a table. compared: whether the verdict looks at it; others follow from those it looks at."""

    title: str
    more_is_better: bool = True
    compared: bool = True


KNOWN = {
    "loss": Figure("loss", more_is_better=False, compared=False),
    "nll": Figure("NLL", more_is_better=False),
    "accuracy": Figure("accuracy"),
    "macro_f1": Figure("macro F1"),
    "span_f1": Figure("span F1"),
    "span_precision": Figure("span precision", compared=False),
    "span_recall": Figure("span recall", compared=False),
    "micro_f1": Figure("micro F1"),
    "exact_match": Figure("exact match"),
    "auroc": Figure("AUROC"),
    "auprc": Figure("AUPRC"),
    "rmse": Figure("RMSE", more_is_better=False),
    "mse": Figure("MSE", more_is_better=False, compared=False),
    "mae": Figure("MAE", more_is_better=False),
    "r2": Figure("R²", compared=False),
    # Of several targets: in standard deviations (SD) of each target's training rows, then the mean over the targets.
    "scaled_rmse": Figure("RMSE in SD", more_is_better=False),
    "scaled_mae": Figure("MAE in SD", more_is_better=False),
}
# What `choose_by` may say; which of these a task has, `metrics.chooser` knows.
CHOICES = (
    "auto", "loss", "nll", "accuracy", "macro_f1", "span_f1", "micro_f1", "exact_match", "auroc", "auprc", "rmse", "mae", "r2",
)  # fmt: skip
