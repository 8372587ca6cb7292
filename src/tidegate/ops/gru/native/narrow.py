"""Layers whose weights were rounded to 8 bits or to bfloat16 once and for all: forwards, and a step. No gradients.

    8 bits    a row of weights w as whole numbers w / s with s = max|w| / 127 (`ops.rounding`), and so every row of x and of
              h_(t-1), in every step; sums of products are exact
    bfloat16  weights, x and h_(t-1) rounded to the nearest; sums in float32

All else, gates, states and outputs, is float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C import _get_tracing_state as tracing
from torch._C import _len_torch_dispatch_stack as dispatch_modes

from tidegate.ops.gru.extras import Extras
from tidegate.ops.gru.modes import forward_mode, functorch_level
from tidegate.ops.gru.native import kernels
from tidegate.ops.gru.native.layer import _NOTHING_MORE, NO_EXTRAS, _more, sizes_of
from tidegate.ops.gru.native.roads import autocast
from tidegate.ops.gru.native.weights import FEW, kind_of, per_direction, tight
from tidegate.ops.gru.stack import batch_of

BITS = {"int8": 8, "bf16": 16}
"""What weights may be rounded to, and the bits of what is multiplied."""


class Form(NamedTuple):
    """The sizes of a stack and what its layers compute. weights: a key of `BITS`."""

    weights: str
    input_size: int
    hidden_size: int
    num_layers: int
    directions: int
    bias: bool
    before: bool
    norm: bool
    zoneout: float


def pack_rounded(weights: Sequence[Tensor], form: Form) -> list[Any]:
    """A handle of C++ on each layer. weights: float32, of all layers, directions side by side; they are rounded here and needn't
    live on.
    """
    per_layer = form.directions * per_direction(form.bias, form.norm)
    handles = []
    for k in range(form.num_layers):
        own = tight(weights[k * per_layer : (k + 1) * per_layer])
        I = form.directions * form.hidden_size if k else form.input_size
        kind = kind_of(I, form.hidden_size, form.bias, form.norm, form.before, False, BITS[form.weights])
        handles.append(kernels.cpp.pack_alone(own, kind, threads=torch.get_num_threads()))
    return handles


def are_of_this_isa(handles: Sequence[Any]) -> bool:
    """Whether the instruction set is still the one that they were packed for (tests change it)."""
    return not any(handle.looks_changed(FEW) for handle in handles)


def gru(
    x: Tensor,  # [T, B, I], or [rows, I] with batch_sizes or extras.starts; float32
    h_0: Tensor | None,  # [layers * D, B, H], float32; None: zeros
    handles: Sequence[Any],
    form: Form,
    *,
    batch_sizes: Tensor | None = None,
    extras: Extras | None = None,
) -> tuple[Tensor, Tensor]:  # output [..., D * H]; h_n [layers * D, B, H]
    """The whole stack; see `reference.gru`."""
    D, H, layers = form.directions, form.hidden_size, form.num_layers
    B, threads = batch_of(x, batch_sizes, extras), torch.get_num_threads()
    h_n = x.new_empty(layers * D, B, H)
    batch_sizes = None if batch_sizes is None else batch_sizes.contiguous()
    for k, handle in enumerate(handles):
        of_layer = None if extras is None else extras.of_layer(k, x, B, D, H, False)
        T, _, rows = sizes_of(x, batch_sizes, of_layer or NO_EXTRAS)
        end_to_end = of_layer is not None and of_layer.starts is not None  # there may be rows that are no one's
        output = (x.new_zeros if end_to_end else x.new_empty)(*x.shape[:-1], D * H)
        own = slice(k * D, (k + 1) * D)
        kernels.cpp.forward(
            handle, T=T, B=B, rows=rows, x=x.to(torch.bfloat16) if form.weights == "bf16" else x,
            h_0=None if h_0 is None else h_0[own], batch_sizes=batch_sizes, output=output, h_n=h_n[own], saved=None,
            more=_NOTHING_MORE if of_layer is None else _more(of_layer), threads=threads, rounded=False,
        )  # fmt: skip
        x = output
    return x, h_n


def step(
    x_t: Tensor, h: Tensor | None, handles: Sequence[Any], form: Form
) -> tuple[Tensor, Tensor]:  # y [B, H]; the new state [layers, B, H]
    """One time step of a stack in one direction, x_t [B, I] and h [layers, B, H] (None: zeros) in float32; a single call of C++."""
    B, H = x_t.size(0), form.hidden_size
    y, h_n = x_t.new_empty(B, H), x_t.new_empty(form.num_layers, B, H)
    kernels.cpp.step(
        handles, zone_rate=form.zoneout, B=B, x=x_t, h=h, y=y, h_n=h_n, threads=torch.get_num_threads()
    )  # fmt: skip
    return y, h_n


def quick_step(tensors: Sequence[Tensor], handles: Sequence[Any], form: Form) -> Any:
    """A function of (x_t, h, tensors) that is `step` where all is as it is now, and gives None in any other case. tensors: what the
    handles were packed from. Whether somebody wants gradients it doesn't ask.
    """
    marks = [(v._version, v.data_ptr()) for v in tensors]
    ask = (dispatch_modes, functorch_level, tracing, forward_mode, autocast)
    return kernels.cpp.QuickStep(
        [*tensors], marks, [*handles], form.zoneout, torch.float32, Tensor, ask, torch.get_num_threads
    )
