"""The definition of the GRU: plain PyTorch that reads like the equations. Every back end is held to it.

Shapes: `T` steps, `B` batch, `I` input features, `H` hidden units. The three gates are stacked in the order r (reset), z (update),
n (candidate) along the first axis of every weight:

    w_ih = | W_ir |        b_ih = | b_ir |        w_hh = | W_hr |        b_hh = | b_hr |
           | W_iz |               | b_iz |               | W_hz |               | b_hz |
           | W_in |               | b_in |               | W_hn |               | b_hn |
           [3H, I]                [3H]                   [3H, H]                [3H]

**z = 1 keeps the old state.** Papers: Cho et al. 2014, arXiv:1406.1078; Chung et al. 2014, arXiv:1412.3555. What may
change the recurrence: layer norm, Ba et al. 2016, arXiv:1607.06450; recurrent dropout, Gal and Ghahramani 2016,
arXiv:1512.05287; zoneout, Krueger et al. 2017, arXiv:1606.01305.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear

HALF_TYPES = (torch.float16, torch.bfloat16)
"""What is computed in float32 and rounded once, at the end; in the native back end bfloat16 is multiplied as it is."""
NORM_EPSILON = 1e-5


def sums_in(x: Tensor) -> torch.dtype:
    """What numbers like x are added up in."""
    return torch.float32 if x.dtype is torch.bfloat16 else x.dtype


def gru_cell(
    x_t: Tensor,  # [B, I]
    h_prev: Tensor,  # [B, H]
    w_ih: Tensor,  # [3H, I]
    w_hh: Tensor,  # [3H, H]
    b_ih: Tensor | None = None,  # [3H]
    b_hh: Tensor | None = None,  # [3H]
    *,
    reset: str = "after",
    kept: dict[Any, Any] | None = None,
) -> Tensor:  # [B, H]
    """One step of one layer. `kept` is as in `reference.gru`.

        r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)
        z = sigmoid(W_iz x + b_iz + W_hz h + b_hz)
        n = tanh(W_in x + b_in + r * (W_hn h + b_hn))        reset="after"
        n = tanh(W_in x + b_in + W_hn (r * h) + b_hn)        reset="before"
        h' = (1 - z) * n + z * h

    `reset="after"` is what torch, cuDNN and Keras compute: the reset gate scales the product.
    `reset="before"` is the form of the papers: it scales the state that goes into the product. A `float16` or
    `bfloat16` step is computed in float32 and rounded once, at the end.

    >>> x, h = torch.tensor([[1.0]]), torch.tensor([[0.5]])
    >>> w_ih, w_hh = torch.tensor([[0.0], [100.0], [1.0]]), torch.zeros(3, 1)   # W_iz is huge, so z = 1 ...
    >>> gru_cell(x, h, w_ih, w_hh)                                              # ... and the state is kept
    tensor([[0.5000]])

    Raises `ValueError` when `reset` is another word.
    """
    if x_t.dtype in HALF_TYPES:
        wide: list[Any] = [None if v is None else v.float() for v in (x_t, h_prev, w_ih, w_hh, b_ih, b_hh)]
        return gru_cell(*wide, reset=reset).to(x_t.dtype)
    return next_state(gates_of_x(x_t, w_ih, b_ih), h_prev, w_hh, b_hh, reset)[0]


def gates_of_x(
    x: Tensor,  # [..., I]
    w_ih: Tensor,  # [3H, I]
    b_ih: Tensor | None,  # [3H]
    g_ih: Tensor | None = None,  # [3H], layer norm's gains
) -> Tensor:  # [..., 3H]
    """What x has to say to the gates: W_ir x + b_ir | W_iz x + b_iz | W_in x + b_in. It needs no state."""
    if g_ih is None:
        return linear(x, w_ih, b_ih)
    rz, n = _rz_and_n(w_ih.size(0) // 3, w_ih, b_ih, g_ih)
    return torch.cat([_sums(x, *rz), _sums(x, *n)], dim=-1)


def next_state(
    gates_x: Tensor,  # [B, 3H], of `gates_of_x`
    h_prev: Tensor,  # [B, H]
    w_hh: Tensor,  # [3H, H]
    b_hh: Tensor | None,  # [3H]
    reset: str,
    g_hh: Tensor | None = None,  # [3H], layer norm's gains
    mask: Tensor | None = None,  # [B, H], recurrent dropout's
    zone: Tensor | float = 0.0,  # [B, H] or one for all: the part of its state that a unit keeps in any case
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:  # h_t [B, H]; r, z, n, h_n [B, H] each
    """One step with all that may change it: where the reset gate falls, layer norm, recurrent dropout, zoneout.

    h_n is what the product of the state says to the candidate: W_hn h + b_hn, or of r * h.
    """
    if reset not in ("after", "before"):
        raise ValueError(f"reset is {reset!r}, expected 'after' or 'before'.")
    x_r, x_z, x_n = gates_x.chunk(3, dim=-1)  # [B, H] each
    of_rz, of_n = _rz_and_n(h_prev.size(-1), w_hh, b_hh, g_hh)
    h = h_prev if mask is None else mask * h_prev
    h_r, h_z = _sums(h, *of_rz).chunk(2, dim=-1)
    r = torch.sigmoid(x_r + h_r)
    z = torch.sigmoid(x_z + h_z)
    if reset == "after":
        h_n = _sums(h, *of_n)
        n = torch.tanh(x_n + r * h_n)
    else:
        h_n = _sums(r * h, *of_n)
        n = torch.tanh(x_n + h_n)
    keep = z + zone * (1 - z)
    return (1 - keep) * n + keep * h_prev, (r, z, n, h_n)


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
    """What x and what the states before each step say to the gates r, z and n of one layer in one direction, all steps at once.

    With them r = σ(x_r + h_r), z = σ(x_z + h_z) and n = tanh(x_n + r ⊙ h_n), or with reset="before" n = tanh(x_n + h_n).
    """
    gates_x = gates_of_x(x, w_ih, b_ih, g_ih)
    if reset == "after" and g_hh is None:
        return gates_x, linear(h_prev, w_hh, b_hh)
    of_rz, of_n = _rz_and_n(h_prev.size(-1), w_hh, b_hh, g_hh)
    h_n = _sums(h_prev if reset == "after" else r * h_prev, *of_n)
    return gates_x, torch.cat([_sums(h_prev, *of_rz), h_n], dim=-1)


def _sums(v: Tensor, w: Tensor, b: Tensor | None, g: Tensor | None) -> Tensor:
    """W v + b; with layer norm's gains g ⊙ norm(W v) + b, the values of all of w's rows normalised together."""
    if g is None:
        return linear(v, w, b)
    return layer_norm(linear(v, w), (w.size(0),), g, b, NORM_EPSILON)


def _rz_and_n(H: int, *stacked: Tensor | None) -> tuple[list[Any], list[Any]]:
    """The r and z part and the n part of weights or biases: two sums, as a layer norm sees them."""
    return [None if v is None else v[: 2 * H] for v in stacked], [None if v is None else v[2 * H :] for v in stacked]
