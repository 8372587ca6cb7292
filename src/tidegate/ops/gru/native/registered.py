"""The operators `tidegate::gru_layer` and `tidegate::gru_layer_backward`: the road of `torch.compile`, `torch.export`, tracing and
dispatch modes. Importing this file registers them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from tidegate.errors import ShapeError
from tidegate.ops.gru import reference
from tidegate.ops.gru.extras import LayerExtras
from tidegate.ops.gru.native import flops, kernels, layer
from tidegate.ops.gru.native.double_backward import differentiable_gradients, in_memory
from tidegate.ops.gru.native.kernels import REAL_TYPES
from tidegate.ops.gru.native.layer import sizes_of
from tidegate.ops.gru.native.overwritten import saved_tensors
from tidegate.ops.gru.native.weights import check, per_direction

_library = torch.library.Library("tidegate", "DEF")
# The fields of LayerExtras, in their order.
_EXTRAS = (
    "Tensor? lengths, Tensor? starts, Tensor? resets, Tensor? fresh, Tensor? mask, Tensor? zone, float zone_rate,"
    " bool before, bool norm, int checkpoint_every"
)
_library.define(
    f"gru_layer(Tensor x, Tensor h_0, Tensor[] weights, bool bias, Tensor? batch_sizes, {_EXTRAS}, bool save)"
    " -> (Tensor output, Tensor h_n, Tensor saved, Tensor norms)"
)
_library.define(
    "gru_layer_backward(Tensor? d_output, Tensor? d_h_n, Tensor? d_saved, Tensor x, Tensor h_0, Tensor output,"
    f" Tensor saved, Tensor norms, Tensor[] weights, bool bias, Tensor? batch_sizes, {_EXTRAS})"
    " -> (Tensor d_x, Tensor d_h_0, Tensor d_fresh, Tensor[] d_weights)"
)


def _check_op(
    x: Tensor,
    h_0: Tensor,
    weights: Sequence[Tensor],
    bias: bool,
    batch_sizes: Tensor | None,
    extras: Sequence[Any],
    **others: Tensor | None,
) -> None:
    """What `tidegate.nn` checks for the layer, for those who call the operators themselves, and for values (lengths) that
    are not there yet while a graph is captured.
    """
    lengths, starts, resets, fresh, mask, zone, _, _, norm, _ = extras
    me = "tidegate::gru_layer:"
    per, ends = per_direction(bias, norm), batch_sizes is not None or starts is not None
    if x.dim() != (2 if ends else 3) or x.dtype not in REAL_TYPES or len(weights) not in (per, 2 * per):
        raise ShapeError(
            f"{me} x is {list(x.shape)}, {x.dtype}, with {len(weights)} weights; expected [T, B, I], or [rows, I] with "
            f"batch_sizes or starts, in float32 or float64, with {per} weights a direction."
        )
    H, D = weights[1].size(-1), len(weights) // per
    check(weights, per, x.size(-1), H, x.dtype)
    if batch_sizes is not None:
        sizes = batch_sizes.tolist() if batch_sizes.dtype == torch.int64 and batch_sizes.dim() == 1 else []
        if lengths is not None or not reference.are_steps(sizes, x.size(0)):
            raise ShapeError(
                f"{me} batch_sizes must be [T], int64, above 0, never growing, and add up to the {x.size(0)} rows of x, and "
                "there are no lengths beside them."
            )
    T, B, rows = sizes_of(x, batch_sizes, LayerExtras(*extras))
    if lengths is not None:
        for name, v in {"lengths": lengths, "starts": starts}.items():
            if v is not None and (v.shape != (B,) or v.dtype != torch.int64 or not v.is_cpu):
                raise ShapeError(
                    f"{me} {name} is {list(v.shape)}, {v.dtype}, on {v.device}; expected [{B}], int64, on cpu."
                )
        last = T if starts is None else rows - starts
        if B and (
            bool((lengths < 0).any()) or bool((lengths > last).any()) or (starts is not None and starts.min() < 0)
        ):
            raise ShapeError(f"{me} lengths are {lengths.tolist()}; each must be in 0 ... T, and within the rows of x.")
        if starts is not None:
            T = int(lengths.max()) if B else 0
    if resets is not None and (
        resets.dim() != 2
        or resets.size(0) < T
        or resets.size(1) != B
        or resets.dtype != torch.bool
        or not resets.is_cpu
    ):
        raise ShapeError(
            f"{me} resets is {list(resets.shape)}, {resets.dtype}; expected [T={T}, B={B}], torch.bool, on cpu."
        )
    shapes = {"h_0": (D, B, H), "output": (*x.shape[:-1], D * H), "saved": (D, rows, 10 if norm else 4, H)}
    shapes |= {"d_output": shapes["output"], "d_h_n": shapes["h_0"], "d_saved": shapes["saved"], "norms": (D, rows, 4)}
    shapes |= {"fresh": shapes["h_0"], "mask": shapes["h_0"], "zone": shapes["output"]}
    for name, v in {"h_0": h_0, "fresh": fresh, "mask": mask, "zone": zone, **others}.items():
        dtype = torch.bool if name == "zone" else x.dtype
        if v is not None and (v.shape != shapes[name] or v.dtype != dtype):
            raise ShapeError(f"{me} {name} is {list(v.shape)}, {v.dtype}; expected {list(shapes[name])}, {dtype}.")


def _forward(
    x: Tensor, h_0: Tensor, weights: list[Tensor], bias: bool, batch_sizes: Tensor | None, *extras_and_save: Any
) -> tuple[Tensor, ...]:
    *extras, save = extras_and_save
    _check_op(x, h_0, weights, bias, batch_sizes, extras)
    output, h_n, *saved = layer.forward(
        x, h_0, weights, bias, batch_sizes, save, extras=LayerExtras(*extras), shown=True
    )
    return output, h_n, *(x.new_empty((0,)) if v is None else v for v in saved)


def _backward(
    d_output: Tensor | None,
    d_h_n: Tensor | None,
    d_saved: Tensor | None,
    x: Tensor,
    h_0: Tensor,
    output: Tensor,
    saved: Tensor,
    norms: Tensor,
    weights: list[Tensor],
    bias: bool,
    batch_sizes: Tensor | None,
    *extras_fields: Any,
) -> tuple[Tensor | None, Tensor | None, Tensor, list[Tensor | None]]:
    extras = LayerExtras(*extras_fields)
    there = {"saved": saved} if saved.dim() == 4 else {}
    there |= {"norms": norms} if norms.dim() == 3 else {}
    _check_op(
        x,
        h_0,
        weights,
        bias,
        batch_sizes,
        extras,
        output=output,
        d_output=d_output,
        d_h_n=d_h_n,
        d_saved=d_saved,
        **there,
    )
    d_x, d_h_0, d_fresh, d_weights = layer.backward(
        d_output, d_h_n, d_saved, x, h_0, output.contiguous(), saved.contiguous() if "saved" in there else None,
        norms.contiguous() if "norms" in there else None, weights, bias, batch_sizes, extras,
        True, True, extras.fresh is not None, [True] * len(weights),
    )  # fmt: skip
    return d_x, d_h_0, x.new_empty((0,)) if d_fresh is None else d_fresh, d_weights


def _fake_forward(
    x: Tensor, h_0: Tensor, weights: list[Tensor], bias: bool, batch_sizes: Tensor | None, *extras_and_save: Any
) -> tuple[Tensor, ...]:
    *extras, save = extras_and_save
    starts, norm = extras[1], extras[8]
    D, B, H = h_0.shape
    rows = x.shape[0] if batch_sizes is not None or starts is not None else x.shape[0] * B
    return (
        x.new_empty((*x.shape[:-1], D * H)),
        x.new_empty((D, B, H)),
        x.new_empty((D, rows, 10 if norm else 4, H) if save else (0,)),
        x.new_empty((D, rows, 4) if save and norm else (0,)),
    )


def _fake_backward(
    d_output: Tensor | None,
    d_h_n: Tensor | None,
    d_saved: Tensor | None,
    x: Tensor,
    h_0: Tensor,
    output: Tensor,
    saved: Tensor,
    norms: Tensor,
    weights: list[Tensor],
    bias: bool,
    batch_sizes: Tensor | None,
    *extras: Any,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    d_fresh = x.new_empty((0,) if extras[3] is None else h_0.shape)
    return x.new_empty(x.shape), x.new_empty(h_0.shape), d_fresh, [x.new_empty(w.shape) for w in weights]


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    x, h_0, weights, bias, batch_sizes, *extras, _ = inputs
    ctx.save_for_backward(x, h_0, output[0], output[2], output[3], batch_sizes, *extras[:6], *weights)
    ctx.bias, ctx.rest = bias, extras[6:]
    ctx.set_materialize_grads(False)


def _output_again(ctx: Any, saved: tuple[Any, ...]) -> Tensor:
    x, h_0, _, _, _, batch_sizes, *more = saved
    extras, weights = LayerExtras(*more[:6], *ctx.rest), more[6:]
    output: Tensor = torch.ops.tidegate.gru_layer(x, h_0, weights, ctx.bias, batch_sizes, *extras, False)[0]
    return output


def _autograd(
    ctx: Any, d_output: Tensor | None, d_h_n: Tensor | None, d_saved: Tensor | None, _: Tensor | None
) -> tuple[Any, ...]:
    x, h_0, output, saved, norms, batch_sizes, *more = saved_tensors(ctx, 2, _output_again)
    weights, extras = more[6:], LayerExtras(*more[:6], *ctx.rest)
    if torch.is_grad_enabled() or not in_memory(d_output, d_h_n, d_saved):
        needs = (*ctx.needs_input_grad[:2], ctx.needs_input_grad[8], *(w.requires_grad for w in weights))
        d_gates = None if d_saved is None or d_saved.dim() != 4 else d_saved[:, :, :4]
        d_x, d_h_0, d_fresh, *d_weights = differentiable_gradients(
            (d_output, d_h_n, d_gates), x, h_0, weights, ctx.bias, batch_sizes, extras, needs
        )
    else:
        d_x, d_h_0, d_fresh, d_weights = torch.ops.tidegate.gru_layer_backward(
            d_output, d_h_n, d_saved, x, h_0, output, saved, norms, weights, ctx.bias, batch_sizes, *extras
        )
    if extras.fresh is None:
        d_fresh = None
    return d_x, d_h_0, d_weights, None, None, None, None, None, d_fresh, *(None,) * 7


if kernels.missing() is None:
    _library.impl("gru_layer", _forward, "CPU")
    _library.impl("gru_layer_backward", _backward, "CPU")
    torch.library.register_fake("tidegate::gru_layer", _fake_forward, lib=_library)
    torch.library.register_fake("tidegate::gru_layer_backward", _fake_backward, lib=_library)
    torch.library.register_autograd("tidegate::gru_layer", _autograd, setup_context=_setup_context, lib=_library)
    # Autocast never narrows the recurrence: whatever comes in runs in float32.
    torch.library.register_autocast("tidegate::gru_layer", "cpu", torch.float32, lib=_library)
    register_flop_formula(torch.ops.tidegate.gru_layer, get_raw=True)(flops.forward)
    register_flop_formula(torch.ops.tidegate.gru_layer_backward, get_raw=True)(flops.backward)
