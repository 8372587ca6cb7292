"""The definition of the GRU: plain PyTorch that reads like the equations; every other back end is held to it.

Shapes: `T` steps, `B` batch, `I` input features, `H` hidden units, `D` directions (1 or 2). Time comes first.
The three gates are stacked in the order r (reset), z (update), n (candidate) along the first axis of every
weight:

    w_ih = | W_ir |        b_ih = | b_ir |        w_hh = | W_hr |        b_hh = | b_hr |
           | W_iz |               | b_iz |               | W_hz |               | b_hz |
           | W_in |               | b_in |               | W_hn |               | b_hn |
           [3H, I]                [3H]                   [3H, H]                [3H]

**z = 1 keeps the old state.** Papers: Cho et al. 2014, arXiv:1406.1078; Chung et al. 2014, arXiv:1412.3555.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop
from torch.nn.functional import linear

_HALF_TYPES = (torch.float16, torch.bfloat16)


def _wide(*tensors: Tensor | None) -> list[Any]:
    return [None if v is None else v.float() for v in tensors]


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
    """One step of one layer. `kept` is as in `gru`.

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
    if x_t.dtype in _HALF_TYPES:
        return gru_cell(*_wide(x_t, h_prev, w_ih, w_hh, b_ih, b_hh), reset=reset).to(x_t.dtype)
    return _step(linear(x_t, w_ih, b_ih), h_prev, w_hh, b_hh, reset)


def _step(
    gates_x: Tensor,  # [B, 3H], what x has to say to the gates: W_ir x + b_ir | W_iz x + b_iz | W_in x + b_in
    h_prev: Tensor,  # [B, H]
    w_hh: Tensor,  # [3H, H]
    b_hh: Tensor | None,  # [3H]
    reset: str,
) -> Tensor:  # [B, H]
    x_r, x_z, x_n = gates_x.chunk(3, dim=-1)  # [B, H] each
    if reset == "after":
        h_r, h_z, h_n = linear(h_prev, w_hh, b_hh).chunk(3, dim=-1)
        r = torch.sigmoid(x_r + h_r)
        n = torch.tanh(x_n + r * h_n)
    elif reset == "before":
        H = h_prev.size(-1)
        b_hrz, b_hn = (None, None) if b_hh is None else (b_hh[: 2 * H], b_hh[2 * H :])
        h_r, h_z = linear(h_prev, w_hh[: 2 * H], b_hrz).chunk(2, dim=-1)
        r = torch.sigmoid(x_r + h_r)
        n = torch.tanh(x_n + linear(r * h_prev, w_hh[2 * H :], b_hn))
    else:
        raise ValueError(f"reset is {reset!r}, expected 'after' or 'before'.")
    z = torch.sigmoid(x_z + h_z)
    return (1 - z) * n + z * h_prev


def gru_layer(
    x: Tensor,  # [T, B, I], or [rows, I] with batch_sizes
    h_0: Tensor,  # [B, H]
    w_ih: Tensor,  # [3H, I]
    w_hh: Tensor,  # [3H, H]
    b_ih: Tensor | None = None,  # [3H]
    b_hh: Tensor | None = None,  # [3H]
    *,
    reverse: bool = False,
    reset: str = "after",
    batch_sizes: Tensor | None = None,  # [T], int64, on the CPU
) -> tuple[Tensor, Tensor]:  # output [T, B, H] or [rows, H]; h_n [B, H]
    """One layer in one direction: `gru_cell` step after step, from the last to the first where `reverse` is
    true.

    With `batch_sizes`, sequences of different lengths lie step by step, the longest first, with no padding:
    step t has the first `batch_sizes[t]` rows of the batch (`PackedSequence.data` and `.batch_sizes`).

    Inside the loop the state of a half type is float32. No steps (T = 0): an empty output, and h_n = h_0.
    """
    if x.dtype in _HALF_TYPES:
        wide = _wide(x, h_0, w_ih, w_hh, b_ih, b_hh)
        output, h_n = gru_layer(*wide, reverse=reverse, reset=reset, batch_sizes=batch_sizes)
        return output.to(x.dtype), h_n.to(x.dtype)

    gates_x = linear(x, w_ih, b_ih)  # [T, B, 3H]: it needs no state, so all steps at once
    steps = gates_x.unbind(0) if batch_sizes is None else gates_x.split(batch_sizes.tolist())
    outputs = []
    state = h_0  # [B, H]
    for gates_x_t in reversed(steps) if reverse else steps:
        # Only the first B_t rows have this step. The rest keep their state: forwards these sequences are
        # over, backwards they have not begun.
        B_t = gates_x_t.size(0)
        h_t = _step(gates_x_t, state[:B_t], w_hh, b_hh, reset)
        outputs.append(h_t)
        state = h_t if B_t == state.size(0) else torch.cat([h_t, state[B_t:]])
    if not outputs:
        return x.new_empty(0, *h_0.shape), h_0.clone()
    if reverse:
        outputs.reverse()
    return (torch.stack(outputs) if batch_sizes is None else torch.cat(outputs)), state


def are_steps(batch_sizes: Sequence[int], rows: int) -> bool:
    """Whether these can be the batch_sizes of a packed sequence of so many rows: never growing, none empty, all there."""
    return (
        len(batch_sizes) > 0
        and batch_sizes[-1] >= 1
        and sum(batch_sizes) == rows
        and all(after <= before for before, after in pairwise(batch_sizes))
    )


def zero_state(x: Tensor, weights: Sequence[Tensor], runs: int, batch_sizes: Tensor | None) -> Tensor:
    """The state h_0 [runs, B, H] that stands for none: zeros."""
    B = x.size(1) if batch_sizes is None else int(batch_sizes[0])
    return x.new_zeros(runs, B, weights[1].size(1))


def gru(
    x: Tensor,  # [T, B, I], or [rows, I] with batch_sizes
    h_0: Tensor | None,  # [layers * D, B, H]: layer 0 forwards, layer 0 backwards, layer 1 forwards ...; None: zeros
    weights: list[Tensor],  # in the order of h_0: w_ih, w_hh and, where bias is true, b_ih, b_hh
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    bias: bool = True,
    dropout: float = 0.0,
    training: bool = False,
    batch_sizes: Tensor | None = None,  # [T], int64, on the CPU
    kept: dict[Any, Any] | None = None,
) -> tuple[Tensor, Tensor]:  # output [T, B, D * H] or [rows, D * H]; h_n [layers * D, B, H]
    """The whole stack: each layer reads the output of the layer below, both directions side by side.

    Dropout falls on the output of every layer but the last, and only while `training`. The last layer's
    states of all steps are the output; the last states of every layer and direction are h_n.

    `kept`: a dictionary of the caller's in which a back end may keep what it makes of the weights, from one call to
    the next. This one keeps nothing.
    """
    D = 2 if bidirectional else 1
    per_run = 4 if bias else 2
    runs = [weights[i : i + per_run] for i in range(0, len(weights), per_run)]
    if h_0 is None:
        h_0 = zero_state(x, weights, num_layers * D, batch_sizes)
    h_n = []
    for layer in range(num_layers):
        if layer > 0 and training and dropout > 0:
            x = drop(x, dropout)
        outputs = []
        for direction in range(D):
            run = layer * D + direction
            output, h_last = gru_layer(x, h_0[run], *runs[run], reverse=direction == 1, batch_sizes=batch_sizes)
            outputs.append(output)
            h_n.append(h_last)
        x = torch.cat(outputs, dim=-1)
    return x, torch.stack(h_n)


def step(
    x_t: Tensor,  # [B, I]
    h: Tensor | None,  # [layers, B, H]; None: zeros
    weights: list[Tensor],
    *,
    run: Callable[..., tuple[Tensor, Tensor]] = gru,  # the `gru` of a back end that has no step of its own
    **options: Any,  # those of `gru`, but for `bidirectional` and `batch_sizes`
) -> tuple[Tensor, Tensor]:  # y [B, H]; the new state [layers, B, H]
    """One time step of a stack in one direction: a sequence of one. y is the last layer's new state."""
    output, h_n = run(x_t.unsqueeze(0), h, weights, **options)
    return output.squeeze(0), h_n
