"""Whole sequences through the stack: `gru`, and with the gates on the way `trace`."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from tidegate.ops.gru.equations import HALF_TYPES
from tidegate.ops.gru.extras import Extras
from tidegate.ops.gru.native.quick import remember, run_short
from tidegate.ops.gru.native.roads import autocast, in_bfloat16, is_mixed, run_layer
from tidegate.ops.gru.stack import stack


def _stack(
    x: Tensor,
    h_0: Tensor | None,
    weights: list[Tensor],
    traces: bool,
    *,
    extras: Extras | None,
    kept: dict[Any, Any] | None,
    **options: Any,
) -> tuple[Tensor, Tensor, list[tuple[Tensor, Any]]]:
    if in_bfloat16(x, h_0, weights, () if extras is None else extras[:4], traces):
        # The state stays in float32, unless the layer itself is in bfloat16: so under autocast, too, a sequence may be cut.
        rounded, last = x.dtype, weights[0].dtype  # (like nn.GRU's under autocast, the output is of x's type)
        x, h_0 = x.to(torch.bfloat16), None if h_0 is None else h_0.float()
        if last is torch.bfloat16:
            weights, kept = [w.float() for w in weights], None
        extras = None if extras is None else extras.to(torch.float32)
    elif is_mixed(x, h_0, weights):
        own = weights[0].dtype
        real = torch.float64 if own == torch.float64 else torch.float32
        rounded = x.dtype if x.dtype in HALF_TYPES else real
        x, h_0 = x.to(real), None if h_0 is None else h_0.to(real)
        weights = [w.to(real) for w in weights]
        extras = None if extras is None else extras.to(real)
        kept = None
        last = own if rounded is torch.bfloat16 else rounded  # (as above)
    else:
        rounded = last = x.dtype
    run = partial(run_layer, kept=kept, traces=traces) if traces or kept is None else partial(run_short, kept=kept)
    output, h_n, layers = stack(run, x, h_0, weights, extras=extras, **options)
    if h_n.dtype != last:
        h_n = h_n.to(last)
    if output.dtype != rounded:
        output = output.to(rounded)
        layers = [(y.to(rounded), None if v is None else v.to(rounded)) for y, v in layers]
    return output, h_n, layers


def gru(
    x: Tensor,  # [T, B, I], or [rows, I] with batch_sizes or extras.starts
    h_0: Tensor | None,  # [layers * D, B, H]; None: zeros
    weights: list[
        Tensor
    ],  # in the order of h_0: w_ih, w_hh, with bias b_ih, b_hh, with layer norm its gains g_ih, g_hh
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    bias: bool = True,
    dropout: float = 0.0,
    training: bool = False,
    batch_sizes: Tensor | None = None,  # [T], int64, on the CPU
    extras: Extras | None = None,  # None: what torch.nn.GRU computes
    kept: dict[Any, Any] | None = None,
) -> tuple[Tensor, Tensor]:  # output [T, B, D * H] or [rows, D * H]; h_n [layers * D, B, H]
    """The whole stack, layer by layer; see `reference.gru`, whose signature and results it has.

    `kept` is a dictionary of the caller's in which the packed weights stay between calls without gradients.
    They are packed anew when a weight is another tensor, has another version (PyTorch counts every in-place
    change), lies elsewhere or, as far as a call has the time to look, holds other values (`weights.look_of`).
    """
    if (
        num_layers == 1 and extras is None and not is_mixed(x, h_0, weights) and not autocast()
    ):  # the shortest way, for the smallest layers
        found = run_layer(x, h_0, weights, bias, batch_sizes, None, 0, kept)[:2]
        if kept is not None and batch_sizes is None:
            remember(kept, 0, weights, bias)
        return found
    return _stack(
        x,
        h_0,
        weights,
        False,
        num_layers=num_layers,
        bidirectional=bidirectional,
        bias=bias,
        dropout=dropout,
        training=training,
        batch_sizes=batch_sizes,
        extras=extras,
        kept=kept,
    )[:2]


def trace(
    x: Tensor,
    h_0: Tensor | None,
    weights: list[Tensor],
    *,
    extras: Extras | None = None,
    kept: dict[Any, Any] | None = None,
    **options: Any,
) -> tuple[
    Tensor, Tensor, list[tuple[Tensor, Tensor]]
]:  # output; h_n; of every layer: output and r, z, n, h_n [D, ..., 4, H]
    """`gru`, and the gates on the way: what training keeps for its backward pass, so that it costs no second run."""
    shape = x.shape[:-1]
    output, h_n, layers = _stack(x, h_0, weights, True, extras=extras, kept=kept, **options)
    return output, h_n, [(y, v[:, :, :4].unflatten(1, shape)) for y, v in layers]
