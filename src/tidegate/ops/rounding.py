"""To 8 bits: the rounding of weights that the kernels do (`csrc/kernels/rounding.inl`), an exported C header holds, and a
`QuantisedGRU` keeps.
"""

from __future__ import annotations

import torch
from torch import Tensor


def quantise(rows: Tensor) -> tuple[Tensor, Tensor]:
    """float32 [rows, n] as int8 [rows, n] and a float32 scale a row: the nearest of 255 evenly spaced values to each.

        s_i = max_k |w_ik| / 127          q_ik = w_ik / s_i, rounded to the nearest whole number, to the even one of two

    A row of zeros, or one so small that 1/127 of it is no number, is one of zeros.

    >>> import torch
    >>> quantise(torch.tensor([[1.27, -0.5, 0.004], [0.0, 0.0, 0.0]]))[0].tolist()
    [[127, -50, 0], [0, 0, 0]]
    """
    scales = rows.abs().amax(dim=1) / 127 if rows.size(1) else rows.new_zeros(len(rows))
    by = torch.where(scales > 0, scales, torch.inf).unsqueeze(1)
    return torch.round(rows / by).clamp_(-127, 127).to(torch.int8), scales


def widened(numbers: Tensor, scales: Tensor) -> Tensor:
    """The float32 weights q_ik s_i, of which `quantise` gives the same numbers and scales, to the bit: as w is within 127/2 units of
    the last place of 127 s = 127 fl(w / 127), fl(127 s) is w or a neighbour with the same s. (But for scales below 1e-38, where float32
    has fewer digits.)
    """
    return numbers.float() * scales.unsqueeze(1)
