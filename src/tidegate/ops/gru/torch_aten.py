"""PyTorch's own GRU: ATen's loop on the CPU, cuDNN on CUDA, and whatever else serves `aten::gru`.

One call runs the whole stack, dropout and packed sequences included. So under one seed the dropout masks are
those of `torch.nn.GRU`, and the numbers are its numbers, bit for bit. Only `reset="after"` exists there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from tidegate.ops.gru import reference
from tidegate.ops.gru.extras import Extras, PackedRows
from tidegate.ops.gru.modes import innermost_is_vmap
from tidegate.ops.gru.stack import batch_of

name = "torch"
about = "PyTorch's own GRU: ATen on the CPU, cuDNN on CUDA"
in_transforms = False
"""ATen's and cuDNN's own loops fail in some of them (vmap of gradients, on a GPU jvp); plain operations don't."""
trace = quick_step = quick_gru = affine = None

_aten_gru = torch._VF.gru
_aten_gru_cell = torch._VF.gru_cell


def gru(
    x: Tensor,  # [T, B, I], or [rows, I] with batch_sizes
    h_0: Tensor | None,  # [layers * D, B, H]; None: zeros
    weights: list[Tensor],  # in the order of h_0: w_ih, w_hh and, where bias is true, b_ih, b_hh
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    bias: bool = True,
    dropout: float = 0.0,
    training: bool = False,
    batch_sizes: Tensor | None = None,  # [T], int64, on the CPU
    extras: Extras | None = None,  # lengths alone; the rest does not exist there
    kept: dict[Any, Any] | None = None,
) -> tuple[Tensor, Tensor]:  # output [T, B, D * H] or [rows, D * H]; h_n [layers * D, B, H]
    """The whole stack in one call; see `reference.gru`, whose signature and results it has.

    Cost on CUDA: weights that are not one block in cuDNN's layout are copied into one at every call, and
    torch warns of it. `join_weights` makes them one block; `tidegate.GRU` calls it whenever its weights come
    to rest.
    """
    if h_0 is None:
        B = batch_of(x, batch_sizes, extras)
        h_0 = x.new_zeros(num_layers * (2 if bidirectional else 1), B, weights[1].size(1))
    if extras is not None:
        return _with_lengths(x, h_0, weights, extras, num_layers, bidirectional, bias, dropout, training)
    if x.size(0) == 0:  # ATen refuses an empty sequence
        return x.new_empty(0, h_0.size(1), (2 if bidirectional else 1) * h_0.size(2)), h_0.clone()
    h_0 = h_0.contiguous()  # cuDNN refuses anything else; free for those that already are
    if not training:
        # cuDNN has no backward pass for what it ran in its inference mode. Without dropout both modes compute the same.
        dropout, training = 0.0, torch.is_grad_enabled()
    if batch_sizes is None:
        return _aten_gru(x, h_0, weights, bias, num_layers, dropout, training, bidirectional, False)
    return _aten_gru(x, batch_sizes, h_0, weights, bias, num_layers, dropout, training, bidirectional)


def _with_lengths(
    x: Tensor,
    h_0: Tensor,
    weights: list[Tensor],
    extras: Extras,
    num_layers: int,
    bidirectional: bool,
    bias: bool,
    dropout: float,
    training: bool,
) -> tuple[Tensor, Tensor]:
    """By way of a packed sequence: the empty sequences, which it can't have, are left out."""
    assert extras.lengths is not None
    shape = x.shape[:-1]
    numbers, batch_sizes, order = PackedRows.of(extras.lengths, extras.starts)
    numbers, order = numbers.to(x.device), order.to(x.device)
    output = x.new_zeros(shape.numel(), (2 if bidirectional else 1) * weights[1].size(1))
    if len(order) == 0:
        return output.view(*shape, output.size(1)), h_0.clone()
    packed, h_n = gru(
        x.reshape(-1, x.size(-1))[numbers],
        h_0[:, order],
        weights,
        num_layers=num_layers,
        bidirectional=bidirectional,
        bias=bias,
        dropout=dropout,
        training=training,
        batch_sizes=batch_sizes,
    )
    output, ends = output.to(packed.dtype), h_0.to(h_n.dtype)
    return output.index_copy(0, numbers, packed).view(*shape, packed.size(1)), ends.index_copy(1, order, h_n)


def missing() -> None:
    """Nothing: it is part of torch."""


def why_not(x: Any, wishes: Sequence[str]) -> str | None:
    """Why a call that wants all this can't run here; None where it can."""
    if innermost_is_vmap():
        return "it has no rule for torch.func.vmap"
    return f"it has no {', '.join(wishes)}" if wishes else None


def step(
    x_t: Tensor,  # [B, I]
    h: Tensor | None,  # [layers, B, H]; None: zeros
    weights: list[Tensor],
    **options: Any,  # those of `gru`, but for `bidirectional` and `batch_sizes`
) -> tuple[Tensor, Tensor]:  # y [B, H]; the new state [layers, B, H]
    """One time step of a stack in one direction; see `reference.step`."""
    return reference.step(x_t, h, weights, run=gru, **options)


def gru_cell(
    x_t: Tensor,  # [B, I]
    h_prev: Tensor,  # [B, H]
    w_ih: Tensor,  # [3H, I]
    w_hh: Tensor,  # [3H, H]
    b_ih: Tensor | None = None,  # [3H]
    b_hh: Tensor | None = None,  # [3H]
    *,
    kept: dict[Any, Any] | None = None,
) -> Tensor:  # [B, H]
    """One step of one layer; see `reference.gru_cell`."""
    return _aten_gru_cell(x_t, h_prev, w_ih, w_hh, b_ih, b_hh)


def join_weights(
    weights: Iterable[Tensor],
    *,
    input_size: int,
    hidden_size: int,
    num_layers: int,
    bidirectional: bool,
    bias: bool,
) -> None:
    """Move weights that lie on CUDA into one block of memory in cuDNN's layout. In place; the values stay.

    Does nothing for weights that cuDNN can't take, that are not all there, or of which two share their memory
    (tied weights would be torn apart).
    """
    weights = list(weights)
    if not weights or not all(w.is_cuda and w.dtype == weights[0].dtype for w in weights):
        return
    if not torch.backends.cudnn.is_acceptable(weights[0]):
        return
    if len({w.data_ptr() for w in weights}) < len(weights):
        return

    with torch.cuda.device_of(weights[0]), torch.no_grad():
        if torch._use_cudnn_rnn_flatten_weight():
            torch._cudnn_rnn_flatten_weight(
                weights,
                4 if bias else 2,
                input_size,
                torch.backends.cudnn.rnn.get_cudnn_mode("GRU"),
                hidden_size,
                0,  # no projection
                num_layers,
                False,  # batch_first: no part of the layout
                bidirectional,
            )
