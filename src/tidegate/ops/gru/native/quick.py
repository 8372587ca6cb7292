"""A short call of one layer without extras, forwards and backwards, with as little between the kernels and PyTorch as there can be.

`QuickLayer` in C++ asks what Python would ask of the arguments, and answers None to whatever is out of the ordinary: then the
roads of `roads` are to be taken, with their checks and messages.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C import _get_tracing_state as tracing
from torch._C import _has_storage
from torch._C import _len_torch_dispatch_stack as dispatch_modes
from torch._C._autograd import _top_saved_tensors_default_hooks
from torch.autograd import forward_ad
from torch.compiler import is_compiling
from torch.nn import Parameter

from tidegate.ops.gru.extras import LayerExtras
from tidegate.ops.gru.modes import functorch_level
from tidegate.ops.gru.native import kernels, layer
from tidegate.ops.gru.native.double_backward import differentiable_gradients, in_memory
from tidegate.ops.gru.native.roads import run_layer
from tidegate.ops.gru.native.weights import kind_of

MOST = 1 << 14
"""Values of an output up to which a call is short: beyond, the kernels take so long that nothing of this is to be seen."""


def _special() -> bool:
    """Whether there is a forward-mode derivative, autocast, or hooks for saved tensors (checkpoints, offloading), which want to see
    all of them.
    """
    return (
        forward_ad._current_level >= 0
        or _top_saved_tensors_default_hooks(False) is not None
        or torch.is_autocast_enabled("cpu")
    )


_UNUSUAL = (dispatch_modes, functorch_level, tracing, _special)  # (forward_mode() is these two)


class _Layer(torch.autograd.Function):
    """What autograd is told of a short call: its inputs and results, and how to go back. The kernels ran before."""

    @staticmethod
    def forward(ctx: Any, call: Any, x: Tensor | None, h_0: Tensor | None, *weights: Tensor) -> tuple[Tensor, Tensor]:
        results: tuple[Tensor, Tensor] = call.begin(ctx)  # (save_for_backward, set_materialize_grads)
        return results

    @staticmethod
    def backward(ctx: Any, d_output: Tensor | None, d_h_n: Tensor | None) -> tuple[Tensor | None, ...]:
        found: tuple[Tensor | None, ...] | None = ctx.call.backward(ctx, d_output, d_h_n)
        return _gradients(ctx, d_output, d_h_n) if found is None else found


def _gradients(ctx: Any, d_output: Tensor | None, d_h_n: Tensor | None) -> tuple[Tensor | None, ...]:
    """The same with whatever may be special: backward of backward, many gradients at once, weights that were changed since."""
    call = ctx.call
    x, kept, *state = ctx.saved_tensors
    h_0 = state[0] if state else None
    weights = call.layer.weights
    for w, (version, _) in zip(weights, call.weights, strict=True):
        if w._version != version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: a weight of a "
                f"GRU, {list(w.shape)}, is at version {w._version}; expected version {version} instead. Change weights after backward."
            )
    _, needs_x, needs_h_0, *needs = ctx.needs_input_grad
    D = call.layer.directions
    H = kept.numel() // (5 * call.T * call.B * D)  # (not of the weights: `.data` takes anything)
    bias = len(weights) == 4 * D
    if call.batch_first:
        x = x.transpose(0, 1)
        d_output = None if d_output is None else d_output.transpose(0, 1)
    if torch.is_grad_enabled() or not in_memory(d_output, d_h_n):
        d_x, d_h_0, _, *d_weights = differentiable_gradients(
            (d_output, d_h_n, None), x, h_0, weights, bias, None, None, (needs_x, needs_h_0, False, *needs)
        )
    else:
        values = call.T * call.B * D * H
        saved, output = kept.flatten().split([4 * values, values])
        saved, output = saved.view(D, -1, 4, H), output.view(call.T, call.B, D * H)
        d_x, d_h_0, _, d_weights = layer.backward(
            d_output, d_h_n, None, x, h_0, output, saved, None, weights, bias, None, None, needs_x, needs_h_0, False, needs
        )  # fmt: skip
    if d_x is not None and call.batch_first:
        d_x = d_x.transpose(0, 1)
    return None, d_x, d_h_0, *d_weights


# `Function.apply` without its wrapper, as in `eager`.
_apply: Callable[..., tuple[Tensor, Tensor]] = super(torch.autograd.Function, _Layer).apply


def remember(kept: dict[Any, Any], place: int, weights: list[Tensor], bias: bool) -> None:
    """Leave in `kept` what may be asked first at the next call of the same layer: `quick_gru`, `run_short`."""
    if is_compiling() or tracing() is not None:  # (a trace would see it look at the weights)
        return
    pack = kept.get((place, bias, False, False, 0))
    if pack is not None and not pack.is_of(weights):
        pack = None
    handle = None if pack is None else pack.handle
    have = kept.get(("layer", place))
    if have is not None and have.is_of(weights, handle):
        return
    if not all(type(w) is Parameter and w.is_leaf and not w.is_inference() for w in weights):
        return
    (three_H, I), dtype = weights[0].shape, weights[0].dtype
    kept["layer", place] = kernels.cpp.QuickLayer(
        weights=[*weights],
        kind=kind_of(I, three_H // 3, bias, False, False, dtype is torch.float64),
        marks=[] if pack is None else [*zip(pack.versions, pack.addresses, strict=True)],
        handle=handle,
        most=MOST,
        dtype=dtype,
        tensor=Tensor,
        unusual=_UNUSUAL,
        threads=torch.get_num_threads,
        apply=_apply,
        grads=torch.is_grad_enabled,
        has_storage=_has_storage,
        empty_like=torch.empty_like,
    )


def run_short(
    x: Tensor,
    h_0: Tensor | None,
    weights: list[Tensor],
    bias: bool,
    batch_sizes: Tensor | None,
    extras: LayerExtras | None,
    place: int,
    kept: dict[Any, Any],
) -> tuple[Tensor, Tensor, Tensor | None]:
    """`roads.run_layer` for a layer of a stack that shows no gates."""
    plain = batch_sizes is None and extras is None
    if plain and not is_compiling() and (quick := kept.get(("layer", place))) is not None:
        done = quick(x, h_0, weights, False)
        if done is not None:
            return *done, None
    found = run_layer(x, h_0, weights, bias, batch_sizes, extras, place, kept)
    if plain:
        remember(kept, place, weights, bias)
    return found


_ONE = ("layer", 0)


def quick_gru(
    kept: dict[Any, Any], x: Any, h_0: Any, parameters: dict[str, Any], batch_first: bool
) -> tuple[Tensor, Tensor] | None:  # output, like x; h_n [D, B, H]
    """`gru` of one layer without extras where everything is as it was at the last call: plain tensors, the same weights
    (`parameters`: the module's own dictionary). None in any other case: then `gru` is the way, after the checks that a caller
    owes it.
    """
    if is_compiling():
        return None
    have = kept.get(_ONE)
    return None if have is None else have(x, h_0, parameters, batch_first)
