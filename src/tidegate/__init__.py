"""Tidegate: gated recurrent units (GRU) on PyTorch.

The names below are all there is to know at first. Each is imported when it is first used, so that
`import tidegate` costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate._lazy import names_of

__version__ = "0.1.0"
__all__ = [
    "GRU",
    "GRUCell",
    "MinGRU",
    "Run",
    "TrainSettings",
    "backends",
    "convert",
    "datasets",
    "errors",
    "load",
    "load_keras_gru",
    "nn",
    "ops",
    "prepare",
    "quantize",
    "train",
    "tune",
]

if TYPE_CHECKING:
    from tidegate import backends, convert, datasets, errors, nn, ops
    from tidegate.keras_models import load_keras_gru
    from tidegate.nn import GRU, GRUCell, MinGRU, quantize
    from tidegate.run import Run, load, prepare, train
    from tidegate.trained import TrainSettings
    from tidegate.tuning import tune

__getattr__, __dir__ = names_of(
    __name__,
    {
        "GRU": "tidegate.nn",
        "GRUCell": "tidegate.nn",
        "MinGRU": "tidegate.nn",
        "quantize": "tidegate.nn",
        "prepare": "tidegate.run",
        "train": "tidegate.run",
        "load": "tidegate.run",
        "Run": "tidegate.run",
        "tune": "tidegate.tuning",
        "load_keras_gru": "tidegate.keras_models",
        "TrainSettings": "tidegate.trained",
        "backends": None,
        "convert": None,
        "datasets": None,
        "errors": None,
        "nn": None,
        "ops": None,
    },
)
