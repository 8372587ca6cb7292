"""A model's figures beside those of the baselines, and how they are told."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from tidegate.trained.metrics import Scores

NICE = {
    "span_f1": "span F1", "span_precision": "span precision", "span_recall": "span recall", "macro_f1": "macro F1",
    "micro_f1": "micro F1", "exact_match": "exact match", "rmse": "RMSE", "mse": "MSE", "mae": "MAE", "r2": "R²",
    "accuracy": "accuracy", "f1": "F1", "precision": "precision", "recall": "recall", "count": "count",
}  # fmt: skip


@dataclass
class Evaluation:
    """A model's figures beside those of the baselines, on the same rows.

    model, baselines: name -> Scores; metric: the figure that counts most; what: which rows were scored.
    """

    name: str
    what: str
    metric: str
    more_is_better: bool
    model: Scores
    loss: float
    baselines: dict[str, Scores] = field(default_factory=dict)

    def table(self) -> list[tuple[str, Scores]]:
        return [(self.name, self.model), *self.baselines.items()]

    def __str__(self) -> str:
        return text_table(self)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Evaluation:
        values = dict(values)
        values["model"] = Scores(**values["model"])
        values["baselines"] = {k: Scores(**v) for k, v in values["baselines"].items()}
        return Evaluation(**values)


def nice(name: str) -> str:
    return NICE.get(name, name)


def number(value: float) -> str:
    """Four digits that mean something: 0.9134, 2.5, 1.2e-05, or a dash for what is not there."""
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return "–"
    return f"{value:.4f}" if 1e-3 <= abs(value) < 10 or value == 0 else f"{value:.4g}"


def comparison(evaluation: Evaluation) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of the model against the baselines."""
    figures = list(evaluation.model.summary)
    head = ["", *(nice(f) for f in figures)]
    rows = [[name, *(number(s.summary.get(f, math.nan)) for f in figures)] for name, s in evaluation.table()]
    return head, rows


def text_table(evaluation: Evaluation) -> str:
    head, rows = comparison(evaluation)
    widths = [max(len(r[k]) for r in [head, *rows]) for k in range(len(head))]
    lines = [f"On {evaluation.what} ({evaluation.model.count:,} scored):"]
    for row in [head, *rows]:
        lines.append(
            "  ".join(
                [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
            ).rstrip()
        )
    return "\n".join([*lines, verdict(evaluation)])


def verdict(evaluation: Evaluation) -> str:
    """One sentence that nobody can be fooled by: does the model beat the best baseline?"""
    sign = 1 if evaluation.more_is_better else -1
    ours = evaluation.model.summary[evaluation.metric]
    theirs = {
        n: s.summary[evaluation.metric] for n, s in evaluation.baselines.items() if evaluation.metric in s.summary
    }
    if not theirs:
        return ""
    name = max(theirs, key=lambda n: sign * theirs[n])
    metric = nice(evaluation.metric)
    if sign * ours > sign * theirs[name]:
        return f"Better than every baseline: {metric} {number(ours)}; the next best, {name}: {number(theirs[name])}."
    return f"No better than {name!r}: {metric} {number(ours)} against {number(theirs[name])}. This model is not worth its trouble yet."


def per_class(evaluation: Evaluation) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of classes, labels or targets, the most frequent first."""
    rows = evaluation.model.rows
    if len(rows) < 2:
        return [], []
    keys = list(rows[0])
    ordered = sorted(rows, key=lambda r: -r["count"])
    return [nice(k) for k in keys], [[str(r["class"]), *(number(r[k]) for k in keys[1:])] for r in ordered]
