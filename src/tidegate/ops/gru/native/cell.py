"""A single step of a layer that wants gradients, [B, I] and [B, H] as `tidegate.GRUCell` has them: a loop's overhead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tidegate.ops.gru.native import layer
from tidegate.ops.gru.native.double_backward import differentiable_gradients, in_memory


class _Cell(torch.autograd.Function):
    """`eager._Layer` for one step: without it every step has views of x and of both states in its graph.

    A step's backward doesn't read its output, so whoever changes that in place (`relu_(h)`) pays nothing.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, h: Tensor, kept: dict[Any, Any] | None, *weights: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        output, _, saved, _ = layer.forward(x, h, weights, len(weights) == 4, None, True, kept)
        ctx.save_for_backward(x, h, saved, *weights)
        return output

    @staticmethod
    def backward(ctx: Any, d_output: Tensor | None) -> tuple[Tensor | None, ...]:
        x, h, saved, *weights = ctx.saved_tensors
        needs_x, needs_h, _, *needs = ctx.needs_input_grad
        if d_output is None:
            return (None,) * len(ctx.needs_input_grad)
        bias = len(weights) == 4
        if torch.is_grad_enabled() or not in_memory(d_output):
            needs = (needs_x, needs_h, False, *needs)
            d_x, d_h, _, *d_weights = differentiable_gradients(
                (d_output.unsqueeze(0), None, None), x.unsqueeze(0), h.unsqueeze(0), weights, bias, None, None, needs
            )
            d_x = None if d_x is None else d_x[0]
        else:
            d_x, d_h, _, d_weights = layer.backward(
                d_output, None, None, x, h, None, saved, None, weights, bias, None, None, needs_x, needs_h, False, needs
            )  # fmt: skip
        return d_x, (None if d_h is None else d_h[0]), None, *d_weights


# Without the wrapper that looks for those of torch.func, as in `eager`.
apply_cell: Callable[..., Tensor] = super(torch.autograd.Function, _Cell).apply
