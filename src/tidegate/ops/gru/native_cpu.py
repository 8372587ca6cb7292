"""Our own kernels for the CPU (csrc/), in float32 and float64, forwards and backwards.

What they promise beyond the equations: the bits of a row's output don't depend on the batch it is in, on where its
sequence is cut into calls, or on the number of threads; gradients don't depend on the number of threads. This
holds on one instruction set: AVX-512, AVX2 and the baseline round differently. `TIDEGATE_ISA` in the environment
(`avx512`, `avx2`, `baseline`) chooses a lower one than the best of the machine.

Two roads lead to them. A plain call in eager mode goes straight into C++, as the dispatcher would cost more than
a small GRU takes; under `torch.compile`, `torch.export`, tracing or a dispatch mode the same functions run as the
registered operators `tidegate::gru_layer` and `tidegate::gru_layer_backward`.

float16 and bfloat16 are computed in float32 and rounded once, at the end; so are autocast's. Backward of backward
(`create_graph=True`) goes through the reference's equations: right, and as slow as these.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor
from torch._C import _get_tracing_state as tracing
from torch._C import _has_storage
from torch._C import _len_torch_dispatch_stack as dispatch_modes
from torch.nn import Parameter

from tidegate.errors import ShapeError
from tidegate.ops.gru import reference
from tidegate.ops.gru.extras import Extras, LayerExtras
from tidegate.ops.gru.modes import forward_mode, functorch_level, transformed

_MISSING: str | None
try:
    from tidegate import _native  # type: ignore[attr-defined]
except ImportError as error:
    _native = None
    _MISSING = (
        "the C++ kernel is not part of this installation"
        if "_native" in str(error) and "cannot import name" in str(error)
        else f"the C++ kernel does not load ({error})"
    )
else:
    _MISSING = None
    _ASKED_ISA = os.environ.get("TIDEGATE_ISA")
    if _ASKED_ISA and _ASKED_ISA not in _native.isa_names():
        _MISSING = f"TIDEGATE_ISA={_ASKED_ISA!r} is none of this machine's: {', '.join(_native.isa_names())}"
    # One pool of threads for torch and for us, where torch's OpenMP runtime is to be found.
    _native.share_openmp()
    _kind = lru_cache(_native.Kind)  # of weights: I, H, bias, norm, before, wide
    _NOTHING_MORE = _native.More()

_REAL = (torch.float32, torch.float64)
_HALF = (torch.float16, torch.bfloat16)
_PLAIN = frozenset((Tensor, Parameter))
_NO_EXTRAS = LayerExtras()


def missing() -> str | None:
    """Why the kernels can't run in this installation at all; None where they can."""
    return _MISSING


def why_not(x: Any) -> str | None:
    """Why a call with this x can't run here; None where it can. Well below a microsecond."""
    if _MISSING is not None:
        return _MISSING
    if not x.is_cpu:
        return f"it runs on the CPU, and x is on {x.device}"
    if x.dtype not in _REAL and x.dtype not in _HALF:
        return f"it computes in float32 and float64, and x is {x.dtype}"
    if torch.compiler.is_compiling():
        return "its compiled operator has no rule for the transforms of torch.func" if transformed() else None
    return "it has no forward-mode derivative" if forward_mode() else None


def isa() -> str:
    """The instruction set in use: "avx512", "avx2" or "baseline"."""
    return _native.isa_name()


def isas() -> list[str]:
    """The instruction sets that this machine and this build have, best first."""
    return _native.isa_names()


# ------------------------------------------------------------------------------------------------ one layer


def _strided(x: Tensor, batch_sizes: Tensor | None) -> tuple[Tensor, int, int]:
    """x with its values of a row side by side, and its strides from step to step and from row to row."""
    stride = x.stride()
    if stride[-1] != 1 and x.size(-1) > 1:
        x = x.contiguous()
        stride = x.stride()
    return (x, 0, stride[0]) if batch_sizes is not None else (x, stride[0], stride[1])


def _tight(weights: Sequence[Tensor]) -> Sequence[Tensor]:
    for w in weights:
        if not w.is_contiguous():
            return [w.contiguous() for w in weights]
    return weights


_dtype, _shape = attrgetter("dtype"), attrgetter("shape")


def _per_direction(bias: bool, norm: bool) -> int:
    return 2 + 2 * bias + 2 * norm


def _check_weights(weights: Sequence[Tensor], per: int, I: int, H: int, dtype: torch.dtype) -> None:
    """Raise `ShapeError` for weights whose addresses C++ must not be given: `.data` and `setattr` take anything."""
    one = [(3 * H, I), (3 * H, H), (3 * H,), (3 * H,), (3 * H,), (3 * H,)][:per]
    expected = one * (len(weights) // per)
    if [*map(_shape, weights)] == expected and {*map(_dtype, weights)} == {dtype} and all(w.is_cpu for w in weights):
        return
    for w, shape in zip(weights, expected, strict=True):
        if w.shape != shape or w.dtype != dtype or not w.is_cpu:
            raise ShapeError(
                f"GRU: a weight is {list(w.shape)}, {w.dtype}, on {w.device}; expected {list(shape)}, {dtype}, on cpu, "
                f"for input_size={I}, hidden_size={H}. Convert or replace all weights of the layer together."
            )


def _pack(weights: Sequence[Tensor], kind: Any, threads: int) -> Any:
    weights = _tight(weights)  # a name of its own: copies must live until C++ has read them
    return _native.pack([*map(Tensor.data_ptr, weights)], kind, threads)


_version = attrgetter("_version")


class _Kept:
    """The packed weights of a layer, and what they were packed from."""

    __slots__ = ("addresses", "handle", "versions", "weights")

    handle: Any

    def __init__(self, weights: Sequence[Tensor]) -> None:
        """The marks of the weights as they are now. To be made before they are packed: whoever changes them in
        between is then noticed at the next call.
        """
        self.weights = [*weights]  # alive as long as this is: a new tensor can't take the place of one of them
        self.versions = [*map(_version, weights)]
        self.addresses = [*map(Tensor.data_ptr, weights)]

    def fits(self, weights: Sequence[Tensor]) -> bool:
        return (
            all(map(is_, weights, self.weights))
            and [*map(_version, weights)] == self.versions
            and [*map(Tensor.data_ptr, weights)] == self.addresses
            and not self.handle.looks_changed()
        )


def _packed(
    weights: Sequence[Tensor],
    bias: bool,
    norm: bool,
    before: bool,
    I: int,
    H: int,
    threads: int,
    kept: dict[Any, Any] | None,
    key: int,
) -> Any:
    """The weights in the kernel's order: those that were kept, where nothing has changed since."""
    place = (key, bias, norm, before)
    have = None if kept is None else kept.get(place)
    if have is not None and have.fits(weights):
        return have.handle
    dtype = weights[0].dtype
    _check_weights(weights, _per_direction(bias, norm), I, H, dtype)
    kind = _kind(I, H, bias, norm, before, dtype == torch.float64)
    # A tensor that was made in inference mode has no version: nobody can tell whether it changed.
    if kept is None or any(w.is_inference() or not w.is_contiguous() for w in weights):
        if kept is not None:
            kept.pop(place, None)
        return _pack(weights, kind, threads)
    entry = _Kept(weights)
    entry.handle = _pack(weights, kind, threads)
    kept[place] = entry
    return entry.handle


def _sizes(x: Tensor, batch_sizes: Tensor | None, extras: LayerExtras) -> tuple[int, int, int]:
    """T, B and the number of rows that results have."""
    if batch_sizes is not None:
        return batch_sizes.numel(), int(batch_sizes[0]), x.size(0)
    if extras.starts is not None:
        assert extras.lengths is not None
        return 1, extras.lengths.size(0), x.size(0)  # (T is told by the lengths)
    return x.size(0), x.size(1), x.size(0) * x.size(1)


def _more(extras: LayerExtras) -> tuple[Any, list[Tensor | None]]:
    """The extras for C++, and the tensors whose addresses these are: to be kept until it is done."""
    more = _native.More()
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


def _forward(
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
        D = len(weights) // _per_direction(bias, norm)
    if batch_sizes is None and (extras is None or extras.starts is None):
        x, x_step, x_row = _strided(x, None)
        T, B, I = x.shape
        rows = T * B
        output = x.new_empty(T, B, D * H)
        sizes = 0
    else:
        x, x_step, x_row = _strided(x, x)
        T, B, rows = _sizes(x, batch_sizes, extras or _NO_EXTRAS)
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
        _check_weights(weights, _per_direction(bias, norm), I, H, x.dtype)
        weights = _tight(weights)
        kind = _kind(I, H, bias, norm, before, x.dtype is torch.float64)
        _native.forward_once([*map(Tensor.data_ptr, weights)], kind, *run)
    else:
        _native.forward(_packed(weights, bias, norm, before, I, H, threads, kept, key), *run)
    del held
    return output, h_n, saved, norms


def _backward(
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
    norm, before = (False, False) if extras is None else (extras.norm, extras.before)
    plain = extras is None and d_saved is None
    more, held = (_NOTHING_MORE, None) if plain else _more(extras or _NO_EXTRAS)
    ends = batch_sizes is not None or (extras is not None and extras.starts is not None)  # x is [rows, I]
    one_by_one = x if ends else None
    x, x_step, x_row = _strided(x, one_by_one)
    I, H = x.size(-1), weights[1].size(1)
    D = len(weights) // _per_direction(bias, norm)
    T, B, rows = _sizes(x, batch_sizes, extras or _NO_EXTRAS)
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
            d_output, d_step, d_row = _strided(d_output, one_by_one)
            if ends and batch_sizes is None:
                d_step = d_row
    if d_h_n is not None:
        d_h_n = d_h_n.resolve_neg().contiguous()
        n_run, n_row = B * H, H
    if h_0 is not None:
        h_0 = h_0.contiguous()
    weights = _tight(weights)
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
    _native.backward(
        [*map(Tensor.data_ptr, weights)], _kind(I, H, bias, norm, before, x.dtype is torch.float64), T, B,
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


def _differentiable(
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
    extras = extras or _NO_EXTRAS
    # Aliases: h_0 may itself depend on the weights or on x (two calls in a row), or one weight may stand for two (tied
    # weights). The caller's graph carries these ways; here each tensor stands for itself alone.
    D = len(weights) // _per_direction(bias, extras.norm)
    with torch.enable_grad(), reference.without_autocast(x):
        x, weights = x.view_as(x), [w.view_as(w) for w in weights]
        fresh = None if extras.fresh is None else extras.fresh.view_as(extras.fresh)
        h_0 = _zeros(x, weights, bias, batch_sizes, extras) if h_0 is None else h_0.view_as(h_0)
        output, h_n, gates = reference.layer(x, h_0, weights, bias, batch_sizes, extras._replace(fresh=fresh))
    again = (output, h_n, gates.reshape(D, -1, *gates.shape[-2:]))
    pairs = [(r, d) for r, d in zip(again, gradients, strict=True) if d is not None]
    given: list[Any] = [v for v, need in zip((x, h_0, fresh, *weights), needs, strict=True) if need]
    found = iter(
        torch.autograd.grad(
            [r for r, _ in pairs], given, [d for _, d in pairs], create_graph=create_graph, allow_unused=True
        )
    )
    return [next(found) if need else None for need in needs]


def _in_memory(*tensors: Tensor | None) -> bool:
    """Whether these are tensors of their own, not the many in one of a vmap."""
    return all(v is None or _has_storage(v) for v in tensors)


class _Layer(torch.autograd.Function):
    """The eager road of a layer that wants gradients. Every argument costs a small layer time, so there are few."""

    @staticmethod
    def forward(ctx, x, h_0, fresh, how, *weights):
        ctx.how = bias, batch_sizes, extras, traces = how
        ctx.set_materialize_grads(False)
        if extras is None:
            output, h_n, saved, _ = _forward(x, h_0, weights, bias, batch_sizes, True)
            ctx.save_for_backward(x, h_0, output, saved, batch_sizes, *weights)
        else:
            save = traces or not extras.checkpoint_every
            output, h_n, saved, norms = _forward(x, h_0, weights, bias, batch_sizes, save, extras=extras, shown=traces)
            ctx.save_for_backward(x, h_0, output, saved, batch_sizes, norms, *extras[:6], *weights)
        return (output, h_n, saved) if traces else (output, h_n)

    @staticmethod
    def backward(ctx, d_output, d_h_n, d_saved=None):
        bias, _, extras, _ = ctx.how
        x, h_0, output, saved, batch_sizes, *weights = ctx.saved_tensors
        norms = None
        if extras is not None:
            norms, *more = weights
            extras, weights = LayerExtras(*more[:6], *extras[6:]), more[6:]
        needs_x, needs_h_0, needs_fresh, _, *needs_weights = ctx.needs_input_grad
        if torch.is_grad_enabled() or not _in_memory(d_output, d_h_n, d_saved):
            d_gates = None if d_saved is None else d_saved[:, :, :4]
            needs = (needs_x, needs_h_0, needs_fresh, *needs_weights)
            d_x, d_h_0, d_fresh, *d_weights = _differentiable(
                (d_output, d_h_n, d_gates), x, h_0, weights, bias, batch_sizes, extras, needs
            )
        else:
            d_x, d_h_0, d_fresh, d_weights = _backward(
                d_output, d_h_n, d_saved, x, h_0, output, saved, norms, weights, bias, batch_sizes, extras,
                needs_x, needs_h_0, needs_fresh, needs_weights,
            )  # fmt: skip
        return d_x, d_h_0, d_fresh, None, *d_weights


# `Function.apply` without its wrapper, which looks for the wrappers of torch.func among the arguments: `why_not` has
# already turned away whatever comes from there.
_apply_layer = super(torch.autograd.Function, _Layer).apply


# ------------------------------------------------------------------------------------------------ torch.func


def _one_by_one(function: Any, info: Any, in_dims: Any, args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """A rule for vmap: the kernels run once for each of its elements."""
    found = [
        function.apply(*(v.select(d, i) if isinstance(d, int) else v for v, d in zip(args, in_dims, strict=True)))
        for i in range(info.batch_size)
    ]
    return tuple(map(torch.stack, zip(*found, strict=True))), (0,) * len(found[0])


def _or_empty(like: Tensor, values: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    return tuple(like.new_empty(0) if v is None else v for v in values)


class _Transformed(torch.autograd.Function):
    """The road of vmap and grad of torch.func, nested as they may be. All tensors are arguments of their own; `rest` is
    what `LayerExtras` has beside tensors.
    """

    @staticmethod
    def forward(bias, rest, batch_sizes, x, h_0, lengths, starts, resets, fresh, mask, zone, *weights):
        extras = LayerExtras(lengths, starts, resets, fresh, mask, zone, *rest)
        output, h_n, *saved = _forward(x, h_0, weights, bias, batch_sizes, True, extras=extras, shown=True)
        return output, h_n, *_or_empty(x, saved)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.bias, ctx.rest, *tensors = inputs
        ctx.save_for_backward(output[0], output[2], output[3], *tensors)

    @staticmethod
    def backward(ctx, d_output, d_h_n, d_saved, _):
        tensors = ctx.saved_tensors
        found = _TransformedBackward.apply(ctx.bias, ctx.rest, d_output, d_h_n, d_saved, *tensors)
        d_x, d_h_0, d_fresh, *d_weights = found
        fresh = tensors[9]
        return (
            None,
            None,
            None,
            d_x,
            d_h_0,
            None,
            None,
            None,
            None if fresh is None else d_fresh,
            None,
            None,
            *d_weights,
        )

    @staticmethod
    def vmap(info, in_dims, *args):
        return _one_by_one(_Transformed, info, in_dims, args)


class _TransformedBackward(torch.autograd.Function):
    @staticmethod
    def forward(bias, rest, d_output, d_h_n, d_saved, output, saved, norms, batch_sizes, x, h_0, *more):
        extras, weights = LayerExtras(*more[:6], *rest), more[6:]
        d_x, d_h_0, d_fresh, d_weights = _backward(
            d_output, d_h_n, d_saved, x, h_0, output.contiguous(), saved.contiguous(),
            norms.contiguous() if extras.norm else None, [w.contiguous() for w in weights], bias, batch_sizes, extras,
            True, True, extras.fresh is not None, [True] * len(weights),
        )  # fmt: skip
        return _or_empty(x, (d_x, d_h_0, d_fresh, *d_weights))

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.bias, ctx.rest, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, *upstream):
        """Through the reference's own derivative."""
        d_output, d_h_n, d_saved, _, _, _, batch_sizes, x, h_0, *more = ctx.saved_tensors
        extras, weights = LayerExtras(*more[:6], *ctx.rest), more[6:]
        fresh = torch.zeros_like(h_0) if extras.fresh is None else extras.fresh  # (vjp takes no None)

        def gradients(d_output, d_h_n, d_gates, x, h_0, fresh, *weights):
            def run(x, h_0, fresh, *weights):
                found = reference.layer(x, h_0, weights, ctx.bias, batch_sizes, extras._replace(fresh=fresh))
                return found[0], found[1], found[2].reshape(h_0.size(0), -1, *found[2].shape[-2:])

            _, back = torch.func.vjp(run, x, h_0, fresh, *weights)
            d_x, d_h_0, d_fresh, *d_weights = back((d_output, d_h_n, d_gates))
            return d_x, d_h_0, x.new_empty(0) if extras.fresh is None else d_fresh, *d_weights

        d_gates = d_saved[:, :, :4]
        _, back = torch.func.vjp(gradients, d_output, d_h_n, d_gates, x, h_0, fresh, *weights)
        d_output, d_h_n, d_gates, d_x, d_h_0, d_fresh, *d_weights = back(upstream)
        d_saved = torch.cat([d_gates, d_saved.new_zeros(d_saved[:, :, 4:].shape)], 2)
        nothing = (None,) * 3
        return (
            None, None, d_output, d_h_n, d_saved, *nothing, None, d_x, d_h_0, *nothing,
            None if extras.fresh is None else d_fresh, None, None, *d_weights,
        )  # fmt: skip

    @staticmethod
    def vmap(info, in_dims, *args):
        return _one_by_one(_TransformedBackward, info, in_dims, args)


# ------------------------------------------------------------------------------------------------ registered

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


def _check_op(x, h_0, weights, bias, batch_sizes, extras, **others):
    """What `tidegate.nn` checks for the layer, for those who call the operators themselves, and for values (lengths) that
    are not there yet while a graph is captured.
    """
    lengths, starts, resets, fresh, mask, zone, _, _, norm, _ = extras
    me = "tidegate::gru_layer:"
    per, ends = _per_direction(bias, norm), batch_sizes is not None or starts is not None
    if x.dim() != (2 if ends else 3) or x.dtype not in _REAL or len(weights) not in (per, 2 * per):
        raise ShapeError(
            f"{me} x is {list(x.shape)}, {x.dtype}, with {len(weights)} weights; expected [T, B, I], or [rows, I] with "
            f"batch_sizes or starts, in float32 or float64, with {per} weights a direction."
        )
    H, D = weights[1].size(-1), len(weights) // per
    _check_weights(weights, per, x.size(-1), H, x.dtype)
    if batch_sizes is not None:
        sizes = batch_sizes.tolist() if batch_sizes.dtype == torch.int64 and batch_sizes.dim() == 1 else []
        if lengths is not None or not reference.are_steps(sizes, x.size(0)):
            raise ShapeError(
                f"{me} batch_sizes must be [T], int64, above 0, never growing, and add up to the {x.size(0)} rows of x, and "
                "there are no lengths beside them."
            )
    T, B, rows = _sizes(x, batch_sizes, LayerExtras(*extras))
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


def _op_forward(x, h_0, weights, bias, batch_sizes, *extras_and_save):
    *extras, save = extras_and_save
    _check_op(x, h_0, weights, bias, batch_sizes, extras)
    output, h_n, *saved = _forward(x, h_0, weights, bias, batch_sizes, save, extras=LayerExtras(*extras), shown=True)
    return output, h_n, *(x.new_empty((0,)) if v is None else v for v in saved)


def _op_backward(d_output, d_h_n, d_saved, x, h_0, output, saved, norms, weights, bias, batch_sizes, *extras):
    extras = LayerExtras(*extras)
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
    d_x, d_h_0, d_fresh, d_weights = _backward(
        d_output, d_h_n, d_saved, x, h_0, output.contiguous(), saved.contiguous() if "saved" in there else None,
        norms.contiguous() if "norms" in there else None, weights, bias, batch_sizes, extras,
        True, True, extras.fresh is not None, [True] * len(weights),
    )  # fmt: skip
    return d_x, d_h_0, x.new_empty((0,)) if d_fresh is None else d_fresh, d_weights


def _fake_forward(x, h_0, weights, bias, batch_sizes, *extras_and_save):
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


def _fake_backward(d_output, d_h_n, d_saved, x, h_0, output, saved, norms, weights, bias, batch_sizes, *extras):
    d_fresh = x.new_empty((0,) if extras[3] is None else h_0.shape)
    return x.new_empty(x.shape), x.new_empty(h_0.shape), d_fresh, [x.new_empty(w.shape) for w in weights]


def _setup_context(ctx, inputs, output):
    x, h_0, weights, bias, batch_sizes, *extras, _ = inputs
    ctx.save_for_backward(x, h_0, output[0], output[2], output[3], batch_sizes, *extras[:6], *weights)
    ctx.bias, ctx.rest = bias, extras[6:]
    ctx.set_materialize_grads(False)


def _autograd(ctx, d_output, d_h_n, d_saved, _):
    x, h_0, output, saved, norms, batch_sizes, *more = ctx.saved_tensors
    weights, extras = more[6:], LayerExtras(*more[:6], *ctx.rest)
    if torch.is_grad_enabled() or not _in_memory(d_output, d_h_n, d_saved):
        needs = (*ctx.needs_input_grad[:2], ctx.needs_input_grad[8], *(w.requires_grad for w in weights))
        d_gates = None if d_saved is None or d_saved.dim() != 4 else d_saved[:, :, :4]
        d_x, d_h_0, d_fresh, *d_weights = _differentiable(
            (d_output, d_h_n, d_gates), x, h_0, weights, ctx.bias, batch_sizes, extras, needs
        )
    else:
        d_x, d_h_0, d_fresh, d_weights = torch.ops.tidegate.gru_layer_backward(
            d_output, d_h_n, d_saved, x, h_0, output, saved, norms, weights, ctx.bias, batch_sizes, *extras
        )
    if extras.fresh is None:
        d_fresh = None
    return d_x, d_h_0, d_weights, None, None, None, None, None, d_fresh, *(None,) * 7


if _MISSING is None:
    _library.impl("gru_layer", _op_forward, "CPU")
    _library.impl("gru_layer_backward", _op_backward, "CPU")
    torch.library.register_fake("tidegate::gru_layer", _fake_forward, lib=_library)
    torch.library.register_fake("tidegate::gru_layer_backward", _fake_backward, lib=_library)
    torch.library.register_autograd("tidegate::gru_layer", _autograd, setup_context=_setup_context, lib=_library)
    # Autocast never narrows the recurrence: whatever comes in runs in float32.
    torch.library.register_autocast("tidegate::gru_layer", "cpu", torch.float32, lib=_library)


# ------------------------------------------------------------------------------------------------ the back end


def _is_plain(x: Tensor, h_0: Tensor | None, weights: Sequence[Tensor], others: Sequence[Tensor | None] = ()) -> bool:
    """Whether nothing but the values of these tensors is asked for, so that C++ may take their addresses."""
    if dispatch_modes() or tracing() is not None or type(x) not in _PLAIN or x.is_neg():
        return False  # (is_neg: the memory holds -x, as after `z.conj().imag`; the dispatcher sees to that)
    if h_0 is not None and (type(h_0) not in _PLAIN or h_0.is_neg()):
        return False
    if others and not all(v is None or (type(v) in _PLAIN and not v.is_neg()) for v in others):
        return False
    return _PLAIN.issuperset(map(type, weights)) and not any(map(Tensor.is_neg, weights))


def _wants_grad(x: Tensor, h_0: Tensor | None, weights: list[Tensor]) -> bool:
    if not torch.is_grad_enabled():
        return False
    return x.requires_grad or (h_0 is not None and h_0.requires_grad) or any(w.requires_grad for w in weights)


def _zeros(x: Tensor, weights: Sequence[Tensor], bias: bool, batch_sizes: Tensor | None, extras: LayerExtras) -> Tensor:
    """The state h_0 [D, B, H] that stands for none."""
    D, B = len(weights) // _per_direction(bias, extras.norm), _sizes(x, batch_sizes, extras)[1]
    return x.new_zeros(D, B, weights[1].size(1))


def _layer(
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
    if functorch_level() is not None and not torch.compiler.is_compiling():
        all_extras = extras or _NO_EXTRAS
        if h_0 is None:
            h_0 = _zeros(x, weights, bias, batch_sizes, all_extras)
        found = _Transformed.apply(bias, all_extras[6:], batch_sizes, x, h_0, *all_extras[:6], *weights)
        return found[:3]
    wants_grad = _wants_grad(x, h_0, weights)
    if extras is not None and extras.fresh is not None and torch.is_grad_enabled():
        wants_grad |= extras.fresh.requires_grad
    if torch.compiler.is_compiling() or not _is_plain(x, h_0, weights, () if extras is None else extras[:6]):
        all_extras = extras or _NO_EXTRAS
        if h_0 is None:
            h_0 = _zeros(x, weights, bias, batch_sizes, all_extras)
        save = traces or (wants_grad and not all_extras.checkpoint_every)
        output, h_n, saved, _ = torch.ops.tidegate.gru_layer(x, h_0, weights, bias, batch_sizes, *all_extras, save)
        return output, h_n, saved
    if wants_grad:
        fresh = None if extras is None else extras.fresh
        found = _apply_layer(x, h_0, fresh, (bias, batch_sizes, extras, traces), *weights)
        return found if traces else (*found, None)
    if torch.is_grad_enabled():
        kept = None  # weights that nobody trains, given by someone who did not say that this is inference
    return _forward(x, h_0, weights, bias, batch_sizes, traces, kept, place, extras, shown=traces)[:3]


def _mixed(x: Tensor, h_0: Tensor | None, weights: list[Tensor]) -> bool:
    """Half types, and autocast's mixtures: what the kernels don't take as it is."""
    dtype = x.dtype
    return dtype not in _REAL or weights[0].dtype is not dtype or (h_0 is not None and h_0.dtype is not dtype)


def _run(
    x: Tensor,
    h_0: Tensor | None,
    weights: list[Tensor],
    traces: bool,
    *,
    extras: Extras | None,
    kept: dict[Any, Any] | None,
    **options: Any,
) -> tuple[Tensor, Tensor, list[tuple[Tensor, Any]]]:
    if _mixed(x, h_0, weights):
        real = torch.float64 if weights[0].dtype == torch.float64 else torch.float32
        rounded = x.dtype if x.dtype in _HALF else real
        x, h_0 = x.to(real), None if h_0 is None else h_0.to(real)
        weights = [w.to(real) for w in weights]
        extras = None if extras is None else extras.to(real)
        kept = None
    else:
        rounded = x.dtype
    output, h_n, layers = reference.stack(
        partial(_layer, kept=kept, traces=traces), x, h_0, weights, extras=extras, **options
    )
    if rounded != x.dtype:
        output, h_n = output.to(rounded), h_n.to(rounded)
        layers = [(y.to(rounded), None if v is None else v.to(rounded)) for y, v in layers]
    return output, h_n, layers


def gru(
    x: Tensor,  # [T, B, I], or [rows, I] with batch_sizes or extras.starts
    h_0: Tensor | None,  # [layers * D, B, H]; None: zeros
    weights: list[
        Tensor
    ],  # in the order of h_0: w_ih, w_hh, with bias b_ih, b_hh, with layer norm its gains g_ih, g_hh
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    bias: bool = True,
    dropout: float = 0.0,
    training: bool = False,
    batch_sizes: Tensor | None = None,  # [T], int64, on the CPU
    extras: Extras | None = None,  # None: what torch.nn.GRU computes
    kept: dict[Any, Any] | None = None,
) -> tuple[Tensor, Tensor]:  # output [T, B, D * H] or [rows, D * H]; h_n [layers * D, B, H]
    """The whole stack, layer by layer; see `reference.gru`, whose signature and results it has.

    `kept` is a dictionary of the caller's in which the packed weights stay between calls without gradients.
    They are packed anew when a weight is another tensor, has another version (PyTorch counts every in-place
    change), lies elsewhere or, looked at in a few places, holds other values. A single value changed through
    `.data` or NumPy can go unnoticed: `kept.clear()` is for those who do that.
    """
    if num_layers == 1 and extras is None and not _mixed(x, h_0, weights):  # the shortest way, for the smallest layers
        return _layer(x, h_0, weights, bias, batch_sizes, None, 0, kept)[:2]
    return _run(
        x,
        h_0,
        weights,
        False,
        num_layers=num_layers,
        bidirectional=bidirectional,
        bias=bias,
        dropout=dropout,
        training=training,
        batch_sizes=batch_sizes,
        extras=extras,
        kept=kept,
    )[:2]


def trace(
    x: Tensor,
    h_0: Tensor | None,
    weights: list[Tensor],
    *,
    extras: Extras | None = None,
    kept: dict[Any, Any] | None = None,
    **options: Any,
) -> tuple[
    Tensor, Tensor, list[tuple[Tensor, Tensor]]
]:  # output; h_n; of every layer: output and r, z, n, h_n [D, ..., 4, H]
    """`gru`, and the gates on the way: what training keeps for its backward pass, so that it costs no second run."""
    shape = x.shape[:-1]
    output, h_n, layers = _run(x, h_0, weights, True, extras=extras, kept=kept, **options)
    return output, h_n, [(y, v[:, :, :4].unflatten(1, shape)) for y, v in layers]


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
        or torch.compiler.is_compiling()
        or functorch_level() is not None
        or (training and dropout > 0)
        or (training and extras is not None and (extras.recurrent_dropout > 0 or extras.zoneout > 0))
        or _mixed(x_t, h, weights)
        or not _is_plain(x_t, h, weights)
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
    per = _per_direction(bias, norm)
    handles = [
        _packed(weights[k * per : (k + 1) * per], bias, norm, before, H if k else I, H, threads, kept, k)
        for k in range(num_layers)
    ]
    places = [(k, bias, norm, before) for k in range(num_layers)]
    layers: list[_Kept] = [kept[place] for place in places if place in kept]
    have = kept.get("step")
    # Only handles that were kept: those of other weights look at copies that are gone by now.
    if [layer.handle for layer in layers] == handles and (have is None or have[1] != handles or have[2] != form):
        ask = (torch.is_grad_enabled, dispatch_modes, functorch_level, tracing, forward_mode)
        marks = [(v, a) for layer in layers for v, a in zip(layer.versions, layer.addresses, strict=True)]
        quick = _native.QuickStep([*weights], marks, handles, zone_rate, x_t.dtype, Tensor, ask, torch.get_num_threads)
        kept["step"] = quick, handles, form
    B = x_t.size(0)
    x_t = x_t.contiguous()
    h = None if h is None else h.contiguous()
    y, h_n = x_t.new_empty(B, H), x_t.new_empty(num_layers, B, H)
    start = 0 if h is None else h.data_ptr()
    _native.step(handles, zone_rate, B, x_t.data_ptr(), I, start, B * H, H, y.data_ptr(), h_n.data_ptr(), threads)
    return y, h_n


_FORM = ("after", False, 0.0)


def quick_step(
    kept: dict[Any, Any], x_t: Any, h: Any, parameters: dict[str, Any], form: tuple[str, bool, float] = _FORM
) -> tuple[Tensor, Tensor] | None:  # y [B, H]; the new state [layers, B, H]
    """`step` where everything is as it was at the last step: plain tensors of the same width, no gradients, the same
    weights (`parameters`: the module's own dictionary) and the same form (reset, layer_norm, zoneout). None in any other
    case: then `step` is the way, after the checks that a caller owes it.
    """
    if torch.compiler.is_compiling():
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
    return step(x_t, h_prev.unsqueeze(0), weights, bias=bias, kept=kept)[0]


# ------------------------------------------------------------------------------------------------ what stands on it


def can_affine(x: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Whether `affine` takes these: plain tensors on the CPU, all float32 or all float64, outside of every transform."""
    return (
        why_not(x) is None
        and not torch.compiler.is_compiling()
        and functorch_level() is None
        and x.dtype in _REAL
        and x.dtype is weight.dtype is bias.dtype
        and x.dim() > 1
        and x.size(-1) == weight.size(-1)
        and _is_plain(x, None, (weight, bias))
    )


def affine(
    x: Tensor,  # [..., I]
    weight: Tensor,  # [O, I]
    bias: Tensor,  # [O]
) -> Tensor:  # [..., O]
    """W x + b; see `tidegate.ops.affine`. No gradients."""
    O, I = weight.shape
    rows = x.flatten(0, -2).contiguous()
    weight, bias = weight.contiguous(), bias.contiguous()
    y = x.new_empty(*x.shape[:-1], O)
    _native.affine(
        x.dtype is torch.float64,
        rows.size(0),
        I,
        O,
        rows.data_ptr(),
        I,
        weight.data_ptr(),
        bias.data_ptr(),
        y.data_ptr(),
        torch.get_num_threads(),
    )
    return y


def affine_into(weight: Tensor, bias: Tensor, y: Tensor) -> Callable[[int], None]:
    """A function of the address of one row [I] that writes W x + b to y [1, O]. It holds on to all three."""
    weight, bias = weight.contiguous(), bias.contiguous()
    wide, (O, I) = y.dtype is torch.float64, weight.shape
    w, b, to = weight.data_ptr(), bias.data_ptr(), y.data_ptr()

    def run(x: int, held: tuple[Tensor, ...] = (weight, bias, y)) -> None:
        _native.affine(wide, 1, I, O, x, I, w, b, to, 1)

    return run
