"""The training of a model: what is worked out, the loop, what is written on the way.

| file | what it does |
| --- | --- |
| `trainer.py` | `fit` in memory, `train` with a run folder, `--resume` |
| `repeats.py` | several trainings: other seeds, or folds |
| `resolve.py` | every setting that was left open, the sizes of the model, the device |
| `origin.py`, `more.py` | a training that goes on: from another run, or to more epochs |
| `loop.py` | epochs, updates, validation, the best weights |
| `journal.py`, `lock.py` | everything that is written; that nobody else writes there |
| `checkpoint.py`, `gate_log.py`, `progress.py` | where a training stands; the gates after every epoch; what a person sees |

Lazy, so that the command line can show every setting without loading torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate._lazy import names_of

__all__ = ["Evaluation", "Interrupted", "Run", "TrainSettings", "TrainingFailed", "fit", "load", "train"]

if TYPE_CHECKING:
    from tidegate.errors import Interrupted, TrainingFailed
    from tidegate.run import Run, load, train
    from tidegate.trained import Evaluation, TrainSettings
    from tidegate.training.trainer import fit

# Some of these live elsewhere by now and are still found here, where they were.
__getattr__, __dir__ = names_of(
    __name__,
    {
        "Evaluation": "tidegate.trained.comparison",
        "Run": "tidegate.run",
        "load": "tidegate.run",
        "train": "tidegate.run",
        "fit": "tidegate.training.trainer",
        "TrainSettings": "tidegate.trained.settings",
        "Interrupted": "tidegate.errors",
        "TrainingFailed": "tidegate.errors",
    },
)
