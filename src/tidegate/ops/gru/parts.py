"""What the gates of a GRU are made of: what the input says to each, and what the state says."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from tidegate.ops.gru.reference import _gates, _of_x, _sums


def parts(
    x: Tensor,  # [T, I]
    h_prev: Tensor,  # [T, H], the state before each step
    r: Tensor,  # [T, H], the reset gate
    w_ih: Tensor,  # [3H, I]
    w_hh: Tensor,  # [3H, H]
    b_ih: Tensor | None = None,  # [3H]
    b_hh: Tensor | None = None,  # [3H]
    g_ih: Tensor | None = None,  # [3H], layer norm's gains
    g_hh: Tensor | None = None,  # [3H]
    *,
    reset: str = "after",
) -> tuple[Tensor, Tensor]:  # [T, 3H] each
    """Of one layer in one direction, at steps whose states are known: what x and what h_prev say to the gates r, z and n.

    With them r = σ(x_r + h_r), z = σ(x_z + h_z) and n = tanh(x_n + r ⊙ h_n), or with reset="before" n = tanh(x_n + h_n).
    """
    gates_x = _of_x(x, w_ih, b_ih, g_ih)
    if reset == "after" and g_hh is None:
        return gates_x, linear(h_prev, w_hh, b_hh)
    of_rz, of_n = _gates(h_prev.size(-1), w_hh, b_hh, g_hh)
    h_n = _sums(h_prev if reset == "after" else r * h_prev, *of_n)
    return gates_x, torch.cat([_sums(h_prev, *of_rz), h_n], dim=-1)
