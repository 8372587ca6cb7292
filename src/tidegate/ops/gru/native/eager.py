"""The eager road of a layer that wants gradients: an `autograd.Function` that hands addresses straight to C++."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tidegate.ops.gru.extras import LayerExtras
from tidegate.ops.gru.native import layer
from tidegate.ops.gru.native.double_backward import differentiable_gradients, in_memory
from tidegate.ops.gru.native.overwritten import saved_tensors

How: TypeAlias = tuple[bool, Tensor | None, LayerExtras | None, bool, dict[Any, Any] | None, int]
"""bias, batch_sizes, the extras, whether somebody wants to see the gates; and where packed weights are kept, under which number."""
_OUTPUT = 2
"""The place of the output among what is saved."""


def _output_again(ctx: Any, saved: tuple[Any, ...]) -> Tensor:
    bias, _, extras, *_ = ctx.how
    x, h_0, _, _, batch_sizes, *weights = saved
    if extras is not None:
        _, *rest = weights
        extras, weights = LayerExtras(*rest[:6], *extras[6:]), rest[6:]
    return layer.forward(x, h_0, weights, bias, batch_sizes, False, extras=extras)[0]


class _Layer(torch.autograd.Function):
    """The eager road of a layer that wants gradients. Every argument costs a small layer time, so there are few."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, h_0: Tensor | None, fresh: Tensor | None, how: How, *weights: Tensor) -> Any:
        ctx.how = bias, batch_sizes, extras, traces, kept, place = how
        ctx.set_materialize_grads(False)
        if extras is None:
            output, h_n, saved, _ = layer.forward(x, h_0, weights, bias, batch_sizes, True, kept, place)
            ctx.save_for_backward(x, h_0, output, saved, batch_sizes, *weights)
        else:
            save = traces or not extras.checkpoint_every
            output, h_n, saved, norms = layer.forward(
                x, h_0, weights, bias, batch_sizes, save, kept, place, extras, shown=traces
            )
            ctx.save_for_backward(x, h_0, output, saved, batch_sizes, norms, *extras[:6], *weights)
        return (output, h_n, saved) if traces else (output, h_n)

    @staticmethod
    def backward(
        ctx: Any, d_output: Tensor | None, d_h_n: Tensor | None, d_saved: Tensor | None = None
    ) -> tuple[Tensor | None, ...]:
        bias, _, extras, *_ = ctx.how
        x, h_0, output, saved, batch_sizes, *weights = saved_tensors(ctx, _OUTPUT, _output_again)
        norms = None
        if extras is not None:
            norms, *rest = weights
            extras, weights = LayerExtras(*rest[:6], *extras[6:]), rest[6:]
        needs_x, needs_h_0, needs_fresh, _, *needs_weights = ctx.needs_input_grad
        if torch.is_grad_enabled() or not in_memory(d_output, d_h_n, d_saved):
            d_gates = None if d_saved is None else d_saved[:, :, :4]
            needs = (needs_x, needs_h_0, needs_fresh, *needs_weights)
            d_x, d_h_0, d_fresh, *d_weights = differentiable_gradients(
                (d_output, d_h_n, d_gates), x, h_0, weights, bias, batch_sizes, extras, needs
            )
        else:
            d_x, d_h_0, d_fresh, d_weights = layer.backward(
                d_output, d_h_n, d_saved, x, h_0, output, saved, norms, weights, bias, batch_sizes, extras,
                needs_x, needs_h_0, needs_fresh, needs_weights,
            )  # fmt: skip
        return d_x, d_h_0, d_fresh, None, *d_weights


# `Function.apply` without its wrapper, which looks for the wrappers of torch.func among the arguments: `why_not` has
# already turned away whatever comes from there.
apply_layer: Callable[..., tuple[Tensor, ...]] = super(torch.autograd.Function, _Layer).apply
