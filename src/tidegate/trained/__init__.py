"""What a training leaves, and what it is worth: settings, preprocessing, model, predictions and figures. No file here trains.

| file | what it holds |
| --- | --- |
| `trained.py` | `Trained`: what a run is, in memory or as a folder |
| `settings.py` | `TrainSettings`, every setting of a training |
| `resolved.py` | `Resolved`, what a training worked out for itself |
| `folder.py`, `weights.py` | the files of a run |
| `rows.py` | from a table to the rows that are predicted or scored |
| `evaluation.py`, `predict.py` | the model over whole sequences; predictions beside a table's rows |
| `predicted.py` | what a report draws of the predictions |
| `thresholds.py` | the thresholds of 0/1 labels |
| `metrics.py`, `comparison.py` | figures, and the model's beside those of the baselines |
| `repeats.py`, `spread.py` | several runs of one training: their folder, mean and spread; when models are told apart |
| `ensemble.py` | several runs that predict together |
| `figures.py` | the names of the figures, and which way each is better |
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate._lazy import names_of

__all__ = ["Evaluation", "Resolved", "TrainSettings", "Trained"]

if TYPE_CHECKING:
    from tidegate.trained.comparison import Evaluation
    from tidegate.trained.resolved import Resolved
    from tidegate.trained.settings import TrainSettings
    from tidegate.trained.trained import Trained

__getattr__, __dir__ = names_of(
    __name__,
    {
        "Evaluation": "tidegate.trained.comparison",
        "Resolved": "tidegate.trained.resolved",
        "TrainSettings": "tidegate.trained.settings",
        "Trained": "tidegate.trained.trained",
    },
)
