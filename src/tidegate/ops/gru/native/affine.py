"""W x + b by the kernels, for what stands on a recurrence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from tidegate.errors import ShapeError
from tidegate.ops.gru.modes import functorch_level
from tidegate.ops.gru.native import kernels
from tidegate.ops.gru.native.double_backward import in_memory
from tidegate.ops.gru.native.kernels import REAL_TYPES
from tidegate.ops.gru.native.roads import is_plain


def can_affine(x: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Whether these functions take these: plain tensors on the CPU, all float32 or all float64, outside of every transform."""
    return (
        kernels.why_not(x) is None
        and not torch.compiler.is_compiling()
        and functorch_level() is None
        and x.dtype in REAL_TYPES
        and x.dtype is weight.dtype is bias.dtype
        and x.dim() > 1
        and x.size(-1) == weight.size(-1)
        and is_plain(x, None, (weight, bias))
    )


def affine(
    x: Tensor,  # [..., I]
    weight: Tensor,  # [O, I]
    bias: Tensor,  # [O]
    in_blocks: bool = False,
) -> Tensor:  # [..., O]
    """W x + b; see `tidegate.ops.affine`. No gradients. in_blocks: faster over many rows, and with other bits."""
    O, I = weight.shape
    rows = x.flatten(0, -2).contiguous()
    weight, bias = weight.contiguous(), bias.contiguous()
    y = x.new_empty(*x.shape[:-1], O)
    kernels.cpp.affine(
        wide=x.dtype is torch.float64, rows=rows.size(0), I=I, O=O, x=rows, weight=weight, bias=bias, y=y,
        in_blocks=in_blocks, threads=torch.get_num_threads(),
    )  # fmt: skip
    return y


def gradients(
    x: Tensor,  # [..., I]
    weight: Tensor,  # [O, I]
    d_y: Tensor,  # [..., O]
    needs_x: bool = True,
    needs_weight: bool = True,
    needs_bias: bool = True,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Those of x, weight and bias, None where they are not needed."""
    O, I = weight.shape
    rows, d_rows = x.flatten(0, -2).contiguous(), d_y.flatten(0, -2).contiguous()
    weight = weight.contiguous()
    d_x = torch.empty_like(rows) if needs_x else None
    d_weight = torch.empty_like(weight) if needs_weight or needs_bias else None
    d_bias = weight.new_empty(O) if needs_bias else None
    kernels.cpp.affine_backward(
        wide=x.dtype is torch.float64, rows=rows.size(0), I=I, O=O, x=rows, weight=weight, d_y=d_rows,
        d_x=d_x, d_w=d_weight, d_b=d_bias, threads=torch.get_num_threads(),
    )  # fmt: skip
    return None if d_x is None else d_x.view(x.shape), d_weight if needs_weight else None, d_bias


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        return affine(x, weight, bias, in_blocks=True)

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        if (
            weight.dtype is not x.dtype or weight.shape != (d_y.size(-1), x.size(-1)) or not weight.is_cpu
        ):  # (`.data` takes anything)
            raise ShapeError(
                f"a weight became {list(weight.shape)}, {weight.dtype}, on {weight.device} between forward and backward; expected "
                f"{[d_y.size(-1), x.size(-1)]}, {x.dtype}, on cpu. Convert or replace weights after backward."
            )
        if torch.is_grad_enabled() or not in_memory(d_y):  # backward of backward, or many at once: PyTorch's products
            with torch.enable_grad():
                # Aliases: x may itself depend on the weights, and that way is not this function's.
                given = [v.view_as(v) for v in (x, weight, bias)]
                y = linear(*given)
            needed = [v for v, need in zip(given, ctx.needs_input_grad, strict=True) if need]
            found = iter(torch.autograd.grad(y, needed, d_y, create_graph=torch.is_grad_enabled()))
            return tuple(next(found) if need else None for need in ctx.needs_input_grad)
        return gradients(x, weight, d_y.resolve_neg(), needs_x, needs_weight, needs_bias)


affine_with_gradients: Callable[[Tensor, Tensor, Tensor], Tensor] = super(torch.autograd.Function, _Affine).apply
"""W x + b and its gradients, whose bits don't depend on the number of threads."""


def affine_into(weight: Tensor, bias: Tensor, y: Tensor) -> Callable[[int], None]:
    """A function of the address of one row [I] that writes W x + b to y [1, O]. It holds on to all three."""
    O, I = weight.shape
    into: Callable[[int], None] = kernels.cpp.AffineInto(
        wide=y.dtype is torch.float64, I=I, O=O, weight=weight.contiguous(), bias=bias.contiguous(), y=y
    )
    return into
