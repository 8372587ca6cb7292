"""One layer in C++, forwards and backwards: its addresses, sizes and results. Knows no autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tidegate.ops.gru.extras import LayerExtras
from tidegate.ops.gru.native import kernels
from tidegate.ops.gru.native.weights import check, kind_of, packed, per_direction, tight

NO_EXTRAS = LayerExtras()
_NOTHING_MORE: Any = None if kernels.cpp is None else kernels.cpp.More()


def _strided(x: Tensor, one_by_one: bool) -> tuple[Tensor, int, int]:
    """x with its values of a row side by side, and its strides from step to step and from row to row.

    one_by_one: x is [rows, I] and not [T, B, I].
    """
    stride = x.stride()
    if stride[-1] != 1 and x.size(-1) > 1:
        x = x.contiguous()
        stride = x.stride()
    return (x, 0, stride[0]) if one_by_one else (x, stride[0], stride[1])


def sizes_of(x: Tensor, batch_sizes: Tensor | None, extras: LayerExtras) -> tuple[int, int, int]:
    """T, B and the number of rows that results have."""
    if batch_sizes is not None:
        return batch_sizes.numel(), int(batch_sizes[0]), x.size(0)
    if extras.starts is not None:
        assert extras.lengths is not None
        return 1, extras.lengths.size(0), x.size(0)  # (T is told by the lengths)
    return x.size(0), x.size(1), x.size(0) * x.size(1)


def zeros(x: Tensor, weights: Sequence[Tensor], bias: bool, batch_sizes: Tensor | None, extras: LayerExtras) -> Tensor:
    """The state h_0 [D, B, H] that stands for none."""
    D, B = len(weights) // per_direction(bias, extras.norm), sizes_of(x, batch_sizes, extras)[1]
    return x.new_zeros(D, B, weights[1].size(1))


def _more(extras: LayerExtras) -> tuple[Any, list[Tensor | None]]:
    """The extras for C++, and the tensors whose addresses these are: to be held until it is done."""
    more = kernels.cpp.More()
    held: list[Tensor | None] = []

    def address(v: Tensor | None) -> int:
        v = None if v is None else v.contiguous()
        held.append(v)
        return 0 if v is None else v.data_ptr()

    more.lengths, more.starts = address(extras.lengths), address(extras.starts)
    if extras.resets is not None:
        held.append(extras.resets)
        more.resets = extras.resets.data_ptr()
        more.resets_step, more.resets_row = extras.resets.stride()
        more.fresh = address(extras.fresh)
    more.mask, more.zone, more.zone_rate = address(extras.mask), address(extras.zone), extras.zone_rate
    return more, held


def forward(
    x: Tensor,  # [T, B, I] or [rows, I]
    h_0: Tensor | None,  # [D, B, H]; None: zeros
    weights: Sequence[Tensor],  # of both directions
    bias: bool,
    batch_sizes: Tensor | None,
    save: bool,
    kept: dict[Any, Any] | None = None,
    key: int = 0,
    extras: LayerExtras | None = None,
    shown: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Both directions of a layer: output, h_n, and what backward needs, [D, rows, slots, H] and layer norm's [D, rows, 4].

    shown: somebody else is to look at that, so that padding, where nothing is written, must be 0.
    """
    H = weights[1].size(1)
    if extras is None:
        norm = before = False
        more, held = _NOTHING_MORE, None
        D = len(weights) // (4 if bias else 2)
    else:
        norm, before = extras.norm, extras.before
        more, held = _more(extras)
        D = len(weights) // per_direction(bias, norm)
    if batch_sizes is None and (extras is None or extras.starts is None):
        x, x_step, x_row = _strided(x, False)
        T, B, I = x.shape
        rows = T * B
        output = x.new_empty(T, B, D * H)
        sizes = 0
    else:
        x, x_step, x_row = _strided(x, True)
        T, B, rows = sizes_of(x, batch_sizes, extras or NO_EXTRAS)
        I = x.size(1)
        if batch_sizes is None:
            output = x.new_zeros(rows, D * H)  # between sequences there may be rows that are no one's
            sizes, x_step = 0, x_row
        else:
            output = x.new_empty(rows, D * H)
            batch_sizes = batch_sizes.contiguous()
            sizes = batch_sizes.data_ptr()
    if h_0 is None:
        start, h_run, h_row = 0, 0, 0
    else:
        h_run, h_row, h_unit = h_0.stride()
        if h_unit != 1 and H > 1:
            h_0 = h_0.contiguous()
            h_run, h_row, _ = h_0.stride()
        start = h_0.data_ptr()
    h_n = x.new_empty(D, B, H)
    make = x.new_zeros if shown and extras is not None and extras.lengths is not None else x.new_empty
    saved = make(D, rows, 10 if norm else 4, H) if save else None
    keep = 0 if saved is None else saved.data_ptr()
    norms = None
    if norm and save:
        norms = make(D, rows, 4)
        more.norms = norms.data_ptr()
    threads = torch.get_num_threads()
    run = (
        T, B, x.data_ptr(), x_step, x_row, start, h_run, h_row, output.data_ptr(), h_n.data_ptr(), keep, rows, sizes,
        more, threads,
    )  # fmt: skip
    if kept is None:
        check(weights, per_direction(bias, norm), I, H, x.dtype)
        weights = tight(weights)
        kind = kind_of(I, H, bias, norm, before, x.dtype is torch.float64)
        kernels.cpp.forward_once([*map(Tensor.data_ptr, weights)], kind, *run)
    else:
        kernels.cpp.forward(packed(weights, bias, norm, before, I, H, threads, kept, key), *run)
    del held
    return output, h_n, saved, norms


def backward(
    d_output: Tensor | None,
    d_h_n: Tensor | None,
    d_saved: Tensor | None,
    x: Tensor,
    h_0: Tensor | None,
    output: Tensor,
    saved: Tensor | None,
    norms: Tensor | None,
    weights: Sequence[Tensor],
    bias: bool,
    batch_sizes: Tensor | None,
    extras: LayerExtras | None,
    needs_x: bool,
    needs_h_0: bool,
    needs_fresh: bool,
    needs_weights: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, list[Tensor | None]]:
    """The gradients of x, h_0, fresh and the weights, None where they are not needed.

    The first arguments are the gradients of output, h_n and saved (None: zeros), and what `forward` took and gave; saved is
    None where it is to be computed again.
    """
    norm, before = (False, False) if extras is None else (extras.norm, extras.before)
    plain = extras is None and d_saved is None
    more, held = (_NOTHING_MORE, None) if plain else _more(extras or NO_EXTRAS)
    ends = batch_sizes is not None or (extras is not None and extras.starts is not None)  # x is [rows, I]
    x, x_step, x_row = _strided(x, ends)
    I, H = x.size(-1), weights[1].size(1)
    D = len(weights) // per_direction(bias, norm)
    T, B, rows = sizes_of(x, batch_sizes, extras or NO_EXTRAS)
    sizes = 0
    if batch_sizes is not None:
        batch_sizes = batch_sizes.contiguous()
        sizes = batch_sizes.data_ptr()
    elif ends:
        x_step = x_row
    d_step = d_row = n_run = n_row = 0
    d_unit = 1
    if d_output is not None:
        if d_output.is_neg():
            d_output = d_output.resolve_neg()
        if not any(d_output.stride()):  # the gradient of a sum: one value, seen everywhere
            d_unit = 0
        else:
            d_output, d_step, d_row = _strided(d_output, ends)
            if ends and batch_sizes is None:
                d_step = d_row
    if d_h_n is not None:
        d_h_n = d_h_n.resolve_neg().contiguous()
        n_run, n_row = B * H, H
    if h_0 is not None:
        h_0 = h_0.contiguous()
    weights = tight(weights)
    d_weights = [torch.empty_like(w) if need else None for w, need in zip(weights, needs_weights, strict=True)]
    make = x.new_zeros if extras is not None and extras.lengths is not None else x.new_empty
    d_x = make(D, rows, I) if needs_x else None
    d_h_0 = x.new_empty(D, B, H) if needs_h_0 else None
    d_fresh = None
    if not plain:
        if d_saved is not None:
            d_saved = d_saved.resolve_neg()[:, :, :4].contiguous()
            more.d_saved = d_saved.data_ptr()
        if needs_fresh:
            d_fresh = x.new_empty(D, B, H)
            more.d_fresh = d_fresh.data_ptr()
        if norms is not None:
            more.norms = norms.data_ptr()
        more.again = saved is None
    kernels.cpp.backward(
        [*map(Tensor.data_ptr, weights)], kind_of(I, H, bias, norm, before, x.dtype is torch.float64), T, B,
        x.data_ptr(), x_step, x_row, 0 if h_0 is None else h_0.data_ptr(), B * H, H, output.data_ptr(),
        0 if saved is None else saved.data_ptr(), rows,
        0 if d_output is None else d_output.data_ptr(), d_step, d_row, d_unit,
        0 if d_h_n is None else d_h_n.data_ptr(), n_run, n_row,
        0 if d_x is None else d_x.data_ptr(), 0 if d_h_0 is None else d_h_0.data_ptr(),
        [0 if d is None else d.data_ptr() for d in d_weights], sizes, more, torch.get_num_threads(),
    )  # fmt: skip
    del held
    if d_x is not None:
        d_x = (d_x[0] if D == 1 else d_x[0] + d_x[1]).view(x.shape)
    return d_x, d_h_0, d_fresh, d_weights
