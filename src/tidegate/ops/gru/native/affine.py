"""W x + b by the kernels, for what stands on a recurrence. No gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tidegate.ops.gru.modes import functorch_level
from tidegate.ops.gru.native import kernels
from tidegate.ops.gru.native.kernels import REAL_TYPES
from tidegate.ops.gru.native.roads import is_plain


def can_affine(x: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Whether `affine` takes these: plain tensors on the CPU, all float32 or all float64, outside of every transform."""
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
) -> Tensor:  # [..., O]
    """W x + b; see `tidegate.ops.affine`. No gradients."""
    O, I = weight.shape
    rows = x.flatten(0, -2).contiguous()
    weight, bias = weight.contiguous(), bias.contiguous()
    y = x.new_empty(*x.shape[:-1], O)
    kernels.cpp.affine(
        wide=x.dtype is torch.float64, rows=rows.size(0), I=I, O=O, x=rows, weight=weight, bias=bias, y=y,
        threads=torch.get_num_threads(),
    )  # fmt: skip
    return y


def affine_into(weight: Tensor, bias: Tensor, y: Tensor) -> Callable[[int], None]:
    """A function of the address of one row [I] that writes W x + b to y [1, O]. It holds on to all three."""
    O, I = weight.shape
    into: Callable[[int], None] = kernels.cpp.AffineInto(
        wide=y.dtype is torch.float64, I=I, O=O, weight=weight.contiguous(), bias=bias.contiguous(), y=y
    )
    return into
