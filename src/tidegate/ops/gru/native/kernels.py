"""The C++ module `tidegate._native`: whether it is here, what it can run, and its instruction sets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch.compiler import is_compiling

from tidegate.ops.gru.equations import HALF_TYPES
from tidegate.ops.gru.modes import forward_mode, transformed

_MISSING: str | None
cpp: Any
"""The module itself, None where it is missing. It takes addresses and checks nothing."""
try:
    from tidegate import _native as cpp  # type: ignore[no-redef]
except ImportError as error:
    cpp = None
    _MISSING = (
        "the C++ kernel is not part of this installation"
        if "_native" in str(error) and "cannot import name" in str(error)
        else f"the C++ kernel does not load ({error})"
    )
else:
    _MISSING = None
    _ASKED_ISA = os.environ.get("TIDEGATE_ISA")
    if _ASKED_ISA and _ASKED_ISA not in cpp.isa_names():
        _MISSING = f"TIDEGATE_ISA={_ASKED_ISA!r} is none of this machine's: {', '.join(cpp.isa_names())}"
    # One pool of threads for torch and for us, where torch's OpenMP runtime is to be found.
    cpp.share_openmp()

REAL_TYPES = (torch.float32, torch.float64)
"""What the kernels compute in."""


def missing() -> str | None:
    """Why the kernels can't run in this installation at all; None where they can."""
    return _MISSING


def why_not(x: Any, wishes: Sequence[str] = ()) -> str | None:
    """Why a call with this x can't run here; None where it can. Well below a microsecond."""
    if _MISSING is not None:
        return _MISSING
    if not x.is_cpu:
        return f"it runs on the CPU, and x is on {x.device}"
    if x.dtype not in REAL_TYPES and x.dtype not in HALF_TYPES:
        return f"it computes in float32 and float64, and x is {x.dtype}"
    if is_compiling():
        return "its compiled operator has no rule for the transforms of torch.func" if transformed() else None
    return "it has no forward-mode derivative" if forward_mode() else None


def isa() -> str:
    """The instruction set in use: "avx512_amx", "avx512_bf16", "avx512", "avx2" or "baseline"."""
    name: str = cpp.isa_name()
    return name


def isas() -> list[str]:
    """The instruction sets that this machine and this build have, best first; none where the kernels are missing."""
    return [] if cpp is None else [*cpp.isa_names()]


def set_isa(name: str) -> bool:
    """Use another instruction set from now on, for tests; False and no change where the name is not in `isas()`."""
    done: bool = cpp.set_isa(name)
    return done


def peak_gflops(threads: int, seconds: float) -> float:
    """What so many cores reach in registers alone, in GFLOP/s of float32: the ceiling that no kernel passes."""
    peak: float = cpp.peak_gflops(threads, seconds)
    return peak
