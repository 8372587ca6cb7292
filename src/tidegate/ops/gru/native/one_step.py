"""One time step: `step`, `quick_step` where everything is as it was at the last one, and `gru_cell`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C import _get_tracing_state as tracing
from torch._C import _len_torch_dispatch_stack as dispatch_modes
from torch.compiler import is_compiling

from tidegate.ops.gru import reference
from tidegate.ops.gru.extras import Extras
from tidegate.ops.gru.modes import forward_mode, functorch_level
from tidegate.ops.gru.native import kernels
from tidegate.ops.gru.native.roads import autocast, is_mixed, is_plain, run_cell
from tidegate.ops.gru.native.sequence import gru
from tidegate.ops.gru.native.weights import FEW, LINES, Pack, begins, packed, per_direction


def step(
    x_t: Tensor,  # [B, I]
    h: Tensor | None,  # [layers, B, H]; None: zeros
    weights: list[Tensor],
    *,
    num_layers: int = 1,
    bias: bool = True,
    dropout: float = 0.0,
    training: bool = False,
    extras: Extras | None = None,
    kept: dict[Any, Any] | None = None,
) -> tuple[Tensor, Tensor]:  # y [B, H]; the new state [layers, B, H]
    """One time step of a stack in one direction; see `reference.step`. Without gradients, a single call of C++.

    It leaves in `kept["step"]` what a caller may ask first at the next step: `quick_step`.
    """
    if (
        kept is None
        or torch.is_grad_enabled()
        or is_compiling()
        or functorch_level() is not None
        or (training and dropout > 0)
        or (training and extras is not None and (extras.recurrent_dropout > 0 or extras.zoneout > 0))
        or is_mixed(x_t, h, weights)
        or autocast()
        or not is_plain(x_t, h, weights)
    ):
        return reference.step(
            x_t,
            h,
            weights,
            run=gru,
            num_layers=num_layers,
            bias=bias,
            dropout=dropout,
            training=training,
            extras=extras,
            kept=kept,
        )
    I, H, threads = x_t.size(1), weights[1].size(1), torch.get_num_threads()
    form = _FORM if extras is None else (extras.reset, extras.layer_norm, extras.zoneout)
    before, norm, zone_rate = form[0] == "before", form[1], form[2]
    per = per_direction(bias, norm)
    look = LINES if begins(h) else FEW
    handles = [
        packed(weights[k * per : (k + 1) * per], bias, norm, before, H if k else I, H, threads, kept, k, look)
        for k in range(num_layers)
    ]
    places = [(k, bias, norm, before, 0) for k in range(num_layers)]
    layers: list[Pack] = [kept[place] for place in places if place in kept]
    have = kept.get("step")
    # Only handles that were kept: those of other weights look at copies that are gone by now.
    if [layer.handle for layer in layers] == handles and (have is None or have[1] != handles or have[2] != form):
        ask = (torch.is_grad_enabled, dispatch_modes, functorch_level, tracing, forward_mode, autocast)
        marks = [(v, a) for layer in layers for v, a in zip(layer.versions, layer.addresses, strict=True)]
        quick = kernels.cpp.QuickStep(
            [*weights], marks, handles, zone_rate, x_t.dtype, Tensor, ask, torch.get_num_threads
        )
        kept["step"] = quick, handles, form
    B = x_t.size(0)
    y, h_n = x_t.new_empty(B, H), x_t.new_empty(num_layers, B, H)
    kernels.cpp.step(handles, zone_rate=zone_rate, B=B, x=x_t, h=h, y=y, h_n=h_n, threads=threads)
    return y, h_n


_FORM = ("after", False, 0.0)


def quick_step(
    kept: dict[Any, Any], x_t: Any, h: Any, parameters: dict[str, Any], form: tuple[str, bool, float] = _FORM
) -> tuple[Tensor, Tensor] | None:  # y [B, H]; the new state [layers, B, H]
    """`step` where everything is as it was at the last step: plain tensors of the same width, no gradients, the same
    weights (`parameters`: the module's own dictionary) and the same form (reset, layer_norm, zoneout). None in any other
    case: then `step` is the way, after the checks that a caller owes it.
    """
    if is_compiling():
        return None
    have = kept.get("step")
    return None if have is None or have[2] != form else have[0](x_t, h, parameters)


def gru_cell(
    x_t: Tensor,  # [B, I]
    h_prev: Tensor,  # [B, H]
    w_ih: Tensor,  # [3H, I]
    w_hh: Tensor,  # [3H, H]
    b_ih: Tensor | None = None,  # [3H]
    b_hh: Tensor | None = None,  # [3H]
    *,
    kept: dict[Any, Any] | None = None,
) -> Tensor:  # [B, H]
    """One step of one layer; see `reference.gru_cell`."""
    bias = b_ih is not None and b_hh is not None
    weights = [w for w in (w_ih, w_hh, b_ih, b_hh) if w is not None]
    if torch.is_grad_enabled():
        h = run_cell(x_t, h_prev, weights, kept)
        if h is not None:
            return h
    return step(x_t, h_prev.unsqueeze(0), weights, bias=bias, kept=kept)[0]
