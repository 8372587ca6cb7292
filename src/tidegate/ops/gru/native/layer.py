"""One layer in C++, forwards and backwards: its sizes and results. Knows no autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tidegate.ops.gru.equations import sums_in
from tidegate.ops.gru.extras import LayerExtras
from tidegate.ops.gru.native import kernels
from tidegate.ops.gru.native.weights import ALL, LINES, MANY, check, kind_of, look_of, packed, per_direction, tight

NO_EXTRAS = LayerExtras()
_More: Any = getattr(kernels.cpp, "More", None)
_NOTHING_MORE: Any = None if _More is None else _More()


def sizes_of(x: Tensor, batch_sizes: Tensor | None, extras: LayerExtras) -> tuple[int, int, int]:
    """T, B and the number of rows that results have."""
    if batch_sizes is not None:
        return batch_sizes.numel(), int(batch_sizes[0]), x.size(0)
    if extras.starts is not None:
        assert extras.lengths is not None
        return 1, extras.lengths.size(0), x.size(0)  # (T is told by the lengths)
    if x.dim() == 2:
        return 1, x.size(0), x.size(0)
    return x.size(0), x.size(1), x.size(0) * x.size(1)


def zeros(x: Tensor, weights: Sequence[Tensor], bias: bool, batch_sizes: Tensor | None, extras: LayerExtras) -> Tensor:
    """The state h_0 [D, B, H] that stands for none."""
    D, B = len(weights) // per_direction(bias, extras.norm), sizes_of(x, batch_sizes, extras)[1]
    return x.new_zeros(D, B, weights[1].size(1), dtype=weights[1].dtype)


def _more(extras: LayerExtras, **others: Any) -> Any:
    """The extras for C++, and with them what a call has beyond a plain one. It holds its tensors."""

    def contiguous(v: Tensor | None) -> Tensor | None:
        return None if v is None else v.contiguous()

    return _More(
        lengths=contiguous(extras.lengths),
        starts=contiguous(extras.starts),
        resets=contiguous(extras.resets),
        fresh=None if extras.resets is None else contiguous(extras.fresh),
        mask=contiguous(extras.mask),
        zone=contiguous(extras.zone),
        zone_rate=extras.zone_rate,
        **others,
    )


def forward(
    x: Tensor,  # [T, B, I] or [rows, I]; or a single step in one direction, [B, I]
    h_0: Tensor | None,  # [D, B, H], for a single step [B, H]; None: zeros
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

    With x in bfloat16 the products are so, too, and the output and what is saved; the weights and all else are float32.
    shown: somebody else is to look at that, so that padding, where nothing is written, must be 0.
    """
    H = weights[1].size(1)
    if extras is None:  # (spelled out: these are the microseconds of a small layer)
        norm = before = False
        D = len(weights) // (4 if bias else 2)
    else:
        norm, before = extras.norm, extras.before
        D = len(weights) // per_direction(bias, norm)
    if batch_sizes is None and (extras is None or extras.starts is None):
        *times, B, I = x.shape
        T = times[0] if times else 1
        rows = T * B
        output = x.new_empty(*times, B, D * H)
    else:
        T, B, rows = sizes_of(x, batch_sizes, extras or NO_EXTRAS)
        I = x.size(1)
        if batch_sizes is None:
            output = x.new_zeros(rows, D * H)  # between sequences there may be rows that are no one's
        else:
            output = x.new_empty(rows, D * H)
            batch_sizes = batch_sizes.contiguous()
    real = sums_in(x)
    narrow = 0 if real is x.dtype else 16
    h_n = x.new_empty(D, B, H, dtype=real) if narrow else x.new_empty(D, B, H)
    make = x.new_zeros if shown and extras is not None and extras.lengths is not None else x.new_empty
    saved = make(D, rows, 10 if norm else 4, H) if save else None
    norms = make(D, rows, 4, dtype=real) if save and norm else None
    more = _NOTHING_MORE if extras is None else _more(extras, norms=norms)
    threads = torch.get_num_threads()
    if kept is None:
        check(weights, per_direction(bias, norm), I, H, real)
        weights = tight(weights)
        kind = kind_of(I, H, bias, norm, before, real is torch.float64, narrow)
        kernels.cpp.forward_once(
            weights, kind, T=T, B=B, rows=rows, x=x, h_0=h_0, batch_sizes=batch_sizes, output=output, h_n=h_n, saved=saved,
            more=more, threads=threads, rounded=narrow == 16,
        )  # fmt: skip
    else:
        # (`look_of` from the second line on: a call of it is a hundredth of a small layer's)
        look = ALL if rows >= MANY else LINES if save or h_0 is None else look_of(T, rows, h_0)
        handle = packed(weights, bias, norm, before, I, H, threads, kept, key, look, narrow)
        kernels.cpp.forward(
            handle, T=T, B=B, rows=rows, x=x, h_0=h_0, batch_sizes=batch_sizes, output=output, h_n=h_n, saved=saved,
            more=more, threads=threads, rounded=narrow == 16,
        )  # fmt: skip
    return output, h_n, saved, norms


def backward(
    d_output: Tensor | None,
    d_h_n: Tensor | None,
    d_saved: Tensor | None,
    x: Tensor,
    h_0: Tensor | None,
    output: Tensor | None,
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
    """The gradients of x, h_0 ([D, B, H]), fresh and the weights, None where they are not needed.

    The first arguments are the gradients of output, h_n and saved (None: zeros), and what `forward` took and gave; saved is
    None where it is to be computed again. A single step of one direction needs no output.
    """
    norm, before = (False, False) if extras is None else (extras.norm, extras.before)
    I, per = x.size(-1), per_direction(bias, norm)
    D = len(weights) // per
    # (Of what forward left: by now `.data`, or `layer.bfloat16()`, may have put anything into the weights.)
    if saved is not None:
        H = saved.size(-1)
    else:
        assert output is not None
        H = output.size(-1) // D
    T, B, rows = sizes_of(x, batch_sizes, extras or NO_EXTRAS)
    batch_sizes = None if batch_sizes is None else batch_sizes.contiguous()
    real = sums_in(x)
    if real is not x.dtype:  # (the output was rounded, and so is its gradient)
        d_output = None if d_output is None else d_output.to(real)
    # The memory of a tensor that is marked as negative holds its opposite.
    if d_output is not None and d_output.is_neg():
        d_output = d_output.resolve_neg()
    if d_h_n is not None and d_h_n.is_neg():
        d_h_n = d_h_n.resolve_neg()
    check(weights, per, I, H, real)
    weights = tight(weights)
    d_weights = [torch.empty_like(w) if need else None for w, need in zip(weights, needs_weights, strict=True)]
    make = x.new_zeros if extras is not None and extras.lengths is not None else x.new_empty
    d_x = make(D, rows, I, dtype=real) if needs_x else None
    d_h_0 = x.new_empty(D, B, H, dtype=real) if needs_h_0 else None
    d_fresh = None
    more = _NOTHING_MORE
    if extras is not None or d_saved is not None:
        d_fresh = x.new_empty(D, B, H, dtype=real) if needs_fresh else None
        d_saved = None if d_saved is None else d_saved.resolve_neg()[:, :, :4].contiguous()
        more = _more(extras or NO_EXTRAS, norms=norms, d_saved=d_saved, d_fresh=d_fresh, again=saved is None)
    kernels.cpp.backward(
        weights, kind_of(I, H, bias, norm, before, real is torch.float64, 0 if real is x.dtype else 16), T=T, B=B, rows=rows, x=x, h_0=h_0,
        batch_sizes=batch_sizes, output=output, saved=saved, d_output=d_output, d_h_n=d_h_n, d_x=d_x, d_h_0=d_h_0,
        d_weights=d_weights, more=more, threads=torch.get_num_threads(),
    )  # fmt: skip
    if d_x is not None:
        d_x = (d_x[0] if D == 1 else d_x[0] + d_x[1]).view(x.shape).to(x.dtype)
    return d_x, d_h_0, d_fresh, d_weights
