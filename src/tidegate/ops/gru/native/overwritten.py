"""An output that its owner changed in place between forward and backward (`relu_(output)`), as nn.GRU on the CPU allows.

Backward reads the output. PyTorch notices that it is no longer what was saved; then it is computed once more, to the same
bits. So only those who do this pay for it: with another forward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling


def saved_tensors(ctx: Any, place: int, output_again: Callable[[Any, tuple[Any, ...]], Tensor]) -> tuple[Any, ...]:
    """`ctx.saved_tensors`, with the output, which is at this place, as it was.

    output_again: computes the output from ctx and all of the saved tensors but this one. Whatever else was changed raises, as ever.
    """
    try:
        found: tuple[Any, ...] = ctx.saved_tensors
    except RuntimeError:
        mine = [torch.empty(0)]
        # Hooks take the place of PyTorch's look at what was saved: from now on it hands out what lies here. (This itself
        # raises where the graph is freed, or where it is not the output that was changed and there are hooks already.)
        ctx._raw_saved_tensors[place].register_hooks(lambda _: None, lambda _: mine[0])
        found = ctx.saved_tensors
        mine[0] = output_again(ctx, found)
        return (*found[:place], mine[0], *found[place + 1 :])
    # Under hooks for saved tensors (checkpoints, offloading) PyTorch doesn't look. A fresh output has version 0.
    if is_compiling() or found[place]._version == 0:
        return found
    return (*found[:place], output_again(ctx, found), *found[place + 1 :])
