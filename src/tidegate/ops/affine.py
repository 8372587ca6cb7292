"""y = W x + b, what stands on a recurrence, with the promise of the native back end."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tidegate.ops.gru.backend import IN_ORDER, Affine


def _kernel_for(x: Tensor, weight: Tensor, bias: Tensor) -> Affine | None:
    """That of the first back end that takes these; None: PyTorch's."""
    for back_end in IN_ORDER:
        if back_end.affine is not None and back_end.affine.can_affine(x, weight, bias):
            return back_end.affine
    return None


def affine(
    x: Tensor,  # [..., I]
    weight: Tensor,  # [O, I]
    bias: Tensor,  # [O]
) -> Tensor:  # [..., O]
    """`torch.nn.functional.linear`, on a CPU with the native back end by its kernels.

    Without gradients the bits of a row of y depend on nothing but its own x, where PyTorch's matrix product rounds by the size
    of the batch. So a row that comes alone, in a stream, gets what it gets in a table of millions. With gradients rows are
    many: then the product is cut into blocks, which rounds otherwise, and the bits of y and of all gradients don't depend on
    the number of threads, where PyTorch cuts a sum over many rows into as many parts as there are threads.

    In bfloat16 all are widened, which is exact: products and sums are float32, and only y, and gradients at the end, are rounded.
    """
    if x.is_cpu and x.dtype is weight.dtype is bias.dtype is torch.bfloat16:
        return affine(x.float(), weight.float(), bias.float()).bfloat16()
    kernel = _kernel_for(x, weight, bias)
    if kernel is None:
        return functional.linear(x, weight, bias)
    if torch.is_grad_enabled():
        return kernel.affine_with_gradients(x, weight, bias)
    return kernel.affine(x, weight, bias)


def one_row(weight: Tensor, bias: Tensor) -> Callable[[Tensor], np.ndarray]:
    """`affine` for one row [1, I] after the other, as an array [O] that the next call overwrites: for streams, where asking the
    same questions at every step takes longer than the product.

    weight and bias are plain tensors on the CPU that stay as they are.
    """
    y = torch.empty(1, weight.size(0), dtype=weight.dtype)
    found: np.ndarray = y.numpy()[0]
    kernel = _kernel_for(y.new_empty(1, weight.size(1)), weight, bias)
    if kernel is None:

        def by_torch(x: Tensor) -> np.ndarray:
            y.copy_(functional.linear(x, weight, bias))
            return found

        return by_torch
    product = kernel.affine_into(weight, bias, y)

    def by_kernel(x: Tensor) -> np.ndarray:
        product(x.data_ptr())
        return found

    return by_kernel
