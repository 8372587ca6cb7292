"""In which order each program stacks the gates."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from tidegate.errors import SettingsError, ShapeError, nearest

Array = TypeVar("Array", Tensor, np.ndarray)

GATE_ORDERS = {
    "tidegate": "rzn",
    "torch": "rzn",  # and cuDNN
    "keras": "zrn",  # where they are called z, r, h
    "onnx": "zrn",  # z, r, h
    "onednn": "zrn",  # u, r, o
}
"""In which order each program stacks the gates r (reset), z (update), n (candidate).

Sources: the page of torch.nn.GRU; keras/src/layers/rnn/gru.py; the operator GRU of ONNX; oneDNN's page on RNN, whose bias
has a row more for reset="after": b_iz + b_hz, b_ir + b_hr, b_in, b_hn.
"""


def reorder_gates(gates: Array, source: str, target: str, axis: int = 0) -> Array:
    """The three gates stacked along `axis`, from one program's order to another's. A copy; of tensors, differentiable.

    source, target: names in `GATE_ORDERS`. gates: 3H along `axis`.

    >>> reorder_gates(torch.tensor([1, 1, 2, 2, 3, 3]), "torch", "keras")    # r r z z n n -> z z r r n n
    tensor([2, 2, 1, 1, 3, 3])

    Raises `SettingsError` for a program that is not in the table, and `ShapeError` where the axis isn't 3H long.
    """
    for program in (source, target):
        if program not in GATE_ORDERS:
            known = ", ".join(map(repr, GATE_ORDERS))
            raise SettingsError(
                f"Unknown gate order {program!r}; known are {known}.{nearest(str(program), GATE_ORDERS)}"
            )
    if not -gates.ndim <= axis < gates.ndim or gates.shape[axis] % 3:
        raise ShapeError(f"reorder_gates: gates is {list(gates.shape)}, expected 3H along axis {axis}.")
    order = [GATE_ORDERS[source].index(gate) for gate in GATE_ORDERS[target]]
    if isinstance(gates, Tensor):
        blocks = gates.tensor_split(3, axis)
        return torch.cat([blocks[k] for k in order], axis)
    parts = np.split(gates, 3, axis)
    return np.concatenate([parts[k] for k in order], axis)
