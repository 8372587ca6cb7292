"""Which road a layer takes into C++: torch.func's, the registered operator's, autograd's, or none beside the call itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, is_grad_enabled
from torch._C import _get_tracing_state as tracing
from torch._C import _len_torch_dispatch_stack as dispatch_modes
from torch.compiler import is_compiling
from torch.nn import Parameter

from tidegate.ops.gru.extras import LayerExtras
from tidegate.ops.gru.modes import functorch_level
from tidegate.ops.gru.native import layer
from tidegate.ops.gru.native import registered as registered  # (so that there are these operators)
from tidegate.ops.gru.native.cell import apply_cell
from tidegate.ops.gru.native.eager import apply_layer
from tidegate.ops.gru.native.kernels import REAL_TYPES
from tidegate.ops.gru.native.layer import NO_EXTRAS, zeros
from tidegate.ops.gru.native.transforms import Transformed
from tidegate.ops.gru.native.weights import seen_before

_PLAIN = frozenset((Tensor, Parameter))


def is_plain(x: Tensor, h_0: Tensor | None, weights: Sequence[Tensor], others: Sequence[Tensor | None] = ()) -> bool:
    """Whether nothing but the values of these tensors is asked for, so that C++ may take their addresses."""
    if dispatch_modes() or tracing() is not None or type(x) not in _PLAIN or x.is_neg():
        return False  # (is_neg: the memory holds -x, as after `z.conj().imag`; the dispatcher sees to that)
    if h_0 is not None and (type(h_0) not in _PLAIN or h_0.is_neg()):
        return False
    if others and not all(v is None or (type(v) in _PLAIN and not v.is_neg()) for v in others):
        return False
    return _PLAIN.issuperset(map(type, weights)) and not any(map(Tensor.is_neg, weights))


def _wants_grad(x: Tensor, h_0: Tensor | None, weights: list[Tensor]) -> bool:
    if not is_grad_enabled():
        return False
    return x.requires_grad or (h_0 is not None and h_0.requires_grad) or any(w.requires_grad for w in weights)


def run_layer(
    x: Tensor,
    h_0: Tensor | None,
    weights: list[Tensor],
    bias: bool,
    batch_sizes: Tensor | None,
    extras: LayerExtras | None,
    place: int,
    kept: dict[Any, Any] | None,
    traces: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """A layer in both directions: output, h_n, and where somebody `traces` what backward needs, the gates first.

    place: which layer of its stack it is; its packed weights are in `kept` under that number.
    """
    if functorch_level() is not None and not is_compiling():
        all_extras = extras or NO_EXTRAS
        if h_0 is None:
            h_0 = zeros(x, weights, bias, batch_sizes, all_extras)
        tensors = (batch_sizes, x, h_0, *all_extras[:6], *weights)
        output, h_n, saved, _ = Transformed.apply(bias, all_extras[6:], *tensors)  # type: ignore[no-untyped-call]  # (torch's)
        # (A copy, as backward reads the output: its owner may change it in place. Elsewhere that is told by its version.)
        return output.clone(), h_n, saved
    wants_grad = _wants_grad(x, h_0, weights)
    if extras is not None and extras.fresh is not None and is_grad_enabled():
        wants_grad |= extras.fresh.requires_grad
    if is_compiling() or not is_plain(x, h_0, weights, () if extras is None else extras[:6]):
        all_extras = extras or NO_EXTRAS
        if h_0 is None:
            h_0 = zeros(x, weights, bias, batch_sizes, all_extras)
        # (A traced call must not depend on whether gradients are wanted: without what was saved, backward computes it again.)
        save = traces or (wants_grad and not all_extras.checkpoint_every and (is_compiling() or tracing() is None))
        output, h_n, saved, _ = torch.ops.tidegate.gru_layer(x, h_0, weights, bias, batch_sizes, *all_extras, save)
        return output, h_n, saved
    if is_grad_enabled() and kept is not None:
        # Whoever trains changes the weights before the next call. But a loop over single steps does so after all of them.
        one_step = x.dim() == 3 and x.size(0) == 1 and (extras is None or not extras.checkpoint_every)
        if not one_step or not seen_before(weights, kept, place):
            kept = None
    if wants_grad:
        fresh = None if extras is None else extras.fresh
        output, h_n, *gates = apply_layer(x, h_0, fresh, (bias, batch_sizes, extras, traces, kept, place), *weights)
        return output, h_n, gates[0] if traces else None
    output, h_n, saved, _ = layer.forward(x, h_0, weights, bias, batch_sizes, traces, kept, place, extras, shown=traces)
    return output, h_n, saved


def run_cell(x: Tensor, h: Tensor, weights: list[Tensor], kept: dict[Any, Any] | None) -> Tensor | None:
    """A single step [B, I], [B, H] -> [B, H] that wants gradients; None where it must go through `run_layer`."""
    if is_compiling() or functorch_level() is not None or is_mixed(x, h, weights) or not is_plain(x, h, weights):
        return None
    if not _wants_grad(x, h, weights):
        return None
    if kept is not None and not seen_before(weights, kept, 0):
        kept = None
    return apply_cell(x, h, kept, *weights)


def in_bfloat16(
    x: Tensor, h_0: Tensor | None, weights: list[Tensor], others: Sequence[Tensor | None] = (), traces: bool = False
) -> bool:
    """Whether products are to be in bfloat16, and can be: in a layer in bfloat16, or under autocast to it. Not where somebody wants
    to see the gates, or takes another road than eager mode's: there all is float32.
    """
    if weights[0].dtype is torch.bfloat16:
        asked = x.dtype is torch.bfloat16
    else:
        asked = weights[0].dtype is torch.float32 and autocast() and torch.get_autocast_dtype("cpu") is torch.bfloat16
    if not asked or traces or is_compiling() or functorch_level() is not None:
        return False
    return is_plain(x, h_0, weights, others)


autocast: Callable[[], bool] = partial(torch.is_autocast_enabled, "cpu")


def is_mixed(x: Tensor, h_0: Tensor | None, weights: list[Tensor]) -> bool:
    """Half types, and autocast's mixtures: what the kernels don't take as it is."""
    dtype = x.dtype
    return dtype not in REAL_TYPES or weights[0].dtype is not dtype or (h_0 is not None and h_0.dtype is not dtype)
