"""The model of a run: encoder, recurrent core, head. What kinds of cell, pooling and task there are stands here, a row each.

| file | what it holds |
| --- | --- |
| `spec.py` | `ModelSpec`, the sizes of a model, and `CoreOptions`, what changes its recurrence; knows no torch |
| `cells/` | the table of cells: how each is made, its state, its step |
| `pooling.py` | the table of poolings: of a whole sequence, and row by row |
| `tasks.py` | the table of tasks: loss, decision, probabilities, columns |
| `model.py` | `SequenceModel` |
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate._lazy import names_of

__all__ = ["CoreOptions", "ModelSpec", "SequenceModel", "Traced"]

if TYPE_CHECKING:
    from tidegate.model.model import SequenceModel, Traced
    from tidegate.model.spec import CoreOptions, ModelSpec

__getattr__, __dir__ = names_of(
    __name__,
    {
        "CoreOptions": "tidegate.model.spec",
        "ModelSpec": "tidegate.model.spec",
        "SequenceModel": "tidegate.model.model",
        "Traced": "tidegate.model.model",
    },
)
