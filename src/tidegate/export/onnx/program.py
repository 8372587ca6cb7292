"""A `torch.export.ExportedProgram` that holds our layers, on its way to `torch.onnx.export`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tidegate.ops.gru import in_onnx


def decompositions() -> dict[Any, Callable[..., Any]]:
    """What `program.run_decompositions` is to be given before `torch.onnx.export(program)`: Tidegate's operator becomes ONNX's GRU.

    A model needs none of it: `torch.onnx.export(model, ...)` writes that operator by itself. Needs torch alone.

    >>> import torch, tidegate
    >>> from tidegate.export.onnx import decompositions
    >>> program = torch.export.export(tidegate.GRU(3, 8).eval(), (torch.randn(7, 2, 3),))
    >>> program = program.run_decompositions(decompositions())     # and then torch.onnx.export(program)

    Raises `SettingsError` (a `ValueError`), from `run_decompositions`, for what ONNX's GRU has not, where the number of steps is open.
    """
    return {torch.ops.tidegate.gru_layer.default: in_onnx.of_operator}
