"""From a table to a trained model: settings, the loop, figures and the run folder.

Lazy, so that the command line can show every setting without loading torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate._lazy import names_of

__all__ = ["Evaluation", "Interrupted", "Run", "TrainSettings", "TrainingFailed", "load", "train"]

if TYPE_CHECKING:
    from tidegate.training.comparison import Evaluation
    from tidegate.training.loop import Interrupted, TrainingFailed
    from tidegate.training.run import Run, load
    from tidegate.training.settings import TrainSettings
    from tidegate.training.trainer import train

__getattr__, __dir__ = names_of(
    __name__,
    {
        "Evaluation": "tidegate.training.comparison",
        "Run": "tidegate.training.run",
        "load": "tidegate.training.run",
        "train": "tidegate.training.trainer",
        "TrainSettings": "tidegate.training.settings",
        "Interrupted": "tidegate.training.loop",
        "TrainingFailed": "tidegate.training.loop",
    },
)
