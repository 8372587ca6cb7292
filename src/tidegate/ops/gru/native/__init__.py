"""Our own kernels for the CPU (csrc/), in float32 and float64, forwards and backwards.

What they promise beyond the equations: the bits of a row's output don't depend on the batch it is in, on where its
sequence is cut into calls, or on the number of threads; gradients don't depend on the number of threads. This
holds on one instruction set. AVX-512 and AVX2 give the same bits as each other too, but for layer norm, whose sums run
across a vector; the baseline of x86 rounds differently, as it has no fused multiply-add. `TIDEGATE_ISA` in the environment
(`avx512_amx`, `avx512_bf16`, `avx512`, `avx2`, `baseline`) chooses a lower one than the best of the machine.

Two roads lead to them. A plain call in eager mode goes straight into C++, as the dispatcher would cost more than
a small GRU takes; under `torch.compile`, `torch.export`, tracing or a dispatch mode the same functions run as the
registered operators `tidegate::gru_layer` and `tidegate::gru_layer_backward`.

float16 is computed in float32 and rounded once, at the end. bfloat16, also autocast's, is multiplied as it is; sums, gates and
the state are float32. Backward of backward
(`create_graph=True`) goes through the reference's equations: right, and as slow as these.

A file a road, each standing on those before it:

    kernels          the C++ module: is it here, what can it run
    weights          checking, packing and keeping weights
    layer            sizes and results of one layer, forwards and backwards
    overwritten      an output that was changed in place before backward
    double_backward  gradients of gradients, by the reference
    eager            the autograd road
    transforms       vmap and grad of torch.func
    flops            how many operations a layer is
    registered       the operators of torch.library
    roads            which of these a layer takes
    quick            a short call of one layer: quick_gru
    sequence         gru, trace
    one_step         step, quick_step, gru_cell
    affine           W x + b
"""

from __future__ import annotations

from tidegate.ops.gru.native import affine
from tidegate.ops.gru.native.kernels import isa, isas, missing, peak_gflops, set_isa, why_not
from tidegate.ops.gru.native.one_step import gru_cell, quick_step, step
from tidegate.ops.gru.native.quick import quick_gru
from tidegate.ops.gru.native.sequence import gru, trace

__all__ = [
    "about",
    "affine",
    "gru",
    "gru_cell",
    "in_transforms",
    "isa",
    "isas",
    "join_weights",
    "missing",
    "name",
    "peak_gflops",
    "quick_gru",
    "quick_step",
    "set_isa",
    "step",
    "trace",
    "why_not",
]

name = "native"
about = "our own kernels for the CPU, the fastest and repeatable to the bit"
in_transforms = True
join_weights = None
