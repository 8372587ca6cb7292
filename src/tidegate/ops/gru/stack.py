"""The layers of a stack, one on top of the other: what every back end that runs layer by layer stands on."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop

from tidegate.ops.gru.extras import Extras, LayerExtras


class RunLayer(Protocol):
    """How a back end runs one layer in both directions."""

    def __call__(
        self,
        x: Tensor,  # [T, B, I], or [rows, I] with batch_sizes or extras.starts
        h_0: Tensor | None,  # [D, B, H]; None: zeros
        weights: list[Tensor],  # of both directions: w_ih, w_hh[, b_ih, b_hh][, g_ih, g_hh]
        bias: bool,
        batch_sizes: Tensor | None,  # [T], int64, on the CPU
        extras: LayerExtras | None,
        *,
        place: int,  # which layer it is
    ) -> tuple[Tensor, Tensor, Any]: ...  # output [..., D * H]; h_n [D, B, H]; whatever else it has to show


def batch_of(x: Tensor, batch_sizes: Tensor | None, extras: Extras | None) -> int:
    """B, wherever it is to be found."""
    if batch_sizes is not None:
        return int(batch_sizes[0])
    if extras is not None and extras.lengths is not None:
        return extras.lengths.size(0)
    return x.size(1)


def stack(
    run_layer: RunLayer,
    x: Tensor,
    h_0: Tensor | None,
    weights: list[Tensor],
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    bias: bool = True,
    dropout: float = 0.0,
    training: bool = False,
    batch_sizes: Tensor | None = None,
    extras: Extras | None = None,
) -> tuple[Tensor, Tensor, list[tuple[Tensor, Any]]]:  # output; h_n; the first and third result of every layer
    """The layers of a stack, one on top of the other. What runs a layer is a back end's own."""
    D = 2 if bidirectional else 1
    per_layer = len(weights) // num_layers
    H = weights[1].size(-1)
    last, found = [], []
    for k in range(num_layers):
        if k > 0 and training and dropout > 0:
            x = drop(x, dropout)
        x, h_n, parts = run_layer(
            x,
            None if h_0 is None else h_0[k * D : (k + 1) * D],
            weights[k * per_layer : (k + 1) * per_layer],
            bias,
            batch_sizes,
            None if extras is None else extras.of_layer(k, x, batch_of(x, batch_sizes, extras), D, H, training),
            place=k,
        )
        last.append(h_n)
        found.append((x, parts))
    return x, last[0] if num_layers == 1 else torch.cat(last), found
