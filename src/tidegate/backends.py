"""Which implementation runs: the table of back ends, `choose()` and `explain()`.

`"auto"` may choose, and `explain()` says what it chose and why not the others. A back end asked for by name
runs or raises `BackendUnavailableError`; it never quietly becomes another one.

>>> print(explain(device="cuda"))
backend='auto' runs 'torch'
  native     can't run: it runs on the CPU, and x is on cuda
  torch      chosen: PyTorch's own GRU: ATen on the CPU, cuDNN on CUDA
  reference  not chosen: the definition, step by step in Python; it does all, and slowly
>>> print(explain(device="cuda", wishes=["resets"]))
backend='auto' runs 'reference'
  native     can't run: it runs on the CPU, and x is on cuda
  torch      can't run: it has no resets
  reference  chosen: the definition, step by step in Python; it does all, and slowly
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._C import _get_tracing_state as tracing
from torch.compiler import is_compiling

from tidegate.errors import BackendUnavailableError, BackendWarning, SettingsError, nearest
from tidegate.ops.gru import in_onnx
from tidegate.ops.gru.backend import BACKENDS, IN_ORDER, Backend
from tidegate.ops.gru.extras import WISHES
from tidegate.ops.gru.modes import transformed, writes_onnx

NAMES: tuple[str, ...] = ("auto", *BACKENDS)
"""Every name that a `backend=` argument knows, whether or not it can run here."""


@dataclass(frozen=True)
class Explanation:
    """What `backend=asked` leads to, and the reason for each back end. `print()` it to read it.

    `chosen` is None where the back end that was asked for can't run.
    """

    asked: str
    chosen: str | None
    reasons: dict[str, str]

    def __str__(self) -> str:
        runs = "can't run here" if self.chosen is None else f"runs {self.chosen!r}"
        lines = [f"  {name:<10} {reason}" for name, reason in self.reasons.items()]
        return "\n".join([f"backend={self.asked!r} {runs}", *lines])


def check(backend: str) -> None:
    """Raise for a back end that can't run anywhere in this installation; what `choose` raises, ahead of a call."""
    if backend not in NAMES:
        raise _unknown(backend)
    why = None if backend == "auto" else BACKENDS[backend].missing()
    if why is not None:
        raise _unavailable(backend, why)


def choose(backend: str, x: Tensor, wishes: Sequence[str] = ()) -> Backend:
    """The module whose `gru`, `step` and `gru_cell` run for `backend` and an input like x (its device and dtype count).

    wishes: what of the call `torch.nn.GRU` does not have; `Extras.wishes` names it. While `torch.onnx.export` writes a file it
    is `in_onnx` for every name.

    >>> choose("reference", torch.zeros(1)).__name__
    'tidegate.ops.gru.reference'

    Raises `BackendUnavailableError` for one that is known but can't run here, and `SettingsError` (a
    `ValueError`) for an unknown name. Cost: well below a microsecond, so a layer asks again at every call.
    """
    if (tracing() is not None or is_compiling()) and writes_onnx():
        return in_onnx  # (the numbers are the same; only the operator has another name)
    if backend == "auto":
        for back_end in IN_ORDER:
            if back_end.why_not(x, wishes) is None and (back_end.in_transforms or not transformed()):
                if back_end is not IN_ORDER[0] and x.is_cpu and IN_ORDER[0].missing() and not is_compiling():
                    _say_what_is_missing()
                return back_end
    if backend not in BACKENDS:
        raise _unknown(backend)
    back_end = BACKENDS[backend]
    why = back_end.why_not(x, wishes)
    if why is not None:
        raise _unavailable(backend, why)
    return back_end


@functools.cache  # once in a process
def _say_what_is_missing() -> None:
    warnings.warn(
        f"Tidegate runs without its kernels, as {IN_ORDER[0].missing()}: on the CPU a GRU is then PyTorch's, several times slower, and its "
        "last bits change with the batch. `tidegate doctor` says what to do.",
        BackendWarning,
        stacklevel=4,
    )


def explain(
    backend: str = "auto",
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    wishes: Sequence[str] = (),
) -> Explanation:
    """What `choose(backend, x, wishes)` would do for x on this device, of this dtype, and why, without doing it.

    wishes: what of the call `torch.nn.GRU` does not have; `tidegate.ops.gru.extras.WISHES` are all.

    >>> explain("reference").chosen
    'reference'

    Raises `SettingsError` (a `ValueError`) for an unknown name, of a back end or a wish.
    """
    if backend not in NAMES:
        raise _unknown(backend)
    for wish in wishes:
        if wish not in WISHES:
            known = ", ".join(map(repr, WISHES))
            raise SettingsError(f"Unknown wish {wish!r}; known are {known}.{nearest(wish, WISHES)}")
    x = _Like(torch.device(device), dtype)
    cant = {name: back_end.why_not(x, wishes) for name, back_end in BACKENDS.items()}
    able = [name for name, why in cant.items() if why is None]
    chosen = able[0] if backend == "auto" else backend if backend in able else None
    reasons = {}
    for name, back_end in BACKENDS.items():
        if name not in able:
            reasons[name] = f"can't run: {cant[name]}"
        elif name == chosen:
            reasons[name] = f"chosen: {back_end.about}"
        elif backend == "auto":
            reasons[name] = f"not chosen: {back_end.about}"
        else:
            reasons[name] = f"not chosen: {backend!r} was asked for by name"
    return Explanation(backend, chosen, reasons)


class _Like:
    """As much of a tensor as the choice looks at; the device need not exist here."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype, self.is_cpu = device, dtype, device.type == "cpu"


def _unavailable(backend: str, why: str) -> BackendUnavailableError:
    others = ", ".join(repr(name) for name in NAMES if name != backend)
    return BackendUnavailableError(f"Back end {backend!r} can't run: {why}. Use one of {others}.")


def _unknown(backend: object) -> SettingsError:
    known = ", ".join(map(repr, NAMES))
    return SettingsError(f"Unknown back end {backend!r}; known are {known}.{nearest(str(backend), NAMES)}")
