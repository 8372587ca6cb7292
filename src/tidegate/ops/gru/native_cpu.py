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
from typing import Any

import torch
from torch import Tensor
from torch._C import _get_tracing_state as tracing
from torch._C import _len_torch_dispatch_stack as dispatch_modes
from torch._C._functorch import peek_interpreter_stack as functorch_level
from torch.autograd import forward_ad
from torch.nn import Parameter
from torch.nn.functional import dropout as drop

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
_PLAIN = (Tensor, Parameter)


def missing() -> str | None:
    """Why the kernels can't run in this installation at all; None where they can."""
    return _MISSING


def why_not(x: Any) -> str | None:
    """Why a call with this x can't run here; None where it can. Some 0.2 us."""
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


def _tight(weights: list[Tensor]) -> list[Tensor]:
    return [w if w.is_contiguous() else w.contiguous() for w in weights]


def _pack(weights: list[Tensor], bias: bool, I: int, H: int, wide: bool, threads: int) -> Any:
    weights = _tight(weights)  # a name of its own: copies must live until C++ has read them
    return _native.pack([w.data_ptr() for w in weights], bias, I, H, False, wide, threads)


class _Kept:
    """The packed weights of a layer, and what they were packed from."""

    __slots__ = ("handle", "marks", "weights")

    def __init__(self, weights: list[Tensor], handle: Any) -> None:
        self.weights = weights  # alive as long as this is: a new tensor can't take the place of one of them
        self.marks = [(w._version, w.data_ptr()) for w in weights]
        self.handle = handle

    def fits(self, weights: list[Tensor]) -> bool:
        for now, then, (version, address) in zip(weights, self.weights, self.marks, strict=True):
            if now is not then or now._version != version or now.data_ptr() != address:
                return False
        return not self.handle.looks_changed()


def _packed(
    weights: list[Tensor], bias: bool, I: int, H: int, threads: int, kept: dict[Any, Any] | None, key: int
) -> Any:
    """The weights in the kernel's order: those that were kept, where nothing has changed since."""
    wide = weights[0].dtype == torch.float64
    if kept is None:
        return _pack(weights, bias, I, H, wide, threads)
    place = (key, _native.isa_name(), bias)
    have = kept.get(place)
    if have is not None and have.fits(weights):
        return have.handle
    handle = _pack(weights, bias, I, H, wide, threads)
    # A tensor that was made in inference mode has no version: nobody can tell whether it changed.
    if not any(w.is_inference() or not w.is_contiguous() for w in weights):
        kept[place] = _Kept(list(weights), handle)
    return handle


def _forward(
    x: Tensor,  # [T, B, I] or [rows, I]
    h_0: Tensor,  # [D, B, H]
    weights: list[Tensor],  # of both directions
    bias: bool,
    batch_sizes: Tensor | None,
    save: bool,
    kept: dict[Any, Any] | None = None,
    key: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Both directions of a layer: output, h_n, and what backward needs."""
    D, B, H = h_0.shape
    I = x.size(-1)
    x, x_step, x_row = _strided(x, batch_sizes)
    h_run, h_row, h_unit = h_0.stride()
    if h_unit != 1 and H > 1:
        h_0 = h_0.contiguous()
        h_run, h_row, _ = h_0.stride()
    threads = torch.get_num_threads()
    handle = _packed(weights, bias, I, H, threads, kept, key)
    if batch_sizes is None:
        T = x.size(0)
        rows = T * B
        output = x.new_empty((T, B, D * H))
        sizes = 0
    else:
        T, rows = batch_sizes.numel(), x.size(0)
        output = x.new_empty((rows, D * H))
        batch_sizes = batch_sizes.contiguous()
        sizes = batch_sizes.data_ptr()
    h_n = x.new_empty((D, B, H))
    saved = x.new_empty((D, rows, 4, H) if save else (0,))
    _native.forward(
        handle, T, B, x.data_ptr(), x_step, x_row, h_0.data_ptr(), h_run, h_row, output.data_ptr(), h_n.data_ptr(),
        saved.data_ptr() if save else 0, rows, sizes, False, threads,
    )  # fmt: skip
    return output, h_n, saved


def _backward(
    d_output: Tensor | None,
    d_h_n: Tensor | None,
    x: Tensor,
    h_0: Tensor,
    output: Tensor,
    saved: Tensor,
    weights: list[Tensor],
    bias: bool,
    batch_sizes: Tensor | None,
    needs_x: bool,
    needs_weights: list[bool],
) -> tuple[Tensor | None, Tensor, list[Tensor | None]]:
    D, B, H = h_0.shape
    I = x.size(-1)
    x, x_step, x_row = _strided(x, batch_sizes)
    h_0 = h_0.contiguous()
    T = x.size(0) if batch_sizes is None else batch_sizes.numel()
    rows = T * B if batch_sizes is None else x.size(0)
    d_step = d_row = n_run = n_row = 0
    if d_output is not None:
        if not any(d_output.stride()) and d_output.numel():  # the gradient of a sum: one value, seen everywhere
            d_output = d_output[(0,) * (d_output.dim() - 1)].contiguous()
        else:
            d_output, d_step, d_row = _strided(d_output, batch_sizes)
    if d_h_n is not None:
        d_h_n = d_h_n.contiguous()
        n_run, n_row = B * H, H
    if batch_sizes is not None:
        batch_sizes = batch_sizes.contiguous()
    weights = _tight(weights)
    d_weights = [x.new_empty(w.shape) if need else None for w, need in zip(weights, needs_weights, strict=True)]
    d_x = x.new_empty((D, rows, I)) if needs_x else None
    d_h_0 = x.new_empty((D, B, H))
    _native.backward(
        x.dtype == torch.float64, [w.data_ptr() for w in weights], bias, I, H, False, T, B, x.data_ptr(), x_step, x_row,
        h_0.data_ptr(), B * H, H, output.data_ptr(), saved.data_ptr(), rows,
        0 if d_output is None else d_output.data_ptr(), d_step, d_row,
        0 if d_h_n is None else d_h_n.data_ptr(), n_run, n_row,
        0 if d_x is None else d_x.data_ptr(), d_h_0.data_ptr(), [0 if d is None else d.data_ptr() for d in d_weights],
        0 if batch_sizes is None else batch_sizes.data_ptr(), False, torch.get_num_threads(),
    )  # fmt: skip
    if d_x is not None:
        d_x = (d_x[0] if D == 1 else d_x[0] + d_x[1]).view(x.shape)
    return d_x, d_h_0, d_weights


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
        if torch.is_grad_enabled():  # create_graph=True: the gradients must have gradients themselves
            given = [v for v, need in zip((x, h_0, None, None, *weights), needs, strict=True) if need]
            both_ways = h_0.size(0) == 2
            again = reference.gru(x, h_0, weights, bidirectional=both_ways, bias=ctx.bias, batch_sizes=batch_sizes)
            pairs = [(r, d) for r, d in zip(again, (d_output, d_h_n), strict=True) if d is not None]
            results, upstream = [r for r, _ in pairs], [d for _, d in pairs]
            found = iter(torch.autograd.grad(results, given, upstream, create_graph=True, allow_unused=True))
            return tuple(next(found) if need else None for need in needs)
        d_x, d_h_0, d_weights = _backward(
            d_output, d_h_n, x, h_0, output, saved, weights, ctx.bias, batch_sizes, needs[0], list(needs[4:])
        )
        return d_x, d_h_0, None, None, *d_weights


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


def _op_forward(x, h_0, weights, bias, batch_sizes, save):
    return _forward(x, h_0, weights, bias, batch_sizes, save)


def _op_backward(d_output, d_h_n, x, h_0, output, saved, weights, bias, batch_sizes):
    return _backward(
        d_output, d_h_n, x, h_0, output, saved, weights, bias, batch_sizes, True, [True] * len(weights)
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


def _is_plain(x: Tensor, h_0: Tensor, weights: list[Tensor]) -> bool:
    """Whether nothing but the values of these tensors is asked for, so that C++ may take their addresses."""
    if dispatch_modes() or tracing() is not None or type(x) not in _PLAIN or type(h_0) not in _PLAIN:
        return False
    return all(type(w) in _PLAIN for w in weights)


def _layer(
    x: Tensor,
    h_0: Tensor,
    weights: list[Tensor],
    bias: bool,
    batch_sizes: Tensor | None,
    kept: dict[Any, Any] | None,
    key: int,
) -> tuple[Tensor, Tensor]:
    wants_grad = torch.is_grad_enabled() and (
        x.requires_grad or h_0.requires_grad or any(w.requires_grad for w in weights)
    )
    if torch.compiler.is_compiling() or not _is_plain(x, h_0, weights):
        return torch.ops.tidegate.gru_layer(x, h_0, weights, bias, batch_sizes, wants_grad)[:2]
    if wants_grad:
        return _Layer.apply(x, h_0, batch_sizes, bias, *weights)
    if torch.is_grad_enabled():
        kept = None  # weights that nobody trains, given by someone who did not say that this is inference
    return _forward(x, h_0, weights, bias, batch_sizes, False, kept, key)[:2]


def gru(
    x: Tensor,  # [T, B, I], or [rows, I] with batch_sizes
    h_0: Tensor,  # [layers * D, B, H]
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
    dtype = x.dtype
    if weights[0].dtype not in _REAL or dtype != weights[0].dtype or h_0.dtype != dtype:
        # half types, and autocast's mixtures
        real = torch.float64 if weights[0].dtype == torch.float64 else torch.float32
        rounded = dtype if dtype in _HALF else real
        x, h_0 = x.to(real), h_0.to(real)
        weights = [w.to(real) for w in weights]
        kept = None
    else:
        rounded = dtype
    per_layer = (4 if bias else 2) * (2 if bidirectional else 1)
    if num_layers == 1:
        x, h_n = _layer(x, h_0, weights, bias, batch_sizes, kept, 0)
    else:
        D = h_0.size(0) // num_layers
        last = []
        for layer in range(num_layers):
            if layer > 0 and training and dropout > 0:
                x = drop(x, dropout)
            x, h = _layer(
                x,
                h_0[layer * D : (layer + 1) * D],
                weights[layer * per_layer : (layer + 1) * per_layer],
                bias,
                batch_sizes,
                kept,
                layer,
            )
            last.append(h)
        h_n = torch.cat(last)
    return (x, h_n) if rounded == x.dtype else (x.to(rounded), h_n.to(rounded))


def gru_cell(
    x_t: Tensor,  # [B, I]
    h_prev: Tensor,  # [B, H]
    w_ih: Tensor,  # [3H, I]
    w_hh: Tensor,  # [3H, H]
    b_ih: Tensor | None = None,  # [3H]
    b_hh: Tensor | None = None,  # [3H]
) -> Tensor:  # [B, H]
    """One step of one layer; see `reference.gru_cell`."""
    bias = b_ih is not None and b_hh is not None
    weights = [w for w in (w_ih, w_hh, b_ih, b_hh) if w is not None]
    return gru(x_t.unsqueeze(0), h_prev.unsqueeze(0), weights, bias=bias)[1].squeeze(0)
