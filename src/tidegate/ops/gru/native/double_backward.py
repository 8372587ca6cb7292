"""Backward of backward, and backward under vmap: through the reference's equations, right and as slow as these."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import _has_storage

from tidegate.ops.gru import reference
from tidegate.ops.gru.equations import sums_in
from tidegate.ops.gru.extras import LayerExtras
from tidegate.ops.gru.native.layer import NO_EXTRAS, zeros
from tidegate.ops.gru.native.weights import per_direction


def differentiable_gradients(
    gradients: Sequence[Tensor | None],  # of output, h_n and the gates
    x: Tensor,
    h_0: Tensor | None,
    weights: Sequence[Tensor],
    bias: bool,
    batch_sizes: Tensor | None,
    extras: LayerExtras | None,
    needs: Sequence[bool],  # of x, h_0, fresh and the weights
) -> list[Tensor | None]:
    """The gradients by the reference, which is as slow as it is: as functions that have gradients themselves
    (`create_graph=True`), or for many upstream gradients at once (`is_grads_batched=True`, a vmap around backward).
    """
    create_graph = torch.is_grad_enabled()
    extras = extras or NO_EXTRAS
    # Aliases: h_0 may itself depend on the weights or on x (two calls in a row), or one weight may stand for two (tied
    # weights). The caller's graph carries these ways; here each tensor stands for itself alone.
    D = len(weights) // per_direction(bias, extras.norm)
    with torch.enable_grad(), reference.without_autocast(x):
        x, weights = x.view_as(x), [w.view_as(w) for w in weights]
        as_sums = x.to(sums_in(x))
        fresh = None if extras.fresh is None else extras.fresh.view_as(extras.fresh)
        h_0 = zeros(x, weights, bias, batch_sizes, extras) if h_0 is None else h_0.view_as(h_0)
        output, h_n, gates = reference.layer(as_sums, h_0, weights, bias, batch_sizes, extras._replace(fresh=fresh))
    again = (output, h_n, gates.reshape(D, -1, *gates.shape[-2:]))
    pairs = [(r, d.to(r.dtype)) for r, d in zip(again, gradients, strict=True) if d is not None]
    given: list[Any] = [v for v, need in zip((x, h_0, fresh, *weights), needs, strict=True) if need]
    found = iter(
        torch.autograd.grad(
            [r for r, _ in pairs], given, [d for _, d in pairs], create_graph=create_graph, allow_unused=True
        )
    )
    return [next(found) if need else None for need in needs]


def in_memory(*tensors: Tensor | None) -> bool:
    """Whether these are tensors of their own, not the many in one of a vmap."""
    return all(v is None or _has_storage(v) for v in tensors)
