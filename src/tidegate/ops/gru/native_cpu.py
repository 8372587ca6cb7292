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
from collections.abc import Sequence
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor
from torch._C import _get_tracing_state as tracing
from torch._C import _len_torch_dispatch_stack as dispatch_modes
from torch._C._functorch import peek_interpreter_stack as functorch_level
from torch.autograd import forward_ad
from torch.nn import Parameter
from torch.nn.functional import dropout as drop

from tidegate.errors import ShapeError
from tidegate.ops.gru import reference

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

_REAL = (torch.float32, torch.float64)
_HALF = (torch.float16, torch.bfloat16)
_PLAIN = frozenset((Tensor, Parameter))


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
    if not torch.compiler.is_compiling():
        if functorch_level() is not None:
            return "it has no rule for the transforms of torch.func (vmap, grad, jvp)"
        if forward_ad._current_level >= 0:
            return "it has no forward-mode derivative"
    return None


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


def _check_weights(weights: Sequence[Tensor], bias: bool, I: int, H: int, dtype: torch.dtype) -> None:
    """Raise `ShapeError` for weights whose addresses C++ must not be given: `.data` and `setattr` take anything."""
    expected = [(3 * H, I), (3 * H, H), (3 * H,), (3 * H,)][: 4 if bias else 2] * (len(weights) // (4 if bias else 2))
    if [*map(_shape, weights)] == expected and {*map(_dtype, weights)} == {dtype} and all(w.is_cpu for w in weights):
        return
    for w, shape in zip(weights, expected, strict=True):
        if w.shape != shape or w.dtype != dtype or not w.is_cpu:
            raise ShapeError(
                f"GRU: a weight is {list(w.shape)}, {w.dtype}, on {w.device}; expected {list(shape)}, {dtype}, on cpu, "
                f"for input_size={I}, hidden_size={H}. Convert or replace all weights of the layer together."
            )


def _pack(weights: Sequence[Tensor], bias: bool, I: int, H: int, wide: bool, threads: int) -> Any:
    weights = _tight(weights)  # a name of its own: copies must live until C++ has read them
    return _native.pack([*map(Tensor.data_ptr, weights)], bias, I, H, False, wide, threads)


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
    weights: Sequence[Tensor], bias: bool, I: int, H: int, threads: int, kept: dict[Any, Any] | None, key: int
) -> Any:
    """The weights in the kernel's order: those that were kept, where nothing has changed since."""
    place = (key, bias)
    have = None if kept is None else kept.get(place)
    if have is not None and have.fits(weights):
        return have.handle
    _check_weights(weights, bias, I, H, weights[0].dtype)
    wide = weights[0].dtype == torch.float64
    # A tensor that was made in inference mode has no version: nobody can tell whether it changed.
    if kept is None or any(w.is_inference() or not w.is_contiguous() for w in weights):
        if kept is not None:
            kept.pop(place, None)
        return _pack(weights, bias, I, H, wide, threads)
    entry = _Kept(weights)
    entry.handle = _pack(weights, bias, I, H, wide, threads)
    kept[place] = entry
    return entry.handle


def _forward(
    x: Tensor,  # [T, B, I] or [rows, I]
    h_0: Tensor | None,  # [D, B, H]; None: zeros
    weights: Sequence[Tensor],  # of both directions
    bias: bool,
    batch_sizes: Tensor | None,
    save: bool,
    kept: dict[Any, Any] | None = None,
    key: int = 0,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Both directions of a layer: output, h_n, and what backward needs."""
    x, x_step, x_row = _strided(x, batch_sizes)
    H = weights[1].size(1)
    D = len(weights) // (4 if bias else 2)
    if batch_sizes is None:
        T, B, I = x.shape
        rows = T * B
        output = x.new_empty(T, B, D * H)
        sizes = 0
    else:
        rows, I = x.shape
        batch_sizes = batch_sizes.contiguous()
        T, B = batch_sizes.numel(), int(batch_sizes[0])
        output = x.new_empty(rows, D * H)
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
    saved = x.new_empty(D, rows, 4, H) if save else None
    keep = 0 if saved is None else saved.data_ptr()
    threads = torch.get_num_threads()
    wide = x.dtype is torch.float64
    run = (
        T, B, x.data_ptr(), x_step, x_row, start, h_run, h_row, output.data_ptr(), h_n.data_ptr(), keep, rows, sizes,
        threads,
    )  # fmt: skip
    if kept is None:
        _check_weights(weights, bias, I, H, x.dtype)
        weights = _tight(weights)
        _native.forward_once([*map(Tensor.data_ptr, weights)], bias, I, H, False, wide, *run)
    else:
        _native.forward(_packed(weights, bias, I, H, threads, kept, key), *run)
    return output, h_n, saved


def _backward(
    d_output: Tensor | None,
    d_h_n: Tensor | None,
    x: Tensor,
    h_0: Tensor | None,
    output: Tensor,
    saved: Tensor,
    weights: Sequence[Tensor],
    bias: bool,
    batch_sizes: Tensor | None,
    needs_x: bool,
    needs_h_0: bool,
    needs_weights: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, list[Tensor | None]]:
    x, x_step, x_row = _strided(x, batch_sizes)
    D, rows, _, H = saved.shape
    I = x.size(-1)
    if batch_sizes is None:
        T, B = x.size(0), x.size(1)
        sizes = 0
    else:
        batch_sizes = batch_sizes.contiguous()
        T, B = batch_sizes.numel(), int(batch_sizes[0])
        sizes = batch_sizes.data_ptr()
    d_step = d_row = n_run = n_row = 0
    d_unit = 1
    if d_output is not None:
        if d_output.is_neg():
            d_output = d_output.resolve_neg()
        if not any(d_output.stride()):  # the gradient of a sum: one value, seen everywhere
            d_unit = 0
        else:
            d_output, d_step, d_row = _strided(d_output, batch_sizes)
    if d_h_n is not None:
        d_h_n = d_h_n.resolve_neg().contiguous()
        n_run, n_row = B * H, H
    if h_0 is not None:
        h_0 = h_0.contiguous()
    weights = _tight(weights)
    d_weights = [torch.empty_like(w) if need else None for w, need in zip(weights, needs_weights, strict=True)]
    d_x = x.new_empty(D, rows, I) if needs_x else None
    d_h_0 = x.new_empty(D, B, H) if needs_h_0 else None
    _native.backward(
        x.dtype is torch.float64, [*map(Tensor.data_ptr, weights)], bias, I, H, False, T, B, x.data_ptr(), x_step, x_row,
        0 if h_0 is None else h_0.data_ptr(), B * H, H, output.data_ptr(), saved.data_ptr(), rows,
        0 if d_output is None else d_output.data_ptr(), d_step, d_row, d_unit,
        0 if d_h_n is None else d_h_n.data_ptr(), n_run, n_row,
        0 if d_x is None else d_x.data_ptr(), 0 if d_h_0 is None else d_h_0.data_ptr(),
        [0 if d is None else d.data_ptr() for d in d_weights], sizes, torch.get_num_threads(),
    )  # fmt: skip
    if d_x is not None:
        d_x = (d_x[0] if D == 1 else d_x[0] + d_x[1]).view(x.shape)
    return d_x, d_h_0, d_weights


def _differentiable(d_output, d_h_n, x, h_0, weights, bias, batch_sizes, needs) -> list[Tensor | None]:
    """The gradients of x, h_0 and the weights as functions that have gradients themselves (`create_graph=True`): those
    of the reference, which are as slow as it is.
    """
    # Aliases: h_0 may itself depend on the weights or on x (two calls in a row), or one weight may stand for two (tied
    # weights). The caller's graph carries these ways; here each tensor stands for itself alone.
    x, weights = x.view_as(x), [w.view_as(w) for w in weights]
    h_0 = None if h_0 is None else h_0.view_as(h_0)
    both_ways = len(weights) == (8 if bias else 4)
    again = reference.gru(x, h_0, weights, bidirectional=both_ways, bias=bias, batch_sizes=batch_sizes)
    pairs = [(r, d) for r, d in zip(again, (d_output, d_h_n), strict=True) if d is not None]
    given = [v for v, need in zip((x, h_0, *weights), needs, strict=True) if need]
    found = iter(
        torch.autograd.grad([r for r, _ in pairs], given, [d for _, d in pairs], create_graph=True, allow_unused=True)
    )
    return [next(found) if need else None for need in needs]


class _Layer(torch.autograd.Function):
    """The eager road of a layer that wants gradients."""

    @staticmethod
    def forward(ctx, x, h_0, batch_sizes, bias, *weights):
        output, h_n, saved = _forward(x, h_0, weights, bias, batch_sizes, True)
        ctx.save_for_backward(x, h_0, output, saved, batch_sizes, *weights)
        ctx.bias = bias
        ctx.set_materialize_grads(False)
        return output, h_n

    @staticmethod
    def backward(ctx, d_output, d_h_n):
        x, h_0, output, saved, batch_sizes, *weights = ctx.saved_tensors
        needs = ctx.needs_input_grad
        if torch.is_grad_enabled():
            found = _differentiable(d_output, d_h_n, x, h_0, weights, ctx.bias, batch_sizes, (*needs[:2], *needs[4:]))
            return found[0], found[1], None, None, *found[2:]
        d_x, d_h_0, d_weights = _backward(
            d_output, d_h_n, x, h_0, output, saved, weights, ctx.bias, batch_sizes, needs[0], needs[1], needs[4:]
        )
        return d_x, d_h_0, None, None, *d_weights


# `Function.apply` without its wrapper, which looks for the wrappers of torch.func among the arguments: `why_not` has
# already turned away whatever comes from there.
_apply_layer = super(torch.autograd.Function, _Layer).apply


# ------------------------------------------------------------------------------------------------ registered

_library = torch.library.Library("tidegate", "DEF")
_library.define(
    "gru_layer(Tensor x, Tensor h_0, Tensor[] weights, bool bias, Tensor? batch_sizes, bool save)"
    " -> (Tensor output, Tensor h_n, Tensor saved)"
)
_library.define(
    "gru_layer_backward(Tensor? d_output, Tensor? d_h_n, Tensor x, Tensor h_0, Tensor output, Tensor saved,"
    " Tensor[] weights, bool bias, Tensor? batch_sizes) -> (Tensor d_x, Tensor d_h_0, Tensor[] d_weights)"
)


def _check_op(x, h_0, weights, bias, batch_sizes, **others):
    """What `tidegate.nn` checks for the layer, for those who call the operators themselves."""
    if (
        x.dim() != (3 if batch_sizes is None else 2)
        or x.dtype not in _REAL
        or len(weights) not in ((4, 8) if bias else (2, 4))
    ):
        raise ShapeError(
            f"tidegate::gru_layer: x is {list(x.shape)}, {x.dtype}, with {len(weights)} weights; expected [T, B, I], or "
            "[rows, I] with batch_sizes, in float32 or float64, with 2 weights a direction, or 4 where bias is true."
        )
    H, D = weights[1].size(-1), len(weights) // (4 if bias else 2)
    _check_weights(weights, bias, x.size(-1), H, x.dtype)
    if batch_sizes is not None:
        sizes = batch_sizes.tolist() if batch_sizes.dtype == torch.int64 and batch_sizes.dim() == 1 else []
        if not reference.are_steps(sizes, x.size(0)):
            raise ShapeError(
                "tidegate::gru_layer: batch_sizes must be [T], int64, above 0, never growing, and add up to the "
                f"{x.size(0)} rows of x."
            )
    B = x.size(1) if batch_sizes is None else int(batch_sizes[0])
    rows = x.size(0) * (B if batch_sizes is None else 1)
    shapes = {"h_0": (D, B, H), "output": (*x.shape[:-1], D * H), "saved": (D, rows, 4, H)}
    shapes |= {"d_output": shapes["output"], "d_h_n": shapes["h_0"]}
    for name, value in {"h_0": h_0, **others}.items():
        if value is not None and (value.shape != shapes[name] or value.dtype != x.dtype):
            raise ShapeError(
                f"tidegate::gru_layer: {name} is {list(value.shape)}, {value.dtype}; expected {list(shapes[name])}, {x.dtype}."
            )


def _op_forward(x, h_0, weights, bias, batch_sizes, save):
    _check_op(x, h_0, weights, bias, batch_sizes)
    output, h_n, saved = _forward(x, h_0, weights, bias, batch_sizes, save)
    return output, h_n, x.new_empty((0,)) if saved is None else saved


def _op_backward(d_output, d_h_n, x, h_0, output, saved, weights, bias, batch_sizes):
    _check_op(x, h_0, weights, bias, batch_sizes, output=output, saved=saved, d_output=d_output, d_h_n=d_h_n)
    output, saved = output.contiguous(), saved.contiguous()
    return _backward(
        d_output, d_h_n, x, h_0, output, saved, weights, bias, batch_sizes, True, True, [True] * len(weights)
    )  # fmt: skip


def _fake_forward(x, h_0, weights, bias, batch_sizes, save):
    D, B, H = h_0.shape
    rows = x.shape[0] * B if batch_sizes is None else x.shape[0]
    output = x.new_empty((*x.shape[:-1], D * H))
    return output, x.new_empty((D, B, H)), x.new_empty((D, rows, 4, H) if save else (0,))


def _fake_backward(d_output, d_h_n, x, h_0, output, saved, weights, bias, batch_sizes):
    return x.new_empty(x.shape), x.new_empty(h_0.shape), [x.new_empty(w.shape) for w in weights]


def _setup_context(ctx, inputs, output):
    x, h_0, weights, bias, batch_sizes, _ = inputs
    ctx.save_for_backward(x, h_0, output[0], output[2], batch_sizes, *weights)
    ctx.bias = bias
    ctx.set_materialize_grads(False)


def _autograd(ctx, d_output, d_h_n, _):
    x, h_0, output, saved, batch_sizes, *weights = ctx.saved_tensors
    if torch.is_grad_enabled():
        needs = (*ctx.needs_input_grad[:2], *(w.requires_grad for w in weights))
        d_x, d_h_0, *d_weights = _differentiable(d_output, d_h_n, x, h_0, weights, ctx.bias, batch_sizes, needs)
        return d_x, d_h_0, d_weights, None, None, None
    d_x, d_h_0, d_weights = torch.ops.tidegate.gru_layer_backward(
        d_output, d_h_n, x, h_0, output, saved, weights, ctx.bias, batch_sizes
    )
    return d_x, d_h_0, d_weights, None, None, None


if _MISSING is None:
    _library.impl("gru_layer", _op_forward, "CPU")
    _library.impl("gru_layer_backward", _op_backward, "CPU")
    torch.library.register_fake("tidegate::gru_layer", _fake_forward, lib=_library)
    torch.library.register_fake("tidegate::gru_layer_backward", _fake_backward, lib=_library)
    torch.library.register_autograd("tidegate::gru_layer", _autograd, setup_context=_setup_context, lib=_library)
    # Autocast never narrows the recurrence: whatever comes in runs in float32.
    torch.library.register_autocast("tidegate::gru_layer", "cpu", torch.float32, lib=_library)


# ------------------------------------------------------------------------------------------------ the back end


def _is_plain(x: Tensor, h_0: Tensor | None, weights: list[Tensor]) -> bool:
    """Whether nothing but the values of these tensors is asked for, so that C++ may take their addresses."""
    if dispatch_modes() or tracing() is not None or type(x) not in _PLAIN or x.is_neg():
        return False  # (is_neg: the memory holds -x, as after `z.conj().imag`; the dispatcher sees to that)
    if h_0 is not None and (type(h_0) not in _PLAIN or h_0.is_neg()):
        return False
    return _PLAIN.issuperset(map(type, weights)) and not any(map(Tensor.is_neg, weights))


def _wants_grad(x: Tensor, h_0: Tensor | None, weights: list[Tensor]) -> bool:
    if not torch.is_grad_enabled():
        return False
    return x.requires_grad or (h_0 is not None and h_0.requires_grad) or any(w.requires_grad for w in weights)


def _layer(
    x: Tensor,
    h_0: Tensor | None,
    weights: list[Tensor],
    bias: bool,
    batch_sizes: Tensor | None,
    kept: dict[Any, Any] | None,
    key: int,
) -> tuple[Tensor, Tensor]:
    wants_grad = _wants_grad(x, h_0, weights)
    if torch.compiler.is_compiling() or not _is_plain(x, h_0, weights):
        if h_0 is None:
            h_0 = reference.zero_state(x, weights, len(weights) // (4 if bias else 2), batch_sizes)
        return torch.ops.tidegate.gru_layer(x, h_0, weights, bias, batch_sizes, wants_grad)[:2]
    if wants_grad:
        return _apply_layer(x, h_0, batch_sizes, bias, *weights)
    if torch.is_grad_enabled():
        kept = None  # weights that nobody trains, given by someone who did not say that this is inference
    return _forward(x, h_0, weights, bias, batch_sizes, False, kept, key)[:2]


def _mixed(x: Tensor, h_0: Tensor | None, weights: list[Tensor]) -> bool:
    """Half types, and autocast's mixtures: what the kernels don't take as it is."""
    dtype = x.dtype
    return dtype not in _REAL or weights[0].dtype is not dtype or (h_0 is not None and h_0.dtype is not dtype)


def gru(
    x: Tensor,  # [T, B, I], or [rows, I] with batch_sizes
    h_0: Tensor | None,  # [layers * D, B, H]; None: zeros
    weights: list[Tensor],  # in the order of h_0: w_ih, w_hh and, where bias is true, b_ih, b_hh
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    bias: bool = True,
    dropout: float = 0.0,
    training: bool = False,
    batch_sizes: Tensor | None = None,  # [T], int64, on the CPU
    kept: dict[Any, Any] | None = None,
) -> tuple[Tensor, Tensor]:  # output [T, B, D * H] or [rows, D * H]; h_n [layers * D, B, H]
    """The whole stack, layer by layer; see `reference.gru`, whose signature and results it has.

    `kept` is a dictionary of the caller's in which the packed weights stay between calls without gradients.
    They are packed anew when a weight is another tensor, has another version (PyTorch counts every in-place
    change), lies elsewhere or, looked at in a few places, holds other values. A single value changed through
    `.data` or NumPy can go unnoticed: `kept.clear()` is for those who do that.
    """
    if _mixed(x, h_0, weights):
        real = torch.float64 if weights[0].dtype == torch.float64 else torch.float32
        rounded = x.dtype if x.dtype in _HALF else real
        x, h_0 = x.to(real), None if h_0 is None else h_0.to(real)
        weights = [w.to(real) for w in weights]
        kept = None
    else:
        rounded = x.dtype
    if num_layers == 1:
        x, h_n = _layer(x, h_0, weights, bias, batch_sizes, kept, 0)
    else:
        D = 2 if bidirectional else 1
        per_layer = (4 if bias else 2) * D
        last = []
        for layer in range(num_layers):
            if layer > 0 and training and dropout > 0:
                x = drop(x, dropout)
            x, h = _layer(
                x,
                None if h_0 is None else h_0[layer * D : (layer + 1) * D],
                weights[layer * per_layer : (layer + 1) * per_layer],
                bias,
                batch_sizes,
                kept,
                layer,
            )
            last.append(h)
        h_n = torch.cat(last)
    return (x, h_n) if rounded == x.dtype else (x.to(rounded), h_n.to(rounded))


def step(
    x_t: Tensor,  # [B, I]
    h: Tensor | None,  # [layers, B, H]; None: zeros
    weights: list[Tensor],
    *,
    num_layers: int = 1,
    bias: bool = True,
    dropout: float = 0.0,
    training: bool = False,
    kept: dict[Any, Any] | None = None,
) -> tuple[Tensor, Tensor]:  # y [B, H]; the new state [layers, B, H]
    """One time step of a stack in one direction; see `reference.step`. Without gradients, a single call of C++.

    It leaves in `kept["step"]` what a caller may ask first at the next step: `quick_step`.
    """
    if (
        kept is None
        or torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or (training and dropout > 0)
        or _mixed(x_t, h, weights)
        or not _is_plain(x_t, h, weights)
    ):
        options = {"num_layers": num_layers, "bias": bias, "dropout": dropout, "training": training, "kept": kept}
        return reference.step(x_t, h, weights, run=gru, **options)
    I, H, threads = x_t.size(1), weights[1].size(1), torch.get_num_threads()
    per = 4 if bias else 2
    handles = [
        _packed(weights[k * per : (k + 1) * per], bias, H if k else I, H, threads, kept, k) for k in range(num_layers)
    ]
    layers: list[_Kept] = [kept[k, bias] for k in range(num_layers) if (k, bias) in kept]
    have = kept.get("step")
    # Only handles that were kept: those of other weights look at copies that are gone by now.
    if [layer.handle for layer in layers] == handles and (have is None or have[1] != handles):
        ask = (torch.is_grad_enabled, dispatch_modes, functorch_level, tracing, lambda: forward_ad._current_level >= 0)
        marks = [(v, a) for layer in layers for v, a in zip(layer.versions, layer.addresses, strict=True)]
        quick = _native.QuickStep([*weights], marks, handles, x_t.dtype, Tensor, ask, torch.get_num_threads)
        kept["step"] = quick, handles
    B = x_t.size(0)
    x_t = x_t.contiguous()
    h = None if h is None else h.contiguous()
    y, h_n = x_t.new_empty(B, H), x_t.new_empty(num_layers, B, H)
    start = 0 if h is None else h.data_ptr()
    _native.step(handles, B, x_t.data_ptr(), I, start, B * H, H, y.data_ptr(), h_n.data_ptr(), threads)
    return y, h_n


def quick_step(
    kept: dict[Any, Any], x_t: Any, h: Any, parameters: dict[str, Any]
) -> tuple[Tensor, Tensor] | None:  # y [B, H]; the new state [layers, B, H]
    """`step` where everything is as it was at the last step: plain tensors of the same width, no gradients, and the
    same weights (`parameters`: the module's own dictionary). None in any other case: then `step` is the way, after the
    checks that a caller owes it.
    """
    if torch.compiler.is_compiling():
        return None
    have = kept.get("step")
    return None if have is None else have[0](x_t, h, parameters)


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
