"""How many operations a call is, for `torch.utils.flop_counter` and what stands on it: as it counts `torch.nn.GRU` on a CPU,
2 for each multiplication of the matrix products.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor


def _rows(x: Tensor, batch_sizes: Tensor | None, lengths: Tensor | None) -> int:
    """The steps of all sequences together. Padding counts only where nobody may look at the lengths."""
    if batch_sizes is None and type(lengths) is Tensor:
        return int(lengths.sum())
    return x.shape[:-1].numel()


def _first_rows(B: int, batch_sizes: Tensor | None, lengths: Tensor | None) -> tuple[int, int]:
    """How many sequences begin at the first step of a run, forwards and backwards: in the latter, those of the full length."""
    if type(batch_sizes) is Tensor:
        return int(batch_sizes[0]), int(batch_sizes[-1])
    if type(lengths) is Tensor and len(lengths):
        return int(lengths.count_nonzero()), int((lengths == lengths.max()).sum())
    return B, B


def forward(
    x: Tensor,
    h_0: Tensor,
    weights: Sequence[Tensor],
    bias: bool,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    *others: Any,
    out_val: Any = None,
) -> int:
    I, H, D = x.shape[-1], h_0.shape[2], h_0.shape[0]
    return 2 * D * _rows(x, batch_sizes, lengths) * 3 * H * (I + H)


def backward(
    d_output: Tensor | None,
    d_h_n: Tensor | None,
    d_saved: Tensor | None,
    x: Tensor,
    h_0: Tensor,
    output: Tensor,
    saved: Tensor,
    norms: Tensor,
    weights: Sequence[Tensor],
    bias: bool,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    *others: Any,
    out_val: Any = None,
) -> int:
    I, H, D, B = x.shape[-1], h_0.shape[2], h_0.shape[0], h_0.shape[1]
    rows = _rows(x, batch_sizes, lengths)
    again = rows * (I + H) if saved.dim() == 1 else 0  # nothing was saved: forwards once more
    # The state before a run's first step has a gradient only where somebody wants that of h_0.
    first = (0, 0) if h_0.requires_grad else _first_rows(B, batch_sizes, lengths)
    of_states = sum(rows - n for n in first[:D]) * H
    of_inputs = rows * I if x.requires_grad else 0
    return 2 * 3 * H * (D * (again + rows * (I + H) + of_inputs) + of_states)


def fvcore_handle(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """What fvcore is to ask about `tidegate::gru_layer`: the multiplications of the matrix products, which it calls flops; half of what
    `torch.utils.flop_counter` counts. The arguments are values of a traced graph (`torch._C.Value`).

        FlopCountAnalysis(model, x).set_op_handle("tidegate::gru_layer", tidegate.nn.fvcore_handle)
    """
    x, h_0 = (v.type().sizes() for v in inputs[:2])
    *rows, I = x
    D, _, H = h_0
    return int(D * math.prod(rows) * 3 * H * (I + H))
